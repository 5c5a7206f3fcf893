"""The fleet keeps its guarantees under random schedules of faults, as many as the suite has time for."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SECONDS = 12
"""What the suite has for it, in two processes. `make simulate SEEDS=100000` has more."""


def test_every_guarantee_holds_in_random_schedules(capfd: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet.simulation.run", "--seconds", str(SECONDS)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    with capfd.disabled():
        sys.stdout.write(f"\nsimulation: {done.stdout.splitlines()[-1] if done.stdout else done.stderr}\n")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
