"""Attacks run on the real worker command, in a process of its own: what they break is not the test."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import pytest
from websockets.sync.client import connect

from enclave_client.bench.footprint import worker_descriptors
from tests.real_client import check_stream
from tests.support import DEADLINES_MS, PATIENCE_S, children_of, worker_process

from . import corpora as runs_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

POOL_SIZE = 2
"""Of the worker under attack,"""
POOLS = 3
"""and how many it has for its one profile: bare, full and JavaScript."""
DEADLINE_MS = 50_000
"""For what ends by itself: not to be met on the busiest machine."""
PRELUDE = """
import ctypes, errno, os, socket, sys
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
def attempt(action):
    "The name of the errno that refused it, or what it gave."
    try:
        return f'WORKED: {action()!r}'[:300]
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def call(number, *arguments):
    "The same for a bare system call."
    ctypes.set_errno(0)
    result = _libc.syscall(*[ctypes.c_long(argument) for argument in (number, *arguments)])
    return f'WORKED: {result}' if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""
"""Put before every attack."""


class Outcome(NamedTuple):
    """What came of an attack."""

    final: dict[str, Any]
    stdout: str
    stderr: str

    @property
    def result(self) -> Any:
        """What the code returned; fails the test with the reason if it did not."""
        assert self.final["ok"], self.final["error"]
        return self.final.get("result")

    @property
    def code(self) -> str:
        """The error's code."""
        return self.final["error"]["code"] if "error" in self.final else "OK"


class Attack(Protocol):
    """Runs code in a fresh sandbox of the worker."""

    def __call__(self, code: str, **limits: Any) -> Outcome: ...


def to_deadline(attack: Attack, code: str, enough: Callable[[Outcome], bool]) -> Outcome:
    """Run what only its deadline ends, with time enough for it to have come so far."""
    for deadline_ms in DEADLINES_MS:
        outcome = attack(code, deadlineMs=deadline_ms)
        if enough(outcome):
            break
    return outcome


class Held(NamedTuple):
    """What a worker holds between two sessions."""

    descriptors: int
    """Without those that belong to slots, of which it has more the more sandboxes it ever had at once."""
    processes: int


class Target(NamedTuple):
    """The worker under attack."""

    url: str
    pid: int
    level: str
    """The security level that it holds."""

    def metric(self, name: str) -> float:
        """One gauge of its /metrics."""
        address = self.url.replace("ws://", "http://").replace("/ws", "/metrics")
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def at_rest(self) -> Held:
        """Wait until no sandbox is left but those of its pools that wait for code; return what it holds then."""
        until_s = time.monotonic() + PATIENCE_S
        sandboxes = {"warm": POOLS * POOL_SIZE, "starting": 0, "taken": 0}
        rest = {f'enclave_pool_sandboxes{{state="{state}"}}': count for state, count in sandboxes.items()}
        rest["enclave_connections"] = 0
        while (now := {name: self.metric(name) for name in rest}) != rest:
            assert time.monotonic() < until_s, now
        # The least of many looks: the connection on which its metrics were asked for may still be closing.
        return Held(min(worker_descriptors(self.pid) for _ in range(100)), len(children_of(self.pid)))


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    """A worker for all attacks: one that harms it fails those that follow, too."""
    os.environ["ENCLAVE_TEST_SECRET"] = "a secret of the host's environment"
    try:
        with worker_process("--pool-size", str(POOL_SIZE)) as (process, url):
            with connect(url) as connection:
                level = msgspec.json.decode(connection.recv(PATIENCE_S))["level"]
            yield Target(url, process.pid, level)
            assert process.poll() is None, "an attack ended the worker"
    finally:
        del os.environ["ENCLAVE_TEST_SECRET"]


@pytest.fixture
def attack(target: Target) -> Iterator[Attack]:
    """Run an attack; afterwards the worker must serve others as before."""

    def run(code: str, **limits: Any) -> Outcome:
        with connect(target.url, max_size=None, compression=None, close_timeout=1) as connection:
            assert msgspec.json.decode(connection.recv(PATIENCE_S))["type"] == "hello"
            limits.setdefault("deadlineMs", DEADLINE_MS)
            request = {"type": "execute", "code": PRELUDE + code, "limits": limits}
            connection.send(msgspec.json.encode(request).decode())
            lines: list[bytes] = []
            while not lines or b'"type":"final"' not in lines[-1][:40]:
                message = connection.recv(PATIENCE_S)
                lines.append(message.encode() if isinstance(message, str) else message)
        check_stream(lines)
        events = [msgspec.json.decode(line) for line in lines]
        out, err = (
            "".join(event["payload"]["chunk"] for event in events if event["type"] == stream)
            for stream in ("stdout", "stderr")
        )
        return Outcome(events[-1]["payload"], out, err)

    yield run
    assert run("return 'unharmed'").result == "unharmed"


class Listener(NamedTuple):
    """A socket of the host's that no guest may reach."""

    address: Any
    sock: socket.socket

    def touched(self) -> bool:
        """Whether anybody connected."""
        with contextlib.suppress(BlockingIOError):
            self.sock.accept()[0].close()
            return True
        return False


def _listener(family: int, address: Any) -> Listener:
    sock = socket.socket(family)
    sock.bind(address)
    sock.listen()
    sock.setblocking(False)
    return Listener(sock.getsockname(), sock)


@pytest.fixture
def tcp_listener() -> Iterator[Listener]:
    """A service on the host's loopback."""
    listener = _listener(socket.AF_INET, ("127.0.0.1", 0))
    yield listener
    assert not listener.touched()
    listener.sock.close()


@pytest.fixture
def abstract_listener() -> Iterator[Listener]:
    """A service on an abstract unix socket, which no file system hides."""
    listener = _listener(socket.AF_UNIX, f"\0enclave-test-{os.getpid()}")
    yield listener
    assert not listener.touched()
    listener.sock.close()


class Corpora(NamedTuple):
    """Everybody's runs of the two corpora."""

    shared: dict[str, list[Future[runs_of.Ran]]]
    own: dict[str, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="session")
def corpora(request: pytest.FixtureRequest) -> Iterator[Corpora]:
    """Run what somebody asks for of them, one for each processor at a time: with more, a session meets its deadline."""
    asked = {item.path.stem for item in request.session.items if "corpora" in getattr(item, "fixturenames", ())}
    shared = runs_of.WHO if "test_corpus" in asked and runs_of.APPLIES else ()
    own = runs_of.WHO if "test_own_corpus" in asked else ()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield Corpora(
            {who: [threads.submit(runs_of.run_shared, who, part) for part in runs_of.PARTS] for who in shared},
            {who: threads.submit(runs_of.run_own, who) for who in own},
        )
