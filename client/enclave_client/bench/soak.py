"""The soak: very many sessions, good and hostile mixed, and what is left of them.

Theory of operation. A real fleet runs a shuffled mixture of all kinds (`hostile.KINDS`), a bounded number at once. Each
session has to end with exactly one `final`, the last of a numbered stream, and in a way that its kind may end. After
a warm-up of the same mixture, and then several times until the end, the fleet is left alone until the broker has
forgotten the sessions and the counts stand still; then what it holds is looked at. A count that differs in the end is a
leak. Memory moves a little for many reasons: a straight line is fitted through all looks, and it is the line that may
not rise. After few sessions a program is still reaching its size, so there the line is shown and not judged. The
programs run with an allocator that gives back what is free: how much it would keep of the largest moment
so far is chance, and says nothing of a leak.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import random
import statistics
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import click
import msgspec

from enclave_client.fleet import FleetSpec, running_fleet

from . import footprint
from .command import measured
from .exchange import ANSWER_TIMEOUT_S
from .hostile import KINDS, Kind
from .http import Connection
from .phases import pids
from .report import describe_machine, machine_line
from .run import settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from enclave_client.fleet import Fleet

MAX_GROWTH = 0.05
"""Of a program's resident memory, from the warm-up to the end, by the line through all looks."""
MIN_JUDGED = 1000
"""Sessions from the first look to the last. After fewer a twentieth is two megabytes that Python took once, no leak."""
SPARE_SLOTS = 4
"""Of the worker: a session that was left, and waits to be given up, has a slot, and nobody runs it."""
DISCONNECT_GRACE_S = 0.2
RETAIN_S = 5.0
_LEFT_POLL_S = 0.1
"""How often a session whose client hung up is looked at. Its stream is read once it has ended: a reader who came
sooner would take it over."""
_FORGOTTEN_S = RETAIN_S + 2.0
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc's own first thresholds. Said, they stay; unsaid, they grow with the largest block that was ever freed."""
_MAX_EXAMPLES = 10
_ERROR = " ERROR "
_MEMORY = ("broker_mb", "worker_mb")
_TRACEBACK = "Traceback (most recent call last)"
"""How an exception begins: one that nobody logged, and one below the line of a record."""


class SoakPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to run."""

    sessions: int
    warm_up: int
    """Sessions before the first look at what is held."""
    looks: int
    """After the warm-up: in equal parts of the sessions, the last at the end."""
    at_once: int
    minutes: float
    """After so long no session is started any more."""
    seed: int
    """Of the order of the sessions."""


class Tally:
    """What became of the sessions."""

    def __init__(self) -> None:
        self.endings: dict[str, collections.Counter[str]] = {kind.name: collections.Counter() for kind in KINDS}
        self.without_final = 0
        """Sessions without exactly one `final` at the end of an unbroken stream."""
        self.wrong = 0
        """Sessions that ended in a way their kind may not."""
        self.examples: list[str] = []

    @property
    def sessions(self) -> int:
        """How many were run."""
        return sum(counts.total() for counts in self.endings.values())

    def add(self, kind: Kind, answer: bytes) -> None:
        """Count a session by the whole of its stream, or of as much as has come."""
        final, fault = ending(answer)
        code = fault or ("OK" if final["ok"] else str(final["error"]["code"]))
        self.endings[kind.name][code] += 1
        if fault:
            self.without_final += 1
        elif code not in kind.endings:
            self.wrong += 1
        else:
            return
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"{kind.name}: {code}: {answer[-300:].decode(errors='replace')}")


def ending(answer: bytes) -> tuple[dict[str, Any], str]:
    """Return the payload of a stream's `final`, and what is wrong with the stream, if anything is."""
    # A chunk is whole lines, so a line that starts as an object is an event.
    try:
        events = [msgspec.json.decode(line) for line in answer.splitlines() if line.startswith(b"{")]
    except msgspec.DecodeError:
        return {}, "an event cut short"
    kinds = [event.get("type") for event in events]
    if kinds.count("final") != 1 or kinds[-1] != "final":
        return {}, f"{kinds.count('final')} finals"
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        return {}, "a gap in the numbers"
    return events[-1]["payload"], ""


