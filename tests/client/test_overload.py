"""`make overload`: a real fleet, briefly, and what would be complained of."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from enclave_client.bench.open_loop import Outcome
from enclave_client.bench.overload import OverloadPlan, figures, spread_figure
from enclave_client.bench.report import Report
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

PLAN = OverloadPlan()


def outcome(accepted_ms: list[float], refused_ms: list[float], *, cpu_s: float = 1.0) -> Outcome:
    found = Outcome()
    found.accepted_ms, found.refused_ms, found.seconds, found.broker_cpu_s = accepted_ms, refused_ms, 1.0, cpu_s
    return found


async def test_a_fleet_asked_for_ten_times_what_it_can_serve_refuses_the_rest_and_fails_nothing(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-P", "-m", "enclave_client.bench.overload", "--rounds", "1", "--seconds", "1"]
    command += ["--slots", "2", "--json", str(file)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=env)
    async with asyncio.timeout(2 * PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode == 0, (out + err).decode()
    report = msgspec.json.decode(file.read_bytes(), type=Report)
    names = {figure.name for figure in report.figures}
    assert {"capacity", "at_capacity_p99", "overload_p99", "overload_rate", "refused_max", "spread"} <= names
    assert b"failed: 0" in out


@pytest.mark.parametrize(
    ("over", "missed"),
    [
        (outcome([100.0] * 10, [5.0] * 90, cpu_s=1.9), set()),
        (outcome([201.0] * 10, [5.0] * 90), {"overload_p99"}),
        (outcome([100.0] * 7, [5.0] * 90), {"overload_rate"}),
        (outcome([100.0] * 10, [5.0] * 90 + [50.5]), {"refused_max"}),
    ],
)
def test_what_misses_its_target_is_told(over: Outcome, missed: set[str]) -> None:
    found = {figure.name: figure for figure in figures(10, outcome([100.0] * 10, []), over, PLAN)}
    assert {name for name, figure in found.items() if figure.met is False} == missed


def test_what_a_refusal_costs_is_what_is_left_when_sessions_are_taken_off() -> None:
    found = figures(10, outcome([100.0] * 10, []), outcome([100.0] * 10, [5.0] * 90, cpu_s=1.9), PLAN)
    (refusal,) = [figure.value for figure in found if figure.name == "refusal_cpu"]
    assert refusal == pytest.approx(10)


def test_blocks_without_a_session_give_no_figure_of_one() -> None:
    assert [figure.name for figure in figures(10, Outcome(), Outcome(), PLAN)] == ["capacity"]


@pytest.mark.parametrize(("used", "met"), [([5, 4], True), ([6, 3], False), ([9], False), ([], True)])
def test_a_worker_with_more_than_its_part_is_told(used: list[int], met: bool) -> None:  # noqa: FBT001 - a parameter
    assert spread_figure(used, 2).met is met
