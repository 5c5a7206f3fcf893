"""The measurements, one function each; each returns its lines of the report.

Theory of operation. The machine is rarely ours alone, and a laptop changes its clock as it gets warm. So nothing is
compared with a number from another day: each measurement alternates short blocks of sessions with short blocks of what
it is compared with, and the ratio of the two is the figure. Whatever slows one down slows the other.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from typing import TYPE_CHECKING

import msgspec

from . import footprint, rivals
from .figures import Figure, at_least, at_most, percentile, spread
from .load import MIXED, SUM, Load, create_body

if TYPE_CHECKING:
    from enclave_client.fleet import Fleet

IN_FLIGHT = 16
THINK_S = 0.02
BLOCK_SESSIONS = 50
BLOCK_STARTS = 10
BLOCK_BWRAPS = 48
BLOCK_IN_FLIGHT = 320
CALLS_A_SESSION = 50
MAX_P50_RATIO = 0.2
MAX_PAUSED_P50_RATIO = 0.4
MAX_P99_RATIO = 3.0
MIN_SESSIONS_PER_S = 600.0
MAX_CPU_MS = 3.0
MIN_BWRAP_RATIO = 2.5
MAX_TOOL_CALL_MS = 1.0
MAX_CANCEL_MS = 50.0
MAX_PROGRAM_MB = 60.0
MAX_SANDBOX_MB = 4.0
_GENERATOR = "generator"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure."""

    rounds: int = 20
    """Blocks of sessions, and of what they are compared with."""
    sessions: int = 2000
    """Sessions of the long run."""


async def latency(load: Load, plan: Plan, *, think_s: float = 0.0) -> list[Figure]:
    """Measure one session at a time against the start of a bare interpreter; `think_s` lets the fleet idle between."""
    sessions_ms: list[float] = []
    starts_ms: list[float] = []
    body = create_body(SUM)
    # A quarter of the sessions with a pause before each takes about as long as all of them without.
    block = BLOCK_SESSIONS // 4 if think_s else BLOCK_SESSIONS
    async with load.connection() as connection:
        for _ in range(plan.rounds):
            for _ in range(block):
                if think_s:
                    await asyncio.sleep(think_s)
                sessions_ms.append(await load.run(connection, body))
            # They hold up this process, which has nothing else to do.
            starts_ms += [rivals.bare_start_ms() for _ in range(BLOCK_STARTS)]
    return _latency_figures(sessions_ms, starts_ms, think_s)


def _latency_figures(sessions_ms: list[float], starts_ms: list[float], think_s: float) -> list[Figure]:
    name, title = (
        ("after_a_pause", f"after {think_s * 1000:.0f} ms of pause") if think_s else ("one_at_a_time", "one at a time")
    )
    ratio = MAX_PAUSED_P50_RATIO if think_s else MAX_P50_RATIO
    p50, p99 = percentile(sessions_ms, 50), percentile(sessions_ms, 99)
    bare, bare_p99 = percentile(starts_ms, 50), percentile(starts_ms, 99)
    beside = (
        f"python3 -I -S -c pass: p50 {bare:.2f} ms, so p50 is {p50 / bare:.2f} times that; {len(sessions_ms)} sessions"
    )
    return [
        at_most(
            f"{name}_p50",
            f"a session {title}, p50",
            p50,
            "ms",
            ratio * bare,
            target=f"at most {ratio:g} times bare = {ratio * bare:.2f}",
            compared_with=beside,
            detail={
                "ratioToBare": round(p50 / bare, 3),
                "session": spread(sessions_ms),
                "bareStart": spread(starts_ms),
            },
        ),
        at_most(
            f"{name}_p99",
            f"a session {title}, p99",
            p99,
            "ms",
            MAX_P99_RATIO * p50,
            target=f"at most {MAX_P99_RATIO:g} times p50 = {MAX_P99_RATIO * p50:.2f}",
            compared_with=f"{p99 / p50:.1f} times p50; a bare start's p99 is {bare_p99 / bare:.1f} times its p50",
            detail={"ratioToP50": round(p99 / p50, 3)},
        ),
    ]


