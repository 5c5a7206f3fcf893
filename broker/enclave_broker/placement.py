"""Which worker runs a session, and who waits. Pure: plain state, no I/O, no clock.

Theory of operation. The fleet is a set of workers with slots and one queue of sessions without a slot. Every method
is one synchronous step that changes both and returns instructions; nobody awaits between choosing a worker and taking
its slot, so no other pass can ever see a slot that is given away but still looks free. The instructions are carried
out afterwards by the broker.

A slot belongs to a session from `Place` until `release` (its worker said `final`), `refused` (its worker had no slot
after all) or `worker_down`. A session that the broker ends by itself keeps its slot until the worker lets go of it:
the sandbox may still be there.

A worker whose connection broke is `away` until it is back or given up (`worker_down`): its sessions may live on there
and keep their slots, and it is offered nothing. A broker that was started again learns from its store which session is
where (`adopt`) before any worker has said hello: such a worker is away, too.

A worker may have clients beside this broker. Their sessions are `foreign`: what the worker says is active, less what
we know to be ours.

A session asks for a profile, perhaps with a language (`languages.need` makes one text of both, which is what `profile`
means here), and only workers that offer it are its workers. The queue is one line for each profile;
among those whose workers have a free slot, whoever came first goes first.

The invariant that keeps the queue short: nobody waits while a slot of theirs is free. `validate` asserts it, and the
rest.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

RefuseReason = Literal["queue_full", "deadline"]
DEFAULT_PROFILE = "python"
"""What a session asks for that does not say."""


@dataclass(frozen=True, slots=True)
class Place:
    """Send this session to this worker: a slot of it is already taken."""

    session_id: str
    worker: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The session waits for a slot; `position` is 1 for the first in line."""

    session_id: str
    position: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The session gets no slot. Trying again after `retry_after_s` can help."""

    session_id: str
    reason: RefuseReason
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Lose:
    """The session was on a worker that is gone."""

    session_id: str
    worker: str


Submitted = Place | Wait | Refuse


@dataclass(slots=True)
class Worker:
    """What the placer knows of a worker."""

    name: str
    max_sessions: int
    profiles: frozenset[str] = frozenset({DEFAULT_PROFILE})
    """What it offers."""
    foreign: int = 0
    draining: bool = False
    away: bool = False
    """Its connection broke, or is not there yet: what it has of ours may live on, and it is offered nothing."""
    full: bool = False
    """It refused a session: offer it nothing until it says how busy it is, or lets go of one of ours."""
    last_used: int = 0
    sessions: set[str] = field(default_factory=set)
    """Ours: one slot each."""

    @property
    def free(self) -> int:
        """Slots that a new session may take."""
        return (
            0
            if self.draining or self.away or self.full
            else max(0, self.max_sessions - self.foreign - len(self.sessions))
        )


@dataclass(frozen=True, slots=True)
class _Waiting:
    deadline: float
    size_bytes: int
    profile: str
    place: int
    """Who has the smallest is first in line."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot for metrics and people."""

    workers: int
    """Those that are connected."""
    draining: int
    away: int
    """Those whose sessions wait for their connection to come back."""
    slots: int
    """Of connected workers."""
    reserved: int
    free: int
    waiting: int


