"""What comes from the workers, and what follows from it: the handler of every link.

Theory of operation. The session decides what an event means, `resuming` what becomes of the sessions of a worker that
was away; this has the fleet carry it out.

A worker whose link broke is away: its sessions keep their slots and wait, for it to come back or to be given up
(`absences`). Whatever comes first, `resuming` says what becomes of each session.

Nothing here waits. What goes out for a session goes by the store, which lets nothing out before it is stored.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_protocol import Ack, Code, encode

from . import languages, resuming
from .steps import Broken, Ended, LetGo, Missing, Refused, Replayed, ToolCalled

if TYPE_CHECKING:
    from enclave_protocol import Hello, Pong, Rejection
    from enclave_protocol.messages import Envelope

    from .config import BrokerConfig
    from .fleet import Fleet, SessionOwner
    from .links import Link
    from .metrics import Metrics
    from .offers import Offers
    from .placement import Placer
    from .resuming import Fate
    from .sessions import BrokerSession
    from .steps import Step
    from .store import Store

log = logging.getLogger("enclave.broker")

_ATTACH_FIELDS = frozenset({"sessionId", "fromSeq"})
"""What is wrong with an `attach` that a worker refuses."""


class Incoming:
    """Hears every link. Its methods are called on one event loop.

    Args:
        fleet: where sessions are.
        config: how long a worker may be away.
        metrics: where to count.
        store: keeps the sessions.
        placer: told of workers.
        offers: told what workers offer.
        owner: told what becomes of sessions.
    """

    def __init__(
        self,
        fleet: Fleet,
        config: BrokerConfig,
        metrics: Metrics,
        store: Store,
        *,
        placer: Placer,
        offers: Offers,
        owner: SessionOwner,
    ) -> None:
        self._fleet = fleet
        self._config = config
        self._metrics = metrics
        self._store = store
        self._placer = placer
        self._offers = offers
        self._owner = owner

    @property
    def broker_id(self) -> str:
        """What the broker calls itself."""
        return self._store.broker_id

    def link_up(self, link: Link, hello: Hello) -> None:
        """Go on with what is on the worker, then offer its slots."""
        if self._fleet.left:
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
        self._fleet.place_all(placed)

    def link_down(self, link: Link, reason: str) -> None:
        """Wait for the worker, if it may come back with what it has; else end that."""
        if self._fleet.left:
            return
        self._metrics.workers_lost.inc()
        may_return = link.resumes and self._config.resume_s > 0 and not self._fleet.closing
        if may_return and self._placer.is_busy(link.name):
            self._placer.worker_away(link.name)
            self._fleet.absences.begin(link.name, reason)
        else:
            self.lose_worker(link.name, reason)

    def link_refused(self, link: Link, reason: str) -> None:
        """Give a worker up that is away, and that nobody is any more where it was.

        Only a process that listens keeps a port from refusing, and a worker listens until it exits.
        """
        if self._config.refused_is_dead and self._placer.is_away(link.name):
            self.lose_worker(link.name, f"{self._fleet.absences.end(link.name)}, and then {reason}")

    def link_unfit(self, _link: Link) -> None:
        """Count a worker of another age."""
        self._metrics.workers_unfit.inc()

    def link_pong(self, link: Link, pong: Pong) -> None:
        """Take in how busy the worker is."""
        if self._fleet.left:
            return
        placed = self._placer.worker_status(
            link.name, max_sessions=pong.max_sessions, active=pong.active, draining=pong.draining or link.retiring
        )
        self._fleet.place_all(placed)

    def link_draining(self, link: Link, reason: str) -> None:
        """Give the worker no new sessions: it says that it takes none."""
        log.info("worker %s drains: %s", link.name, reason or "it says so", extra=link.about)
        self._placer.worker_draining(link.name)

    def link_retired(self, link: Link) -> None:
        """Give the worker no new sessions, from now on: `link.retiring` is set."""
        self._placer.worker_draining(link.name)

    def link_gone(self, link: Link) -> None:
        """Forget a worker whose link has ended for good."""
        self.lose_worker(link.name, "it was removed")
        self._fleet.links.pop(link.name, None)
        self._offers.forget(link.name)

    def link_rejection(self, link: Link, rejection: Rejection) -> None:
        """Handle a refusal. One of an `execute` ends the session; one for an ended session frees its slot."""
        if self._fleet.left:
            return
        self._metrics.rejections.labels("WORKER_REJECTION").inc()
        payload = rejection.payload
        field = payload.field or ""
        session = None if rejection.session_id is UNSET else self._fleet.routes.get(rejection.session_id)
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
            self._fleet.end(session, Code.SESSION_CANCELLED, session.cancelling)
        elif session.live and link.resumes and field == "sessionId":
            self._fleet.requeue(session)  # the worker has yet to let go of an earlier one of this id
            return
        elif session.live:
            self._placer.blame(link.name)
            self._fleet.end(session, Code.VALIDATION_ERROR, f"the worker refused the session: {payload.message}")
        self._let_go(session)

    def link_event(self, link: Link, envelope: Envelope, line: bytes) -> None:
        """Pass an event on, and do what it asks for."""
        if self._fleet.left:
            return
        session = None if envelope.session_id is UNSET else self._fleet.routes.get(envelope.session_id)
        if session is None or session.worker != link.name:
            self._stray(link, envelope, line)
            return
        if session.live:
            step = session.accept(envelope, line, time.monotonic())
            if link.resumes:
                link.acks.kept(session, len(line))
            if session.untold is not None and session.may_tell:
                self._fleet.outgoing.tell_rest(session)
            if step is None or not self._follow(session, link, step, envelope):
                return
        else:
            self._stray(link, envelope, line)
        if envelope.type == "final":
            self._let_go(session)

    def _follow(self, session: BrokerSession, link: Link, step: Step, envelope: Envelope) -> bool:
        """Do what an event asks for; returns whether the session still is where it was, and where its events were."""
        if isinstance(step, ToolCalled):
            self._store.then(functools.partial(self._owner.tool_called, session, step))
        elif isinstance(step, Ended):
            self._fleet.ended(session)
        elif isinstance(step, Refused) and session.cancelling is None:
            self._fleet.requeue(session)
            return False
        elif isinstance(step, Refused):
            self._fleet.end(session, Code.SESSION_CANCELLED, session.cancelling or "")
        elif isinstance(step, LetGo):
            link.send(encode(Ack(seqs={session.session_id: envelope.seq or 0})))
            self._placer.worker_draining(link.name)  # until its next word: it would get the session again
            self._fleet.place_again(session, counts=True)
            return False
        elif isinstance(step, Missing) and link.resumes:
            self._ask_again(session, link, step, envelope.seq or 0)
            return False
        elif isinstance(step, Missing):
            self._broken(session, Broken(step.reason))
        elif isinstance(step, Broken):
            self._broken(session, step)
        return not isinstance(step, Replayed)

    def _broken(self, session: BrokerSession, broken: Broken) -> None:
        log.error("worker %s: %s", session.worker, broken.reason, extra=session.about)
        self._fleet.outgoing.cancel(session, "broken stream")
        senseless = broken.code is Code.INTERNAL_ERROR
        message = f"the worker's events made no sense: {broken.reason}" if senseless else broken.reason
        self._fleet.end(session, broken.code, message)

    def _stray(self, link: Link, envelope: Envelope, line: bytes) -> None:
        """Drop an event that nobody wants, for good: the worker need not keep it."""
        self._metrics.stray_events.inc()
        if link.resumes and envelope.session_id is not UNSET:
            link.acks.dropped(envelope.session_id, envelope.seq or 0, len(line))

    def _let_go(self, session: BrokerSession) -> None:
        """Free the slot of a session that its worker has let go of."""
        self._fleet.release(session, failed=session.outcome == Code.INTERNAL_ERROR)

    # Coming back

    def _follow_worker(self, link: Link) -> None:
        """Take what is on a worker along to the link that now leads to it, if another one did before."""
        if not link.resumes:
            return
        left = set()
        for session in self._fleet.routes.values():
            name = session.worker
            if name is not None and name != link.name and session.instance == link.instance:
                left.add(name)
                self._placer.move(session.session_id, link.name)
                session.worker = link.name
                self._store.update(session)
        for name in left:
            if not self._placer.is_busy(name):
                self.lose_worker(name, "")  # with no session: they are all here

    def _resume(self, link: Link, hello: Hello) -> None:
        """Decide about every session that we have on a worker which says hello, and every one that it says it has."""
        kept = {one.session_id: one for one in hello.sessions or ()} if link.resumes else {}
        why = "another one was in its place" if link.resumes else "it keeps nothing without a connection (revision 1)"
        reason = f"{self._fleet.absences.end(link.name)}, and then {why}"
        for session in self._fleet.sessions_on(link.name):
            same = link.resumes and session.instance == link.instance
            fate = resuming.fate_on_return(session.known, kept.pop(session.session_id, None), same_instance=same)
            self._carry_out(session, fate, link, reason)
        for session_id, one in kept.items():
            ended = self._owner.find_ended(session_id)
            ended_at = None if ended is None or ended.ended_here else ended.log.next_seq - 1
            known = ended is not None or session_id in self._fleet.routes
            match resuming.fate_of_leftover(one, known=known, ended_at=ended_at):
                case resuming.Acknowledge(last_seq):
                    link.send(encode(Ack(seqs={session_id: last_seq})))
                case resuming.Discard() as fate:
                    self._fleet.outgoing.discard(session_id, link, fate)

    def lose_worker(self, name: str, reason: str) -> None:
        """Decide about every session that was on a worker which is gone."""
        self._fleet.absences.end(name)
        sessions = self._fleet.sessions_on(name)
        self._placer.worker_down(name)
        for session in sessions:
            self._carry_out(session, resuming.fate_on_loss(session.known), None, reason)

    def _carry_out(self, session: BrokerSession, fate: Fate, link: Link | None, reason: str) -> None:
        if isinstance(fate, resuming.Attach) and link is not None:
            self._metrics.attaches.inc()
            self._fleet.outgoing.attach(session, link, fate)
            return
        if isinstance(fate, resuming.Discard) and link is not None:
            self._fleet.outgoing.discard(session.session_id, link, fate)
            return
        if isinstance(fate, resuming.PlaceAgain):
            self._fleet.place_again(session, counts=fate.counts)
            return
        session.worker = None
        if isinstance(fate, resuming.Cancelled):
            self._fleet.end(session, Code.SESSION_CANCELLED, session.cancelling or "")
        elif isinstance(fate, resuming.Lose):
            message = f"worker {session.worker_name} was lost: {fate.reason or reason}"
            self._fleet.end(session, Code.WORKER_LOST, message)
        self._fleet.release(session)

    def _ask_again(self, session: BrokerSession, link: Link, missing: Missing, seq: int) -> None:
        """Have the worker send what did not come: once for each place in the stream, the rest is on its way."""
        if session.attached_from != session.log.next_seq:
            log.warning("worker %s: %s", link.name, missing.reason, extra=session.about)
            self._carry_out(session, resuming.Attach(session.log.next_seq, seq), link, "")
