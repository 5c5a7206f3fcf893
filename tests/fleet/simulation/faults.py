"""What goes wrong in a run, and what is mended; and what may become of sessions because of it.

Every fault is noted with how long it can be felt, at most: a session may end otherwise than its code does only where
such a note justifies it.
"""

from __future__ import annotations

import contextvars
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING

from .called_tools import EXTRA
from .guests import SLOW_DEATH_S
from .hosts import BROKER, LEASE_S, RESUME_S, SERVER_PATIENCE_S, SILENCE_S

if TYPE_CHECKING:
    from .guests import GuestRun
    from .hosts import WorkerHost
    from .network import End
    from .plan import Fault, SessionPlan
    from .truth import Note
    from .world import World

BROKER_GRACE_S = 0.5
"""How long a broker that is told to stop waits for its sessions,"""
CLOSING_S = 1.5
"""and may take for everything else."""
ROLL_GRACE_S = 6.0
"""How long a worker that is told to stop waits for its sessions."""
FOUND_OUT_S = 4.0
"""How long it takes at most to notice that a link is silent and to have another one."""


MAX_RETRIES = 2
_KIND_AT = len(b'{"type":"')


class Moments:
    """Has faults strike at the messages that they wait for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._passed: dict[str, int] = defaultdict(int)
        self._waiting: dict[tuple[str, int], list[Fault]] = defaultdict(list)
        for fault in world.plan.faults:
            if fault.on:
                self._waiting[fault.on, fault.count].append(fault)

    def pass_by(self, message: bytes) -> None:
        """Look at a message that is sent just now."""
        kind = message[_KIND_AT : message.find(b'"', _KIND_AT)].decode()
        self._passed[kind] += 1
        for fault in self._waiting.pop((kind, self._passed[kind]), ()):
            # Before whoever sent it does anything else, unless it is in the middle of something.
            self._world.loop.call_soon(self._world.faults.strike, fault, context=contextvars.Context())


class Faults:
    """Does what a plan's faults say."""

    def __init__(self, world: World) -> None:
        self._world = world

    def strike(self, fault: Fault) -> None:
        """Have something go wrong."""
        self._world.tell(str(fault))
        getattr(self, f"_{fault.kind}")(fault)

    def _links(self, fault: Fault) -> list[End]:
        return self._world.network.between(BROKER, f"worker{fault.who}")

    def _sockets(self, fault: Fault) -> list[End]:
        return self._world.network.between(f"client{fault.who}", BROKER)

    def _cut_client(self, fault: Fault) -> None:
        for end in self._sockets(fault):
            self._world.network.cut(end)
        self._world.truth.note("cut", f"client{fault.who}")

    def _stall_client(self, fault: Fault) -> None:
        for end in self._sockets(fault):
            self._world.network.stall(end, fault.for_s)
        self._world.truth.note("stalled", f"client{fault.who}", fault.for_s)

    def _half_open_client(self, fault: Fault) -> None:
        ends = self._sockets(fault)
        for end in ends:
            self._silence(end, fault.way)
        if ends:
            self._world.truth.note("silent", f"client{fault.who}", 20.0)

    def _part_client(self, fault: Fault) -> None:
        self._part(f"client{fault.who}", fault.for_s)
        self._world.truth.note("silent", f"client{fault.who}", 20.0 + fault.for_s)

    def _kill_client(self, fault: Fault) -> None:
        client = self._world.clients[fault.who]
        if client.process.alive:
            client.kill()
            self._world.truth.note("killed", client.name)

    def _cut_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            self._world.network.cut(end)
        self._world.truth.note("unreachable", f"worker{fault.who}", 2.0)

    def _half_open_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            self._silence(end, fault.way)
        self._world.truth.note("unreachable", f"worker{fault.who}", FOUND_OUT_S)

    def _stall_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            self._world.network.stall(end, fault.for_s)
        self._world.truth.note("unreachable", f"worker{fault.who}", fault.for_s + FOUND_OUT_S)

    def _part_worker(self, fault: Fault) -> None:
        self._part(f"worker{fault.who}", fault.for_s)
        self._world.truth.note("unreachable", f"worker{fault.who}", fault.for_s + FOUND_OUT_S)

    def _part(self, who: str, for_s: float) -> None:
        self._world.network.part(BROKER, who)
        self._world.loop.call_later(for_s, self._world.network.join, BROKER, who)

    def _abandon_worker(self, fault: Fault) -> None:
        self._part_worker(fault)

    def _kill_worker(self, fault: Fault) -> None:
        self._take_down(fault, vanish=False)

    def _vanish_worker(self, fault: Fault) -> None:
        self._take_down(fault, vanish=True)

    def _take_down(self, fault: Fault, *, vanish: bool) -> None:
        worker = self._world.workers[f"worker{fault.who}"]
        if worker.alive:
            worker.kill(vanish=vanish)
            self._world.truth.note("killed", worker.name, fault.for_s)
            self._world.loop.call_later(fault.for_s, self._start_again, worker, worker.incarnation)

    def _kill_broker(self, fault: Fault) -> None:
        self._take_broker_down(fault, vanish=False)

    def _vanish_broker(self, fault: Fault) -> None:
        self._take_broker_down(fault, vanish=True)

    def _roll_broker(self, fault: Fault) -> None:
        world = self._world
        if world.broker.alive and not world.broker.process.frozen and not world.broker.dispatcher.draining:
            world.broker.stop(BROKER_GRACE_S)
            down_s = BROKER_GRACE_S + world.config.stop_grace_s + CLOSING_S + fault.for_s
            world.truth.note("down", BROKER, down_s + FOUND_OUT_S)
            world.loop.call_later(down_s, self._start_broker_again, world.broker.incarnation)

    def _start_broker_again(self, incarnation: int) -> None:
        broker = self._world.broker
        if broker.incarnation == incarnation:
            if broker.alive:
                self._world.truth.violation("a drain ends in time", repr(broker.process))
                broker.kill()
            self._world.truth.broker_died()
            broker.start()

    def _start_killed_broker(self, incarnation: int) -> None:
        if self._world.broker.incarnation == incarnation:
            self._world.broker.start()

    def _fill_disk(self, fault: Fault) -> None:
        until_s = self._world.loop.time() + fault.for_s

        def refuse(function: object) -> None:
            if getattr(function, "__name__", "") == "write" and self._world.loop.time() < until_s:
                raise sqlite3.OperationalError("database or disk is full")

        self._world.loop.before_work = refuse

    def _take_broker_down(self, fault: Fault, *, vanish: bool) -> None:
        world = self._world
        if world.broker.alive:
            world.truth.check_now()
            world.broker.kill(vanish=vanish)
            world.truth.broker_died()
            world.truth.note("down", BROKER, fault.for_s + FOUND_OUT_S)
            world.loop.call_later(fault.for_s, self._start_killed_broker, world.broker.incarnation)

    def _freeze_broker(self, fault: Fault) -> None:
        if self._world.broker.alive and not self._world.broker.process.frozen:
            self._world.broker.process.freeze()
            self._world.loop.call_later(fault.for_s, self._world.broker.process.thaw)
            self._world.truth.note("freeze", BROKER, fault.for_s + FOUND_OUT_S)

    def _freeze_worker(self, fault: Fault) -> None:
        worker = self._world.workers[f"worker{fault.who}"]
        if worker.alive and not worker.process.frozen:
            worker.process.freeze()
            self._world.loop.call_later(fault.for_s, worker.process.thaw)
            self._world.truth.note("unreachable", worker.name, fault.for_s + FOUND_OUT_S)
            self._world.truth.note("frozen", worker.name, fault.for_s)

    def _roll_worker(self, fault: Fault) -> None:
        worker = self._world.workers[f"worker{fault.who}"]
        if worker.alive and not worker.process.frozen and not worker.sessions.draining:
            worker.stop(grace_s=ROLL_GRACE_S)
            self._world.truth.note("killed", worker.name, ROLL_GRACE_S + fault.for_s)
            self._world.loop.call_later(ROLL_GRACE_S + 4.0 + fault.for_s, self._start_again, worker, worker.incarnation)

    def _start_again(self, worker: WorkerHost, incarnation: int) -> None:
        if worker.incarnation == incarnation and not worker.alive:
            worker.start()

    def _catalog(self, fault: Fault) -> None:
        if self._world.broker.alive and not self._world.broker.process.frozen:
            registry = self._world.broker.registry
            tools = [] if "extra" in registry.names() else [EXTRA]
            self._world.broker.process.run(registry.replace_source, "plan", tools)

    def _silence(self, end: End, way: int) -> None:
        if way == 2:
            self._world.network.silence(end, both=True)
        else:
            self._world.network.silence(end if way else end.peer)

    # What is allowed, given what went wrong

    def may_lose_worker(self, plan: SessionPlan, begin: float, end: float) -> bool:
        """Return whether the worker of a session that lived then can count as lost, and the session with it."""
        away = [span for name in self._world.workers for span in self._away(name) if span[0] <= end]
        old = [name for name, worker in self._world.workers.items() if worker.old]
        if any(since <= end for name in old for since, _ in self._away(name)):
            return True  # one of those has its sessions end with the connection
        killed = [note for note in self._notes("killed") if begin - FOUND_OUT_S <= note[1] and note[0] <= end]
        long = [since for since, until in away if until >= begin and until - since >= RESUME_S]
        if not plan.safe or len(self._world.truth.seen_of_worker(plan.session_id)) > 0:
            return bool(killed or long)
        return len(killed) + len(long) > MAX_RETRIES  # nothing was seen of it, so it is placed again

    def _notes(self, kind: str) -> list[Note]:
        return [note for note in self._world.truth.notes if note[2] == kind and note[3] in self._world.workers]

    def _away(self, name: str) -> list[tuple[float, float]]:
        """Return when a worker may have been out of the broker's sight: spells that overlap are one."""
        spells: list[tuple[float, float]] = []
        for since, until, kind, who in sorted(self._world.truth.notes):
            if (kind, who) not in {("unreachable", name), ("freeze", BROKER), ("down", BROKER)}:
                continue
            if spells and since <= spells[-1][1]:
                spells[-1] = (spells[-1][0], max(until, spells[-1][1]))
            else:
                spells.append((since, until))
        return spells

    def outlives_s(self, run: GuestRun) -> float:
        """Return how long a guest may be there after its session has ended."""
        name = run.worker.partition("#")[0]
        if not any(who in {name, BROKER} for _, _, _, who in self._world.truth.notes):
            return SLOW_DEATH_S + 1.0
        if self._world.workers[name].old:
            return SERVER_PATIENCE_S[1] + SLOW_DEATH_S + 1.0
        frozen_s = sum(
            until - at_s for at_s, until, kind, who in self._world.truth.notes if who == name and kind == "frozen"
        )
        return 2 * SILENCE_S + LEASE_S + SLOW_DEATH_S + frozen_s  # nobody could tell the worker