class Soak:
    """Runs the mixture against one broker."""

    def __init__(self, url: str, plan: SoakPlan, *, until_s: float) -> None:
        self.tally = Tally()
        self._url = url
        self._at_once = plan.at_once
        self._random = random.Random(plan.seed)  # noqa: S311 - a shuffle that can be repeated
        self._until_s = until_s

    async def run(self, sessions: int) -> None:
        """Run so many sessions, or fewer if the time is over."""
        deck = [kind for kind in KINDS for _ in range(kind.share)]
        self._random.shuffle(deck)
        # Each kind once, however few they are; then by their shares.
        kinds = list(itertools.islice(itertools.chain(KINDS, itertools.cycle(deck)), sessions))
        self._random.shuffle(kinds)
        waiting = iter(kinds)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(self._run_all(waiting))

    async def _run_all(self, kinds: Iterator[Kind]) -> None:
        for kind in kinds:  # shared by all: each takes the next
            if time.monotonic() > self._until_s:
                return
            try:
                self.tally.add(kind, await self._run_one(kind))
            except OSError as error:  # a timeout is one
                self.tally.add(kind, f"{type(error).__name__} {error}".encode())

    async def _run_one(self, kind: Kind) -> bytes:
        """Run one session the way of its kind; return its whole stream."""
        session_id = f"s_{uuid.uuid4()}"
        body = msgspec.json.encode({"code": kind.code, "sessionId": session_id, "limits": kind.limits})
        async with Connection(self._url) as connection:
            if kind.way == "to the end":
                return await connection.post("/sessions", body)
            await connection.post_until("/sessions", body, b'"stdout"')
            if kind.way == "cancel":
                async with Connection(self._url) as other:
                    await other.post(f"/sessions/{session_id}/cancel", b"{}")
                return await connection.rest()
        async with Connection(self._url) as connection, asyncio.timeout(ANSWER_TIMEOUT_S):
            while b'"outcome"' not in await connection.get(f"/sessions/{session_id}"):  # noqa: ASYNC110 - the broker's
                await asyncio.sleep(_LEFT_POLL_S)
            return await connection.get(f"/sessions/{session_id}/stream")


