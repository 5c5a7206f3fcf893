"""One child process of a fleet: a worker or a broker, started, listened to, and stopped.

Ownership. A `Program` owns its process and the two tasks that read its output, from `start` until `stop` or `wait_exit`
has returned; then all three are gone. It can be started again afterwards. The child has fds 0 to 2 only
(`close_fds`), its own session, so that a Ctrl-C in the terminal reaches only us and the order of stopping is ours, and
dies with us whatever happens (see `child`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from . import child
from .lines import LineSplitter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LISTENING = re.compile(r"^enclave-(?:runtime|broker) listening on (\S+)(?: at level (\S+))?")
KEPT_LINES = 200
MAX_LOG_LINE_BYTES = 16 * 1024
DRAIN_S = 2.0


class ProgramDiedError(Exception):
    """A program ended before it was ready, or was not ready in time.

    Attributes:
        program: which one.
    """

    def __init__(self, program: Program, reason: str) -> None:
        self.program = program
        super().__init__(f"{program.name} {reason}")


class Program:
    """A child process running one of our modules.

    Args:
        name: what people call it, such as `worker-1`.
        module: its `main` is run.
        arguments: its command line; None if it is to load already and is told by `give_arguments`.
        log: called with every line the program writes after the one that says where it listens.
        environment: the child's; ours if not given.
        python: the interpreter that runs it; ours if not given. Another one may find other versions of our modules.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: list[str] | None,
        log: Callable[[str], None],
        *,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.name = name
        self.module = module
        self.arguments = arguments
        self.url = ""
        """Where it listens, in its own words; empty until it does."""
        self.level = ""
        """The security level that it says it holds: a worker's; empty until it does."""
        self.kept_lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        """The last lines it wrote, for whoever has to explain its death."""
        self._log = log
        self.environment = environment
        self._python = python
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._listening: asyncio.Future[str] | None = None

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else None
        return f"<Program {self.name} pid={pid} url={self.url or None}>"

    @property
    def pid(self) -> int | None:
        """The process's id, None while there is none."""
        return self._process.pid if self._process else None

    @property
    def ended(self) -> bool:
        """Whether the process was started and is gone."""
        return self._process is not None and self._process.returncode is not None

    async def start(self) -> None:
        """Start the process. It is not listening yet: see `wait_listening`."""
        self.kept_lines.clear()
        self.url = ""
        self._listening = asyncio.get_running_loop().create_future()
        # -P: a file called `click.py` in the current directory must not become part of the fleet. By its path, because
        # another interpreter may find an older one.
        command = [self._python, "-P", child.__file__, str(os.getpid()), self.module]
        # Pipes of our own: asyncio's keep its `wait` waiting for as long as a grandchild holds them.
        with contextlib.ExitStack() as writers:
            outputs = []
            for _ in range(2):
                reader, writer = os.pipe()
                writers.callback(os.close, writer)
                self._readers.append(asyncio.create_task(self._read(reader)))
                outputs.append(writer)
            self._process = await asyncio.create_subprocess_exec(
                *command,
                *([child.ARGUMENTS_ON_STDIN] if self.arguments is None else self.arguments),
                stdin=subprocess.PIPE if self.arguments is None else subprocess.DEVNULL,
                stdout=outputs[0],
                stderr=outputs[1],
                close_fds=True,
                env=self.environment,
                start_new_session=True,
            )

    async def give_arguments(self, arguments: list[str]) -> None:
        """Tell a program that was started without arguments what they are."""
        if self._process is None or self._process.stdin is None:
            raise AssertionError("give_arguments to a program that does not wait for them")
        self.arguments = arguments
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        # If it is already dead, waiting for it to listen says so.
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def wait_listening(self, timeout_s: float) -> str:
        """Return the address from the program's first line.

        Raises:
            ProgramDiedError: it ended first, or said nothing within `timeout_s`.
        """
        if self._process is None or self._listening is None:
            raise AssertionError("wait_listening before start")
        exited = asyncio.create_task(self._process.wait())
        first: set[asyncio.Future[Any]] = {exited, self._listening}
        try:
            await asyncio.wait(first, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not self._listening.done() and not exited.done():
                raise ProgramDiedError(self, f"did not listen within {timeout_s:g} s")
            if not self._listening.done():
                await self._finish_reading()
                raise ProgramDiedError(self, f"did not start ({describe_exit(exited.result())})")
        finally:
            exited.cancel()
            await asyncio.gather(exited, return_exceptions=True)
        self.url = self._listening.result()
        return self.url

    async def wait_exit(self) -> str:
        """Wait for the end of the process and say in words how it ended."""
        if self._process is None:
            return "not started"
        status = await self._process.wait()
        await self._finish_reading()
        return describe_exit(status)

    def terminate(self) -> None:
        """Ask the process to end. It may take its time: see `wait_exit`."""
        self._signal(signal.SIGTERM)

    async def stop(self, grace_s: float, *, patience_s: float = 0.0, hurry: asyncio.Event | None = None) -> None:
        """End the process. Returns when it is gone.

        SIGTERM asks it to; SIGINT, after `patience_s` or when `hurry` is set, asks it not to wait for anybody any more;
        SIGKILL follows after another `grace_s`.
        """
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        if patience_s:
            waits = [asyncio.ensure_future(self._process.wait())]
            waits += [asyncio.ensure_future(hurry.wait())] if hurry is not None else []
            await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            self._signal(signal.SIGINT)  # another number: of two alike, one that busy programs have yet to take is lost
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), grace_s)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        await self._finish_reading()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _read(self, fd: int) -> None:
        """Take lines from `fd` until its end, and close it."""
        stream = asyncio.StreamReader()
        pipe = os.fdopen(fd, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        splitter = LineSplitter()
        try:
            while chunk := await stream.read(65_536):
                for line in splitter.feed(chunk):
                    self._take(line)
                if splitter.pending_bytes > MAX_LOG_LINE_BYTES:
                    self._take(splitter.flush())
        finally:
            transport.close()
        if last := splitter.flush():
            self._take(last)

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip("\r")
        found = LISTENING.match(line)
        if found and self._listening is not None and not self._listening.done():
            self.level = found[2] or ""
            self._listening.set_result(found[1])
            return
        self.kept_lines.append(line)
        self._log(line)

    async def _finish_reading(self) -> None:
        # A grandchild may hold the pipes open: what it has to say is not worth waiting for.
        readers, self._readers = self._readers, []
        if readers:
            _, late = await asyncio.wait(readers, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


def describe_exit(status: int) -> str:
    """Say a wait status of `subprocess` in words: `exit code 3`, `killed by SIGKILL`."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
