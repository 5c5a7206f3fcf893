"""What a wait for a slot is expected to be. Pure.

Who waits competes with those that wait for the same slots: with all that is offered by a worker that offers what they
need. How many of those are served before, and how fast the slots of those workers become free, is the wait. Where
few sessions have ended lately it is a guess, good enough to say when to try again, and none is refused for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .pace import hold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .fair_queue import FairQueue
    from .pace import Hold
    from .workers import Worker

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0
"""What a refusal says when to try again, at least and at most."""
NO_WORKERS_RETRY_S = 5.0
"""What it says where no worker is there."""
SURE = 10
"""Sessions that must have ended lately before one is refused for the wait that they make likely."""


class Estimates:
    """Answers from what the workers have done lately.

    Args:
        workers: the fleet, by name; seen as it changes.
        queue: who waits.
    """

    def __init__(self, workers: Mapping[str, Worker], queue: FairQueue) -> None:
        self._workers = workers
        self._queue = queue
        # Asked for more often than they change:
        self._rivals: dict[str, frozenset[str]] = {}
        self._rates: dict[str, tuple[float, bool] | None] = {}  # slots freed in a second, and whether that is sure
        self._offered: frozenset[str] | None = None

    def time_passed(self) -> None:
        """Forget what follows from the last seconds."""
        self._rates.clear()

    def fleet_changed(self) -> None:
        """Forget what follows from who is there and offers what."""
        self._rivals.clear()
        self._rates.clear()
        self._offered = None

    @property
    def offered(self) -> frozenset[str]:
        """All that some worker offers, whether it takes sessions now or not."""
        if self._offered is None:
            self._offered = frozenset().union(*(worker.profiles for worker in self._workers.values()))
        return self._offered

    def wait_s(self, profile: str, ahead: int) -> float | None:
        """Return how long a session waits if so many are served before; None if nobody knows."""
        rate = self._rate(profile)
        return None if rate is None else (ahead + 1) / rate[0]

    def sure(self, profile: str) -> bool:
        """Return whether that is more than a guess."""
        rate = self._rate(profile)
        return rate is not None and rate[1]

    def retry_after_s(self, profile: str, wait_s: float | None) -> float:
        """Return when to ask again for what would have waited so long."""
        if wait_s is not None:
            return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
        offered = any(worker.present and profile in worker.profiles for worker in self._workers.values())
        return MIN_RETRY_S if offered else NO_WORKERS_RETRY_S

    def rivals(self, profile: str) -> frozenset[str]:
        """Return what competes for the slots that the profile has, itself included."""
        rivals = self._rivals.get(profile)
        if rivals is None:
            offering = [worker.profiles for worker in self._workers.values() if profile in worker.profiles]
            rivals = frozenset({profile}).union(*offering)
            if offering:  # of what nobody offers there are too many to be remembered
                self._rivals[profile] = rivals
        return rivals

    def hold_s(self) -> float | None:
        """Return how long a session holds a slot, on average of all workers; None if nobody knows."""
        found = _hold(list(self._workers.values()))
        return None if found is None else found.each_s

    def _rate(self, profile: str) -> tuple[float, bool] | None:
        if profile not in self._rates:
            offering = [worker for worker in self._workers.values() if worker.present and profile in worker.profiles]
            found = _hold(offering)
            slots = sum(worker.capacity for worker in offering if not worker.avoided)
            known = found is not None and found.each_s > 0 and slots > 0
            self._rates[profile] = (slots / found.each_s, found.sessions >= SURE) if known and found else None
        return self._rates[profile]


def _hold(workers: Sequence[Worker]) -> Hold | None:
    return hold([worker.pace for worker in workers], sum(len(worker.sessions) for worker in workers))
