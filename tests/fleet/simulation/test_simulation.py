"""The fleet keeps its guarantees under random schedules of faults, always the same ones here."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SEEDS = 500
"""What a quiet machine does in some seconds, in two processes. `make simulate SEEDS=100000` has more."""


def test_every_guarantee_holds_in_random_schedules(capfd: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet.simulation.run", "--seeds", str(SEEDS)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    with capfd.disabled():
        sys.stdout.write(f"\nsimulation: {done.stdout.splitlines()[-1] if done.stdout else done.stderr}\n")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
