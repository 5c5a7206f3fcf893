"""Which workers fail, and for how long that is held against them. Pure.

Theory of operation. A worker's failures are those that are no session's own: its sessions end with INTERNAL_ERROR, its
events make no sense or never end, it refuses what others take, its connection breaks. Two counts, of failures and of
sessions that ended, fade by half every `HALF_LIFE_S`; a worker fails if there were some failures lately and they are a
good part of its sessions, or if its connection broke again and again. A crash of the guest's is not held against its
worker: code can crash at will, and nobody's code may take a worker away from the others.

What failing means is for the placer to say: see `workers.choose`. One that fails is tried with a session now and then,
so that it is seen to have recovered.
"""

from __future__ import annotations

HALF_LIFE_S = 10.0
FAILURES = 3.0
"""Failures of late that make a worker one that fails,"""
FAILED_PART = 0.2
"""if they are such a part of its sessions."""
BREAKS = 2.5
"""Broken connections of late that make it one, too: the third within a few seconds."""
PROBE_EVERY_S = 2.0
"""How often one that fails is tried with a session."""
_NOTHING = 0.01


class Health:
    """How a worker has done lately."""

    __slots__ = ("breaks", "ended", "failed", "next_probe", "probe")

    def __init__(self) -> None:
        self.ended = 0.0
        """Sessions that ended, the failed ones included."""
        self.failed = 0.0
        self.breaks = 0.0
        self.probe = False
        """Whether a session may be tried on it, though it fails."""
        self.next_probe = 0.0

    @property
    def failing(self) -> bool:
        """Whether others are better."""
        return self.breaks >= BREAKS or (self.failed >= FAILURES and self.failed >= FAILED_PART * self.ended)

    @property
    def forgotten(self) -> bool:
        """Whether there is nothing left to hold against it."""
        return self.failed < _NOTHING and self.breaks < _NOTHING

    def pass_time(self, passed_s: float, now: float) -> None:
        """Let everything fade, and a probe become due."""
        factor = 0.5 ** (passed_s / HALF_LIFE_S)
        self.ended *= factor
        self.failed *= factor
        self.breaks *= factor
        if self.failing and now >= self.next_probe:
            self.probe = True
            self.next_probe = now + PROBE_EVERY_S
