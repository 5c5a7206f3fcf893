"""What goes wrong in a run, and what is mended; and what may become of sessions because of it.

Every fault is noted with how long it can be felt, at most: a session may end otherwise than its code does only where
such a note justifies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .called_tools import EXTRA
from .hosts import BROKER

if TYPE_CHECKING:
    from .guests import GuestRun
    from .network import End
    from .plan import Fault, SessionPlan
    from .world import World

FOUND_OUT_S = 4.0
"""How long it takes at most to notice that a link is silent and to have another one."""


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
        self._world.truth.note("unreachable", f"worker{fault.who}", 1.0)

    def _half_open_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            self._silence(end, fault.way)
        self._world.truth.note("unreachable", f"worker{fault.who}", FOUND_OUT_S)

    def _stall_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            if not self._world.network.stalled(end):  # two in a row could be taken for a death
                self._world.network.stall(end, fault.for_s)

    def _stall_worker_long(self, fault: Fault) -> None:
        for end in self._links(fault):
            self._world.network.stall(end, fault.for_s)
        self._world.truth.note("unreachable", f"worker{fault.who}", fault.for_s + FOUND_OUT_S)

    def _part_worker(self, fault: Fault) -> None:
        self._part(f"worker{fault.who}", fault.for_s)
        self._world.truth.note("unreachable", f"worker{fault.who}", fault.for_s + FOUND_OUT_S)

    def _part(self, who: str, for_s: float) -> None:
        self._world.network.part(BROKER, who)
        self._world.loop.call_later(for_s, self._world.network.join, BROKER, who)

    def _kill_worker(self, fault: Fault) -> None:
        self._take_down(fault, vanish=False)

    def _vanish_worker(self, fault: Fault) -> None:
        self._take_down(fault, vanish=True)

    def _take_down(self, fault: Fault, *, vanish: bool) -> None:
        worker = self._world.workers[f"worker{fault.who}"]
        if worker.alive:
            worker.kill(vanish=vanish)
            self._world.truth.note("killed", worker.name, fault.for_s)
            self._world.loop.call_later(fault.for_s, worker.start)

    def _freeze_broker(self, fault: Fault) -> None:
        if self._world.broker.alive and not self._world.broker.process.frozen:
            self._world.broker.process.freeze()
            self._world.loop.call_later(fault.for_s, self._world.broker.process.thaw)
            self._world.truth.note("freeze", BROKER, fault.for_s)

    def _freeze_worker(self, fault: Fault) -> None:
        worker = self._world.workers[f"worker{fault.who}"]
        if worker.alive and not worker.process.frozen:
            worker.process.freeze()
            self._world.loop.call_later(fault.for_s, worker.process.thaw)
            self._world.truth.note("unreachable", worker.name, fault.for_s + FOUND_OUT_S)

    def _drain_worker(self, fault: Fault) -> None:
        sessions = self._world.workers[f"worker{fault.who}"].sessions
        sessions.draining = True
        self._world.loop.call_later(fault.for_s, setattr, sessions, "draining", False)

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
        """Return whether the worker of a session that lived then can count as lost."""
        del plan
        return any(
            begin - 10.0 <= until and at_s <= end and kind in {"killed", "unreachable"} and who in self._world.workers
            for at_s, until, kind, who in self._world.truth.notes
        )

    def outlives_s(self, run: GuestRun) -> float:
        """Return how long a guest may be there after its session has ended."""
        worst = 4.0
        for at_s, until, _, who in self._world.truth.notes:
            if who in {run.worker.partition("#")[0], BROKER}:
                worst = max(worst, 45.0 + until - at_s)  # until the WebSocket library's own pings find out
        return worst
