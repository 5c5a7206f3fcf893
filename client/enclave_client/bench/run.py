"""One run: start the fleet, measure everything, count what is held before and after, stop the fleet."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
from websockets.exceptions import WebSocketException

from enclave_client.fleet import Fleet, FleetError, FleetSpec, running_fleet

from . import bursts, curve, data_profile, footprint, languages, phases, rivals, streaming
from .alone import alone
from .crowd import CLIENTS, CLIENTS_A_ROUND, crowd
from .density import density
from .growth import growth
from .instead import instead
from .load import MAX_FAILURES_KEPT, MIXED, Load
from .neighbours import neighbours
from .report import Report, describe_machine, ending, line, machine_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from .figures import Figure
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


async def run(plan: Plan, workers: int, say: Callable[[str], None]) -> Report:
    """Measure; tell each line to `say` as soon as it is known. Raises FleetError."""
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
        await _measure(fleet, plan, report, say)
    report.failures += log[:MAX_FAILURES_KEPT] if report.failed else []
    say(ending(report))
    return report


async def _measure(fleet: Fleet, plan: Plan, report: Report, say: Callable[[str], None]) -> None:
    load = Load(fleet.url)

    def add(figures: list[Figure]) -> None:
        report.figures += figures
        for figure in figures:
            say(line(figure))

    add(phases.memory(fleet))
    await load.in_flight(MIXED * (WARM_UP_SESSIONS // len(MIXED)), phases.IN_FLIGHT)
    before = await settled(fleet, None)
    try:
        add(await phases.latency(load, plan))
        add(await phases.latency(load, plan, think_s=phases.THINK_S))
        add(await languages.javascript(load, plan))
        add(await phases.throughput(load, fleet, plan))
        add(await bursts.in_flight(load, plan))
        add(await bursts.burst(load, plan))
        add(await bursts.cold(load, plan))
        own_tools = await phases.tool_calls(load, plan)
        add(own_tools)
        add(await streaming.client_tools(load, plan, own_tools))
        add(await phases.cancels(load, plan))
        add(await neighbours(load, plan))
        add(await phases.endurance(load, plan))
        add(await growth(load, fleet, plan))
        async with rivals.running(report.left_out) as others:
            add(await instead(load, plan, others))
            report.curves = await curve.curves(load, curve.part_of(plan.rounds), others)
        say("\n".join(curve.lines(report.curves)))
    except _BROKEN as error:
        load.fail(f"{type(error).__name__} {error}; the rest was not measured")
    after = await settled(fleet, before)
    say(f"held before {load.sessions} sessions: {_held(before)}\nheld after:  {_held(after)}")
    try:
        add(await streaming.streaming(load))
        add(await streaming.stalled(load))
        add(await crowd(min(CLIENTS, CLIENTS_A_ROUND * plan.rounds)))
        add(await alone(load, plan.rounds))
        add(await density(load, plan))
        absent = data_profile.missing()
        if absent:
            report.left_out.append(f"{data_profile.PROFILE}: not installed: {absent}")
        else:
            add(await data_profile.data_profile(load, plan))
    except _BROKEN as error:
        load.fail(f"{type(error).__name__} {error}; the rest was not measured")
    report.failed, report.failures = load.failed, load.failures
    report.leaks = leaks(before, after)


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
