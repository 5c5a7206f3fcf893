"""What a session may leave behind: processes, descriptors and control groups.

A sandbox's first process is number 1 of its pid namespace, which lies below the zygote's. So every descendant of ours
whose innermost number is not 1, that far down, was made by a guest.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_DEPTH = 2
"""Pid namespaces between a worker and its guests: the zygote's and the sandbox's."""


def descendants(root: int, *, apart_from: frozenset[int] = frozenset()) -> list[int]:
    """Return every living process below `root`, without `apart_from` and what is below those."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX" and int(entry.name) not in apart_from:
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def guests(tag: str, *, own_pid: int | None = None) -> dict[int, str]:
    """Return the processes that guests made, or that bear `tag` as their name: pid and name."""
    own = own_pid or os.getpid()
    depth = len(_status(own).get("NSpid", "").split()) + _DEPTH
    found = {}
    for pid in descendants(own):
        status = _status(pid)
        numbers = status.get("NSpid", "").split()
        if status.get("Name") == tag or (len(numbers) >= depth and numbers[-1] != "1"):
            found[pid] = status.get("Name", "")
    return found


def cgroups() -> set[str]:
    """Return every cgroup of this host, by its directory."""
    return {str(path) for path, _, _ in os.walk(CGROUPS)} if CGROUPS.is_dir() else set()


def descriptors() -> int:
    """Return how many descriptors this process holds, but for those of its control groups.

    A slot's group is made when the slot is first taken and kept for the next sandbox: its files, and the eventfd that
    tells of a lack of memory, are the slot's and no session's.
    """
    held = 0
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - no paths are needed
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            target = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - strings all along
            held += not target.startswith((f"{CGROUPS}/", "anon_inode:[eventfd]"))
    return held


def _status(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {}
