"""Latency against load: how long requests take when more and more are asked for, up to and past what can be had.

    python -m enclave_client.bench.curve --json curve.json      and a picture beside it, curve.svg

Theory of operation. What a target can do in a second is found first, with `AT_ONCE` clients that each ask for the next
when they have one. Then it is asked at random times (`open_loop`) at shares of that, up to and past all of it, in short
blocks: each round has one block of every share of every target, in an order drawn by the seed, so that whatever else
this machine does falls on all of them. Past its capacity a target falls behind for as long as a block lasts: times
there say that it does, and how far, not what they would be in an hour.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from enclave_client.fleet import FleetSpec, running_fleet

from . import rivals
from .command import measured, write_json
from .figures import Point, Series, percentile
from .load import SUM, Load
from .open_loop import OpenLoop, Outcome, Sessions, Target, closed_rate
from .picture import draw_beside
from .report import describe_machine, machine_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.25)
"""Of a target's capacity, for ours."""
FEWER_SHARES = (0.1, 0.3, 0.6, 0.8, 1.0)
"""The same for what we compare with."""
CAPACITY_REQUESTS = 480
"""Sessions by which the capacity is found; fewer with blocks of less than a second."""


class CurvePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure."""

    rounds: int = 5
    seconds: float = 1.0
    """Of each block."""
    seed: int = 1


def part_of(rounds: int) -> CurvePlan:
    """Return how much to measure of it in a run with blocks of so many rounds."""
    return CurvePlan(rounds=max(1, rounds // 5), seconds=min(0.8, rounds / 10))


@dataclasses.dataclass
class _Climb:
    """One target on its way up."""

    title: str
    target: Target
    capacity: float
    shares: Sequence[float]
    loop: OpenLoop
    outcomes: list[Outcome]


async def curves(load: Load, plan: CurvePlan, others: Sequence[rivals.Rival]) -> list[Series]:
    """Measure sessions and all that run here."""
    sessions = Sessions(load, SUM)
    try:
        climbs = [
            await _climb("Enclave: a fresh sandbox each", sessions, CAPACITY_REQUESTS, SHARES, plan),
            *[await _climb(each.title, each.target, 2 * each.many, FEWER_SHARES, plan) for each in others],
        ]
        blocks = [(climb, number) for climb in climbs for number in range(len(climb.shares))]
        order = random.Random(plan.seed)  # noqa: S311 - a run that can be repeated
        for _ in range(plan.rounds):
            order.shuffle(blocks)
            for climb, number in blocks:
                rate = climb.shares[number] * climb.capacity
                await climb.loop.run(rate, plan.seconds, climb.outcomes[number], settle_s=plan.seconds / 4)
    finally:
        sessions.close()
    return [_series(climb) for climb in climbs]


async def _climb(title: str, target: Target, requests: int, shares: Sequence[float], plan: CurvePlan) -> _Climb:
    count = max(rivals.AT_ONCE, round(requests * min(1.0, plan.seconds)))
    await closed_rate(target, count // 2, rivals.AT_ONCE)  # to warm up
    capacity = await closed_rate(target, count, rivals.AT_ONCE)
    shares = shares if capacity else ()
    return _Climb(
        title=title,
        target=target,
        capacity=capacity,
        shares=shares,
        loop=OpenLoop(target, plan.seed),
        outcomes=[Outcome() for _ in shares],
    )


def _series(climb: _Climb) -> Series:
    found = zip(climb.shares, climb.outcomes, strict=True)
    points = [point(share * climb.capacity, outcome) for share, outcome in found]
    # At a low load nothing may have been due in a short block.
    return Series(title=climb.title, capacity=climb.capacity, points=[each for each in points if each.requests])


def point(rate: float, outcome: Outcome) -> Point:
    """Return what an outcome says about one load."""
    took_ms = outcome.accepted_ms
    return Point(
        asked=round(rate, 2),
        served=round(outcome.served_rate, 2),
        requests=len(took_ms) + len(outcome.refused_ms) + outcome.failed,
        refused=len(outcome.refused_ms),
        failed=outcome.failed,
        p50_ms=round(percentile(took_ms, 50), 3) if took_ms else None,
        p90_ms=round(percentile(took_ms, 90), 3) if took_ms else None,
        p99_ms=round(percentile(took_ms, 99), 3) if took_ms else None,
        max_ms=round(max(took_ms), 3) if took_ms else None,
        late_p99_ms=round(percentile(outcome.late_ms or [0.0], 99), 3),
    )


def lines(series: Sequence[Series]) -> list[str]:
    """Return the table."""
    found = []
    for each in series:
        found.append(f"{each.title}: {each.capacity:.1f}/s with {rivals.AT_ONCE} in flight")
        found.append(
            f"{'asked/s':>12} {'share':>6} {'served/s':>9} {'p50 ms':>9} {'p99 ms':>9} {'requests':>9}  refused"
        )
        for at in each.points:
            failed = f"  {at.failed} FAILED" if at.failed else ""
            found.append(
                f"{at.asked:12.1f} {at.asked / each.capacity:6.2f} {at.served:9.1f} {_ms(at.p50_ms)} {_ms(at.p99_ms)} "
                f"{at.requests:9}  {at.refused}{failed}"
            )
    return found


def _ms(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.2f}"


class CurveReport(msgspec.Struct, kw_only=True):
    """One run, as `--json` writes it."""

    machine: dict[str, object]
    settings: CurvePlan
    left_out: list[str]
    failed: int
    failures: list[str]
    curves: list[Series]


async def run(plan: CurvePlan, workers: int, say: Callable[[str], None]) -> CurveReport:
    """Measure on a fleet of its own; tell what was found to `say`. Raises FleetError."""
    machine = describe_machine()
    say(machine_line(machine))
    left_out: list[str] = []
    async with running_fleet(FleetSpec(workers=workers), lambda *_: None) as fleet, rivals.running(left_out) as others:
        load = Load(fleet.url)
        found = await curves(load, plan, others)
    for each in [*lines(found), *(f"left out: {each}" for each in left_out), f"failed: {load.failed}"]:
        say(each)
    return CurveReport(
        machine=machine,
        settings=plan,
        left_out=left_out,
        failed=load.failed,
        failures=load.failures,
        curves=found,
    )


@click.command(name="curve", context_settings={"show_default": True})
@click.option("--workers", type=click.IntRange(1, 64), default=1, help="Workers.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Blocks at each load.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=1.0, help="Length of a block.")
@click.option("--seed", type=int, default=1, help="When requests are due, and in which order blocks come.")
@click.option(
    "--json", "file", type=click.File("wb"), help="Write it there; beside a file.json, file.svg is a picture."
)
def command(workers: int, file: BinaryIO | None, **options: float) -> None:
    """Measure how long sessions take when more and more are asked for, and draw it.

    Exits with 0 unless a session failed.
    """
    report = measured(run(msgspec.convert(options, CurvePlan), workers, click.echo))
    if file is not None:
        write_json(file, report)
        draw_beside(file.name, report.curves, report.machine)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    command()