class Errors:
    """What the programs had to say of failures of theirs.

    An exception that nothing caught is a fault of ours whatever a guest did. Other errors may be the machine's, such as
    one that is too busy to end a session in time; they are shown.
    """

    def __init__(self) -> None:
        self.tracebacks = 0
        self.examples: list[str] = []

    def read(self, program: str, line: str) -> None:
        """Take a line of a program's log."""
        raised = _TRACEBACK in line  # indented, and a group's has a frame of its own
        self.tracebacks += raised
        if not raised and _ERROR not in line:
            return
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"{program}: {line}")


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet that has come to rest holds."""

    sessions: int
    """After how many."""
    held: footprint.Held
    broker_mb: float
    worker_mb: float
    """All workers together."""


async def look(fleet: Fleet, sessions: int, before: Look | None) -> Look:
    """Leave the fleet alone until it holds what it held before, or no longer changes; say what it holds."""
    await asyncio.sleep(_FORGOTTEN_S)
    held = await settled(fleet, None if before is None else before.held)
    broker, workers = pids(fleet)
    return Look(
        sessions=sessions,
        held=held,
        broker_mb=footprint.resident_mb(broker),
        worker_mb=sum(footprint.resident_mb(worker) for worker in workers),
    )


def growth(looks: list[Look], name: str) -> float:
    """Return by what share memory grew from the first look to the last, by the line of least squares through all."""
    if looks[0].sessions == looks[-1].sessions:
        return 0.0  # the time was over before there was anything to compare
    fit = statistics.linear_regression([each.sessions for each in looks], [getattr(each, name) for each in looks])
    first, last = (fit.intercept + fit.slope * each.sessions for each in (looks[0], looks[-1]))
    return last / first - 1


def differences(looks: list[Look]) -> list[str]:
    """Return what is not as it was, in words: any count in the end, and memory that grew by `MAX_GROWTH` or more.

    Memory only if `MIN_JUDGED` sessions lie between the first look and the last.
    """
    was, now = msgspec.to_builtins(looks[0].held), msgspec.to_builtins(looks[-1].held)
    found = [f"{name}: {was[name]} before, {now[name]} after" for name in was if was[name] != now[name]]
    if not _memory_is_judged(looks):
        return found
    grown = {name: growth(looks, name) for name in _MEMORY}
    return found + [
        f"{name}: grew by {share:.1%}, at most {MAX_GROWTH:.0%}" for name, share in grown.items() if share >= MAX_GROWTH
    ]


def _memory_is_judged(looks: list[Look]) -> bool:
    return looks[-1].sessions - looks[0].sessions >= MIN_JUDGED


def table(tally: Tally, looks: list[Look]) -> str:
    """Return the endings of each kind, and what was held at each look."""
    lines = [f"{'kind':25} {'sessions':>8}  endings"]
    for name, counts in tally.endings.items():
        said = ", ".join(f"{code} {count}" for code, count in counts.most_common())
        lines.append(f"{name:25} {counts.total():8}  {said}")
    lines += ["", f"{'held after sessions':25} " + " ".join(f"{each.sessions:8}" for each in looks)]
    held = [msgspec.to_builtins(each.held) for each in looks]
    lines += [f"{name:25} " + " ".join(f"{each[name]:8}" for each in held) for name in held[0]]
    judged = "" if _memory_is_judged(looks) else f", not judged: fewer than {MIN_JUDGED} sessions"
    for name in _MEMORY:
        values = " ".join(f"{getattr(each, name):8.1f}" for each in looks)
        lines.append(f"{name:25} {values}  {growth(looks, name):+.1%} by the line through all{judged}")
    return "\n".join(lines)


async def soak(plan: SoakPlan, say: Callable[[str], None]) -> bool:
    """Run the soak; tell what was found to `say`; return whether all is well. Raises FleetError."""
    say(machine_line(describe_machine()))
    options = ("--retain-s", str(RETAIN_S), "--disconnect-grace-s", str(DISCONNECT_GRACE_S))
    tools = ("enclave_client.bench.echo_tool",)
    spec = FleetSpec(workers=1, max_sessions=plan.at_once + SPARE_SLOTS, tools=tools, broker_options=options)
    errors = Errors()
    async with running_fleet(spec, errors.read) as fleet:
        started_s = time.monotonic()
        running = Soak(fleet.url, plan, until_s=started_s + plan.minutes * 60)
        tally = running.tally
        await running.run(plan.warm_up)
        looks = [await look(fleet, tally.sessions, None)]
        say(f"{plan.warm_up} sessions to warm up, then {plan.sessions}, {plan.at_once} at once, seed {plan.seed}")
        for part in range(plan.looks):
            await running.run(plan.sessions * (part + 1) // plan.looks - plan.sessions * part // plan.looks)
            looks.append(await look(fleet, tally.sessions, looks[0]))
            say(f"{tally.sessions} sessions in {time.monotonic() - started_s:.0f} s")
        took_s = time.monotonic() - started_s
    say(table(tally, looks))
    found = differences(looks)
    if tally.sessions < plan.warm_up + plan.sessions:
        say(f"stopped after {plan.minutes:g} minutes")
    say(f"sessions: {tally.sessions} in {took_s:.0f} s; without one final: {tally.without_final}; wrong: {tally.wrong}")
    say(f"exceptions in the logs: {errors.tracebacks}")
    for example in (*tally.examples, *errors.examples):
        say(f"  {example}")
    say(f"differs: {'; '.join(found) or 'nothing'}")
    return not (found or tally.without_final or tally.wrong or errors.tracebacks)


@click.command(name="soak", context_settings={"show_default": True})
@click.option("--sessions", type=click.IntRange(min=1), default=50_000, help="Sessions after the warm-up.")
@click.option("--warm-up", type=click.IntRange(min=1), default=2000, help="Sessions before the first look.")
@click.option("--looks", type=click.IntRange(1, 100), default=10, help="How often what is held is looked at after it.")
@click.option("--at-once", type=click.IntRange(1, 256), default=16, help="How many run at once.")
@click.option("--minutes", type=click.FloatRange(min=0.1), default=60.0, help="No session starts after so long.")
@click.option("--seed", type=int, default=1, help="Order of the sessions.")
def command(**options: Any) -> None:
    """Run good and hostile sessions through a broker and a worker, and compare what they hold before and after.

    Exits with 0 if every session had its one final, and nothing was left of any.
    """
    os.environ.update(_GIVE_BACK)  # the programs inherit it
    well = measured(soak(SoakPlan(**options), click.echo))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    command(prog_name="python -m enclave_client.bench.soak")
