"""What a process holds, to be compared before and after."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def nothing_leaks() -> Iterator[None]:
    """Fail if the body leaves a descriptor, process, thread or mount behind. It has to close its event loops."""
    before = _held()
    yield
    gc.collect()
    after = _held()
    for kind, had in before.items():
        assert after[kind] - had == Counter(), f"{kind} left behind: {after[kind] - had}"


def _held() -> dict[str, Counter[str]]:
    return {
        "descriptors": Counter(_descriptors()),
        "processes": Counter(_descendants(os.getpid())),
        "threads": Counter(thread.name for thread in threading.enumerate()),
        "mounts": Counter(Path("/proc/self/mounts").read_text().splitlines()),
    }


def _descriptors() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that reads this very directory
            yield f"{entry.name} {entry.readlink()}"


def _descendants(root: int) -> Iterator[str]:
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                head, _, tail = (entry / "stat").read_text().rpartition(")")
                children.setdefault(int(tail.split()[1]), []).append((int(entry.name), f"{head}) {tail.split()[0]}"))
    todo = [root]
    while todo:
        for pid, what in children.get(todo.pop(), ()):
            yield what
            todo.append(pid)
