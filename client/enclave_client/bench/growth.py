"""Whether a session costs more on a fleet that has run many, or that has many workers.

Fleets are compared with each other in turns, not one with what it was before: whatever else the machine does meanwhile
slows down all of them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from enclave_client.fleet import FleetSpec, running_fleet

from . import footprint
from .figures import Figure, at_most, percentile, spread
from .load import SUM, Load, create_body
from .phases import IN_FLIGHT, pids

if TYPE_CHECKING:
    from enclave_client.fleet import Fleet

    from .phases import Plan

WORKERS = (4, 8)
WORKERS_A_ROUND = 4
"""Of a run of fewer rounds than usual, so that a quick one stays quick."""
YOUNG_SESSIONS = 100
BLOCK_SESSIONS = 50
BLOCK_IN_FLIGHT = 160
MAX_RATIO = 1.3


class _Age:
    """One fleet, and what its sessions cost."""

    def __init__(self, fleet: Fleet, load: Load) -> None:
        self.load = load
        self._fleet = fleet
        self.took_ms: list[float] = []
        self.cpu_ms: list[float] = []
        """Of each session, by blocks: broker, worker and sandboxes."""

    @property
    def workers(self) -> int:
        """How many it has."""
        return len(pids(self._fleet)[1])

    async def one_at_a_time(self) -> None:
        self.took_ms += await self.load.one_by_one(create_body(SUM), BLOCK_SESSIONS)

    async def in_flight(self) -> None:
        before_s = self._cpu_s()
        await self.load.in_flight([SUM] * BLOCK_IN_FLIGHT, IN_FLIGHT)
        self.cpu_ms.append((self._cpu_s() - before_s) * 1000 / BLOCK_IN_FLIGHT)

    def _cpu_s(self) -> float:
        return sum(footprint.fleet_cpu_s(*pids(self._fleet)).values())


async def growth(load: Load, fleet: Fleet, plan: Plan) -> list[Figure]:
    """Measure the fleet of this run, which is old by now, and fleets of 4 and of 8 workers, against a young one."""
    sessions = load.sessions
    async with contextlib.AsyncExitStack() as stack:
        old = _Age(fleet, load)
        wanted = [workers for workers in WORKERS if workers <= WORKERS_A_ROUND * plan.rounds]
        young, *larger = [await _start(stack, workers) for workers in (old.workers, *wanted)]
        ages = [young, old, *larger]
        try:
            for _ in range(max(1, plan.rounds // 4)):
                for age in ages:
                    await age.one_at_a_time()
                for age in ages:
                    await age.in_flight()
        finally:
            for age in (young, *larger):
                load.absorb(age.load)
    return [
        *_figures("growth", f"after {sessions:,} sessions", old, young),
        *(
            figure
            for age in larger
            for figure in _figures(f"workers_{age.workers}", f"with {age.workers} workers", age, young)
        ),
    ]


async def _start(stack: contextlib.AsyncExitStack, workers: int) -> _Age:
    """Start a fleet and let it run its first sessions, on every worker some."""
    fleet = await stack.enter_async_context(running_fleet(FleetSpec(workers=workers), lambda *_: None))
    load = Load(fleet.url)
    await load.in_flight([SUM] * YOUNG_SESSIONS, IN_FLIGHT)
    return _Age(fleet, load)


def _figures(name: str, title: str, age: _Age, young: _Age) -> list[Figure]:
    """Return its latency and its CPU time, by those of the young one."""
    p50, young_p50 = percentile(age.took_ms, 50), percentile(young.took_ms, 50)
    cpu, young_cpu = percentile(age.cpu_ms, 50), percentile(young.cpu_ms, 50)
    return [
        at_most(
            f"{name}_{kind}",
            f"{what} {title}",
            value,
            "ms",
            MAX_RATIO * base,
            target=f"at most {MAX_RATIO:g} times = {MAX_RATIO * base:.2f}",
            compared_with=f"a young fleet: {base:.2f} ms, so {value / base:.2f} times that",
            detail={"ratioToYoung": round(value / base, 3)} | detail,
        )
        for kind, what, value, base, detail in (
            ("p50", "p50 one at a time", p50, young_p50, {"session": spread(age.took_ms)}),
            ("cpu", "CPU time", cpu, young_cpu, {"perBlockMs": [round(each, 2) for each in age.cpu_ms]}),
        )
    ]
