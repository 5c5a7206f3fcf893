"""What the tests need to know about processes: who descends from whom, and when one is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def open_pidfds(pids: list[int]) -> list[int]:
    """Return a descriptor for each process that still exists."""
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found.append(os.pidfd_open(pid))
    return found


async def wait_gone(pidfds: list[int], timeout_s: float = 30) -> None:
    """Wait until all these processes have ended, and close the descriptors."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            for fd in pidfds:
                ended = asyncio.Event()
                loop.add_reader(fd, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(fd)
    finally:
        for fd in pidfds:
            os.close(fd)
