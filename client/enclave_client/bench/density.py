"""A thousand sessions alive at once on one worker, each waiting for a tool: to make them, to hold them, to run beside.

They are made twice. The first time also makes a slot for each, which the worker then keeps, and on a virtual machine
memory that was never used before comes from its host, which can cost more than all that we do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from enclave_client.fleet import FleetSpec, running_fleet

from . import alive, footprint
from .alive import Alive, NotAliveError
from .figures import Figure, at_most, percentile, spread
from .load import SUM, Load, create_body
from .phases import pids

if TYPE_CHECKING:
    from enclave_client.fleet import Fleet

    from .phases import Plan

SESSIONS = 1000
SESSIONS_A_ROUND = 50
"""Of a run of fewer rounds than usual, so that a quick one stays quick."""
TIMES = 2
IMPORTING = 10
"""One for so many: those that import are counted on their own, on top of all others."""
SPARE_SLOTS = 32
MAX_MADE_S = 5.0
MAX_EACH_MB = 3.0
MAX_NEXT_RATIO = 1.3
BLOCKS = 4
BLOCK_SESSIONS = 25


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What there is, at one moment."""

    pss_mb: float
    """Of the worker and all below it; 0 if only root may know."""
    kernel_mb: float
    """The kernel's own, for all that runs on this machine."""
    worker_fds: int
    broker_fds: int
    broker_mb: float
    processes: int

    @classmethod
    def at(cls, fleet: Fleet) -> Look:
        """Look."""
        broker, (worker,) = pids(fleet)
        return cls(
            pss_mb=footprint.worker_mb(worker),
            kernel_mb=footprint.kernel_mb(),
            worker_fds=footprint.descriptors(worker),
            broker_fds=footprint.descriptors(broker),
            broker_mb=footprint.resident_mb(broker),
            processes=len(footprint.descendants(worker)),
        )


class _Found:
    """What the times that they were made have told."""

    def __init__(self) -> None:
        self.made_s: list[float] = []
        self.beside_ms: list[float] = []
        self.elsewhere_ms: list[float] = []
        """By turns with those, on a fleet on which nobody waits."""
        self.before_ms: list[float] = []
        """On the same fleet, while nobody waits yet."""
        self.looks: list[Look] = []
        """With none, half and all of them; before and after some more that import. Of the first time."""


async def density(load: Load, plan: Plan) -> list[Figure]:
    """Measure a crowd of sessions on a fleet of its own, and what one more takes by turns with `load`'s fleet.

    There is no figure if one of the crowd fails: that is counted, and the others do not say what all would take.
    """
    count = min(SESSIONS, SESSIONS_A_ROUND * plan.rounds)
    alive.raise_descriptors(count)  # the programs inherit it
    found = _Found()
    slots = count + count // IMPORTING + SPARE_SLOTS
    spec = FleetSpec(workers=1, max_sessions=slots, tools=(alive.TOOLS,))
    async with running_fleet(spec, lambda *_: None) as fleet:
        own = Load(fleet.url)
        try:
            await own.one_by_one(create_body(SUM), BLOCK_SESSIONS)  # to warm up
            for _ in range(TIMES):
                await _measure(own, load, fleet, count, found)
        except NotAliveError:
            return []
        finally:
            load.absorb(own)
    return _figures(count, found)


async def _measure(load: Load, other: Load, fleet: Fleet, count: int, found: _Found) -> None:
    body = create_body(SUM)
    _, (worker,) = pids(fleet)
    found.before_ms += await load.one_by_one(body, BLOCKS * BLOCK_SESSIONS)
    looks = [Look.at(fleet)]
    async with Alive(load, worker) as sessions:
        made_s = await sessions.make(count // 2)
        looks.append(Look.at(fleet))
        found.made_s.append(made_s + await sessions.make(count - count // 2))
        looks.append(Look.at(fleet))
        for _ in range(BLOCKS):
            found.beside_ms += await load.one_by_one(body, BLOCK_SESSIONS)
            found.elsewhere_ms += await other.one_by_one(body, BLOCK_SESSIONS)
        await sessions.wait_replaced()  # else what those to come take from a pool would count as nothing
        looks.append(Look.at(fleet))
        await sessions.make(count // IMPORTING, alive.HOLD_AND_IMPORT)
        await sessions.wait_replaced()
        looks.append(Look.at(fleet))
    found.looks = found.looks or looks


def _figures(count: int, found: _Found) -> list[Figure]:
    first_s, again_s = found.made_s
    limit_s = MAX_MADE_S * count / SESSIONS
    figures = [
        at_most(
            "density_made",
            f"{count:,} sessions made that wait for a tool",
            again_s,
            "s",
            limit_s,
            compared_with=f"{first_s:.1f} s the first time, when slots are made and memory may be new to the machine",
            detail={"perTimeS": [round(each, 2) for each in found.made_s]},
        )
    ]
    if found.looks[0].pss_mb:
        figures += [_held(count, found.looks), _held_importing(count // IMPORTING, found.looks)]
    return [*figures, _next(count, found)]


def _next(count: int, found: _Found) -> Figure:
    beside, elsewhere = percentile(found.beside_ms, 50), percentile(found.elsewhere_ms, 50)
    return at_most(
        "density_next_p50",
        f"a session beside {count:,} that wait, p50",
        beside,
        "ms",
        MAX_NEXT_RATIO * elsewhere,
        target=f"at most {MAX_NEXT_RATIO:g} times = {MAX_NEXT_RATIO * elsewhere:.2f}",
        compared_with=f"on a fleet where none waits, by turns: {elsewhere:.2f} ms, so {beside / elsewhere:.2f} times "
        f"that; here before they were made: {percentile(found.before_ms, 50):.2f}",
        detail={
            "ratioToElsewhere": round(beside / elsewhere, 3),
            "beside": spread(found.beside_ms),
            "elsewhere": spread(found.elsewhere_ms),
            "before": spread(found.before_ms),
        },
    )


def _held(count: int, looks: list[Look]) -> Figure:
    none, half, full = (msgspec.to_builtins(each) for each in looks[:3])
    added = {name: (full[name] - none[name]) / count for name in none}
    last = {name: (full[name] - half[name]) / (count - count // 2) for name in none}
    return at_most(
        "density_pss",
        f"each of {count:,} that wait, PSS with worker",
        full["pss_mb"] / count,
        "MB",
        MAX_EACH_MB,
        compared_with=f"each of the second half adds {last['pss_mb']:.2f} MB; "
        f"beside it each takes {added['kernel_mb']:.2f} of the kernel, {added['broker_mb']:.3f} of the broker. "
        f"Descriptors each: worker {added['worker_fds']:.1f}, broker {added['broker_fds']:.1f}; "
        f"processes {added['processes']:.1f}",
        detail={"perSession": added, "perSessionOfSecondHalf": last},
    )


def _held_importing(count: int, looks: list[Look]) -> Figure:
    before, after = looks[3:]
    said = f"what each of {count} more of them adds to those"
    title = "each that waits and has imported, PSS"
    value = (after.pss_mb - before.pss_mb) / count
    return at_most("density_importing_pss", title, value, "MB", MAX_EACH_MB, compared_with=said)
