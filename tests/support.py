"""What tests of a real worker share: a client that holds every stream to the wire, process look-ups, other users."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from enclave_worker.config import RuntimeConfig
from enclave_worker.runtime import create_runtime_worker
from tests.real_client import check_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from enclave_worker.runtime import RuntimeWorker

PATIENCE_S = 60.0
"""How long anything may take before a test fails instead of hanging."""
DEADLINES_MS = (500, 5000, 50_000)
"""For what a deadline ends, once it has come so far: the next one, where the machine is too busy for that."""
USER = 1234
"""An ordinary user's id, for tests that are started as root."""

NAME_PROCESS = "__import__('ctypes').CDLL(None).prctl(15, b'{name}', 0, 0, 0)\n"
"""Guest code that gives its process a name which the host can look for; children inherit it."""

Message = dict[str, Any]


class Run(NamedTuple):
    """One session from its first event to its last."""

    final: Message
    """The payload of the `final`."""
    events: list[Message]

    def text(self, stream: str) -> str:
        """Everything the guest wrote to `stdout` or `stderr`."""
        return "".join(event["payload"]["chunk"] for event in self.events if event["type"] == stream)

    def of_type(self, kind: str) -> list[Message]:
        """The payloads of the events of one type."""
        return [event["payload"] for event in self.events if event["type"] == kind]

    @property
    def code(self) -> str:
        """The error's code; `OK` if there is none."""
        return self.final["error"]["code"] if "error" in self.final else "OK"


class Client:
    """One connection to a worker. Reads only when asked to, and files what it reads by session."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.hello: Message = {}
        self.lines: dict[str, list[bytes]] = {}
        self.streams: dict[str, list[Message]] = {}
        """The same lines, decoded."""
        self.other: list[Message] = []
        """What belongs to no stream, such as rejections and pongs."""

    async def send(self, message: Message | str | bytes) -> None:
        await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def start(self, code: str, *, session_id: str | None = None, **limits: Any) -> str:
        """Start a session; return its id."""
        session_id = session_id or f"s_{uuid.uuid4()}"
        await self.send({"type": "execute", "sessionId": session_id, "code": code, "limits": limits})
        return session_id

    async def recv(self) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            data = await self.socket.recv()
        line = data.encode() if isinstance(data, str) else data
        message: Message = msgspec.json.decode(line)
        if "seq" in message:
            self.lines.setdefault(message["sessionId"], []).append(line)
            self.streams.setdefault(message["sessionId"], []).append(message)
        else:
            self.other.append(message)
        return message

    async def until(self, session_id: str, kind: str) -> Message:
        """Read on until the session has a new event of this type; return its payload."""
        while True:
            message = await self.recv()
            if message["type"] == kind and message.get("sessionId") == session_id:
                payload: Message = message["payload"]
                return payload

    async def until_written(self, session_id: str, text: str) -> None:
        """Read on until this much was written to stdout."""
        while text not in Run({}, self.events(session_id)).text("stdout"):
            await self.recv()

    async def answer(self, session_id: str, call_id: str, value: Any) -> None:
        """Give a tool call its result."""
        await self.send({"type": "tool_result", "sessionId": session_id, "callId": call_id, "result": value})

    async def finish(self, session_id: str, *, first_seq: int = 1) -> Run:
        """Wait for the session's `final`, and hold its whole stream to the wire."""
        while not (events := self.events(session_id)) or events[-1]["type"] != "final":
            await self.recv()
        check_stream(self.lines[session_id], first_seq=first_seq)
        return Run(events[-1]["payload"], events)

    async def run(self, code: str, **limits: Any) -> Run:
        return await self.finish(await self.start(code, **limits))

    async def run_to_deadline(self, code: str, said: str, **limits: Any) -> Run:
        """Run what only its deadline ends, with time enough for it to have written `said` to stdout."""
        for deadline_ms in DEADLINES_MS:
            run = await self.run(code, deadlineMs=deadline_ms, **limits)
            if said in run.text("stdout"):
                break
        return run

    async def rejection(self, message: Message | str | bytes) -> Message:
        """Send something that must be refused; return the refusal."""
        await self.send(message)
        while True:
            answer = await self.recv()
            if "seq" not in answer:
                assert answer["type"] == "error", answer
                return answer

    async def ping(self) -> Message:
        await self.send({"type": "ping", "timestamp": 1.5})
        while (answer := await self.recv())["type"] != "pong":
            pass
        return answer

    def events(self, session_id: str) -> list[Message]:
        return self.streams.get(session_id, [])

    def forget(self, session_id: str) -> None:
        """Drop a session that has ended, whose id is to be used again."""
        del self.lines[session_id], self.streams[session_id]


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    """Connect, and read the greeting."""
    async with connect(url, max_size=None, compression=None) as socket:
        client = Client(socket)
        client.hello = await client.recv()
        yield client


