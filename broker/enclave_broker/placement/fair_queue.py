"""Who waits for a slot, and in which order they are served: round robin over tenants. Pure.

Theory of operation. Sessions that wait for the same thing (`need`: a profile, perhaps with a language) and belong to
the same tenant are a line, first come first served. A need's lines are a ring. Every tenant that waits has a turn, a
number; whoever's is lowest is served next, and then gets the highest. The turn is the tenant's, not the line's: one
that waits for several things has no more turns than others. A need's ring is kept in the order of turns, so its first
line is always the one to serve, and only as many lines are looked at as there are needs.

Sessions that were accepted and come back (`add_first`) go before everybody, in the order in which they came back; they
cost nobody a turn.

The queue is bounded in sessions and in bytes. If it has several tenants to serve (`shared`), a part of it is left for
those that have less than an equal share of it, so that one tenant can fill it for itself, but not for the others.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

RESERVED_PART = 8
"""One part of so many is for tenants that have less than an equal share."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One who waits."""

    session_id: str
    deadline: float
    size_bytes: int
    need: str
    tenant: str | None
    """Whose turn it takes; None for one that comes back."""
    place: int
    """Who came first has the smallest."""


_Line = OrderedDict[str, None]


class FairQueue:
    """The queue.

    Args:
        size: most sessions.
        size_bytes: most bytes of requests.
        shared: whether to leave room for other tenants.
    """

    def __init__(self, size: int, size_bytes: int, *, shared: bool) -> None:
        self.size = size
        self.max_bytes = size_bytes
        self.shared = shared
        self.size_bytes = 0
        self._waiting: dict[str, Waiting] = {}
        self._rings: dict[str, OrderedDict[str | None, _Line]] = {}  # by need, in the order of turns
        self._turns: dict[str | None, int] = {}  # of those that wait; None's is lower than all
        self._counts: dict[str | None, int] = {}  # how many of each wait
        self._last_turn = 0
        self._last_place = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._waiting

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def get(self, session_id: str) -> Waiting:
        """Return one who waits; raises KeyError."""
        return self._waiting[session_id]

    def fits(self, tenant: str, size_bytes: int) -> bool:
        """Return whether another session of the tenant's may wait."""
        count, total_bytes = len(self._waiting) + 1, self.size_bytes + size_bytes
        if count > self.size or total_bytes > self.max_bytes:
            return False
        own = self._counts.get(tenant, 0)
        tenants = len(self._counts) + (own == 0)
        if not self.shared or own * tenants < self.size // RESERVED_PART:
            return True
        return (
            count <= self.size - self.size // RESERVED_PART
            and total_bytes <= self.max_bytes - self.max_bytes // RESERVED_PART
        )

    def add(self, session_id: str, deadline: float, *, need: str, tenant: str, size_bytes: int) -> None:
        """Put a session at the end of its tenant's line."""
        self._add(session_id, deadline, need, tenant, size_bytes)

    def add_first(self, session_id: str, deadline: float, *, need: str, size_bytes: int) -> None:
        """Put a session before all that never had a slot."""
        self._add(session_id, deadline, need, None, size_bytes)

    def remove(self, session_id: str) -> Waiting | None:
        """Take a session out without serving it; None if it did not wait."""
        waiting = self._waiting.pop(session_id, None)
        if waiting is None:
            return None
        self.size_bytes -= waiting.size_bytes
        ring = self._rings[waiting.need]
        line = ring[waiting.tenant]
        del line[session_id]
        if not line:
            del ring[waiting.tenant]
            if not ring:
                del self._rings[waiting.need]
        left = self._counts[waiting.tenant] - 1
        if left:
            self._counts[waiting.tenant] = left
        else:
            del self._counts[waiting.tenant], self._turns[waiting.tenant]
        return waiting

    def serve(self, session_id: str) -> None:
        """Take a session out because it has a slot now: its tenant's next turn comes after everybody else's."""
        waiting = self.remove(session_id)
        if waiting is None or waiting.tenant is None or waiting.tenant not in self._turns:
            return
        self._turns[waiting.tenant] = self._next_turn()
        for ring in self._rings.values():
            if waiting.tenant in ring:
                ring.move_to_end(waiting.tenant)

    def heads(self) -> list[Waiting]:
        """Return who is next for each need, the next of all first."""
        if len(self._rings) == 1:
            (ring,) = self._rings.values()
            return [self._head(ring)]
        heads = [self._head(ring) for ring in self._rings.values()]
        heads.sort(key=lambda head: (self._turns[head.tenant], head.place))
        return heads

    def needs(self) -> list[str]:
        """Return what is waited for."""
        return list(self._rings)

    def order(self, needs: Collection[str] | None = None) -> list[Waiting]:
        """Return who waits for one of these (for anything), in the order in which they are served if nobody comes."""
        by_tenant: dict[str | None, list[Waiting]] = {}
        for need, ring in self._rings.items():
            if needs is None or need in needs:
                for tenant, line in ring.items():
                    by_tenant.setdefault(tenant, []).extend(self._waiting[session_id] for session_id in line)
        ranked = []
        for tenant, waiting in by_tenant.items():
            waiting.sort(key=lambda one: one.place)
            turn = self._turns[tenant]
            ranked += [(0 if tenant is None else 1 + i, turn, one.place, one) for i, one in enumerate(waiting)]
        ranked.sort(key=lambda rank: rank[:3])
        return [rank[3] for rank in ranked]

    def count(self, needs: Collection[str]) -> int:
        """Return how many wait for one of these."""
        return sum(len(line) for need, ring in self._rings.items() if need in needs for line in ring.values())

    def ahead(self, tenant: str, needs: Collection[str]) -> int:
        """Return how many are served before a new session of the tenant's, of those that wait for one of these."""
        counts: dict[str | None, int] = {}
        for need, ring in self._rings.items():
            if need in needs:
                for other, line in ring.items():
                    counts[other] = counts.get(other, 0) + len(line)
        first = counts.pop(None, 0)
        own = counts.pop(tenant, 0)
        turn = self._turns.get(tenant)
        if turn is None:
            return first + own + sum(min(count, own + 1) for count in counts.values())
        return first + own + sum(min(count, own + (self._turns[other] < turn)) for other, count in counts.items())

    def late(self, now: float) -> list[str]:
        """Return whose deadline has passed."""
        return [session_id for session_id, waiting in self._waiting.items() if waiting.deadline <= now]

    def validate(self) -> None:
        """Assert everything that is always true of the state."""
        assert self.size_bytes == sum(waiting.size_bytes for waiting in self._waiting.values()), "bytes are miscounted"
        lined = [session_id for ring in self._rings.values() for line in ring.values() for session_id in line]
        assert sorted(lined) == sorted(self._waiting), "a session waits in no line, or in two"
        assert all(ring and all(ring.values()) for ring in self._rings.values()), "an empty line is kept"
        counts: dict[str | None, int] = {}
        for waiting in self._waiting.values():
            counts[waiting.tenant] = counts.get(waiting.tenant, 0) + 1
        assert counts == self._counts, "a tenant's sessions are miscounted"
        assert self._turns.keys() == counts.keys(), "a turn of nobody, or somebody without a turn"
        for ring in self._rings.values():
            turns = [self._turns[tenant] for tenant in ring]
            assert turns == sorted(turns), "a ring is out of order"

    def _head(self, ring: OrderedDict[str | None, _Line]) -> Waiting:
        line = next(iter(ring.values()))
        return self._waiting[next(iter(line))]

    def _add(self, session_id: str, deadline: float, need: str, tenant: str | None, size_bytes: int) -> None:
        self._last_place += 1
        self._waiting[session_id] = Waiting(
            deadline=deadline,
            session_id=session_id,
            size_bytes=size_bytes,
            need=need,
            tenant=tenant,
            place=self._last_place,
        )
        self.size_bytes += size_bytes
        self._counts[tenant] = self._counts.get(tenant, 0) + 1
        if tenant not in self._turns:
            self._turns[tenant] = 0 if tenant is None else self._next_turn()
        ring = self._rings.setdefault(need, OrderedDict())
        line = ring.get(tenant)
        if line is None:
            line = ring[tenant] = OrderedDict()
            self._sort(ring, tenant)
        line[session_id] = None

    def _sort(self, ring: OrderedDict[str | None, _Line], added: str | None) -> None:
        # Only of a tenant that waits for something else already, or of one that comes back, is the turn not the last.
        if self._turns[added] != self._last_turn:
            for tenant in sorted(ring, key=self._turns.__getitem__):
                ring.move_to_end(tenant)

    def _next_turn(self) -> int:
        self._last_turn += 1
        return self._last_turn
