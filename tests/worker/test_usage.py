"""What is known of processes where no control group counts them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from enclave_worker import usage

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_no_child_of_hundreds_is_overlooked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = range(30_000, 31_000)  # not made: not everywhere may a test have so many
    list_of_them = tmp_path / "children"
    list_of_them.write_text("".join(f"{number} " for number in numbers))
    really_open = os.open

    def open_(path: Any, flags: int, *more: Any, **rest: Any) -> int:
        if path == f"/proc/{os.getpid()}/task/{os.getpid()}/children":
            return really_open(list_of_them, flags)
        if path in of_them:
            return really_open("/proc/self/statm", flags)
        return really_open(path, flags, *more, **rest)

    of_them = {f"/proc/{number}/statm" for number in numbers}
    _, resident, shared, *_ = map(int, usage.read_small("/proc/self/statm").split())
    monkeypatch.setattr(os, "open", open_)

    held = usage.tree_memory_bytes(os.getpid())
    monkeypatch.undo()
    assert held > (resident - shared) * os.sysconf("SC_PAGE_SIZE") * 900
