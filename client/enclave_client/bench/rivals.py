"""What we compare with: a bare interpreter, and `bwrap` around one.

Both are started with `posix_spawn` and waited for, which is the cheapest way there is: asyncio's or subprocess's own
cost would flatter us.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

_INTERPRETER = os.path.realpath(sys.executable)
"""A virtual environment's `python` is a link, and a version manager's a shell script: neither is to be measured."""
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
    return [bwrap, *sandbox, "--tmpfs", "/tmp", _INTERPRETER, "-I", "-S", "-c", "print(2)"]  # noqa: S108 - its own


def run_many_s(command: list[str], count: int, at_once: int) -> float:
    """Run `command` `count` times, `at_once` at a time; return how long all of it took. Raises RivalError."""
    with ThreadPoolExecutor(at_once) as threads:
        started = time.perf_counter()
        for _ in threads.map(_run_ms, [command] * count):
            pass
        return time.perf_counter() - started


def _run_ms(command: list[str]) -> float:
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=_NO_OUTPUT)
    _, status = os.waitpid(pid, 0)
    elapsed_ms = (time.perf_counter() - started) * 1000
    if status != 0:
        raise RivalError(f"{command[0]} ended with status {status}")
    return elapsed_ms