async def throughput(load: Load, fleet: Fleet, plan: Plan) -> list[Figure]:
    """Measure sessions/s with 16 in flight, against `bwrap`, and where their CPU time goes."""
    bwrap = rivals.bwrap_command()
    rates: list[float] = []
    bwrap_rates: list[float] = []
    cpu_s = dict.fromkeys(_cpu_s(fleet), 0.0)
    rounds = max(1, plan.rounds // 3)
    for _ in range(rounds):
        before = _cpu_s(fleet)
        rates.append(BLOCK_IN_FLIGHT / await load.in_flight([SUM] * BLOCK_IN_FLIGHT, IN_FLIGHT))
        for part, used_s in _cpu_s(fleet).items():
            cpu_s[part] += used_s - before[part]
        if bwrap:
            took_s = await asyncio.to_thread(rivals.run_many_s, bwrap, BLOCK_BWRAPS, IN_FLIGHT)
            bwrap_rates.append(BLOCK_BWRAPS / took_s)
    cpu_ms = {part: used_s * 1000 / (rounds * BLOCK_IN_FLIGHT) for part, used_s in cpu_s.items()}
    return _throughput_figures(rates, bwrap_rates, cpu_ms)


def _throughput_figures(rates: list[float], bwrap_rates: list[float], cpu_ms: dict[str, float]) -> list[Figure]:
    rate = statistics.median(rates)
    wanted, target, beside = MIN_SESSIONS_PER_S, f"at least {MIN_SESSIONS_PER_S:g}/s", "bwrap: not installed"
    detail: dict[str, object] = {"perRound": [round(each, 1) for each in rates]}
    if bwrap_rates:
        bwrap_rate = statistics.median(bwrap_rates)
        wanted = max(wanted, MIN_BWRAP_RATIO * bwrap_rate)
        target = f"at least {wanted:.0f}/s"
        beside = f"bwrap around python3 -I -S: {bwrap_rate:.0f}/s, so {rate / bwrap_rate:.1f} times that"
        detail |= {
            "bwrapPerRound": [round(each, 1) for each in bwrap_rates],
            "ratioToBwrap": round(rate / bwrap_rate, 3),
        }
    split = ", ".join(f"{part} {used_ms:.2f}" for part, used_ms in cpu_ms.items())
    return [
        at_least(
            "in_flight_rate",
            f"{IN_FLIGHT} in flight",
            rate,
            "sessions/s",
            wanted,
            target=target,
            compared_with=f"{beside}; median of {len(rates)} rounds, {min(rates):.0f} to {max(rates):.0f}",
            detail=detail,
        ),
        at_most(
            "in_flight_cpu",
            "CPU time of a session",
            sum(used_ms for part, used_ms in cpu_ms.items() if part != _GENERATOR),
            "ms",
            MAX_CPU_MS,
            compared_with=f"{split}, which is not of it",
            detail={part: round(used_ms, 3) for part, used_ms in cpu_ms.items()},
        ),
    ]


def _cpu_s(fleet: Fleet) -> dict[str, float]:
    return {**footprint.fleet_cpu_s(*pids(fleet)), _GENERATOR: time.process_time()}


def memory(fleet: Fleet) -> list[Figure]:
    """Measure what a fleet that does nothing holds; of its sandboxes only root can know."""
    broker, workers = pids(fleet)
    largest = max(footprint.resident_mb(pid) for pid in workers)
    figures = [
        at_most("broker_rss", "idle broker, RSS", footprint.resident_mb(broker), "MB", MAX_PROGRAM_MB),
        at_most("worker_rss", "idle worker, RSS", largest, "MB", MAX_PROGRAM_MB),
    ]
    kinds = [kind for pid in workers for kind in footprint.warm_sandboxes_mb(pid) if kind]
    medians = sorted(statistics.median(kind) for kind in kinds)
    if medians:
        kinds_mb = " and ".join(f"{median:.2f}" for median in medians)
        beside = f"the larger of its kinds, of {kinds_mb} MB (medians); {sum(map(len, kinds))} were warm"
        title = "warm sandbox, PSS"
        figures.append(at_most("warm_sandbox_pss", title, medians[-1], "MB", MAX_SANDBOX_MB, compared_with=beside))
    return figures


async def tool_calls(load: Load, plan: Plan) -> list[Figure]:
    """Measure the way of a tool call from the sandbox to the broker and back."""
    took_ms: list[float] = []
    async with load.connection() as connection:
        for _ in range(plan.rounds):
            took_ms += await load.tool_calls_ms(connection, CALLS_A_SESSION)
    return [_duration("tool_call_p50", "a tool call, sandbox to broker and back, p50", took_ms, 50, MAX_TOOL_CALL_MS)]


async def cancels(load: Load, plan: Plan) -> list[Figure]:
    """Measure how fast a cancel ends code that never yields."""
    async with load.connection() as connection, load.connection() as other:
        took_ms = [await load.cancel_ms(connection, other) for _ in range(plan.rounds * 5)]
    return [
        _duration("cancel_p50", "cancel of an endless loop to its final, p50", took_ms, 50),
        _duration("cancel_p99", "cancel of an endless loop to its final, p99", took_ms, 99, MAX_CANCEL_MS),
    ]


def _duration(name: str, title: str, took_ms: list[float], percent: float, limit_ms: float | None = None) -> Figure:
    value, detail = percentile(took_ms or [0.0], percent), spread(took_ms or [0.0])
    if limit_ms is None:
        return Figure(name=name, title=title, value=value, unit="ms", detail=detail)
    return at_most(name, title, value, "ms", limit_ms, detail=detail)


async def endurance(load: Load, plan: Plan) -> list[Figure]:
    """Run many sessions of several kinds; whether one failed, the load knows, and whether something leaked, `held`."""
    took_s = await load.in_flight(itertools.islice(itertools.cycle(MIXED), plan.sessions), IN_FLIGHT)
    return [
        Figure(
            name="long_run_rate",
            title=f"{plan.sessions} sessions of several kinds",
            value=plan.sessions / took_s,
            unit="sessions/s",
            compared_with=f"{load.failed} of all {load.sessions} sessions of this run failed",
        )
    ]


def pids(fleet: Fleet) -> tuple[int, list[int]]:
    """Return the process ids of a running fleet: the broker's, the workers'."""
    return fleet.broker.pid or os.getpid(), [worker.pid for worker in fleet.workers if worker.pid]
