"""Runs one of the programs with a counter of the functions that it calls: `enclave_client.child` starts it.

The module to run and the file to count in are in the environment. The counts are where whoever started us can read them
at any moment, without asking: two numbers in a file that both map.
"""

from __future__ import annotations

import importlib
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

MODULE, FILE = "BUDGET_MODULE", "BUDGET_FILE"
SIZE_BYTES = 24
_CALLED = frozenset({"call", "c_call"})


def counts(file: Path) -> tuple[int, int]:
    """Return how many functions the program has called so far, and how many modules it has imported."""
    functions, modules, _ = memoryview(file.read_bytes()).cast("Q")
    return functions, modules


def _count(file: Path) -> None:
    with file.open("r+b") as opened:
        shared = memoryview(mmap.mmap(opened.fileno(), SIZE_BYTES)).cast("Q")
    modules = sys.modules.__len__

    def called(_frame: FrameType, event: str, _argument: object) -> None:
        if event in _CALLED:
            shared[0] += 1
            shared[1] = modules()

    threading.setprofile(called)
    sys.setprofile(called)


def main() -> None:
    """Be the program."""
    _count(Path(os.environ.pop(FILE)))
    importlib.import_module(os.environ.pop(MODULE)).main()
