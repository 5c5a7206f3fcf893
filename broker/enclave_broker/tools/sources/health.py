"""Whether a source is well, and when to look at it again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

UNHEALTHY_AFTER = 3
"""Failures in a row after which a source counts as unwell."""


@dataclass(slots=True)
class Health:
    """What is known of one source. Its tools stay offered whatever it says: what it last had is the best guess."""

    failures: int = 0
    """In a row."""
    error: str = ""
    """The last one's, empty if the last look succeeded."""

    @property
    def well(self) -> bool:
        """Whether it can be relied on."""
        return self.failures < UNHEALTHY_AFTER

    def failed(self, error: str) -> bool:
        """Note a failure; returns whether it is the one that makes the source unwell."""
        self.failures += 1
        self.error = error
        return self.failures == UNHEALTHY_AFTER

    def succeeded(self) -> bool:
        """Note a success; returns whether the source was unwell before."""
        recovered = not self.well
        self.failures = 0
        self.error = ""
        return recovered


def backoff_s(attempt: int, *, first_s: float, most_s: float) -> float:
    """Return how long to wait after failure number `attempt`, which starts at 1: doubling, up to `most_s`."""
    return min(most_s, first_s * 2.0 ** min(attempt - 1, 32))
