"""What a user could take instead, in the same run: one at a time, and many at once.

Sessions and each rival take turns in short blocks, so that the ratios are of the same minutes.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from .figures import Figure, percentile, spread
from .load import SUM, Load
from .open_loop import Answer, Sessions, closed_rate
from .rivals import AT_ONCE, Rival

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .phases import Plan

SESSIONS = "sessions"


async def instead(load: Load, plan: Plan, others: Sequence[Rival]) -> list[Figure]:
    """Measure sessions and all that run here by turns; return how long each takes, and how many a second there are."""
    sessions = Sessions(load, SUM)
    all_of_them = [Rival(name=SESSIONS, title="sessions", target=sessions, one=20, many=160), *others]
    took_ms: dict[str, list[float]] = {rival.name: [] for rival in all_of_them}
    rates: dict[str, list[float]] = {rival.name: [] for rival in all_of_them}
    try:
        for number in range(plan.rounds):
            for rival in all_of_them:
                took_ms[rival.name] += [await _took_ms(rival, load) for _ in range(rival.one)]
                if number % 4 == 0:
                    rates[rival.name].append(await closed_rate(rival.target, rival.many, AT_ONCE))
    finally:
        sessions.close()
    ours_ms, ours = percentile(took_ms[SESSIONS], 50), statistics.median(rates[SESSIONS])
    return [
        figure
        for rival in others
        for figure in (_latency(rival, took_ms[rival.name], ours_ms), _rate(rival, rates[rival.name], ours))
    ]


async def _took_ms(rival: Rival, load: Load) -> float:
    started = time.perf_counter()
    if await rival.target.ask() is Answer.FAILED and rival.name != SESSIONS:
        load.fail(f"{rival.title} failed")
    return (time.perf_counter() - started) * 1000


def _latency(rival: Rival, took_ms: list[float], ours_ms: float) -> Figure:
    p50 = percentile(took_ms, 50)
    return Figure(
        name=f"{rival.name}_p50",
        title=f"instead: {rival.title}, p50",
        value=p50,
        unit="ms",
        compared_with=f"sessions between: p50 {ours_ms:.2f} ms, {ours_ms / p50:.2f} times that; "
        f"its p99 {percentile(took_ms, 99):.2f} ms",
        detail={"sessionP50Ms": round(ours_ms, 3), "ratioOfSession": round(ours_ms / p50, 3), **spread(took_ms)},
    )


def _rate(rival: Rival, rates: list[float], ours: float) -> Figure:
    rate = statistics.median(rates)
    times = f"{ours / rate:.1f} times that" if rate else "and none of its own was answered"
    return Figure(
        name=f"{rival.name}_rate",
        title=f"instead: {rival.title}, {AT_ONCE} in flight",
        value=rate,
        unit="/s",
        compared_with=f"sessions between: {ours:.0f}/s, {times}",
        detail={"sessionsPerS": round(ours, 1), "ratioOfSessions": round(ours / rate, 3) if rate else None},
    )
