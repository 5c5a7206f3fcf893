"""Run schedules from the command line: many seeds, or one of them again."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from .plan import make_plan
from .world import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plan import Plan
    from .world import Report

BATCH = 10
"""Seeds that one process runs before it is asked for more."""
MOST_SHOWN = 3
"""Failed seeds that are shown in full."""


class Batch(msgspec.Struct):
    """How some seeds went."""

    seeds: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    digests: list[str] = msgspec.field(default_factory=list)
    failed: dict[int, str] = msgspec.field(default_factory=dict)
    """By seed, all that there is to say."""


def story(report: Report) -> str:
    """Return all that there is to say about a run that failed."""
    seed = report.plan.seed
    again = f"seed {seed} breaks a guarantee. Again: make simulate SEED={seed}" if report.violations else ""
    wrong = ["what is wrong:", *report.violations] if report.violations else ["nothing is wrong"]
    return "\n".join([*filter(None, [again]), str(report.plan), "what happened:", *report.story, *wrong])


def run_seeds(seeds: list[int]) -> Batch:
    """Run some seeds."""
    batch = Batch()
    for seed in seeds:
        report = simulate(make_plan(seed))
        batch.seeds += 1
        batch.steps += report.steps
        batch.virtual_s += report.virtual_s
        batch.digests.append(f"{seed} {report.digest}")
        if report.violations:
            batch.failed[seed] = story(report)
    return batch


def shrunk(report: Report) -> Report:
    """Leave out of a plan that fails whatever it fails without, one thing after the other."""
    before = None
    while before is not report:
        before = report
        for smaller in smaller_plans(report.plan):
            attempt = simulate(smaller)
            if attempt.violations:
                report = attempt
                break
    return report


def smaller_plans(plan: Plan) -> Iterator[Plan]:
    """Return plans with something less."""
    for i in range(len(plan.sessions)):
        yield dataclasses.replace(plan, sessions=[*plan.sessions[:i], *plan.sessions[i + 1 :]])
    for i in range(len(plan.faults)):
        yield dataclasses.replace(plan, faults=[*plan.faults[:i], *plan.faults[i + 1 :]])
    for i, session in enumerate(plan.sessions):
        for j in range(len(session.script) - 1):
            script = [*session.script[:j], *session.script[j + 1 :]]
            changed = dataclasses.replace(session, script=script)
            yield dataclasses.replace(plan, sessions=[*plan.sessions[:i], changed, *plan.sessions[i + 1 :]])


def batches(first: int, seeds: int, jobs: int) -> Iterator[Batch]:
    """Run that many seeds in so many processes."""
    end = first + seeds
    parts = [list(range(start, min(start + BATCH, end))) for start in range(first, end, BATCH)]
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("forkserver")) as pool:
        yield from pool.map(run_seeds, parts)


@click.command()
@click.option("--seed", type=int, help="Run this one only.")
@click.option("--first", default=0, show_default=True, help="The first of many.")
@click.option("--seeds", default=1000, show_default=True, help="How many.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option("--shrink", is_flag=True, help="With --seed: leave out whatever it fails without.")
@click.option("--trace", is_flag=True, help="With --seed: tell of every message.")
@click.option("--digests", is_flag=True, help="Print a hash of every run: the same, whenever it is run.")
def main(
    *,
    seed: int | None,
    first: int,
    seeds: int,
    jobs: int,
    shrink: bool,
    trace: bool,
    digests: bool,
) -> None:
    """Simulate fleets under random schedules of faults, and check what a fleet guarantees."""
    if seed is not None:
        report = simulate(make_plan(seed), trace=trace)
        if shrink and report.violations:
            report = simulate(shrunk(report).plan, trace=trace)
        click.echo(story(report))
        sys.exit(bool(report.violations))
    total, begin = Batch(), time.monotonic()
    for batch in batches(first, seeds, jobs):
        total.seeds += batch.seeds
        total.steps += batch.steps
        total.virtual_s += batch.virtual_s
        for number, text in batch.failed.items():
            total.failed[number] = text
            wrong = text.rpartition("what is wrong:\n")[2].partition("\n")[0]
            click.echo(text if len(total.failed) <= MOST_SHOWN else f"seed {number}, too: {wrong[:300]}")
        if digests:
            click.echo("\n".join(batch.digests))
    took_s = time.monotonic() - begin
    click.echo(
        f"{total.seeds} schedules, {len(total.failed)} failed: {total.steps} steps, {total.virtual_s / 3600:.1f} hours"
        f" of a fleet's life in {took_s:.0f} s; {total.steps / took_s:.0f} steps a second"
    )
    sys.exit(bool(total.failed))


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # else sets of texts had another order each time
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.fleet.simulation.run", *sys.argv[1:]])
    main()
