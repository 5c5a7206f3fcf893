"""Sessions and the workers that they are on: everything that comes from a link or goes out on one.

Theory of operation. The placer decides who runs where, the session decides what an event means; this carries their
instructions out. A session is in `routes` from `enter` until it has ended and holds no slot. Most end by their worker's
`final`, which also frees the slot. One that ends here instead (`end`: cancelled or too late in the queue, its worker
gone or senseless or overdue) keeps its slot until the worker says `final`, refuses a message about it, or goes away.

Nothing here waits. What goes out for a session goes by the store, which lets nothing out before it is stored.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from typing import TYPE_CHECKING, Protocol

from msgspec import UNSET

from enclave_protocol import Cancel, CatalogNotice, Code, encode

from . import languages
from .placement import Place
from .sessions import Broken, BrokerSession, Ended, Refused, ToolCalled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_protocol import Hello, Pong, Rejection
    from enclave_protocol.events import CatalogChangedPayload
    from enclave_protocol.messages import Envelope

    from .config import BrokerConfig
    from .links import Link
    from .metrics import Metrics
    from .offers import Offers
    from .placement import Lose, Placer, Refuse, Wait
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


class Fleet:
    """Where sessions are; the handler of every link. Its methods are called on one event loop.

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
        self._config = config
        self._metrics = metrics
        self._store = store
        self._placer = placer
        self._offers = offers
        self._owner = owner
        self._overdue: dict[str, asyncio.TimerHandle] = {}  # when to stop waiting for the worker's final
        self._positions_due = 0.0

    # Sessions

    def enter(self, session: BrokerSession, decision: Place | Wait) -> None:
        """Take in a new session, and send it where the placer wants it."""
        self.routes[session.session_id] = session
        if isinstance(decision, Place):
            self._place(decision, time.monotonic())
        else:
            session.tell_position(decision.position)

    def queue_deadline(self, session: BrokerSession) -> float:
        """Return until when a session may wait for a slot, on the monotonic clock."""
        return session.created + min(self._config.queue_timeout_ms, session.limits.wall_ms) / 1000

    def send(self, session: BrokerSession, message: bytes) -> None:
        """Pass a message on to a session's worker, if that still waits for one."""
        if session.live and session.worker is not None:
            self._store.then(functools.partial(self._send_to, session.worker, session, message))

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
        self.send(session, encode(Cancel(session_id=session.session_id, reason=reason[:1000] or UNSET)))
        self._end_later(session, self._config.cancel_grace_s, Code.SESSION_CANCELLED, message)

    def end(self, session: BrokerSession, code: Code, message: str) -> None:
        """Write the final that no worker will, whatever state the session is in."""
        session.end(code, message, time.monotonic())
        self._placer.withdraw(session.session_id)
        self._ended(session)
        if session.worker is None:
            self.routes.pop(session.session_id, None)

    def end_all(self) -> None:
        """End every session, because the broker stops."""
        for session in [session for session in self.routes.values() if session.live]:
            self._cancel_on_worker(session, "broker stops")
            self.end(session, Code.SESSION_CANCELLED, "the broker is stopping")

    def tick(self, now: float) -> list[Refuse]:
        """Let the placer know the time, and tell who waits how long the line is; returns who has waited too long."""
        late, placed = self._placer.tick(now)
        self._place_all(placed)
        # Not at each change: a long queue would write more events than all who run.
        if self._placer.queue and now >= self._positions_due:
            self._positions_due = now + POSITIONS_EVERY_S
            for session_id, position in self._placer.positions():
                self.routes[session_id].tell_position(position)
        return late

    def tell_all(self, news: CatalogChangedPayload) -> None:
        """Tell every live session which tools came and went."""
        for session in list(self.routes.values()):  # a link that breaks takes its sessions out
            self._tell(session, news)

    def validate(self) -> None:
        """Assert what is always true between two calls."""
        for session in self.routes.values():
            has_slot = self._placer.worker_of(session.session_id)
            assert has_slot == session.worker, f"{session.session_id}: slot on {has_slot}, routed to {session.worker}"
            waits = self._placer.is_waiting(session.session_id)
            assert session.live or has_slot, f"{session.session_id}: ended, and still routed"
            assert session.live or not waits, f"{session.session_id}: ended, and still in the queue"

    # Links

    def link_up(self, link: Link, hello: Hello) -> None:
        """Offer the worker's slots."""
        self._offers.learn(link.name, hello)
        placed = self._placer.worker_up(
            link.name,
            max_sessions=hello.max_sessions,
            active=hello.active,
            draining=hello.draining or link.retiring,
            profiles=languages.offers(hello),
        )
        self._place_all(placed)

    def link_down(self, link: Link, reason: str) -> None:
        """End what was on the worker."""
        self._metrics.workers_lost.inc()
        for lost in self._placer.worker_down(link.name):
            self._lose(lost, link, reason)

    def link_pong(self, link: Link, pong: Pong) -> None:
        """Take in how busy the worker is."""
        placed = self._placer.worker_status(
            link.name, max_sessions=pong.max_sessions, active=pong.active, draining=pong.draining or link.retiring
        )
        self._place_all(placed)

    def link_retired(self, link: Link) -> None:
        """Give the worker no new sessions, from now on: `link.retiring` is set."""
        self._placer.worker_draining(link.name)

    def link_busy(self, name: str) -> bool:
        """Return whether the worker has sessions of ours."""
        return self._placer.is_busy(name)

    def link_gone(self, link: Link) -> None:
        """Forget a worker whose link has ended for good."""
        self.links.pop(link.name, None)
        self._offers.forget(link.name)

    def link_rejection(self, link: Link, rejection: Rejection) -> None:
        """Handle a refusal. One of an `execute` ends the session; one for an ended session frees its slot."""
        self._metrics.rejections.labels("WORKER_REJECTION").inc()
        payload = rejection.payload
        log.debug("worker %s refused a message: %s", link.name, payload.message)
        session = None if rejection.session_id is UNSET else self.routes.get(rejection.session_id)
        if session is None or session.worker != link.name:
            return
        if session.live and session.request is None:
            return  # it runs: what was refused is a late tool result or the like
        if session.live:
            self._placer.blame(link.name)
            self.end(session, Code.VALIDATION_ERROR, f"the worker refused the session: {payload.message}")
        self._release(session)

    def link_event(self, link: Link, envelope: Envelope, line: bytes) -> None:
        """Pass an event on, and do what it asks for."""
        session = None if envelope.session_id is UNSET else self.routes.get(envelope.session_id)
        if session is None or session.worker != link.name:
            self._metrics.stray_events.inc()
            return
        final = envelope.type == "final"
        if session.live:
            step = session.accept(envelope, line, time.monotonic())
            if session.untold is not None and session.request is None:
                self._tell_rest(session)
            if step is None:
                return
            if isinstance(step, Refused) and session.cancelling is None:
                self._requeue(session)
                return
            if isinstance(step, Refused):
                self.end(session, Code.SESSION_CANCELLED, session.cancelling or "")
            elif isinstance(step, ToolCalled):
                self._store.then(functools.partial(self._owner.tool_called, session, step))
            elif isinstance(step, Ended):
                self._ended(session)
            else:
                self._broken(session, step)
        if final:
            self._release(session)

    # The way of one session

    def _place_all(self, placed: Iterable[Place]) -> None:
        now = time.monotonic()
        for place in placed:
            self._place(place, now)

    def _place(self, place: Place, now: float) -> None:
        link, session = self.links[place.worker], self.routes[place.session_id]
        session.worker = place.worker
        session.worker_name = link.worker_id
        execute = encode(session.execute(now))
        self._store.update(session)
        self._store.then(functools.partial(self._send_to, place.worker, session, execute))
        self._metrics.queue_wait.observe(now - session.created)
        wall_s = session.limits.wall_ms / 1000
        message = f"the worker did not end the session within its {session.limits.wall_ms} ms"
        self._end_later(session, wall_s + self._config.final_grace_s, Code.DEADLINE_EXCEEDED, message)

    def _requeue(self, session: BrokerSession) -> None:
        self._metrics.requeues.inc()
        _cancel_timer(self._overdue, session.session_id)
        session.worker = session.worker_name = session.started = None
        self._store.update(session)
        self._tell_rest(session)
        placed = self._placer.refused(
            session.session_id, self.queue_deadline(session), size_bytes=session.request_bytes
        )
        self._place_all(placed)
        self._tell_wait(session)

    def _tell_wait(self, session: BrokerSession) -> None:
        """Tell the client of a session that was put back into the queue that it waits again, if it does."""
        position = self._placer.position(session.session_id)
        if position:
            session.tell_position(position)

    def _release(self, session: BrokerSession) -> None:
        session.worker = None
        self.routes.pop(session.session_id, None)
        failed = session.outcome == Code.INTERNAL_ERROR
        self._place_all(self._placer.release(session.session_id, failed=failed))

    def _lose(self, lost: Lose, link: Link, reason: str) -> None:
        session = self.routes[lost.session_id]
        session.worker = None
        if session.live:
            self.end(session, Code.WORKER_LOST, f"worker {link.worker_id} was lost: {reason}")
        else:
            self.routes.pop(lost.session_id)

    def _broken(self, session: BrokerSession, broken: Broken) -> None:
        log.error("worker %s, session %s: %s", session.worker, session.session_id, broken.reason)
        self._cancel_on_worker(session, "broken stream")
        senseless = broken.code is Code.INTERNAL_ERROR
        self.end(
            session, broken.code, f"the worker's events made no sense: {broken.reason}" if senseless else broken.reason
        )

    def _ended(self, session: BrokerSession) -> None:
        _cancel_timer(self._overdue, session.session_id)
        self._owner.session_ended(session)

    def _end_later(self, session: BrokerSession, delay_s: float, code: Code, message: str) -> None:
        loop = asyncio.get_running_loop()
        earlier = self._overdue.get(session.session_id)
        if earlier is not None and earlier.when() <= loop.time() + delay_s:
            return  # asking again must not put off an ending
        _cancel_timer(self._overdue, session.session_id)
        self._overdue[session.session_id] = loop.call_later(delay_s, self._end_overdue, session, code, message)

    def _end_overdue(self, session: BrokerSession, code: Code, message: str) -> None:
        log.error("worker %s, session %s: no final in time", session.worker, session.session_id)
        if session.worker is not None:
            self._placer.blame(session.worker)
        self._cancel_on_worker(session, "overdue")
        self.end(session, code, message)

    def _cancel_on_worker(self, session: BrokerSession, reason: str) -> None:
        if session.worker is not None:
            message = encode(Cancel(session_id=session.session_id, reason=reason))
            self._store.then(functools.partial(self._send_to, session.worker, session, message))

    def _tell(self, session: BrokerSession, news: CatalogChangedPayload) -> None:
        if session.live and session.tell(news):
            self.send(session, encode(CatalogNotice(session_id=session.session_id, payload=news)))

    def _tell_rest(self, session: BrokerSession) -> None:
        news, session.untold = session.untold, None
        if news is not None:
            self._tell(session, news)

    def _send_to(self, worker: str, session: BrokerSession, message: bytes) -> None:
        if session.worker == worker:  # else it left that worker while the message waited for the store
            self.links[worker].send(message)


def _cancel_timer(timers: dict[str, asyncio.TimerHandle], session_id: str) -> None:
    timer = timers.pop(session_id, None)
    if timer is not None:
        timer.cancel()
