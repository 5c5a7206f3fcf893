"""What the placer knows of a worker, and which one a session goes to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .health import Health
from .instructions import DEFAULT_PROFILE
from .pace import Pace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


@dataclass(slots=True)
class Worker:
    """One worker."""

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
    avoided: bool = False
    """It fails, and what it offers is offered by others that do not: it is only tried now and then."""
    last_used: int = 0
    sessions: set[str] = field(default_factory=set)
    """Ours: one slot each."""
    pace: Pace = field(default_factory=Pace)
    health: Health = field(default_factory=Health)

    @property
    def present(self) -> bool:
        """Whether it takes new sessions, as far as it has slots."""
        return not (self.draining or self.away)

    @property
    def capacity(self) -> int:
        """Slots that ours have or may have."""
        return max(0, self.max_sessions - self.foreign)

    @property
    def free(self) -> int:
        """Slots that a new session may take."""
        if self.draining or self.away or self.full:
            return 0
        free = max(0, self.max_sessions - self.foreign - len(self.sessions))
        return min(free, self.health.probe) if self.avoided else free


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker, as shown to people."""

    name: str
    max_sessions: int
    sessions: int
    """Ours."""
    foreign: int
    """Others'."""
    draining: bool
    away: bool
    failing: bool


def choose(workers: Iterable[Worker], need: str) -> Worker | None:
    """Return the worker that a session goes to; None if none of those that offer what it needs has a free slot.

    Most free slots first; among equals the one unused for longest, so that ties go round robin. Linear in the number of
    workers: a microsecond for ten, and still less than parsing the request for some hundreds.
    """
    best: Worker | None = None
    best_free = 0
    for worker in workers:
        free = worker.free if need in worker.profiles else 0
        if free <= 0:
            continue
        if worker.avoided:
            return worker  # it is due to be tried, however many slots others have
        if free > best_free or (best is not None and free == best_free and worker.last_used < best.last_used):
            best, best_free = worker, free
    return best


def avoid_failing(workers: Collection[Worker]) -> None:
    """Decide anew which workers are avoided."""
    for worker in workers:
        worker.avoided = worker.health.failing and can_be_avoided(worker, workers)


def can_be_avoided(worker: Worker, workers: Iterable[Worker]) -> bool:
    """Return whether all that a worker offers is offered by others that do not fail: if not, it has to do."""
    sound: set[str] = set()
    for other in workers:
        if other is not worker and other.present and not other.health.failing:
            sound |= other.profiles
    return worker.profiles <= sound
