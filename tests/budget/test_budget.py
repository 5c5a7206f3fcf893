"""What a session costs is what it may cost. Counts, not times: a busy machine must not turn a build red."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.budget import table

_CANNOT_MEASURE = 3


@pytest.fixture(scope="module")
def now() -> table.Measured:
    """What it costs now."""
    command = [sys.executable, "-m", "tests.budget", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == _CANNOT_MEASURE:
        pytest.skip(f"nothing is held to its budget: {run.stderr}")
    assert run.returncode == 0, run.stderr
    return table.Measured(**json.loads(run.stdout))


@pytest.mark.parametrize("name", table.read())
def test_it_costs_no_more_than_it_may(now: table.Measured, name: str) -> None:
    if name not in now.figures:
        assert name.endswith("_own_kib"), f"{name} has a budget and was not measured"
        assert os.geteuid() != 0
        pytest.skip("only root can see the memory of sandboxes")
    if why := table.why_not_held(name, now.level):
        pytest.skip(why)
    complaint = table.complaint(table.read()[name], now.figures[name])

    assert not complaint, complaint