@contextlib.asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[RuntimeWorker]:
    """Run a worker in this process, on a free port."""
    worker = create_runtime_worker(RuntimeConfig(port=0, **settings))
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


# Processes.


def own_children_of(pid: int) -> list[int]:
    """The processes that this one made, or adopted."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def children_of(pid: int) -> list[int]:
    """Every descendant of a process."""
    return [each for child in own_children_of(pid) for each in (child, *children_of(child))]


def made_since(others: frozenset[int]) -> list[int]:
    """Every process below us but `others`, our children of before, and what is below those."""
    children = set(own_children_of(os.getpid())) - others
    return [each for child in children for each in (child, *children_of(child))]


def parent_of(pid: int) -> int:
    """The process that made this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_none_named(name: str) -> None:
    """Wait until no process of this name lives: those that are left must be dying, and can make no others."""
    with watched(processes_named(name)) as wait_gone:
        wait_gone()
    assert processes_named(name) == []


def processes_named(name: str) -> list[int]:
    """Every living process of the machine that was named so by `NAME_PROCESS`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text() == f"{name}\n":
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(entry.name)] if state not in "ZX" else []
    return found


def new_name() -> str:
    """Return a process name that nobody else uses."""
    return f"t{uuid.uuid4().hex[:14]}"


@contextlib.contextmanager
def watched(pids: Iterable[int]) -> Iterator[Callable[[], None]]:
    """Hand out a function that waits until all these processes are gone, and fails if one stays."""
    with contextlib.ExitStack() as stack:
        fds = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fds.append(os.pidfd_open(pid))
                stack.callback(os.close, fds[-1])

        def wait_gone() -> None:
            for fd in fds:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                assert poll.poll(PATIENCE_S * 1000), "a process outlived its owner"

        yield wait_gone


def complaints(stderr: str) -> list[str]:
    """Return the lines that tell of trouble: a worker also tells of what a killed one left, which it removes."""
    return [line for line in stderr.splitlines() if " INFO " not in line]


# Leaks.


def control_groups_of(pid: int) -> list[Path]:
    """Return the control groups that a worker with this process id has made, in every hierarchy."""
    # Others come and go while we look: os.walk passes over what has just gone. An x is another worker of one process.
    walk = os.walk("/sys/fs/cgroup")
    ours = f"enclave-{pid}"
    return [Path(parent, name) for parent, names, _ in walk for name in names if name.rstrip("x") == ours]


class Footprint(NamedTuple):
    """What a process holds that it must let go of."""

    descriptors: int
    children: int
    threads: int
    mounts: int
    control_groups: int

    @classmethod
    def now(cls, others: frozenset[int] = frozenset()) -> Self:
        """Count, but not what is below `others`, children that are not the test's."""
        pid = os.getpid()
        mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return cls(descriptors, len(made_since(others)), threading.active_count(), mounts, len(control_groups_of(pid)))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if descriptors, processes, threads, mounts or control groups are left in the end."""
    # A worker that all attacks share lives on, and makes its sandboxes when it will.
    others = frozenset(own_children_of(os.getpid()))
    before = Footprint.now(others)
    yield
    after = Footprint.now(others)
    assert all(has <= had for has, had in zip(after, before, strict=True)), f"{before} became {after}"


# Programs.


@contextlib.contextmanager
def worker_process(
    *options: str, as_user: int | bool = False, before: Iterable[str] = (), env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the real command on a free port; yield the process and its URL. Ends it, and waits for its end.

    `as_user` may be the user's id. `before` is a command that runs it; `env` is added to the environment.
    """
    command = [sys.executable, "-m", "enclave_worker.cli", "--port", "0", *options]
    if as_user is not False:
        command = ordinary_user(command, USER if as_user is True else as_user)
    command = [*before, *command]
    own = {**os.environ, **(env or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Read all along: a full pipe would stop the worker.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            line = process.stdout.readline()
            assert line, f"the worker did not start: exit code {process.wait(PATIENCE_S)}"
            yield process, line.split()[3]
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def ordinary_user(command: list[str], uid: int = USER) -> list[str]:
    """Return a command that runs `command` as somebody who is not root (or is, with what others need within reach).

    Root's tests may run on an interpreter that only root can reach. Then the command gets a mount namespace of its
    own, in which what it needs of the unreachable directories, and nothing else of them, lies open.
    """
    if os.geteuid() != 0:
        return command
    root = Path(__file__).resolve().parent.parent
    needed = [sys.base_prefix, sys.prefix, str(root), *(path for path in sys.path if path and Path(path).is_dir())]
    return [sys.executable, str(root / "tests" / "as_user.py"), str(uid), json.dumps(needed), *command]
