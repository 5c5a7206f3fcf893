"""Ways to break the fleet, each of which the checker has to notice: whoever finds nothing must be able to find."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_broker.event_log import EventLog
from enclave_broker.fleet import Fleet
from enclave_broker.outgoing import Outgoing
from enclave_broker.placement import Placer
from enclave_broker.sessions import BrokerSession
from enclave_broker.store.logs import StoredLog
from enclave_broker.store.sqlite import SqliteStore
from enclave_worker import session as worker_session
from enclave_worker.holdings import Holdings
from enclave_worker.instructions import Emit, ToGuest
from enclave_worker.session import Session
from enclave_worker.tool_calls import ToolCalls

from .guests import FakeSandbox
from .hosts import BROKER

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from enclave_worker.output import Stream

    from .network import End
    from .world import World

    Patch = pytest.MonkeyPatch


class _OnTheWire:
    """Changes what arrives of some events, the third of them first: `way` says between whom."""

    def __init__(
        self, change: Callable[[list[bytes]], list[Any]], *, to_client: bool, kinds: set[str], after: int
    ) -> None:
        self._change = change
        self._to_client = to_client
        self._kinds = kinds
        self._left = after
        self._held: dict[End, list[bytes]] = {}

    def __call__(self, sender: End, receiver: End, data: Any) -> list[Any]:
        line = data.get("body", b"") if isinstance(data, dict) else data
        upstream = sender.host.startswith("worker")
        if not isinstance(line, bytes) or b'"seq":' not in line or upstream == self._to_client:
            return [data]
        if not any(b'"type":"%s"' % kind.encode() in line for kind in self._kinds):
            return [data]
        if self._to_client and (sender.host != BROKER or not receiver.host.startswith("client")):
            return [data]
        self._left -= 1
        if self._left != 0:
            return [data]
        if isinstance(data, dict):
            lines = line.rstrip(b"\n").split(b"\n")
            return [{**data, "body": b"\n".join([*self._change(lines), b""])}]
        return self._change([data])


def wire(
    change: Callable[[list[bytes]], list[Any]], *kinds: str, to_client: bool = False, after: int = 3
) -> Callable[[World, Patch], None]:
    """Return a sabotage of events on their way."""

    def sabotage(world: World, patch: Patch) -> None:
        del patch
        world.network.tamper = _OnTheWire(change, to_client=to_client, kinds=set(kinds), after=after)

    return sabotage


def drop(lines: list[bytes]) -> list[bytes]:
    """Lose the last."""
    return lines[:-1]


def double(lines: list[bytes]) -> list[bytes]:
    """Send the last twice."""
    return [*lines, lines[-1]]


def alter(lines: list[bytes]) -> list[bytes]:
    """Change a letter."""
    return [*lines[:-1], lines[-1].replace(b";", b":", 1)]


class _Swap:
    """Sends one event after the next one."""

    def __init__(self) -> None:
        self._held: Any = None
        self._done = False

    def __call__(self, sender: End, receiver: End, data: Any) -> list[Any]:
        if self._done or not isinstance(data, bytes) or not sender.host.startswith("worker") or b'"seq":' not in data:
            return [data]
        if self._held is None:
            self._held = (receiver, data)
            return []
        if self._held[0] is not receiver:
            return [data]
        self._done = True
        return [data, self._held[1]]


def swapped(world: World, patch: Patch) -> None:
    """Reorder two events of a worker."""
    del patch
    world.network.tamper = _Swap()


def final_forgotten(world: World, patch: Patch) -> None:
    """Have workers say nothing at the end of a session."""
    del world
    ended = Session.ended

    def without_final(self: Session, *args: Any) -> list[Any]:
        return [each for each in ended(self, *args) if not (isinstance(each, Emit) and b'"type":"final"' in each.line)]

    patch.setattr(Session, "ended", without_final)


def broker_hangs(world: World, patch: Patch) -> None:
    """Forget finals, and never mind."""
    final_forgotten(world, patch)
    patch.setattr(Fleet, "end_later", lambda *_: None)


def slot_leaks(world: World, patch: Patch) -> None:
    """Keep the slots of every third session that ends."""
    del world
    release, count = Placer.release, iter(range(10**9))

    def leaky(self: Placer, session_id: str, **more: bool) -> list[Any]:
        return [] if next(count) % 3 == 1 else release(self, session_id, **more)

    patch.setattr(Placer, "release", leaky)


def sandbox_stays(world: World, patch: Patch) -> None:
    """Kill nothing."""
    del world
    patch.setattr(FakeSandbox, "kill", lambda _: None)


def answered_twice(world: World, patch: Patch) -> None:
    """Tell guests every result twice."""
    del world
    answer = ToolCalls._answer

    def twice(self: ToolCalls, *args: Any) -> list[Any]:
        told = answer(self, *args)
        return [*told, *(each for each in told if isinstance(each, ToGuest))]

    patch.setattr(ToolCalls, "_answer", twice)


def run_twice(world: World, patch: Patch) -> None:
    """Send what one worker is to run to another, too."""
    del patch

    def tamper(sender: End, receiver: End, data: Any) -> list[Any]:
        if sender.host == BROKER and isinstance(data, bytes) and data.startswith(b'{"type":"execute"'):
            others = [end for end in world.network._ends if end.host.startswith("worker") and end is not receiver]
            for other in others[:1]:
                world.loop.call_later(0.05, other.arrive, data)
        return [data]

    world.network.tamper = tamper


def output_swallowed(world: World, patch: Patch) -> None:
    """Lose what a guest wrote before it has a number."""
    del world
    output, count = Session.output, iter(range(10**9))

    def forgetful(self: Session, *args: Any) -> list[Any]:
        return [] if next(count) % 5 == 4 else output(self, *args)

    patch.setattr(Session, "output", forgetful)


def output_doubled(world: World, patch: Patch) -> None:
    """Number what a guest wrote twice."""
    del world
    output, count = Session.output, iter(range(10**9))

    def stammering(self: Session, stream: Stream, data: bytes) -> list[Any]:
        return output(self, stream, data * 2 if next(count) % 5 == 4 else data)

    patch.setattr(Session, "output", stammering)


def result_made_up(world: World, patch: Patch) -> None:
    """Have every final say something else than the guest did."""
    del world
    patch.setattr(worker_session, "read_value", functools.partial(lambda _: b'{"answers":["made up"]}'))


def replay_differs(world: World, patch: Patch) -> None:
    """Have a log give its lines otherwise the second time."""
    del world
    lines = EventLog.lines

    def moody(self: EventLog, from_seq: int, max_bytes: int) -> list[bytes]:
        found = lines(self, from_seq, max_bytes)
        return [line.replace(b"2027", b"2028") for line in found] if self.closed else found

    patch.setattr(EventLog, "lines", moody)


def unstored_told(world: World, patch: Patch) -> None:
    """Tell clients, workers and tools of what is not stored yet."""
    del world
    patch.setattr(StoredLog, "end_seq", StoredLog.next_seq)
    patch.setattr(StoredLog, "lines", EventLog.lines)
    patch.setattr(SqliteStore, "then", lambda _, action: action())


def unstored_acknowledged(world: World, patch: Patch) -> None:
    """Have workers forget what is not stored yet."""
    del world
    patch.setattr(BrokerSession, "stored_seq", property(lambda self: self.log.next_seq - 1))


def answers_forgotten(world: World, patch: Patch) -> None:
    """Send the answer of a call once, whether or not it arrives."""
    del world
    attach = Outgoing.attach

    def forgetful(self: Outgoing, session: BrokerSession, *args: Any) -> None:
        session.answers.clear()
        attach(self, session, *args)

    patch.setattr(Outgoing, "attach", forgetful)


def lease_for_ever(world: World, patch: Patch) -> None:
    """Have workers wait for their broker without end."""
    del world
    patch.setattr(Holdings, "_expire", lambda *_: None)


def capacity_refused(lines: list[bytes]) -> list[bytes]:
    """Say that there was no slot, at the end of a session that had one."""
    final = msgspec.json.decode(lines[-1])
    error = {"message": "no", "code": "NO_CAPACITY", "retryable": True}
    final["payload"] = {"ok": False, "error": error, "stats": final["payload"]["stats"]}
    return [*lines[:-1], msgspec.json.encode(final)]


SABOTAGES: dict[str, Callable[[World, Patch], None]] = {
    "a worker's event is dropped": wire(drop, "stdout", "tool_call"),
    "two of a worker's events change places": swapped,
    "a letter of a worker's event is changed": wire(alter, "stdout"),
    "an event to a client is dropped": wire(drop, "stdout", "tool_call", to_client=True),
    "an event to a client is doubled": wire(double, "stdout", "tool_call", "session_init", to_client=True, after=2),
    "a letter of an event to a client is changed": wire(alter, "stdout", to_client=True),
    "a final to a client is dropped": wire(drop, "final", to_client=True, after=2),
    "a final has another code": wire(capacity_refused, "final", after=2),
    "workers forget finals": final_forgotten,
    "the broker waits for ever": broker_hangs,
    "slots leak": slot_leaks,
    "sandboxes are not killed": sandbox_stays,
    "guests are answered twice": answered_twice,
    "sessions run twice": run_twice,
    "output is swallowed": output_swallowed,
    "output is doubled": output_doubled,
    "results are made up": result_made_up,
    "replays differ": replay_differs,
    "clients are told what is not stored": unstored_told,
    "workers forget what is not stored": unstored_acknowledged,
    "answers are sent once": answers_forgotten,
    "leases do not end": lease_for_ever,
}
