"""Workers whose connection broke, and until when they may come back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Absences:
    """One timer for each worker that is away. Owns them: each ends with the absence.

    Args:
        resume_s: how long a worker may be away.
        give_up: told of a worker that is away for longer, with what to say about it.
    """

    def __init__(self, resume_s: float, give_up: Callable[[str, str], None]) -> None:
        self._resume_s = resume_s
        self._give_up = give_up
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reasons: dict[str, str] = {}

    def begin(self, worker: str, reason: str) -> None:
        """Note that a worker is away. One that is already keeps its time."""
        if worker not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[worker] = loop.call_later(self._resume_s, self._over, worker)
            self._reasons[worker] = reason

    def end(self, worker: str) -> str:
        """Note that a worker is back, or given up; returns why it was away, empty if it was not."""
        timer = self._timers.pop(worker, None)
        if timer is not None:
            timer.cancel()
        return self._reasons.pop(worker, "")

    def clear(self) -> None:
        """Wait for nobody any more."""
        for worker in list(self._timers):
            self.end(worker)

    def _over(self, worker: str) -> None:
        reason = self.end(worker)
        self._give_up(worker, f"{reason}; it did not come back within {self._resume_s:g} s")
