"""Sessions and the workers that they are on: everything that comes from a link or goes out on one.

Theory of operation. The placer decides who runs where, the session decides what an event means; this carries their
instructions out. A session is in `routes` from `enter` until it has ended and holds no slot. Most end by their worker's
`final`, which also frees the slot. One that ends here instead (`end`: cancelled or too late in the queue, its worker
gone or senseless or overdue) keeps its slot until the worker says `final`, refuses a message about it, or goes away.

A worker whose link broke is away: its sessions keep their slots and wait, for it to come back or to be given up
(`absences`). Whatever comes first, `resuming` says what becomes of each session.

Nothing here waits. What goes out for a session goes by the store, which lets nothing out before it is stored.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from typing import TYPE_CHECKING, Protocol

from msgspec import UNSET

from enclave_protocol import Ack, Code, encode

from . import languages, resuming
from .absences import Absences
from .outgoing import Outgoing
from .placement import Place
from .steps import Broken, Ended, LetGo, Missing, Refused, Replayed, ToolCalled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_protocol import Hello, Pong, Rejection
    from enclave_protocol.events import CatalogChangedPayload
    from enclave_protocol.messages import Envelope

    from .config import BrokerConfig
    from .links import Link
    from .metrics import Metrics
    from .offers import Offers
    from .placement import Placer, Refuse, Wait
    from .resuming import Fate
    from .sessions import BrokerSession
    from .steps import Step
    from .store import Store

log = logging.getLogger("enclave.broker")

POSITIONS_EVERY_S = 1.0
"""How often those who wait are told their position, if it changed."""
_ATTACH_FIELDS = frozenset({"sessionId", "fromSeq"})
"""What is wrong with an `attach` that a worker refuses."""


class SessionOwner(Protocol):
    """Who is told what workers make of sessions. Neither of these may block."""

    def tool_called(self, session: BrokerSession, called: ToolCalled, /) -> None:
        """Have a call answered, if the session has not ended meanwhile."""

    def session_ended(self, session: BrokerSession, /) -> None:
        """Account for a session that has just got its `final`."""

    def find_ended(self, session_id: str, /) -> BrokerSession | None:
        """Return a session that has ended, if it is still known."""


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
        self.outgoing = Outgoing(store, self.links)
        """What is said to workers for sessions."""
        self._config = config
        self._metrics = metrics
        self._store = store
        self._placer = placer
        self._offers = offers
        self._owner = owner
        self._overdue: dict[str, asyncio.TimerHandle] = {}  # when to stop waiting for the worker's final
        self._positions_due = 0.0
        self._absences = Absences(config.resume_s, self._lose_worker)
        self._closing = False
        self._left = False

    @property
    def broker_id(self) -> str:
        """What the broker calls itself."""
        return self._store.broker_id

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
        self._absences.begin(worker, "the broker was started again")

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
        self._ended(session)
        if session.worker is None:
            self.routes.pop(session.session_id, None)

    def end_all(self) -> None:
        """End every session, because the broker stops, and wait for no worker any more."""
        self._closing = True
        self._absences.clear()
        for session in [session for session in self.routes.values() if session.live]:
            self.outgoing.cancel(session, "broker stops")
            self.end(session, Code.SESSION_CANCELLED, "the broker is stopping")

    def leave_all(self) -> None:
        """Leave every session as it is, to the next broker: from now on, nothing that happens to them is taken in."""
        self._left = True
        self._absences.clear()
        for timer in self._overdue.values():
            timer.cancel()
        self._overdue.clear()
        for session in self.routes.values():
            session.log.interrupt()

    def tick(self, now: float) -> list[Refuse]:
        """Let the placer know the time, and tell who waits how long the line is; returns who has waited too long."""
        if self._left:
            return []
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
            self.outgoing.tell(session, news)

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
        """Go on with what is on the worker, then offer its slots."""
        if self._left:
            return
        self._offers.learn(link.name, hello)
        self._follow_worker(link)
        away = self._placer.is_away(link.name)
        self._resume(link, hello)
        comes = self._placer.worker_back if away else self._placer.worker_up
        placed = comes(
            link.name,
            max_sessions=hello.max_sessions,
            active=hello.active,
            draining=hello.draining or link.retiring,
            profiles=languages.offers(hello),
        )
        self._place_all(placed)

    def link_down(self, link: Link, reason: str) -> None:
        """Wait for the worker, if it may come back with what it has; else end that."""
        if self._left:
            return
        self._metrics.workers_lost.inc()
        may_return = link.resumes and self._config.resume_s > 0 and not self._closing
        if may_return and self._placer.is_busy(link.name):
            self._placer.worker_away(link.name)
            self._absences.begin(link.name, reason)
        else:
            self._lose_worker(link.name, reason)

    def link_refused(self, link: Link, reason: str) -> None:
        """Give a worker up that is away, and that nobody is any more where it was.

        Only a process that listens keeps a port from refusing, and a worker listens until it exits.
        """
        if self._config.refused_is_dead and self._placer.is_away(link.name):
            self._lose_worker(link.name, f"{self._absences.end(link.name)}, and then {reason}")

    def link_unfit(self, _link: Link) -> None:
        """Count a worker of another age."""
        self._metrics.workers_unfit.inc()

    def link_pong(self, link: Link, pong: Pong) -> None:
        """Take in how busy the worker is."""
        if self._left:
            return
        placed = self._placer.worker_status(
            link.name, max_sessions=pong.max_sessions, active=pong.active, draining=pong.draining or link.retiring
        )
        self._place_all(placed)

    def link_draining(self, link: Link, reason: str) -> None:
        """Give the worker no new sessions: it says that it takes none."""
        log.info("worker %s drains: %s", link.name, reason or "it says so", extra=link.about)
        self._placer.worker_draining(link.name)

    def link_retired(self, link: Link) -> None:
        """Give the worker no new sessions, from now on: `link.retiring` is set."""
        self._placer.worker_draining(link.name)

    def link_busy(self, name: str) -> bool:
        """Return whether the worker has sessions of ours."""
        return self._placer.is_busy(name)

    def link_gone(self, link: Link) -> None:
        """Forget a worker whose link has ended for good."""
        self._lose_worker(link.name, "it was removed")
        self.links.pop(link.name, None)
        self._offers.forget(link.name)

    def link_rejection(self, link: Link, rejection: Rejection) -> None:
        """Handle a refusal. One of an `execute` ends the session; one for an ended session frees its slot."""
        if self._left:
            return
        self._metrics.rejections.labels("WORKER_REJECTION").inc()
        payload = rejection.payload
        field = payload.field or ""
        session = None if rejection.session_id is UNSET else self.routes.get(rejection.session_id)
        extra = link.about if session is None else session.about
        log.debug("worker %s refused a message: %s", link.name, payload.message, extra=extra)
        if session is None or session.worker != link.name:
            return
        if field.startswith("seqs"):
            return  # of an ack: the worker keeps what it likes to
        if session.attached_from == session.log.next_seq and field in _ATTACH_FIELDS:
            fate = resuming.fate_on_refusal(session.known, has_it=field == "fromSeq")
            self._carry_out(session, fate, link, "")
            return
        if session.live and session.request is None:
            return  # it runs: what was refused is a late tool result or the like
        if session.live and session.cancelling is not None:
            self.end(session, Code.SESSION_CANCELLED, session.cancelling)
        elif session.live and link.resumes and field == "sessionId":
            self._requeue(session)  # the worker has yet to let go of an earlier one of this id
            return
        elif session.live:
            self._placer.blame(link.name)
            self.end(session, Code.VALIDATION_ERROR, f"the worker refused the session: {payload.message}")
        self._release(session)

    def link_event(self, link: Link, envelope: Envelope, line: bytes) -> None:
        """Pass an event on, and do what it asks for."""
        if self._left:
            return
        session = None if envelope.session_id is UNSET else self.routes.get(envelope.session_id)
        if session is None or session.worker != link.name:
            self._stray(link, envelope, line)
            return
        if session.live:
            step = session.accept(envelope, line, time.monotonic())
            if link.resumes:
                link.acks.kept(session, len(line))
            if session.untold is not None and session.may_tell:
                self.outgoing.tell_rest(session)
            if step is None or not self._follow(session, link, step, envelope):
                return
        else:
            self._stray(link, envelope, line)
        if envelope.type == "final":
            self._release(session)

    def _follow(self, session: BrokerSession, link: Link, step: Step, envelope: Envelope) -> bool:
        """Do what an event asks for; returns whether the session still is where it was, and where its events were."""
        if isinstance(step, ToolCalled):
            self._store.then(functools.partial(self._owner.tool_called, session, step))
        elif isinstance(step, Ended):
            self._ended(session)
        elif isinstance(step, Refused) and session.cancelling is None:
            self._requeue(session)
            return False
        elif isinstance(step, Refused):
            self.end(session, Code.SESSION_CANCELLED, session.cancelling or "")
        elif isinstance(step, LetGo):
            link.send(encode(Ack(seqs={session.session_id: envelope.seq or 0})))
            self._placer.worker_draining(link.name)  # until its next word: it would get the session again
            self._place_again(session, counts=True)
            return False
        elif isinstance(step, Missing) and link.resumes:
            self._ask_again(session, link, step, envelope.seq or 0)
            return False
        elif isinstance(step, Missing):
            self._broken(session, Broken(step.reason))
        elif isinstance(step, Broken):
            self._broken(session, step)
        return not isinstance(step, Replayed)

    # Coming back

    def _follow_worker(self, link: Link) -> None:
        """Take what is on a worker along to the link that now leads to it, if another one did before."""
        if not link.resumes:
            return
        left = set()
        for session in self.routes.values():
            name = session.worker
            if name is not None and name != link.name and session.instance == link.instance:
                left.add(name)
                self._placer.move(session.session_id, link.name)
                session.worker = link.name
                self._store.update(session)
        for name in left:
            if not self._placer.is_busy(name):
                self._lose_worker(name, "")  # with no session: they are all here

    def _resume(self, link: Link, hello: Hello) -> None:
        """Decide about every session that we have on a worker which says hello, and every one that it says it has."""
        kept = {one.session_id: one for one in hello.sessions or ()} if link.resumes else {}
        why = "another one was in its place" if link.resumes else "it keeps nothing without a connection (revision 1)"
        reason = f"{self._absences.end(link.name)}, and then {why}"
        for session in self._sessions_on(link.name):
            same = link.resumes and session.instance == link.instance
            fate = resuming.fate_on_return(session.known, kept.pop(session.session_id, None), same_instance=same)
            self._carry_out(session, fate, link, reason)
        for session_id, one in kept.items():
            ended = self._owner.find_ended(session_id)
            ended_at = None if ended is None or ended.ended_here else ended.log.next_seq - 1
            known = ended is not None or session_id in self.routes
            match resuming.fate_of_leftover(one, known=known, ended_at=ended_at):
                case resuming.Acknowledge(last_seq):
                    link.send(encode(Ack(seqs={session_id: last_seq})))
                case resuming.Discard() as fate:
                    self.outgoing.discard(session_id, link, fate)

    def _lose_worker(self, name: str, reason: str) -> None:
        """Decide about every session that was on a worker which is gone."""
        self._absences.end(name)
        sessions = self._sessions_on(name)
        self._placer.worker_down(name)
        for session in sessions:
            self._carry_out(session, resuming.fate_on_loss(session.known), None, reason)

    def _sessions_on(self, name: str) -> list[BrokerSession]:
        return [session for session in self.routes.values() if session.worker == name]

    def _carry_out(self, session: BrokerSession, fate: Fate, link: Link | None, reason: str) -> None:
        if isinstance(fate, resuming.Attach) and link is not None:
            self._metrics.attaches.inc()
            self.outgoing.attach(session, link, fate)
            return
        if isinstance(fate, resuming.Discard) and link is not None:
            self.outgoing.discard(session.session_id, link, fate)
            return
        if isinstance(fate, resuming.PlaceAgain):
            self._place_again(session, counts=fate.counts)
            return
        session.worker = None
        if isinstance(fate, resuming.Cancelled):
            self.end(session, Code.SESSION_CANCELLED, session.cancelling or "")
        elif isinstance(fate, resuming.Lose):
            self.end(session, Code.WORKER_LOST, f"worker {session.worker_name} was lost: {fate.reason or reason}")
        self.routes.pop(session.session_id, None)
        self._place_all(self._placer.release(session.session_id))

    def _ask_again(self, session: BrokerSession, link: Link, missing: Missing, seq: int) -> None:
        """Have the worker send what did not come: once for each place in the stream, the rest is on its way."""
        if session.attached_from != session.log.next_seq:
            log.warning("worker %s: %s", link.name, missing.reason, extra=session.about)
            self._carry_out(session, resuming.Attach(session.log.next_seq, seq), link, "")

    def _stray(self, link: Link, envelope: Envelope, line: bytes) -> None:
        """Drop an event that nobody wants, for good: the worker need not keep it."""
        self._metrics.stray_events.inc()
        if link.resumes and envelope.session_id is not UNSET:
            link.acks.dropped(envelope.session_id, envelope.seq or 0, len(line))

    # The way of one session

    def _place_all(self, placed: Iterable[Place]) -> None:
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

    def _requeue(self, session: BrokerSession) -> None:
        self._metrics.requeues.inc()
        self._unplace(session, Code.NO_CAPACITY)
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

    def _place_again(self, session: BrokerSession, *, counts: bool) -> None:
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
        self._place_all(placed)
        self._tell_wait(session)

    def _unplace(self, session: BrokerSession, why: Code) -> None:
        if session.trace is not None:
            session.trace.unplaced(why)
        _cancel_timer(self._overdue, session.session_id)
        session.unplace()
        self._store.update(session)
        self.outgoing.tell_rest(session)

    def _broken(self, session: BrokerSession, broken: Broken) -> None:
        log.error("worker %s: %s", session.worker, broken.reason, extra=session.about)
        self.outgoing.cancel(session, "broken stream")
        senseless = broken.code is Code.INTERNAL_ERROR
        self.end(
            session, broken.code, f"the worker's events made no sense: {broken.reason}" if senseless else broken.reason
        )

    def _ended(self, session: BrokerSession) -> None:
        _cancel_timer(self._overdue, session.session_id)
        self._owner.session_ended(session)

    def end_later(self, session: BrokerSession, delay_s: float, code: Code, message: str) -> None:
        """Write the final in a while, unless the worker does before. An earlier ending that is due is not put off."""
        loop = asyncio.get_running_loop()
        earlier = self._overdue.get(session.session_id)
        if earlier is not None and earlier.when() <= loop.time() + delay_s:
            return
        _cancel_timer(self._overdue, session.session_id)
        self._overdue[session.session_id] = loop.call_later(delay_s, self._end_overdue, session, code, message)

    def _end_overdue(self, session: BrokerSession, code: Code, message: str) -> None:
        log.error("worker %s: no final in time", session.worker, extra=session.about)
        if session.worker is not None:
            self._placer.blame(session.worker)
        self.outgoing.cancel(session, "overdue")
        self.end(session, code, message)


def _cancel_timer(timers: dict[str, asyncio.TimerHandle], session_id: str) -> None:
    timer = timers.pop(session_id, None)
    if timer is not None:
        timer.cancel()
