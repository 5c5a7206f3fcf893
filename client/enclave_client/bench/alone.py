"""What a session costs the broker alone: its own CPU time, in front of workers that answer at once.

Broker, sockets, sessions and their logs are real; only the sandboxes are missing. What is counted is the time that the
broker's process used, so it does not matter that clients and workers share the machine with it: sessions/s on one core
are what it could do with one for itself. Brokers with one, with four and with eight workers run at the same time and
are asked in turns.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

from enclave_client.fleet import FleetSpec, running_fleet

from . import footprint
from .figures import Figure, at_least, at_most
from .load import SUM, Load
from .phases import IN_FLIGHT, pids
from .quick_worker import quick_workers
from .sockets import SocketLoad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORKERS = (1, 4, 8)
BLOCK_SESSIONS = 480
MAX_ROUNDS = 8
MIN_SESSIONS_PER_CORE_S = 5000.0
MAX_GROWTH = 1.3


class Bill:
    """What sessions that one load asked for cost one broker."""

    def __init__(self, load: Load, broker: int) -> None:
        self._load = load
        self._broker = broker
        self._cpu_s = 0.0
        self._sessions = 0

    @property
    def session_ms(self) -> float:
        """CPU time of a session."""
        return self._cpu_s * 1000 / self._sessions

    @property
    def per_core_s(self) -> float:
        """Sessions that one core could do in a second."""
        return self._sessions / self._cpu_s

    async def run(self, sessions: int) -> None:
        """Run a block, and charge it."""
        before_s = footprint.own_cpu_s(self._broker)
        await self._load.in_flight(itertools.repeat(SUM, sessions), IN_FLIGHT)
        self._cpu_s += footprint.own_cpu_s(self._broker) - before_s
        self._sessions += sessions


async def alone(into: Load, rounds: int) -> list[Figure]:
    """Measure; `into` is told what failed."""
    async with contextlib.AsyncExitStack() as stack:
        http: dict[int, Bill] = {}
        loads: list[Load] = []
        for count in WORKERS:
            url, broker = await stack.enter_async_context(_broker(count))
            loads.append(Load(url))
            http[count] = Bill(loads[-1], broker)
            if count == 1:
                loads.append(SocketLoad(url))
                sockets = Bill(loads[-1], broker)
        for load in loads:
            await load.in_flight(itertools.repeat(SUM, BLOCK_SESSIONS), IN_FLIGHT)  # nothing is loaded while it counts
        for _ in range(min(rounds, MAX_ROUNDS)):
            for bill in (*http.values(), sockets):
                await bill.run(BLOCK_SESSIONS)
    for load in loads:
        into.absorb(load)
    return _figures(http, sockets)


@contextlib.asynccontextmanager
async def _broker(workers: int) -> AsyncIterator[tuple[str, int]]:
    """Run a broker in front of so many workers; yields its URL and its process."""
    async with quick_workers(workers, slots=IN_FLIGHT) as urls:
        options = tuple(itertools.chain.from_iterable(("--worker", url) for url in urls))
        async with running_fleet(FleetSpec(workers=0, broker_options=options), lambda *_: None) as fleet:
            broker, _ = pids(fleet)
            yield fleet.url, broker


def _figures(http: dict[int, Bill], sockets: Bill) -> list[Figure]:
    fewest, most = min(http), max(http)
    growth = http[most].session_ms / http[fewest].session_ms
    by_count = {str(count): round(bill.session_ms, 4) for count, bill in http.items()}
    beside = ", ".join(f"{used_ms:.3f} ms with {count}" for count, used_ms in by_count.items())
    return [
        _rate("broker_alone_rate", "the broker alone, over HTTP", http[fewest]),
        _rate("broker_alone_ws_rate", "the broker alone, over /ws", sockets),
        at_most(
            "broker_alone_growth",
            f"its CPU time for a session, {most} workers by {fewest}",
            growth,
            "times",
            MAX_GROWTH,
            compared_with=beside,
            detail={"cpuMsByWorkers": by_count},
        ),
    ]


def _rate(name: str, title: str, bill: Bill) -> Figure:
    return at_least(
        name,
        title,
        bill.per_core_s,
        "sessions/s",
        MIN_SESSIONS_PER_CORE_S,
        target=f"at least {MIN_SESSIONS_PER_CORE_S:g}/s a core",
        compared_with=f"{bill.session_ms:.3f} ms of CPU time for a session, {IN_FLIGHT} in flight, no sandboxes",
        detail={"cpuMs": round(bill.session_ms, 4)},
    )
