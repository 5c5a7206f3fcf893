"""How long sessions hold their slots: what a wait is expected to be follows from it. Pure.

Theory of operation. A slot is held for B seconds and freed once: over many sessions, the slots' held time divided by
the number that were freed is how long a session holds one, whatever the load was. That time, and the number of slots,
say how fast a queue moves once all of them are taken; how many were freed lately would say so only if they had been.
Both are added up in buckets of a second each. An estimate goes back only as many of them as it needs to see enough
sessions end, so that it forgets fast where sessions are short, and lasts where they are long.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BUCKET_S = 1.0
BUCKETS = 60
"""How far an estimate may go back, at most."""
ENOUGH = 20
"""Sessions that say how long one takes,"""
ENOUGH_A_SLOT = 4
"""or so many for each slot that is held, if that is more: those that began together end together, too."""


class Pace:
    """How long one worker's slots were held, and how often one was freed."""

    __slots__ = ("_age_s", "_buckets", "freed", "held_s")

    def __init__(self) -> None:
        self.held_s = 0.0
        """In the bucket that is being filled: seconds that slots were held, all together,"""
        self.freed = 0
        """and slots that were freed."""
        self._age_s = 0.0
        self._buckets: deque[tuple[float, int]] = deque(maxlen=BUCKETS - 1)

    def pass_time(self, passed_s: float, held: int) -> None:
        """Note that so much time has passed, with so many slots held."""
        self.held_s += passed_s * held
        self._age_s += passed_s
        if self._age_s >= BUCKET_S:
            self._buckets.appendleft((self.held_s, self.freed))
            self.held_s, self.freed, self._age_s = 0.0, 0, 0.0

    def buckets(self) -> list[tuple[float, int]]:
        """Return (seconds held, slots freed) of each second, the newest first."""
        return [(self.held_s, self.freed), *self._buckets]


@dataclass(frozen=True, slots=True)
class Hold:
    """How long a session holds a slot."""

    each_s: float
    """On average."""
    sessions: int
    """How many say so."""


def hold(paces: Sequence[Pace], held: int) -> Hold | None:
    """Return how long a session holds a slot; None if none of these has had any.

    Args:
        paces: of the workers that it is about.
        held: how many of their slots are held now. As long as fewer than that were freed, all of them count as if they
            would be now: it is the least that can be said.
    """
    held_s, freed = 0.0, 0
    histories = [pace.buckets() for pace in paces]
    for i in range(max(map(len, histories), default=0)):
        for history in histories:
            if i < len(history):
                held_s += history[i][0]
                freed += history[i][1]
        if freed >= max(ENOUGH, ENOUGH_A_SLOT * held):
            break
    ended = max(freed, held)
    return Hold(held_s / ended, freed) if ended else None
