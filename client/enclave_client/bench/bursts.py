"""Many at once, and at once without a warm sandbox: 50 in flight, 100 asked for in the same moment, cold starts."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from typing import TYPE_CHECKING

from enclave_client.fleet import FleetSpec, running_fleet

from .figures import Figure, at_most, percentile, spread
from .load import SUM, Load, create_body

if TYPE_CHECKING:
    from .phases import Plan

IN_FLIGHT = 50
BLOCK_IN_FLIGHT = 500
MAX_P99_RATIO = 3.0
BURST = 100
BURSTS = 5
IDLE_S = 0.5
"""Before a burst nobody has asked for anything for so long: pools are full, processes sleep."""
MAX_BURST_MS = 400.0
BLOCK_COLD = 25
MAX_COLD_MS = 5.0


async def in_flight(load: Load, plan: Plan) -> list[Figure]:
    """Measure how long each session takes of 50 in flight, all of which have a slot."""
    took_ms: list[float] = []
    failed_before = load.failed
    rates = [
        BLOCK_IN_FLIGHT / await load.in_flight([SUM] * BLOCK_IN_FLIGHT, IN_FLIGHT, took_ms)
        for _ in range(max(1, plan.rounds // 5))
    ]
    p50, p99 = (percentile(took_ms or [0.0], percent) for percent in (50, 99))
    failed = load.failed - failed_before
    said = f"p50 {p50:.1f} ms, so {p99 / (p50 or 1):.1f} times that; {statistics.median(rates):.0f} sessions/s"
    return [
        at_most(
            "in_flight_50_p99",
            f"{IN_FLIGHT} in flight, p99",
            p99,
            "ms",
            MAX_P99_RATIO * p50,
            target=f"at most {MAX_P99_RATIO:g} times p50 = {MAX_P99_RATIO * p50:.1f}",
            compared_with=f"{said}; {failed} of {len(rates) * BLOCK_IN_FLIGHT} failed",
            detail={"ratioToP50": round(p99 / (p50 or 1), 3), "perRound": rates, "session": spread(took_ms or [0.0])},
        )
    ]


async def burst(load: Load, plan: Plan) -> list[Figure]:
    """Measure how long an idle fleet takes for 100 sessions asked for in one moment, all of which have a slot."""
    body = create_body(SUM)
    took_ms = []
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(load.connection()) for _ in range(BURST)]
        for _ in range(min(BURSTS, plan.rounds)):
            await asyncio.sleep(IDLE_S)
            started = time.perf_counter()
            await asyncio.gather(*(load.run(connection, body) for connection in connections))
            took_ms.append((time.perf_counter() - started) * 1000)
    said = f"the slowest of {BURST}; median of {len(took_ms)} bursts, {min(took_ms):.0f} to {max(took_ms):.0f}"
    title = f"{BURST} at once on an idle fleet, all done"
    value, detail = statistics.median(took_ms), {"perBurstMs": [round(each, 1) for each in took_ms]}
    return [at_most("burst_100", title, value, "ms", MAX_BURST_MS, compared_with=said, detail=detail)]


async def cold(load: Load, plan: Plan) -> list[Figure]:
    """Measure one session at a time on a fleet that keeps nothing warm, and on `load`'s by turns."""
    cold_ms: list[float] = []
    warm_ms: list[float] = []
    body = create_body(SUM)
    async with running_fleet(FleetSpec(workers=1, pool_size=0), lambda *_: None) as fleet:
        own = Load(fleet.url)
        for _ in range(plan.rounds):
            cold_ms += await own.one_by_one(body, BLOCK_COLD)
            warm_ms += await load.one_by_one(body, BLOCK_COLD)
    load.absorb(own)
    p50, warm = percentile(cold_ms, 50), percentile(warm_ms, 50)
    said = f"with a pool: {warm:.2f} ms, so {p50 / warm:.2f} times that; {len(cold_ms)} sessions"
    detail = {"ratioToWarm": round(p50 / warm, 3), "cold": spread(cold_ms), "warm": spread(warm_ms)}
    title = "a session without a pool, p50"
    return [at_most("cold_p50", title, p50, "ms", MAX_COLD_MS, compared_with=said, detail=detail)]
