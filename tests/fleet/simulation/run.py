"""Run schedules from the command line: many seeds, or one of them again."""

from __future__ import annotations

import sys
import time

import click

from .plan import make_plan
from .world import simulate


@click.command()
@click.option("--seed", type=int, default=None)
@click.option("--seeds", type=int, default=1000)
@click.option("--first", type=int, default=0)
@click.option("--seconds", type=float, default=None)
def main(seed, seeds, first, seconds) -> None:
    begin = time.perf_counter()
    steps = failures = 0
    done = 0
    for each in [seed] if seed is not None else range(first, first + seeds):
        report = simulate(make_plan(each))
        steps += report.steps
        done += 1
        if report.violations:
            failures += 1
            click.echo(f"seed {each} FAILED")
            if seed is not None:
                click.echo(str(report.plan))
                click.echo("\n".join(report.story))
            click.echo("\n".join(report.violations[:10 if seed is None else 1000]))
        if seconds is not None and time.perf_counter() - begin > seconds:
            break
    took = time.perf_counter() - begin
    click.echo(f"{done} seeds, {failures} failed, {steps} steps in {took:.1f} s: {steps / took:.0f} steps/s, {took / done * 1000:.1f} ms a seed")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
