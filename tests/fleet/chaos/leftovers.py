"""What a run has left: processes, cgroups, mounts, descriptors, files.

Theory of operation. The harness is a subreaper, so whatever loses its parent becomes its child: after the end of the
fleet every child that it has is left over, whoever started it. Cgroups of workers have their process's number in their
name. The rest is counted before and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_client.bench.footprint import children

from .namespaces import prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

_PR_SET_CHILD_SUBREAPER = 36
_CGROUPS = Path("/sys/fs/cgroup")
SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Held:
    """What this process has."""

    descriptors: dict[str, str]
    mounts: dict[str, str]

    @classmethod
    def now(cls) -> Held:
        """Look."""
        descriptors = {}
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is the one that we look with
                descriptors[entry.name] = str(entry.readlink())
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        ours = [line for line in mounts if "/run/netns/" not in line or prefix() in line]  # others may have theirs
        return cls(descriptors, {line.split()[0]: line for line in ours})


def adopt_orphans() -> None:
    """Become the parent of what loses its own among our descendants."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


async def leftovers(before: Held, workers: Iterable[int], temporary: Path, *, settle_s: float = SETTLE_S) -> list[str]:
    """Say what is left, when it has had its time to go.

    Args:
        before: what we had before anything was started.
        workers: process ids of every worker there was.
        temporary: the programs' directory for temporary files.
        settle_s: what dies with its owner has so long to be gone.
    """
    deadline = time.monotonic() + settle_s
    ids = set(workers)
    while True:
        found = _found(before, ids, temporary)
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.1)


def _found(before: Held, workers: set[int], temporary: Path) -> list[str]:
    found = [f"process {pid}: {_command(pid)}" for pid in children(os.getpid()) if not _reaped(pid)]
    found += [f"cgroup {path}" for path in _cgroups(workers)]
    found += [f"file {path}" for path in temporary.rglob("*")]
    now = Held.now()
    for name in ("descriptors", "mounts"):
        was, has = getattr(before, name), getattr(now, name)
        if len(has) > len(was):
            found.append(f"{name}: {len(was)} before, now also {[what for key, what in has.items() if key not in was]}")
    return found


def _reaped(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return True


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200]
    return "gone"


def _cgroups(workers: set[int]) -> list[str]:
    names = {f"enclave-{pid}" for pid in workers}
    return [
        os.path.join(directory, name)  # noqa: PTH118 - what os.walk gives
        for directory, below, _ in os.walk(_CGROUPS)
        for name in below
        if name in names
    ]
