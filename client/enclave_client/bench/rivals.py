"""What we compare with: what a user could take instead.

A bare interpreter, `bwrap` around one, gVisor around one, and a warm `ipykernel`. Programs are started with
`posix_spawn` and waited for, which is the cheapest way there is: asyncio's or subprocess's own cost would flatter us.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import kernel
from .open_loop import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .open_loop import Target

AT_ONCE = 16
"""Processes of a program at the same time; who asks for more waits."""
_INTERPRETER = os.path.realpath(sys.executable)
"""A virtual environment's `python` is a link, and a version manager's a shell script: neither is to be measured."""
_SAYS_2 = [_INTERPRETER, "-I", "-S", "-c", "print(2)"]
_NO_OUTPUT = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]


class RivalError(Exception):
    """A program that we compare with failed."""


def bare_start_ms() -> float:
    """Return how long an interpreter that does nothing takes from start to end."""
    return _run_ms([_INTERPRETER, "-I", "-S", "-c", "pass"])


def bwrap_command() -> list[str] | None:
    """Return the command line of the rival sandbox; None where `bwrap` is not installed."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return None
    sandbox = ["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    return [bwrap, *sandbox, "--tmpfs", "/tmp", *_SAYS_2]  # noqa: S108 - its own


def gvisor_command() -> list[str] | None:
    """Return the command line of gVisor around an interpreter; None where `runsc` is not installed."""
    runsc = shutil.which("runsc")
    if runsc is None:
        return None
    return [runsc, *([] if os.geteuid() == 0 else ["--rootless"]), "--network=none", "do", *_SAYS_2]


def run_many_s(command: list[str], count: int, at_once: int) -> float:
    """Run `command` `count` times, `at_once` at a time; return how long all of it took. Raises RivalError."""
    with ThreadPoolExecutor(at_once) as threads:
        started = time.perf_counter()
        for _ in threads.map(_run_ms, [command] * count):
            pass
        return time.perf_counter() - started


class Program:
    """A command as a target: each request is a process of it, in one of some threads, and waits while all are taken."""

    def __init__(self, command: list[str], threads: ThreadPoolExecutor) -> None:
        self._command = command
        self._threads = threads

    async def ask(self) -> Answer:
        """Run it once; what it writes is thrown away."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, _run_ms, self._command)
        except (RivalError, OSError):  # it failed, or is nothing that can be started
            return Answer.FAILED
        return Answer.ACCEPTED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rival:
    """Something that we compare with, and that runs here."""

    name: str
    """For machines: `bwrap`."""
    title: str
    target: Target
    one: int
    """Requests in a row, of a block one at a time: so many as take about as long as others'."""
    many: int
    """Requests of a block with `AT_ONCE` at a time."""


@contextlib.asynccontextmanager
async def running(left_out: list[str]) -> AsyncIterator[list[Rival]]:
    """Give all that run here, for the length of a `with` block.

    Args:
        left_out: takes, in words, what does not and why.
    """
    async with contextlib.AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        found = [Rival(name="bare", title="bare interpreter", target=Program(_SAYS_2, threads), one=10, many=48)]
        if not kernel.installed():
            left_out.append("warm ipykernel: not installed (pip install 'enclave[bench]')")
        else:
            try:
                target = await stack.enter_async_context(kernel.running_kernel())
                found.append(Rival(name="ipykernel", title="warm ipykernel", target=target, one=20, many=160))
            except (RuntimeError, OSError) as error:
                left_out.append(f"warm ipykernel: it does not start here: {error}")
        for name, title, command, one, many in (
            ("bwrap", "bwrap", bwrap_command(), 10, 48),
            ("gvisor", "gVisor (runsc do)", gvisor_command(), 2, AT_ONCE),
        ):
            if command is None:
                left_out.append(f"{title}: not installed")
            else:
                found.append(Rival(name=name, title=title, target=Program(command, threads), one=one, many=many))
        for rival in list(found):
            if await rival.target.ask() is Answer.FAILED:
                left_out.append(f"{rival.title}: it is installed, and fails here")
                found.remove(rival)
        yield found


def _run_ms(command: list[str]) -> float:
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=_NO_OUTPUT)
    _, status = os.waitpid(pid, 0)
    elapsed_ms = (time.perf_counter() - started) * 1000
    if status != 0:
        raise RivalError(f"{command[0]} ended with status {status}")
    return elapsed_ms
