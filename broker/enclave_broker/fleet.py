"""Sessions and the workers that they are on: their way into a slot, out of it, and to their end.

Theory of operation. The placer decides who runs where; this carries its instructions out. What comes from workers is
heard by `incoming`, what is said to them goes by `outgoing`. A session is in `routes` from `enter` until it has ended
and holds no slot. Most end by their worker's `final`, which also frees the slot. One that ends here instead (`end`:
cancelled or too late in the queue, its worker gone or senseless or overdue) keeps its slot until the worker says
`final`, refuses a message about it, or goes away.

Nothing here waits. What goes out for a session goes by the store, which lets nothing out before it is stored.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from enclave_protocol import Code, encode

from .absences import Absences
from .incoming import Incoming
from .outgoing import Outgoing
from .overdue import Overdue
from .placement import Place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_protocol.events import CatalogChangedPayload

    from .config import BrokerConfig
    from .links import Link
    from .metrics import Metrics
    from .offers import Offers
    from .placement import Placer, Refuse, Wait
    from .sessions import BrokerSession
    from .steps import ToolCalled
    from .store import Store

log = logging.getLogger("enclave.broker")

POSITIONS_EVERY_S = 1.0
"""How often those who wait are told their position, if it changed."""


class SessionOwner(Protocol):
    """Who is told what workers make of sessions. Neither of these may block."""

    def tool_called(self, session: BrokerSession, called: ToolCalled, /) -> None:
        """Have a call answered, if the session has not ended meanwhile."""

    def session_ended(self, session: BrokerSession, /) -> None:
        """Account for a session that has just got its `final`."""

    def find_ended(self, session_id: str, /) -> BrokerSession | None:
        """Return a session that has ended, if it is still known."""


class Fleet:
    """Where sessions are. Its methods are called on one event loop.

    Args:
        config: waits.
        metrics: where to count.
        store: keeps the sessions.
        placer: says who runs where.
        offers: told what workers offer.
        owner: told what becomes of sessions.
    """

    def __init__(
        self,
        config: BrokerConfig,
        metrics: Metrics,
        store: Store,
        *,
        placer: Placer,
        offers: Offers,
        owner: SessionOwner,
    ) -> None:
        self.links: dict[str, Link] = {}
        self.routes: dict[str, BrokerSession] = {}
        """Sessions that have not ended, or still have a slot."""
        self.outgoing = Outgoing(store, self.links)
        """What is said to workers for sessions."""
        self._config = config
        self._metrics = metrics
        self._store = store
        self._placer = placer
        self._owner = owner
        self._overdue = Overdue(self._end_overdue)  # when to stop waiting for the worker's final
        self._positions_due = 0.0
        self.incoming = Incoming(self, config, metrics, store, placer=placer, offers=offers, owner=owner)
        """What hears the links."""
        self.absences = Absences(config.resume_s, self.incoming.lose_worker)
        self.closing = False
        """Whether the broker ends every session, and waits for no worker any more."""
        self.left = False
        """Whether every session is left to the next broker as it is."""

    # Sessions

    def enter(self, session: BrokerSession, decision: Place | Wait) -> None:
        """Take in a new session, and send it where the placer wants it."""
        self.routes[session.session_id] = session
        if isinstance(decision, Place):
            self._place(decision, session.created)  # in this step: it has not waited
        else:
            session.tell_position(decision.position)

    def adopt(self, session: BrokerSession) -> None:
        """Take in a session that was on a worker before the broker was started again, as if the link had just broken.

        Its `worker`, `worker_name` and `instance` are as they were. It needs no link of that name: the worker may be
        found by another, and is lost only if it is not found within `resume_s`.
        """
        worker = session.worker
        if worker is None:
            raise AssertionError(f"{session.session_id} was on no worker: it is placed, not adopted")
        self.routes[session.session_id] = session
        self._placer.adopt(session.session_id, worker, session.need)
        self.absences.begin(worker, "the broker was started again")

    def queue_deadline(self, session: BrokerSession) -> float:
        """Return until when a session may wait for a slot, on the monotonic clock."""
        return session.waits_from + min(self._config.queue_timeout_ms, session.limits.wall_ms) / 1000

    def cancel(self, session: BrokerSession, reason: str, message: str) -> None:
        """Have a live session ended by its worker, and soon. One that waits for a worker ends at once.

        Args:
            session: which.
            reason: what its worker is told.
            message: of its `final`, if that is ours to write.
        """
        if session.worker is None:
            self.end(session, Code.SESSION_CANCELLED, message)
            return
        session.cancelling = message
        self._store.update(session)
        self.outgoing.cancel(session, reason)
        self.end_later(session, self._config.cancel_grace_s, Code.SESSION_CANCELLED, message)

    def end(self, session: BrokerSession, code: Code, message: str) -> None:
        """Write the final that no worker will, whatever state the session is in."""
        session.end(code, message, time.monotonic())
        self._placer.withdraw(session.session_id)
        self.ended(session)
        if session.worker is None:
            self.routes.pop(session.session_id, None)

    def end_all(self) -> None:
        """End every session, because the broker stops, and wait for no worker any more."""
        self.closing = True
        self.absences.clear()
        for session in [session for session in self.routes.values() if session.live]:
            self.outgoing.cancel(session, "broker stops")
            self.end(session, Code.SESSION_CANCELLED, "the broker is stopping")

    def leave_all(self) -> None:
        """Leave every session as it is, to the next broker: from now on, nothing that happens to them is taken in."""
        self.left = True
        self.absences.clear()
        self._overdue.clear()
        for session in self.routes.values():
            session.log.interrupt()

    def tick(self, now: float) -> list[Refuse]:
        """Let the placer know the time, and tell who waits how long the line is; returns who has waited too long."""
        if self.left:
            return []
        late, placed = self._placer.tick(now)
        self.place_all(placed)
        # Not at each change: a long queue would write more events than all who run.
        if self._placer.queue and now >= self._positions_due:
            self._positions_due = now + POSITIONS_EVERY_S
            for session_id, position in self._placer.positions():
                self.routes[session_id].tell_position(position)
        return late

    def tell_all(self, news: CatalogChangedPayload) -> None:
        """Tell every live session which tools came and went."""
        for session in list(self.routes.values()):  # a link that breaks takes its sessions out
            self.outgoing.tell(session, news)

    def validate(self) -> None:
        """Assert what is always true between two calls."""
        for session in self.routes.values():
            has_slot = self._placer.worker_of(session.session_id)
            assert has_slot == session.worker, f"{session.session_id}: slot on {has_slot}, routed to {session.worker}"
            waits = self._placer.is_waiting(session.session_id)
            assert session.live or has_slot, f"{session.session_id}: ended, and still routed"
            assert session.live or not waits, f"{session.session_id}: ended, and still in the queue"

    def link_busy(self, name: str) -> bool:
        """Return whether the worker has sessions of ours."""
        return self._placer.is_busy(name)

    def sessions_on(self, name: str) -> list[BrokerSession]:
        """Return the sessions that have a slot on a worker."""
        return [session for session in self.routes.values() if session.worker == name]

    # The way of one session

    def place_all(self, placed: Iterable[Place]) -> None:
        """Send sessions to the workers whose slots they were given."""
        now = time.monotonic()
        for place in placed:
            self._place(place, now)

    def _place(self, place: Place, now: float) -> None:
        link, session = self.links[place.worker], self.routes[place.session_id]
        if link.resumes:
            link.acks.flush(session.session_id)  # the worker keeps an earlier one of this id until then
        session.place(place.worker, link.worker_id, link.instance)
        execute = encode(session.execute(now))
        self._store.update(session)
        self.outgoing.send(session, execute)
        if session.trace is not None:
            self._store.then(session.trace.placed)
        self._metrics.queue_wait.observe(now - session.created)
        wall_s = session.limits.wall_ms / 1000
        message = f"the worker did not end the session within its {session.limits.wall_ms} ms"
        self.end_later(session, wall_s + self._config.final_grace_s, Code.DEADLINE_EXCEEDED, message)

    def requeue(self, session: BrokerSession) -> None:
        """Put a session back whose worker had no slot for it after all."""
        self._metrics.requeues.inc()
        self._unplace(session, Code.NO_CAPACITY)
        placed = self._placer.refused(
            session.session_id, self.queue_deadline(session), size_bytes=session.request_bytes
        )
        self.place_all(placed)
        self._tell_wait(session)

    def _tell_wait(self, session: BrokerSession) -> None:
        """Tell the client of a session that was put back into the queue that it waits again, if it does."""
        position = self._placer.position(session.session_id)
        if position:
            session.tell_position(position)

    def release(self, session: BrokerSession, *, failed: bool = False) -> None:
        """Forget a session that has ended and is on no worker any more; `failed`: by a fault of its worker's."""
        session.worker = None
        self.routes.pop(session.session_id, None)
        self.place_all(self._placer.release(session.session_id, failed=failed))

    def place_again(self, session: BrokerSession, *, counts: bool) -> None:
        """Put a session back whose worker never got it, or was lost with it before it began."""
        self._metrics.placed_again.labels("worker_lost" if counts else "never_arrived").inc()
        session.retries += counts
        session.waits_from = time.monotonic()  # the time with the worker, and until it was given up, was no wait
        self._unplace(session, Code.WORKER_LOST)
        placed = self._placer.put_back(
            session.session_id,
            self.queue_deadline(session),
            profile=session.need,
            size_bytes=session.request_bytes,
        )
        self.place_all(placed)
        self._tell_wait(session)

    def _unplace(self, session: BrokerSession, why: Code) -> None:
        if session.trace is not None:
            session.trace.unplaced(why)
        self._overdue.end(session.session_id)
        session.unplace()
        self._store.update(session)
        self.outgoing.tell_rest(session)

    def ended(self, session: BrokerSession) -> None:
        """Account for a session that has just got its `final`."""
        self._overdue.end(session.session_id)
        self._owner.session_ended(session)

    def end_later(self, session: BrokerSession, delay_s: float, code: Code, message: str) -> None:
        """Write the final in a while, unless the worker does before. An earlier ending that is due is not put off."""
        self._overdue.begin(session, delay_s, code, message)

    def _end_overdue(self, session: BrokerSession, code: Code, message: str) -> None:
        log.error("worker %s: no final in time", session.worker, extra=session.about)
        if session.worker is not None:
            self._placer.blame(session.worker)
        self.outgoing.cancel(session, "overdue")
        self.end(session, code, message)
