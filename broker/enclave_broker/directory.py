"""Which sessions can be asked for: the live ones, and the finished ones while they are retained.

The same for every store: this decides who is kept, the store keeps them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .sessions import BrokerSession
    from .store import Store


class Directory:
    """Sessions by id.

    Args:
        store: keeps them;
        max_finished: finished sessions kept, at most;
        max_bytes: bytes of their events kept, at most;
        max_age_s: seconds they are kept, at most.
    """

    def __init__(self, store: Store, *, max_finished: int, max_bytes: int, max_age_s: float) -> None:
        self._store = store
        self.max_finished = max_finished
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self._live: dict[str, BrokerSession] = {}
        self._finished: OrderedDict[str, BrokerSession] = OrderedDict()  # the one that ended first comes first
        self._finished_bytes = 0

    @property
    def live(self) -> int:
        """How many have not ended."""
        return len(self._live)

    def add(self, session: BrokerSession) -> None:
        """Enter a new session. A finished one of the same id makes room for it."""
        self._drop_finished(session.session_id)
        self._live[session.session_id] = session
        self._store.add(session)

    def get(self, session_id: str) -> BrokerSession | None:
        """Return a session, live or retained."""
        return self._live.get(session_id) or self._finished.get(session_id)

    def sessions(self) -> list[BrokerSession]:
        """Return all of them, the finished ones first."""
        return [*self._finished.values(), *self._live.values()]

    def finish(self, session: BrokerSession) -> None:
        """Retain a session that has just ended, unless it was removed before."""
        if self._live.pop(session.session_id, None) is None:
            return
        self._store.finish(session)
        self._finished[session.session_id] = session
        self._finished_bytes += session.log.size_bytes
        self._drop_surplus()

    def restore(self, sessions: Iterable[BrokerSession]) -> None:
        """Enter sessions that the store has from an earlier broker, those that ended first before the others."""
        for session in sessions:
            if session.live:
                self._live[session.session_id] = session
            else:
                self._drop_finished(session.session_id)
                self._finished[session.session_id] = session
                self._finished_bytes += session.log.size_bytes
        self._drop_surplus()

    def remove(self, session_id: str) -> BrokerSession | None:
        """Make a session unfindable. A live one goes on to its end, for those who read it already."""
        session = self._live.pop(session_id, None)
        if session is None:
            return self._drop_finished(session_id)
        self._store.remove(session)
        return session

    def expire(self, now: float) -> None:
        """Drop what has been kept for long enough."""
        while self._finished:
            oldest = next(iter(self._finished.values()))
            if oldest.ended is None or now - oldest.ended < self.max_age_s:
                return
            self._drop_finished(oldest.session_id)

    def validate(self) -> None:
        """Assert what is always true."""
        assert all(session.live for session in self._live.values()), "an ended session among the live ones"
        assert not any(session.live for session in self._finished.values()), "a live session among the finished ones"
        assert self._finished_bytes == sum(session.log.size_bytes for session in self._finished.values())

    def _drop_surplus(self) -> None:
        while len(self._finished) > self.max_finished or self._finished_bytes > self.max_bytes:
            self._drop_finished(next(iter(self._finished)))

    def _drop_finished(self, session_id: str) -> BrokerSession | None:
        session = self._finished.pop(session_id, None)
        if session is not None:
            # Whoever reads it at this moment keeps the log alive, and reads it to its end.
            self._finished_bytes -= session.log.size_bytes
            self._store.remove(session)
        return session
