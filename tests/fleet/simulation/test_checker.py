"""What finds nothing must be able to find: each way to break the fleet is noticed within a few schedules."""

from __future__ import annotations

import itertools

import pytest

from tests.fleet.simulation.plan import make_plan
from tests.fleet.simulation.run import story
from tests.fleet.simulation.sabotage import SABOTAGES
from tests.fleet.simulation.world import Report, simulate

SEEDS = 40


def broken(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> Report:
    with monkeypatch.context() as patch:
        return simulate(make_plan(seed), lambda world: SABOTAGES[name](world, patch))


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_broken_fleet_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in fitting(name):
        if broken(name, seed, monkeypatch).violations:
            return
    pytest.fail(f"{SEEDS} schedules did not show that {name}")


def fitting(name: str) -> list[int]:
    """Return seeds in which what is broken can matter."""
    wanted = {"kill_broker"} if "stored" in name else set()
    seeds = (seed for seed in itertools.count() if wanted <= {fault.kind for fault in make_plan(seed).faults})
    return list(itertools.islice(seeds, SEEDS))


def test_a_failure_says_which_seed_what_happened_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = (broken("workers forget finals", seed, monkeypatch) for seed in range(SEEDS))
    report = next(report for report in reports if report.violations and report.plan.faults)
    told = story(report)
    assert f"make simulate SEED={report.plan.seed}" in told
    assert str(report.plan.faults[0]) in told
    assert report.violations[0] in told
