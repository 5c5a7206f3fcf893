"""The workers of the fleet, and which session has a slot of which. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .workers import Worker, WorkerView, avoid_failing, can_be_avoided, choose

if TYPE_CHECKING:
    from .health import Health


class Slot(NamedTuple):
    """What a session has."""

    worker: Worker
    need: str
    """What it asked for."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot for metrics and people."""

    workers: int
    """Those that are connected."""
    draining: int
    away: int
    """Those whose sessions wait for their connection to come back."""
    failing: int
    """Those that are only tried now and then."""
    slots: int
    """Of connected workers."""
    reserved: int
    free: int
    waiting: int


class Slots:
    """See the module's text. Its length is the number of slots that sessions have."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self._slots: dict[str, Slot] = {}
        self._health: dict[str, Health] = {}  # outlives a worker's connection
        self._uses = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._slots

    def get(self, session_id: str) -> Slot | None:
        """Return the slot that a session has."""
        return self._slots.get(session_id)

    def choose(self, need: str) -> Worker | None:
        """Return the worker that a session with this need goes to, if one has a free slot for it."""
        return choose(self.workers.values(), need)

    @property
    def any_free(self) -> bool:
        """Whether any slot may be taken, by whatever it is that its worker offers."""
        for worker in self.workers.values():  # noqa: SIM110 - asked for each request: `any` takes twice as long
            if worker.free:
                return True
        return False

    # Sessions

    def reserve(self, session_id: str, worker: Worker, need: str) -> None:
        """Give a new slot to a session that goes to its worker now."""
        self._uses += 1
        worker.last_used = self._uses
        worker.health.probe = False
        self.hold(session_id, worker, need)

    def hold(self, session_id: str, worker: Worker, need: str) -> None:
        """Give a session the slot that it has already: it is on that worker."""
        worker.sessions.add(session_id)
        self._slots[session_id] = Slot(worker, need)

    def free(self, session_id: str) -> Slot | None:
        """Take a session's slot back; returns it, None if it had none."""
        slot = self._slots.pop(session_id, None)
        if slot is not None:
            slot.worker.sessions.discard(session_id)
        return slot

    # Workers

    def add(self, worker: Worker) -> Worker:
        """Have one more worker, whose health is what was known of one with its name."""
        worker.health = self._health.setdefault(worker.name, worker.health)
        self.workers[worker.name] = worker
        return worker

    def drop(self, name: str) -> Worker | None:
        """Have one worker less, and none of its slots; returns it, with the sessions that had them."""
        worker = self.workers.pop(name, None)
        if worker is not None:
            for session_id in worker.sessions:
                del self._slots[session_id]
        return worker

    def reconsider(self, worker: Worker) -> None:
        """Avoid a worker that fails, as long as others offer what it does."""
        worker.avoided = worker.health.failing and can_be_avoided(worker, self.workers.values())

    def blame(self, worker: Worker) -> None:
        """Hold something against a worker that no session of its did: see `health`."""
        worker.health.failed += 1
        if worker.health.failing and not worker.avoided:
            self.reconsider(worker)

    def pass_time(self, passed_s: float, now: float) -> None:
        """Let what is held against workers fade, and how fast their slots become free be known."""
        for worker in self.workers.values():
            worker.pace.pass_time(passed_s, len(worker.sessions))
        for name, health in list(self._health.items()):
            health.pass_time(passed_s, now)
            if health.forgotten and name not in self.workers:
                del self._health[name]
        avoid_failing(self.workers.values())

    # What is asked

    def views(self) -> list[WorkerView]:
        """Return what is known of each worker."""
        return [
            WorkerView(
                worker.name,
                worker.max_sessions,
                len(worker.sessions),
                worker.foreign,
                worker.draining,
                worker.away,
                worker.avoided,
            )
            for worker in self.workers.values()
        ]

    def statistics(self, waiting: int) -> Statistics:
        """Return a snapshot, where so many sessions wait."""
        present = [worker for worker in self.workers.values() if not worker.away]
        return Statistics(
            workers=len(present),
            draining=sum(worker.draining for worker in present),
            away=len(self.workers) - len(present),
            failing=sum(worker.avoided for worker in present),
            slots=sum(worker.max_sessions for worker in present),
            reserved=len(self._slots),
            free=sum(worker.free for worker in present),
            waiting=waiting,
        )

    def validate(self) -> None:
        """Assert everything that is always true of the state."""
        reserved = {session_id: worker for worker in self.workers.values() for session_id in worker.sessions}
        held = {session_id: slot.worker for session_id, slot in self._slots.items()}
        assert reserved == held, "a slot without a session, or a session without a slot"
        assert sum(len(worker.sessions) for worker in self.workers.values()) == len(held), "two slots for one"
        healths = {name: worker.health for name, worker in self.workers.items()}
        assert healths.items() <= self._health.items(), "a worker's health is not the one that is remembered"

    def __repr__(self) -> str:
        return ", ".join(
            f"{worker.name} {len(worker.sessions)}+{worker.foreign}/{worker.max_sessions}"
            + (" draining" if worker.draining else "")
            + (" full" if worker.full else "")
            + (" away" if worker.away else "")
            + (" failing" if worker.avoided else "")
            for worker in self.workers.values()
        )
