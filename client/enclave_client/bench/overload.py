"""Overload: a fleet at its capacity, and at ten times of it.

Theory of operation. Sessions hold their slot for a while without using the processor, as code does that waits for its
tools: what is full is the fleet, not this machine, on which load generator and fleet share the processors. How many
such sessions the fleet can serve in a second is found out first, with as many clients as it has slots. Then sessions
are asked for at random times, at that rate and at `TIMES` of it in turns, whether earlier ones have been answered or
not, see `open_loop`. A session's time counts from when it was due, an accepted one's to the last byte of its stream, a
refused one's to the end of its answer.
"""

from __future__ import annotations

import collections
import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from enclave_client.fleet import FleetSpec, running_fleet

from . import footprint
from .command import measured, write_json
from .figures import Figure, at_least, at_most, percentile, spread
from .load import MAX_FAILURES_KEPT, Load
from .open_loop import OpenLoop, Outcome, Sessions
from .phases import pids
from .report import Report, describe_machine, ending, line, machine_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

    from enclave_client.fleet import Fleet

TIMES = 10
HOLD_S = 0.25
"""How long a session does nothing."""
QUEUE_WAIT_MS = 250
"""What the broker is told with --queue-wait-ms: about as long as a session takes."""
MAX_RATIO = 2.0
MAX_REFUSAL_MS = 50.0
MIN_GOODPUT = 0.8
MAX_SPREAD = 1.25
_CODE = f"import asyncio\nawait asyncio.sleep({HOLD_S})\nreturn 2"


class OverloadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure."""

    workers: int = 2
    slots: int = 8
    """Of each worker."""
    rounds: int = 3
    seconds: float = 6.0
    """Of each block; a round has one at capacity and one at ten times capacity."""
    seed: int = 1


async def measure(fleet: Fleet, plan: OverloadPlan, load: Load) -> list[Figure]:
    """Find out the capacity, and load the fleet with it and with ten times as much in turns."""
    slots = plan.workers * plan.slots
    body = [_CODE] * round(slots * plan.seconds / HOLD_S)
    await load.in_flight(body[: 4 * slots], slots)  # to warm up
    capacity = len(body) / await load.in_flight(body, slots)
    sessions = Sessions(load, _CODE)
    loop = OpenLoop(sessions, plan.seed)
    at, over = Outcome(), Outcome()
    broker, _ = pids(fleet)
    try:
        for _ in range(plan.rounds):
            for outcome, rate in ((at, capacity), (over, TIMES * capacity)):
                before_s = footprint.cpu_s([broker])
                await loop.run(rate, plan.seconds, outcome)
                outcome.broker_cpu_s += footprint.cpu_s([broker]) - before_s
    finally:
        sessions.close()
    return [*figures(capacity, at, over, plan), spread_figure(await _used_workers(load), plan.workers)]


def figures(capacity: float, at: Outcome, over: Outcome, plan: OverloadPlan) -> list[Figure]:
    """Return what was measured. Blocks that had no accepted session, or none refused, give no figure of it."""
    found = [
        Figure(
            name="capacity",
            title="capacity",
            value=capacity,
            unit="sessions/s",
            compared_with=f"{plan.workers} workers of {plan.slots} slots, held for {HOLD_S * 1000:g} ms and a start; "
            f"{plan.workers * plan.slots} clients, each with its next session when it has one",
        )
    ]
    if at.accepted_ms:
        found.append(_p99("at_capacity_p99", "accepted at capacity, p99", at, []))
    if at.accepted_ms and over.accepted_ms:
        limit_ms = MAX_RATIO * percentile(at.accepted_ms, 99)
        said = [f"{percentile(over.accepted_ms, 99) / percentile(at.accepted_ms, 99):.2f} times that at capacity"]
        more = _p99("overload_p99", f"accepted at {TIMES} times capacity, p99", over, said)
        found.append(
            at_most(
                more.name,
                more.title,
                more.value,
                "ms",
                limit_ms,
                compared_with=more.compared_with,
                detail=more.detail,
                target=f"at most {MAX_RATIO:g} times = {limit_ms:.0f}",
            )
        )
        found.append(
            at_least(
                "overload_rate",
                f"accepted at {TIMES} times capacity",
                over.rate,
                "sessions/s",
                MIN_GOODPUT * at.rate,
                target=f"at least {MIN_GOODPUT:g} of {at.rate:.0f} at capacity",
            )
        )
    if over.refused_ms:
        slow = sum(took_ms >= MAX_REFUSAL_MS for took_ms in over.refused_ms)
        found.append(
            at_most(
                "refused_max",
                f"refused at {TIMES} times capacity, slowest",
                max(over.refused_ms),
                "ms",
                MAX_REFUSAL_MS,
                compared_with=f"{len(over.refused_ms)} refused, p50 "
                f"{percentile(over.refused_ms, 50):.2f}, p99 {percentile(over.refused_ms, 99):.2f} ms; "
                f"{slow} took {MAX_REFUSAL_MS:g} ms or more{_lateness(over.late_ms)}",
                detail=spread(over.refused_ms),
            )
        )
    if over.refused_ms and at.accepted_ms:
        each_ms = at.broker_cpu_s * 1000 / (len(at.accepted_ms) + len(at.refused_ms))
        refusals_ms = max(0.0, over.broker_cpu_s * 1000 - each_ms * len(over.accepted_ms)) / len(over.refused_ms)
        found.append(
            Figure(
                name="refusal_cpu",
                title="CPU time of a refusal, broker",
                value=refusals_ms,
                unit="ms",
                compared_with=f"of a session at capacity {each_ms:.2f} ms",
            )
        )
    return found


def spread_figure(used: Sequence[int], workers: int) -> Figure:
    """Return how evenly sessions went to the workers, by how many each had of the last ones."""
    mean = sum(used) / workers
    return at_most(
        "spread",
        "busiest worker, by its sessions",
        max(used, default=0) / (mean or 1),
        "x mean",
        MAX_SPREAD,
        compared_with=f"{', '.join(map(str, used))} of the last {sum(used)} sessions",
    )


def _p99(name: str, title: str, outcome: Outcome, said: list[str]) -> Figure:
    total = len(outcome.accepted_ms) + len(outcome.refused_ms)
    said = [
        *said,
        f"p50 {percentile(outcome.accepted_ms, 50):.0f} ms",
        f"{len(outcome.accepted_ms)} of {total} accepted",
    ]
    value = percentile(outcome.accepted_ms, 99)
    return Figure(
        name=name,
        title=title,
        value=value,
        unit="ms",
        compared_with=", ".join(said),
        detail=spread(outcome.accepted_ms),
    )


def _lateness(late_ms: Sequence[float]) -> str:
    if not late_ms:
        return ""
    return f"; the load generator asked late by p99 {percentile(late_ms, 99):.2f}, {max(late_ms):.2f} ms at most"


class _Session(msgspec.Struct):
    worker: str = ""


class _Sessions(msgspec.Struct):
    sessions: list[_Session]


async def _used_workers(load: Load) -> list[int]:
    """Return how many of the sessions that the broker still keeps each worker had."""
    async with load.connection() as connection:
        answer = await connection.get("/sessions")
    kept = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=_Sessions).sessions
    return sorted(collections.Counter(session.worker for session in kept if session.worker).values())


async def overload(plan: OverloadPlan, say: Callable[[str], None]) -> Report:
    """Run it; tell each line to `say`; return all. Raises FleetError."""
    machine = describe_machine()
    say(machine_line(machine))
    log: list[str] = []
    options = ("--queue-wait-ms", str(QUEUE_WAIT_MS))
    spec = FleetSpec(workers=plan.workers, max_sessions=plan.slots, broker_options=options)
    started_s = time.monotonic()
    async with running_fleet(spec, lambda name, text: log.append(f"{name}: {text}")) as fleet:
        load = Load(fleet.url)
        found = await measure(fleet, plan, load)
    for figure in found:
        say(line(figure))
    failures = load.failures + (log[:MAX_FAILURES_KEPT] if load.failed else [])
    report = Report(
        machine=machine,
        settings=msgspec.to_builtins(plan) | {"queueWaitMs": QUEUE_WAIT_MS, "times": TIMES},
        figures=found,
        failures=failures,
        failed=load.failed,
        leaks={},
    )
    say(f"{load.sessions} sessions asked for in {time.monotonic() - started_s:.0f} s")
    say(ending(report))
    return report


@click.command(name="overload", context_settings={"show_default": True})
@click.option("--workers", type=click.IntRange(1, 64), default=2, help="Workers.")
@click.option("--slots", type=click.IntRange(1, 256), default=8, help="Slots of each.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Blocks at capacity, and at ten times of it.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=6.0, help="Length of a block.")
@click.option("--seed", type=int, default=1, help="When sessions are asked for.")
@click.option("--json", "file", type=click.File("wb"), help="Write everything measured there.")
def command(file: BinaryIO | None, **options: float) -> None:
    """Load a fleet with what it can serve, and with ten times as much, and compare.

    Exits with 0 unless a session failed: one that was neither refused nor ended well. A target that was missed is only
    shown.
    """
    report = measured(overload(msgspec.convert(options, OverloadPlan), click.echo))
    if file is not None:
        write_json(file, report)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    command()
