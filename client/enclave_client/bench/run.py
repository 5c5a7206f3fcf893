"""One run: start the fleet, measure everything, count what is held before and after, stop the fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from websockets.exceptions import WebSocketException

from enclave_client.fleet import Fleet, FleetError, FleetSpec, running_fleet

from . import bursts, curve, data_profile, footprint, languages, phases, rivals, streaming
from .alone import alone
from .crowd import CLIENTS, CLIENTS_A_ROUND, crowd
from .density import density
from .figures import Figure
from .growth import growth
from .instead import instead
from .load import MAX_FAILURES_KEPT, MIXED, Load
from .neighbours import neighbours
from .report import Report, describe_machine, ending, line, machine_line

if TYPE_CHECKING:
    from collections.abc import Collection

    from .phases import Plan

WARM_UP_SESSIONS = 100
MAX_SESSIONS = 128
_BROKEN = (OSError, EOFError, WebSocketException, FleetError)
"""What a connection that ends, an answer that does not come, or a fleet of a measurement's own that does not start
raises; a timeout is an OSError."""
SETTLE_S = 10.0
"""How long the fleet may take to let go of what the last sessions held."""
_SETTLE_POLL_S = 0.1
_SETTLED_POLLS = 10
"""A fleet whose counts stay the same for so many polls is at rest, if nobody knows what it holds at rest."""


class _Subject:
    """What is measured, and where what was found goes."""

    def __init__(self, fleet: Fleet, plan: Plan, report: Report, say: Callable[[str], None]) -> None:
        self.fleet = fleet
        self.plan = plan
        self.report = report
        self.load = Load(fleet.url)
        self.say = say

    def add(self, figures: list[Figure]) -> None:
        """Report what was found."""
        self.report.figures += figures
        for figure in figures:
            self.say(line(figure))

    async def measure(self, measurements: dict[str, _Measurement], only: Collection[str]) -> None:
        """Measure all of these; none after one that breaks."""
        try:
            for name, measurement in measurements.items():
                if not only or name in only:
                    self.add(await measurement(self))
        except _BROKEN as error:
            self.load.fail(f"{type(error).__name__} {error}; the rest was not measured")


async def _latency(it: _Subject) -> list[Figure]:
    return await phases.latency(it.load, it.plan) + await phases.latency(it.load, it.plan, think_s=phases.THINK_S)


async def _tools(it: _Subject) -> list[Figure]:
    own = await phases.tool_calls(it.load, it.plan)
    return own + await streaming.client_tools(it.load, it.plan, own)


async def _rivals(it: _Subject) -> list[Figure]:
    async with rivals.running(it.report.left_out) as others:
        figures = await instead(it.load, it.plan, others)
        it.report.curves = await curve.curves(it.load, curve.part_of(it.plan.rounds), others)
    it.say("\n".join(curve.lines(it.report.curves)))
    return figures


async def _streaming(it: _Subject) -> list[Figure]:
    return await streaming.streaming(it.load) + await streaming.stalled(it.load)


async def _data(it: _Subject) -> list[Figure]:
    if absent := data_profile.missing():
        it.report.left_out.append(f"{data_profile.PROFILE}: not installed: {absent}")
        return []
    return await data_profile.data_profile(it.load, it.plan)


_Measurement = Callable[[_Subject], Awaitable[list[Figure]]]

_OF_THE_FLEET: dict[str, _Measurement] = {
    "latency": _latency,
    "languages": lambda it: languages.javascript(it.load, it.plan),
    "throughput": lambda it: phases.throughput(it.load, it.fleet, it.plan),
    "in-flight": lambda it: bursts.in_flight(it.load, it.plan),
    "burst": lambda it: bursts.burst(it.load, it.plan),
    "cold": lambda it: bursts.cold(it.load, it.plan),
    "tools": _tools,
    "cancels": lambda it: phases.cancels(it.load, it.plan),
    "neighbours": lambda it: neighbours(it.load, it.plan),
    "endurance": lambda it: phases.endurance(it.load, it.plan),
    "growth": lambda it: growth(it.load, it.fleet, it.plan),
    "rivals": _rivals,
}
"""Before and after these, what the fleet holds is counted."""
_OF_OTHERS: dict[str, _Measurement] = {
    "streaming": _streaming,
    "crowd": lambda it: crowd(min(CLIENTS, CLIENTS_A_ROUND * it.plan.rounds)),
    "alone": lambda it: alone(it.load, it.plan.rounds),
    "density": lambda it: density(it.load, it.plan),
    "data": _data,
}
"""These have fleets of their own."""
NAMES = (*_OF_THE_FLEET, *_OF_OTHERS)
"""Of all that can be measured, in this order."""


async def run(plan: Plan, workers: int, say: Callable[[str], None], *, only: Collection[str] = ()) -> Report:
    """Measure; tell each line to `say` as soon as it is known. Raises FleetError.

    Args:
        plan: how much.
        workers: of the fleet.
        say: takes what is to be read.
        only: of `NAMES`, what to measure; all if there is none.
    """
    log: list[str] = []
    report = Report(
        machine=describe_machine(),
        settings=msgspec.to_builtins(plan) | {"workers": workers},
        figures=[],
        failures=[],
        failed=0,
        leaks={},
    )
    say(machine_line(report.machine))
    # As many slots as there are ever sessions in flight, in each worker: a queue would be measured too.
    spec = FleetSpec(workers=workers, max_sessions=MAX_SESSIONS, tools=("enclave_client.bench.echo_tool",))
    async with running_fleet(spec, lambda name, text: log.append(f"{name}: {text}")) as fleet:
        await _measure(_Subject(fleet, plan, report, say), only)
    report.failures += log[:MAX_FAILURES_KEPT] if report.failed else []
    say(ending(report))
    return report


async def _measure(it: _Subject, only: Collection[str]) -> None:
    load = it.load
    it.add(phases.memory(it.fleet))
    await load.in_flight(MIXED * (WARM_UP_SESSIONS // len(MIXED)), phases.IN_FLIGHT)
    before = await settled(it.fleet, None)
    await it.measure(_OF_THE_FLEET, only)
    after = await settled(it.fleet, before)
    it.say(f"held before {load.sessions} sessions: {_held(before)}\nheld after:  {_held(after)}")
    await it.measure(_OF_OTHERS, only)
    it.report.failed, it.report.failures = load.failed, load.failures
    it.report.leaks = leaks(before, after)


async def settled(fleet: Fleet, before: footprint.Held | None) -> footprint.Held:
    """Return what the fleet holds once that is the same as before; without a before, once it does not change."""
    broker, workers = phases.pids(fleet)
    deadline = time.monotonic() + SETTLE_S
    last, unchanged = footprint.held(broker, workers), 0
    while time.monotonic() < deadline and last != before and (before is not None or unchanged < _SETTLED_POLLS):
        await asyncio.sleep(_SETTLE_POLL_S)
        now = footprint.held(broker, workers)
        last, unchanged = now, unchanged + 1 if now == last else 0
    return last


def leaks(before: footprint.Held, after: footprint.Held) -> dict[str, int]:
    """Return what is held more often than before, and by how much."""
    was, now = msgspec.to_builtins(before), msgspec.to_builtins(after)
    return {name: now[name] - was[name] for name in was if now[name] > was[name]}


def _held(held: footprint.Held) -> str:
    return ", ".join(f"{name} {count}" for name, count in msgspec.to_builtins(held).items())
