"""Sessions that outlive their connection: who has them, and for how long nobody may.

Theory of operation. A session that a broker of revision 2 started has a `Holding` for a sink. It keeps every event
until the broker has acknowledged it, and passes it on to the connection that holds the session now, if there is one.

    held --(its connection ends)--> detached --(attach)--> held
    held --(attach from another connection)--> held, by that one
    detached --(nobody came for the lease)--> its session is ended; if it has ended already, its events are dropped

A holding is over when its session has ended and its `final` is acknowledged, or when nobody came for it. A session that
is ended by its lease keeps its `final` for one more, so that a broker that comes late can tell how it ended.

One timer serves all sessions of a connection that ended: what is attached again meanwhile has left that departure.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from enclave_protocol import KeptSession, RemoteProtocolError

from .kept import Budget, KeptEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from enclave_protocol import SessionId

    from .config import RuntimeConfig
    from .metrics import WorkerMetrics

log = logging.getLogger("enclave.worker")


class Sink(Protocol):
    """Where a session's events go."""

    @property
    def congested(self) -> bool:
        """Whether more waits there than should. Its end is followed by a call of `Sessions.resume`."""

    def deliver(self, line: bytes) -> None:
        """Take one event."""


class Holding:
    """The sink of one session that may outlive its connection."""

    def __init__(self, holdings: Holdings, session_id: SessionId, sink: Sink, kept: KeptEvents) -> None:
        self.session_id = session_id
        self.sink: Sink | None = sink
        """The connection that has it; None while it is detached."""
        self.kept = kept
        self.ended = False
        """Whether its `final` is among the kept events."""
        self.lease: _Lease | None = None
        """What ends it, while it is detached."""
        self.full = False
        self.on_room: Callable[[], None] = _nothing
        """Called when `congested` has become false again."""
        self._holdings = holdings

    def __repr__(self) -> str:
        return f"<Holding {self.session_id} {self.kept!r} ended={self.ended} sink={self.sink!r}>"

    @property
    def congested(self) -> bool:
        """Whether the guest must wait: too much is kept, or waits for the connection."""
        return self.full or (self.sink is not None and self.sink.congested)

    def deliver(self, line: bytes) -> None:
        """Keep one event, and pass it on."""
        self.kept.append(line)
        if self.sink is not None:
            self.sink.deliver(line)
        self.full = self.full or self._holdings.budget.is_full(self.kept.size_bytes)
        if self.congested:
            self._holdings.waiting[self] = None


class _Lease:
    """The time that sessions which were detached in the same moment have left. Its timer is gone when it has none."""

    __slots__ = ("holdings", "timer")

    def __init__(self, holdings: Iterable[Holding]) -> None:
        self.holdings = dict.fromkeys(holdings)  # not a set, whose order is another one in each run
        self.timer: asyncio.TimerHandle | None = None

    def leave(self, holding: Holding) -> None:
        """This one has been attached, or is over."""
        self.holdings.pop(holding, None)
        holding.lease = None
        if not self.holdings and self.timer is not None:
            self.timer.cancel()