class Placer:
    """The fleet and the queue.

    Args:
        queue_size: most sessions that may wait; the next one is refused.
        queue_bytes: most code, in bytes, that the waiting sessions may hold together.
        retry_after_s: what a refusal says.
    """

    def __init__(self, *, queue_size: int, queue_bytes: int, retry_after_s: float = 1.0) -> None:
        self.queue_size = queue_size
        self.queue_bytes = queue_bytes
        self.retry_after_s = retry_after_s
        self._workers: dict[str, Worker] = {}
        self._placed: dict[str, Worker] = {}
        self._profile_of: dict[str, str] = {}  # of every session that is placed
        self._waiting: dict[str, _Waiting] = {}
        self._lines: dict[str, OrderedDict[str, None]] = {}  # who waits, by profile, first in line first
        self._last_place = 0
        self._first_place = 0
        self._waiting_bytes = 0
        self._uses = 0

    def submit(
        self, session_id: str, deadline: float, *, profile: str = DEFAULT_PROFILE, size_bytes: int = 0
    ) -> Submitted:
        """Find a slot for a new session, or let it wait until `deadline` (on the clock of `expire`)."""
        if session_id in self._placed or session_id in self._waiting:
            raise AssertionError(f"{session_id} submitted twice: the broker refuses duplicates before")
        worker = self._least_loaded(profile)
        if worker is not None:
            return self._reserve(session_id, worker, profile)
        if len(self._waiting) >= self.queue_size or self._waiting_bytes + size_bytes > self.queue_bytes:
            return Refuse(session_id, "queue_full", self.retry_after_s)
        self._last_place += 1
        self._enqueue(session_id, _Waiting(deadline, size_bytes, profile, self._last_place))
        return Wait(session_id, len(self._waiting))

    def release(self, session_id: str) -> list[Place]:
        """Give the session's slot back; the first in line may take it. Nothing happens without a slot."""
        worker = self._placed.pop(session_id, None)
        if worker is None:
            return []
        del self._profile_of[session_id]
        worker.sessions.discard(session_id)
        worker.full = False
        return self._serve_queue()

    def refused(self, session_id: str, deadline: float, *, size_bytes: int = 0) -> list[Place]:
        """Put a session that its worker had no slot for back at the head of the queue, or on another worker."""
        worker = self._placed.get(session_id)
        if worker is None:
            return []
        worker.full = True
        return self.put_back(session_id, deadline, profile=self._profile_of[session_id], size_bytes=size_bytes)

    def put_back(
        self, session_id: str, deadline: float, *, profile: str = DEFAULT_PROFILE, size_bytes: int = 0
    ) -> list[Place]:
        """Place an accepted session once more: it goes to the head of the queue, and its slot, if it has one, is free.

        For one that never reached its worker, one whose worker is gone and that may run again, and one that a broker
        accepted before it was started again. The queue may grow past its size by this: the session was accepted.
        """
        if session_id in self._waiting:
            raise AssertionError(f"{session_id} waits already: it has nothing that could be given back")
        worker = self._placed.pop(session_id, None)
        if worker is not None:
            worker.sessions.discard(session_id)
            del self._profile_of[session_id]
        self._first_place -= 1
        self._enqueue(session_id, _Waiting(deadline, size_bytes, profile, self._first_place))
        self._lines[profile].move_to_end(session_id, last=False)
        return self._serve_queue()

    def withdraw(self, session_id: str) -> bool:
        """Take a session out of the queue; False if it did not wait."""
        return self._dequeue(session_id) is not None

    def expire(self, now: float) -> list[Refuse]:
        """Refuse everyone whose deadline has passed."""
        late = [session_id for session_id, waiting in self._waiting.items() if waiting.deadline <= now]
        for session_id in late:
            self._dequeue(session_id)
        return [Refuse(session_id, "deadline", self.retry_after_s) for session_id in late]

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
        if name in self._workers:
            raise AssertionError(f"worker {name} came up twice: its link reports down first")
        self._workers[name] = Worker(name, max_sessions, frozenset(profiles), foreign=active, draining=draining)
        return self._serve_queue()

    def worker_away(self, name: str) -> None:
        """Offer a worker nothing until it is back: its connection broke, its sessions keep their slots."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.away = True

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
        worker = self._workers.get(name)
        if worker is None or not worker.away:
            raise AssertionError(f"worker {name} is back, but was not away: a new one comes up")
        worker.away = False
        worker.profiles = frozenset(profiles)
        return self.worker_status(name, max_sessions=max_sessions, active=active, draining=draining)

    def adopt(self, session_id: str, worker: str, profile: str = DEFAULT_PROFILE) -> None:
        """Give a session the slot that it has already: it is on that worker, which is away if nobody knows it yet.

        There need be no room: the session is there, whatever the worker says about its slots.
        """
        if session_id in self._placed or session_id in self._waiting:
            raise AssertionError(f"{session_id} adopted, but it has its place already")
        host = self._workers.setdefault(worker, Worker(worker, 0, frozenset(), away=True))
        host.foreign = max(0, host.foreign - 1)
        host.sessions.add(session_id)
        self._placed[session_id] = host
        self._profile_of[session_id] = profile

    def is_away(self, name: str) -> bool:
        """Return whether the worker is away: it comes back or goes down next."""
        worker = self._workers.get(name)
        return worker is not None and worker.away

    def worker_down(self, name: str) -> list[Lose]:
        """Drop a worker, and say which sessions went with it."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return []
        for session_id in worker.sessions:
            del self._placed[session_id], self._profile_of[session_id]
        return [Lose(session_id, name) for session_id in sorted(worker.sessions)]

    def worker_status(self, name: str, *, max_sessions: int, active: int, draining: bool) -> list[Place]:
        """Take in what a worker says of itself."""
        worker = self._workers.get(name)
        if worker is None:
            return []
        worker.max_sessions = max_sessions
        worker.foreign = max(0, active - len(worker.sessions))
        worker.draining = draining
        worker.full = False
        return self._serve_queue()

    def worker_draining(self, name: str) -> None:
        """Offer a worker nothing until it says of itself that it does not drain."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.draining = True

    def is_busy(self, name: str) -> bool:
        """Return whether a session has a slot on the worker."""
        worker = self._workers.get(name)
        return worker is not None and bool(worker.sessions)

    def worker_of(self, session_id: str) -> str | None:
        """Return the worker whose slot the session has."""
        worker = self._placed.get(session_id)
        return None if worker is None else worker.name

    def is_waiting(self, session_id: str) -> bool:
        """Return whether the session is in the queue."""
        return session_id in self._waiting

    def waiting(self) -> list[str]:
        """Return who waits, first in line first."""
        return sorted(self._waiting, key=lambda session_id: self._waiting[session_id].place)

    def statistics(self) -> Statistics:
        """Return a snapshot."""
        workers = [worker for worker in self._workers.values() if not worker.away]
        return Statistics(
            workers=len(workers),
            draining=sum(worker.draining for worker in workers),
            away=len(self._workers) - len(workers),
            slots=sum(worker.max_sessions for worker in workers),
            reserved=len(self._placed),
            free=sum(worker.free for worker in workers),
            waiting=len(self._waiting),
        )

    def validate(self) -> None:
        """Assert everything that is always true of the state."""
        stuck = [profile for profile, line in self._lines.items() if line and self._least_loaded(profile)]
        assert not stuck, f"somebody waits for {stuck} while a slot is free"
        assert self._profile_of.keys() == self._placed.keys(), "a slot without a profile, or a profile without a slot"
        lines = [session_id for line in self._lines.values() for session_id in line]
        assert sorted(lines) == sorted(self._waiting), "a session waits in no line, or in two"
        assert all(self._lines.values()), "an empty line is kept"
        assert not self._placed.keys() & self._waiting.keys(), "a session both waits and has a slot"
        reserved = {session_id: worker for worker in self._workers.values() for session_id in worker.sessions}
        assert reserved == self._placed, "a slot without a session, or a session without a slot"
        queued = sum(waiting.size_bytes for waiting in self._waiting.values())
        assert queued == self._waiting_bytes, "the queue's bytes are miscounted"
        assert sum(len(worker.sessions) for worker in self._workers.values()) == len(self._placed), "two slots for one"

    def __repr__(self) -> str:
        workers = ", ".join(
            f"{worker.name} {len(worker.sessions)}+{worker.foreign}/{worker.max_sessions}"
            + (" draining" if worker.draining else "")
            + (" full" if worker.full else "")
            + (" away" if worker.away else "")
            for worker in self._workers.values()
        )
        return f"<Placer waiting={len(self._waiting)}/{self.queue_size} [{workers}]>"

    def _least_loaded(self, profile: str) -> Worker | None:
        # Most free slots first; among equals the one unused for longest, so that ties go round robin. Linear in the
        # number of workers: a microsecond for ten, and still less than parsing the request for some hundreds.
        best: Worker | None = None
        best_free = 0
        for worker in self._workers.values():
            free = worker.free if profile in worker.profiles else 0
            if free > best_free or (best is not None and free == best_free and worker.last_used < best.last_used):
                best, best_free = worker, free
        return best

    def _reserve(self, session_id: str, worker: Worker, profile: str) -> Place:
        self._uses += 1
        worker.last_used = self._uses
        worker.sessions.add(session_id)
        self._placed[session_id] = worker
        self._profile_of[session_id] = profile
        return Place(session_id, worker.name)

    def _enqueue(self, session_id: str, waiting: _Waiting) -> None:
        self._waiting[session_id] = waiting
        self._lines.setdefault(waiting.profile, OrderedDict())[session_id] = None
        self._waiting_bytes += waiting.size_bytes

    def _dequeue(self, session_id: str) -> _Waiting | None:
        waiting = self._waiting.pop(session_id, None)
        if waiting is not None:
            self._waiting_bytes -= waiting.size_bytes
            line = self._lines[waiting.profile]
            del line[session_id]
            if not line:
                del self._lines[waiting.profile]
        return waiting

    def _serve_queue(self) -> list[Place]:
        placed = []
        while (found := self._next_in_line()) is not None:
            session_id, worker = found
            profile = self._waiting[session_id].profile
            self._dequeue(session_id)
            placed.append(self._reserve(session_id, worker, profile))
        return placed

    def _next_in_line(self) -> tuple[str, Worker] | None:
        """Return who is first among those that a worker has a slot for, and that worker."""
        heads = sorted((next(iter(line)) for line in self._lines.values()), key=lambda head: self._waiting[head].place)
        for head in heads:
            worker = self._least_loaded(self._waiting[head].profile)
            if worker is not None:
                return head, worker
        return None
