"""Runs one of the programs with a counter of the functions that it calls: `enclave_client.child` starts it.

The module to run and the file to count in are in the environment. The counts are where whoever started us can read them
at any moment, without asking: three numbers in a file that both map.
"""

from __future__ import annotations

import importlib
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import FrameType

MODULE, FILE = "BUDGET_MODULE", "BUDGET_FILE"
SIZE_BYTES = 24
_CALLED = frozenset({"call", "c_call"})
_TICK = "Dispatcher.tick"
"""What the broker calls many times a second, whether there is anything to do or not."""


class Counts(NamedTuple):
    """What a program has done so far."""

    functions: int
    """Functions called, Python's and C's."""
    modules: int
    """Modules imported."""
    ticks: int
    """Times that the broker looked at the clock."""


def counts(file: Path) -> Counts:
    """Return what a program has done."""
    return Counts(*memoryview(file.read_bytes()).cast("Q"))


def _count(file: Path) -> None:
    with file.open("r+b") as opened:
        shared = memoryview(mmap.mmap(opened.fileno(), SIZE_BYTES)).cast("Q")
    modules = sys.modules.__len__

    def called(frame: FrameType, event: str, _argument: object) -> None:
        if event in _CALLED:
            shared[0] += 1
            shared[1] = modules()
            shared[2] += event == "call" and frame.f_code.co_qualname == _TICK

    threading.setprofile(called)
    sys.setprofile(called)


def main() -> None:
    """Be the program."""
    _count(Path(os.environ.pop(FILE)))
    importlib.import_module(os.environ.pop(MODULE)).main()