class Holdings:
    """Every session that may outlive its connection, live ones and those whose end nobody has acknowledged."""

    def __init__(self, config: RuntimeConfig, metrics: WorkerMetrics, end: Callable[[SessionId, str], None]) -> None:
        self.budget = Budget(config.kept_bytes, config.kept_session_bytes, config.max_sessions)
        self.waiting: dict[Holding, None] = {}
        """Those whose guests were told to wait."""
        self._config = config
        self._metrics = metrics
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._holdings: dict[SessionId, Holding] = {}
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Holdings {len(self._holdings)} {self.budget!r}>"

    def __len__(self) -> int:
        return len(self._holdings)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._holdings

    @property
    def detached(self) -> int:
        """Sessions that no connection has, live or not."""
        return sum(holding.sink is None for holding in self._holdings.values())

    @property
    def crowded(self) -> bool:
        """Whether so much waits to be acknowledged that nothing should be added."""
        return len(self._holdings) >= self._config.kept_sessions or self.budget.used_bytes > self.budget.total_bytes

    def listed(self) -> list[KeptSession]:
        """Return what a broker can attach to."""
        return [
            KeptSession(session_id=session_id, first_seq=holding.kept.first_seq, last_seq=holding.kept.last_seq)
            for session_id, holding in self._holdings.items()
        ]

    def hold(self, session_id: SessionId, sink: Sink, first_seq: int) -> Holding:
        """Return the sink of a new session."""
        holding = self._holdings[session_id] = Holding(self, session_id, sink, KeptEvents(self.budget, first_seq))
        return holding

    def attach(self, session_id: str, from_seq: int, sink: Sink) -> None:
        """Hand a session to a connection, from whoever has it, and send it the events from this number on.

        One that has it already gets them again.

        Raises:
            RemoteProtocolError: there is no such session, or these events are not kept any more.
        """
        holding = self._holdings.get(session_id)  # type: ignore[call-overload]  # an unchecked id is just not there
        if holding is None:
            raise _bad(session_id, "sessionId", "no such session is kept here", "one of those in `hello.sessions`")
        try:
            lines = holding.kept.since(from_seq)
        except ValueError as error:
            kept = holding.kept
            raise _bad(session_id, "fromSeq", str(error), f"{kept.first_seq} to {kept.last_seq + 1}") from None
        holding.sink = sink
        if holding.lease is not None:
            holding.lease.leave(holding)
        for line in lines:
            sink.deliver(line)
        self._relieve()

    def ack(self, seqs: Mapping[str, int], sink: Sink) -> None:
        """Let go of what a broker keeps by itself from now on.

        What another connection has is passed over: whoever attached last is the session's broker. So is what is not
        here: the lease of a session may be over, and a number above the newest is of an event that the broker wrote
        itself, after it had given the session up.
        """
        for session_id, seq in seqs.items():
            holding = self._holdings.get(session_id)  # type: ignore[call-overload]
            if holding is None or holding.sink not in (sink, None) or seq > holding.kept.last_seq:
                continue
            holding.kept.ack(seq)
            if holding.ended and holding.kept.first_seq > holding.kept.last_seq:
                self._drop(holding)
        self._relieve()

    def ended(self, holding: Holding) -> None:
        """A session has had its `final`, which waits to be acknowledged."""
        holding.ended = True
        self.waiting.pop(holding, None)
        if holding.sink is None:
            self._arm([holding])

    def detach(self, sink: Sink) -> None:
        """A connection is over: what it had waits for another one."""
        parted = [holding for holding in self._holdings.values() if holding.sink is sink]
        if not parted:
            return
        for holding in parted:
            holding.sink = None
        self._arm(parted)
        self._relieve()

    def drained(self) -> None:
        """A connection that was congested takes more."""
        if self.waiting:
            self._relieve()

    async def wait_empty(self) -> None:
        """Return when every session has ended and is acknowledged, or its lease is over."""
        while self._holdings:
            await self._next_change()

    async def wait_handed_over(self) -> None:
        """Return when nothing of an ended session waits on a connection that could acknowledge it."""
        while any(holding.sink is not None for holding in self._holdings.values()):
            await self._next_change()

    def close(self) -> None:
        """Let go of everything."""
        for holding in tuple(self._holdings.values()):
            self._drop(holding)

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _arm(self, holdings: Iterable[Holding]) -> None:
        lease = _Lease(holdings)
        lease.timer = self._loop.call_later(self._config.lease_s, self._expire, lease)
        for holding in lease.holdings:
            if holding.lease is not None:
                holding.lease.leave(holding)  # it ended while it was detached: its time begins anew
            holding.lease = lease
        self._changed.set()

    def _expire(self, lease: _Lease) -> None:
        live = [holding for holding in lease.holdings if not holding.ended]
        for holding in tuple(lease.holdings):
            lease.leave(holding)
            if holding.ended:
                self._drop(holding)
        if live:
            log.warning("%d sessions had no broker for %g s: they are ended", len(live), self._config.lease_s)
        for holding in live:
            self._metrics.leases_expired.inc()
            self._end(holding.session_id, f"no broker attached for {self._config.lease_s:g} s")
        self._relieve()

    def _drop(self, holding: Holding) -> None:
        del self._holdings[holding.session_id]
        if holding.lease is not None:
            holding.lease.leave(holding)
        holding.kept.clear()
        self.waiting.pop(holding, None)
        self._changed.set()

    def _relieve(self) -> None:
        """Have the guests go on that no longer need to wait."""
        for holding in tuple(self.waiting):
            if holding.full and self.budget.has_room(holding.kept.size_bytes):
                holding.full = False
            if not holding.congested:
                self.waiting.pop(holding, None)
                holding.on_room()


def _nothing() -> None:
    """Nobody waits yet."""


def _bad(session_id: str, field: str, reason: str, allowed: str) -> RemoteProtocolError:
    return RemoteProtocolError(reason, field=field, allowed=allowed, session_id=session_id)
