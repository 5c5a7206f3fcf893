"""The fleet and the queue. Every method is one synchronous step.

Theory of operation. The fleet is a set of workers with `slots` and one queue of sessions without a slot. Every method
changes both and returns instructions; nobody awaits between choosing a worker and taking its slot, so no other pass can
ever see a slot that is given away but still looks free. The instructions are carried out afterwards by the broker.

A slot belongs to a session from `Place` until `release` (its worker said `final`), `refused` (its worker had no slot
after all), `put_back` or `worker_down`. A session that the broker ends by itself keeps its slot until the worker lets
go of it: the sandbox may still be there.

A worker whose connection broke is `away` until it is back or given up (`worker_down`): its sessions may live on there
and keep their slots, and it is offered nothing. A broker that was started again learns from its store which session is
where (`adopt`) before any worker has said hello: such a worker is away, too.

A worker may have clients beside this broker. Their sessions are `foreign`: what the worker says is active, less what
we know to be ours.

A session asks for a profile, perhaps with a language (`languages.need` makes one text of both, which is what `profile`
means here), and only workers that offer it are its workers. Who waits is served round robin over tenants, within what
a worker has a slot for: see `fair_queue`.

A session that would wait longer than it may is refused at once: see `estimates`.

There is no clock. `tick` says how late it is, some times a second; all that needs the time uses that of the last one.

The invariant that keeps the queue short: nobody waits while a slot of theirs may be taken. `validate` asserts it, and
the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .estimates import Estimates
from .fair_queue import FairQueue
from .instructions import DEFAULT_PROFILE, Lose, Place, Refuse, Submitted, Wait
from .slots import Slots, Statistics
from .workers import Worker, WorkerView

if TYPE_CHECKING:
    from collections.abc import Iterable


EVERYBODY = "everybody"
"""The tenant of sessions whose tenant nobody says."""


class Placer:
    """The fleet and the queue.

    Args:
        queue_size: most sessions that may wait; the next one is refused.
        queue_bytes: most code, in bytes, that the waiting sessions may hold together.
        queue_wait_s: a session whose expected wait is longer is refused.
        shared: whether there are several tenants, so that none may fill the queue alone.
    """

    def __init__(self, *, queue_size: int, queue_bytes: int, queue_wait_s: float = 30.0, shared: bool = False) -> None:
        self.queue = FairQueue(queue_size, queue_bytes, shared=shared)
        self.queue_wait_s = queue_wait_s
        self._slots = Slots()
        self._estimates = Estimates(self._slots.workers, self.queue)
        self._now: float | None = None

    # Sessions

    def submit(
        self,
        session_id: str,
        deadline: float,
        *,
        profile: str = DEFAULT_PROFILE,
        tenant: str = EVERYBODY,
        size_bytes: int = 0,
    ) -> Submitted:
        """Find a slot for a new session, or let it wait until `deadline` (on the clock of `tick`)."""
        if session_id in self._slots or session_id in self.queue:
            raise AssertionError(f"{session_id} submitted twice: the broker refuses duplicates before")
        worker = self._slots.choose(profile)
        if worker is not None:
            return self._reserve(session_id, worker, profile)
        ahead = self.queue.ahead(tenant, self._estimates.rivals(profile))
        wait_s = self._estimates.wait_s(profile, ahead)
        if not self.queue.fits(tenant, size_bytes):
            return Refuse(session_id, "queue_full", self._estimates.retry_after_s(profile, wait_s))
        if wait_s is not None and wait_s > self._longest_wait_s(deadline) and self._estimates.sure(profile):
            return Refuse(session_id, "long_wait", self._estimates.retry_after_s(profile, wait_s))
        self.queue.add(session_id, deadline, need=profile, tenant=tenant, size_bytes=size_bytes)
        return Wait(session_id, ahead + 1)

    def refuses(self, tenant: str) -> Refuse | None:
        """Return how any new session of the tenant's would be refused now, whatever it asks for.

        None if it has a chance. For refusing at once what nobody has read yet; one that asks for what no worker offers
        is refused with the others.
        """
        if self.has_free:
            return None
        fits = self.queue.fits(tenant, 0)
        ahead: dict[frozenset[str], int] = {}
        retry_after_s = 0.0
        for profile in self._estimates.offered or ("",):
            rivals = self._estimates.rivals(profile)
            if rivals not in ahead:
                ahead[rivals] = self.queue.ahead(tenant, rivals)
            wait_s = self._estimates.wait_s(profile, ahead[rivals])
            if fits and (wait_s is None or wait_s <= self.queue_wait_s or not self._estimates.sure(profile)):
                return None
            retry_after_s = max(retry_after_s, self._estimates.retry_after_s(profile, wait_s))
        return Refuse("", "long_wait" if fits else "queue_full", retry_after_s)

    @property
    def has_free(self) -> bool:
        """Whether any slot may be taken, by whatever it is that its worker offers."""
        return self._slots.any_free

    def release(self, session_id: str, *, failed: bool = False) -> list[Place]:
        """Give the session's slot back; who is next may take it. Nothing happens without a slot.

        Args:
            session_id: which one.
            failed: whether it ended by a fault that is not its own.
        """
        slot = self._slots.free(session_id)
        if slot is None:
            return []
        worker = slot.worker
        worker.full = False
        worker.pace.freed += 1
        worker.health.ended += 1
        if failed:
            self._slots.blame(worker)
        return self._serve_queue() if self.queue else []

    def refused(self, session_id: str, deadline: float, *, size_bytes: int = 0) -> list[Place]:
        """Put a session that its worker had no slot for back at the head of the queue, or on another worker."""
        slot = self._slots.get(session_id)
        if slot is None:
            return []
        slot.worker.full = True
        if not slot.worker.foreign:  # else another broker was faster: that happens to both
            self._slots.blame(slot.worker)
        return self.put_back(session_id, deadline, profile=slot.need, size_bytes=size_bytes)

    def put_back(
        self, session_id: str, deadline: float, *, profile: str = DEFAULT_PROFILE, size_bytes: int = 0
    ) -> list[Place]:
        """Place an accepted session once more: it goes to the head of the queue, and its slot, if it has one, is free.

        For one that never reached its worker, one whose worker is gone and that may run again, and one that a broker
        accepted before it was started again. The queue may grow past its size by this: the session was accepted.
        """
        if session_id in self.queue:
            raise AssertionError(f"{session_id} waits already: it has nothing that could be given back")
        self._slots.free(session_id)
        self.queue.add_first(session_id, deadline, need=profile, size_bytes=size_bytes)
        return self._serve_queue()

    def adopt(self, session_id: str, worker: str, profile: str = DEFAULT_PROFILE) -> None:
        """Give a session the slot that it has already: it is on that worker, which is away if nobody knows it yet.

        There need be no room: the session is there, whatever the worker says about its slots.
        """
        if session_id in self._slots or session_id in self.queue:
            raise AssertionError(f"{session_id} adopted, but it has its place already")
        host = self._slots.workers.get(worker)
        if host is None:
            host = self._add_worker(Worker(worker, 0, frozenset(), away=True))
        host.foreign = max(0, host.foreign - 1)
        self._slots.hold(session_id, host, profile)

    def move(self, session_id: str, worker: str) -> None:
        """Give a session's slot up for one on the worker that it is on in truth: the same by another name.

        Neither is offered anything at this moment: the one is away, the other is not known or away, too.
        """
        slot = self._slots.free(session_id)
        if slot is None:
            raise AssertionError(f"{session_id} moved, but it has no slot: it is on no worker")
        self.adopt(session_id, worker, slot.need)

    def withdraw(self, session_id: str) -> bool:
        """Take a session out of the queue; False if it did not wait."""
        return self.queue.remove(session_id) is not None

    # Workers

    def worker_up(
        self,
        name: str,
        *,
        max_sessions: int,
        active: int,
        draining: bool,
        profiles: Iterable[str] = (DEFAULT_PROFILE,),
    ) -> list[Place]:
        """Add a worker that said hello. Nothing of ours is on it: it ended what it had when its link closed."""
        if name in self._slots.workers:
            raise AssertionError(f"worker {name} came up twice: its link reports down first")
        worker = Worker(name, max_sessions, frozenset(profiles), foreign=active, draining=draining)
        self._add_worker(worker)
        self._slots.reconsider(worker)
        return self._serve_queue()

    def worker_away(self, name: str) -> None:
        """Offer a worker nothing until it is back: its connection broke, its sessions keep their slots."""
        worker = self._slots.workers.get(name)
        if worker is not None and not worker.away:
            worker.away = True
            worker.health.breaks += 1
            self._estimates.fleet_changed()

    def worker_back(
        self,
        name: str,
        *,
        max_sessions: int,
        active: int,
        draining: bool,
        profiles: Iterable[str] = (DEFAULT_PROFILE,),
    ) -> list[Place]:
        """Offer the slots of a worker again that was away and still has our sessions.

        What of ours never arrived there is put back before this, so that the rest of `active` is known to be foreign.
        """
        worker = self._slots.workers.get(name)
        if worker is None or not worker.away:
            raise AssertionError(f"worker {name} is back, but was not away: a new one comes up")
        worker.away = False
        worker.profiles = frozenset(profiles)
        self._slots.reconsider(worker)
        self._estimates.fleet_changed()
        return self.worker_status(name, max_sessions=max_sessions, active=active, draining=draining)

    def worker_down(self, name: str) -> list[Lose]:
        """Drop a worker, and say which sessions went with it."""
        worker = self._slots.drop(name)
        if worker is None:
            return []
        if not worker.away:
            worker.health.breaks += 1
        self._estimates.fleet_changed()
        return [Lose(session_id, name) for session_id in sorted(worker.sessions)]

    def worker_status(self, name: str, *, max_sessions: int, active: int, draining: bool) -> list[Place]:
        """Take in what a worker says of itself."""
        worker = self._slots.workers.get(name)
        if worker is None:
            return []
        if draining != worker.draining:
            self._estimates.fleet_changed()
        worker.max_sessions = max_sessions
        worker.foreign = max(0, active - len(worker.sessions))
        worker.draining = draining
        worker.full = False
        return self._serve_queue()

    def worker_draining(self, name: str) -> None:
        """Offer a worker nothing more: it leaves when its sessions have ended. What it says of itself comes after."""
        worker = self._slots.workers.get(name)
        if worker is not None:
            worker.draining = True
            self._estimates.fleet_changed()

    def blame(self, name: str) -> None:
        """Hold something against a worker that no session of its did: see `health`."""
        worker = self._slots.workers.get(name)
        if worker is not None:
            self._slots.blame(worker)

    # The clock

    def tick(self, now: float) -> tuple[list[Refuse], list[Place]]:
        """Say how late it is: refuse everyone whose deadline has passed, and try workers that failed."""
        passed_s = 0.0 if self._now is None else max(0.0, now - self._now)
        self._now = now
        self._estimates.time_passed()
        self._slots.pass_time(passed_s, now)
        late = [
            Refuse(session_id, "deadline", self.retry_after_s(self.queue.get(session_id).need))
            for session_id in self.queue.late(now)
        ]
        for refuse in late:
            self.queue.remove(refuse.session_id)
        return late, self._serve_queue() if self.queue else []

    # What is asked

    def retry_after_s(self, profile: str) -> float:
        """Return when a session could have a slot that comes after all who wait."""
        ahead = self.queue.count(self._estimates.rivals(profile))
        return self._estimates.retry_after_s(profile, self._estimates.wait_s(profile, ahead))

    def hold_s(self) -> float | None:
        """Return how long a session holds a slot, on average; None if nobody knows."""
        return self._estimates.hold_s()

    def positions(self) -> list[tuple[str, int]]:
        """Return who waits, and how many are served before, plus one, of those that wait for the same slots."""
        found: dict[frozenset[str], list[tuple[str, int]]] = {}
        positions = []
        for need in self.queue.needs():
            competing = self._estimates.rivals(need)
            if competing not in found:
                found[competing] = [(one.session_id, i) for i, one in enumerate(self.queue.order(competing), 1)]
            positions += [one for one in found[competing] if self.queue.get(one[0]).need == need]
        return positions

    def position(self, session_id: str) -> int:
        """Return the same of one; 0 if it does not wait."""
        if session_id not in self.queue:
            return 0
        order = self.queue.order(self._estimates.rivals(self.queue.get(session_id).need))
        return 1 + [one.session_id for one in order].index(session_id)

    def worker_of(self, session_id: str) -> str | None:
        """Return the worker whose slot the session has."""
        slot = self._slots.get(session_id)
        return None if slot is None else slot.worker.name

    def is_away(self, name: str) -> bool:
        """Return whether the worker is away: it comes back or goes down next."""
        worker = self._slots.workers.get(name)
        return worker is not None and worker.away

    def is_busy(self, name: str) -> bool:
        """Return whether the worker has sessions of ours."""
        worker = self._slots.workers.get(name)
        return worker is not None and bool(worker.sessions)

    def is_waiting(self, session_id: str) -> bool:
        """Return whether the session is in the queue."""
        return session_id in self.queue

    def waiting(self) -> list[str]:
        """Return who waits, in the order in which they are served if every worker serves all."""
        return [waiting.session_id for waiting in self.queue.order()]

    def workers(self) -> list[WorkerView]:
        """Return what is known of each worker."""
        return self._slots.views()

    def statistics(self) -> Statistics:
        """Return a snapshot."""
        return self._slots.statistics(len(self.queue))

    def validate(self) -> None:
        """Assert everything that is always true of the state."""
        self.queue.validate()
        self._slots.validate()
        stuck = [need for need in self.queue.needs() if self._slots.choose(need)]
        assert not stuck, f"somebody waits for {stuck} while a slot is free"
        assert not [waiting for waiting in self.queue if waiting in self._slots], "a session both waits and has a slot"

    def __repr__(self) -> str:
        return f"<Placer waiting={len(self.queue)}/{self.queue.size} [{self._slots!r}]>"

    def _add_worker(self, worker: Worker) -> Worker:
        self._estimates.fleet_changed()
        return self._slots.add(worker)

    def _reserve(self, session_id: str, worker: Worker, profile: str) -> Place:
        self._slots.reserve(session_id, worker, profile)
        return Place(session_id, worker.name)

    def _serve_queue(self) -> list[Place]:
        placed = []
        while (found := self._next_in_line()) is not None:
            session_id, need, worker = found
            self.queue.serve(session_id)
            placed.append(self._reserve(session_id, worker, need))
        return placed

    def _next_in_line(self) -> tuple[str, str, Worker] | None:
        """Return who is next among those that a worker has a slot for, and that worker."""
        for head in self.queue.heads():
            worker = self._slots.choose(head.need)
            if worker is not None:
                return head.session_id, head.need, worker
        return None

    def _longest_wait_s(self, deadline: float) -> float:
        return self.queue_wait_s if self._now is None else min(self.queue_wait_s, deadline - self._now)
