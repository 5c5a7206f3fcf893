"""What a process holds, to be compared before and after."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import made_since, own_children_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def nothing_leaks() -> Iterator[None]:
    """Fail if the body leaves a descriptor, process, thread or mount behind. It has to close its event loops."""
    others = frozenset(own_children_of(os.getpid()))  # a worker that other tests share makes sandboxes when it will
    before = _held(others)
    yield
    gc.collect()
    after = _held(others)
    for kind, had in before.items():
        assert after[kind] - had == Counter(), f"{kind} left behind: {after[kind] - had}"


def _held(others: frozenset[int]) -> dict[str, Counter[str]]:
    return {
        "descriptors": Counter(_descriptors()),
        "processes": Counter(_named(made_since(others))),
        "threads": Counter(thread.name for thread in threading.enumerate()),
        "mounts": Counter(Path("/proc/self/mounts").read_text().splitlines()),
    }


def _descriptors() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that reads this very directory
            yield f"{entry.name} {entry.readlink()}"


def _named(pids: Iterable[int]) -> Iterator[str]:
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            yield f"{head})" + (" Z" if tail.split()[0] == "Z" else "")
