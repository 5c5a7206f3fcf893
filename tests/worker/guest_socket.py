"""A guest that is written, not run: the far ends of a real `Sandbox`'s descriptors, in the hands of a test.

The sandbox, the session and its limits are the worker's own; only what surrounds them is made up. `GuestHost` is the
zygote and the pool in one: it hands out sandboxes whose process has left already, so that a kill harms nobody, and
reports an exit when told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

import msgspec

from enclave_protocol import Execute
from enclave_worker.config import RuntimeConfig
from enclave_worker.metrics import WorkerMetrics
from enclave_worker.offers import Offer
from enclave_worker.profiles import Profile
from enclave_worker.readiness import Readiness
from enclave_worker.sandbox_process import Sandbox
from enclave_worker.sessions import Sessions
from enclave_worker.slots import Slot
from enclave_worker.usage import Allowance, Exit
from enclave_worker.zygote import frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enclave_protocol import Limits
    from enclave_worker.footing import Footing
    from enclave_worker.output import Stream
    from enclave_worker.pool import Taker
    from enclave_worker.pools import Pools
    from enclave_worker.sandbox.spec import SandboxSpec
    from enclave_worker.zygote_process import ZygoteProcess

MAX_TURNS = 2000
"""Turns of the loop that anything here may take."""


def frame(message: object) -> bytes:
    """Return a whole frame: of JSON text if it is bytes, of the text of a value if not."""
    body = message if isinstance(message, bytes) else msgspec.json.encode(message)
    return frames.HEADER.pack(len(body)) + body


def call(number: int, **more: object) -> bytes:
    return frame({"type": "tool_call", "id": number, "name": "x", "args": None, **more})


def result(value: object) -> bytes:
    return frame({"type": "result", "value": value})


async def turns(count: int = 3) -> None:
    """Let the loop look at every descriptor so often."""
    for _ in range(count):
        await asyncio.sleep(0)


class Lines:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.congested = False
        self.lines: list[bytes] = []

    def deliver(self, line: bytes) -> None:
        self.lines.append(line)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.lines]

    @property
    def final(self) -> dict[str, Any] | None:
        """The payload of the last event if it is a `final`."""
        last = self.events[-1] if self.lines else {}
        return last["payload"] if last.get("type") == "final" else None


class Guest:
    """One session on a sandbox, with the guest's own ends of its descriptors."""

    def __init__(self, host: GuestHost, **limits: Any) -> None:
        self.sink = Lines()
        self.sessions = host.sessions
        self.session_id = host.sessions.execute(Execute(code="", limits=limits or msgspec.UNSET), self.sink)
        self.sandbox, self.socket, self.pipes = host.made.pop()

    def close(self) -> None:
        """Close what the guest has open."""
        self.socket.close()
        for stream in tuple(self.pipes):
            os.close(self.pipes.pop(stream))

    def exit(self) -> None:
        """Die: the kernel closes what was open, and the zygote says so."""
        self.close()
        if self.sandbox.number in self.sandbox.process.sandboxes:
            self.sandbox.process.sandboxes.pop(self.sandbox.number).exited(_DIED)

    async def write(self, data: bytes, descriptors: list[int] | None = None, *, by: int = 1 << 20) -> bool:
        """Write all of it in pieces of `by` bytes; False if it is not wanted: the end is shut, or nobody reads."""
        waited = 0
        while data and waited < MAX_TURNS:
            try:
                if descriptors:
                    sent = socket.send_fds(self.socket, [data[:by]], descriptors)
                else:
                    sent = self.socket.send(data[:by])
            except BlockingIOError:
                waited += 1
                await turns(1)
                continue
            except OSError:
                return False
            data, waited = data[sent:], 0
            if by < len(data):
                await turns(1)
        await turns()
        return not data

    async def print(self, stream: Stream, data: bytes) -> None:
        """Write to an output pipe as much as it takes."""
        if stream in self.pipes:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self.pipes[stream], data)
        await turns()


def _offer(limits: Limits) -> Offer:
    """Return what sessions look at of an offer. Nothing here makes a real sandbox."""
    footing, spec = cast("Footing", None), cast("SandboxSpec", None)
    return Offer(
        profile=Profile(name="python"),
        footing=footing,
        allowance=Allowance(),
        limits=limits,
        spec=spec,
        languages=("python",),
    )


class GuestHost:
    """Makes sandboxes for sessions. Use as an async context manager, in a loop of its own."""

    def __init__(self, **config: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.readiness = Readiness(self.loop)
        self.raised: list[dict[str, Any]] = []
        """What the loop's callbacks let out."""
        self.loop.set_exception_handler(lambda _, context: self.raised.append(context))
        self.sandboxes: dict[int, Sandbox] = {}
        self.made: list[tuple[Sandbox, socket.socket, dict[Stream, int]]] = []
        settings = RuntimeConfig(**config)
        self.offers = {"python": _offer(settings.default_limits)}
        self.sessions = Sessions(settings, cast("Pools", self), WorkerMetrics())
        self._numbers = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for sandbox in tuple(self.sandboxes.values()):
            self.sandboxes.pop(sandbox.number).exited(_DIED)
        self.readiness.close()
        assert self.raised == []
        assert self.sessions.active == 0

    # As the pools.

    def take(self, taker: Taker, profile: str, language: str, code: str) -> None:
        del profile, language, code
        self._numbers += 1
        sandbox = Sandbox(cast("ZygoteProcess", self), self._numbers, Slot(self._numbers, 0), self)
        self.sandboxes[sandbox.number] = sandbox
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        pipes = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
        sandbox.opened(ours.detach(), pipes[0][0], pipes[1][0], os.dup(_pidfd_of_the_dead()))
        self.made.append((sandbox, theirs, {"stdout": pipes[0][1], "stderr": pipes[1][1]}))
        taker.on_sandbox(sandbox)

    def forget(self, taker: Taker) -> None:
        raise AssertionError(f"{taker!r} has had its sandbox")

    # As their home: who has them before and after a session.

    def retire(self, sandbox: Sandbox) -> None:
        sandbox.dismiss(self)

    def released(self, sandbox: Sandbox) -> None:
        assert sandbox.number not in self.sandboxes

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        """The session is over."""

    def on_broken(self, sandbox: Sandbox, reason: str) -> None:
        """The session is over."""

    def on_hangup(self, sandbox: Sandbox) -> None:
        """The session is over."""

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        return False

    def on_dropped(self, sandbox: Sandbox, stream: Stream, size_bytes: int) -> None:
        """The session is over."""

    def on_oom(self, sandbox: Sandbox) -> None:
        raise AssertionError("nothing counts the memory of what does not run")

    def on_exit(self, sandbox: Sandbox, exit_: Exit) -> None:
        self.released(sandbox)

    # As the zygote.

    def kill(self, number: int) -> NoReturn:
        raise AssertionError(f"sandbox {number} was open all along")


_DIED = Exit(status=9)


@functools.cache
def _pidfd_of_the_dead() -> int:
    """Return a descriptor of a process that is gone. It is kept: the next test wants one, too."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    descriptor = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    return descriptor


@contextlib.contextmanager
def same_descriptors() -> Iterator[None]:
    """Fail if the body leaves a descriptor more or less than before."""
    _pidfd_of_the_dead()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
