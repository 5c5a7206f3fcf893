"""Asking again for what a broker had no room for. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import Result

SPREAD = 0.25
"""Clients that were told the same time come back within so much more of it, not all at once."""


class Patience:
    """How long one caller goes on asking.

    Args:
        busy_wait_s: seconds from now.
        now: seconds on any clock.
    """

    def __init__(self, busy_wait_s: float, now: float) -> None:
        self._until = now + busy_wait_s

    def pause_s(self, result: Result, now: float, jitter: float) -> float | None:
        """Return how long to wait before asking again; None if the result is what the caller gets.

        Only what the broker refused says when to come back: it never ran. `jitter` is from 0 to 1.
        """
        if result.error is None or result.error.retry_after_s is None:
            return None
        pause_s = result.error.retry_after_s * (1 + SPREAD * jitter)
        return pause_s if now + pause_s <= self._until else None
