"""Everything that happens to sessions between their client and their worker.

Theory of operation. The placer decides who runs where, the session decides what an event means; this carries their
instructions out. Nothing here waits: clients' requests, workers' events and the clock all come in as plain calls on
one event loop, and go out as lines in a log (read by cursors) and messages in a link's buffer. Only tools run beside
it: see `tools.calls`.

A session is in `_routes` from `submit` until it has ended and holds no slot. Most end by their worker's `final`, which
also frees the slot. One that ends here instead (`_end`: cancelled or too late in the queue, its worker gone or
senseless or overdue) keeps its slot until the worker says `final`, refuses a message about it, or goes away.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_protocol import (
    MAX_MESSAGE_BYTES,
    Cancel,
    CatalogNotice,
    Code,
    Execute,
    Hello,
    Limits,
    NoCapacity,
    Pong,
    Rejection,
    RemoteProtocolError,
    ToolResult,
    encode,
    new_session_id,
    tool_calls,
)
from enclave_protocol.declared_tools import refuse_taken

from . import languages
from .access import Gate, QuotaExceeded, Scope, Signer, capped
from .client_calls import Answerer, ClientCalls, answerer, unknown
from .directory import Directory
from .new_session import DuplicateSession
from .offers import Offers
from .placement import Lose, Place, Placer, Refuse
from .sessions import Broken, BrokerSession, Ended, Refused, ToolCalled
from .store import MemoryStore
from .tools import ToolCalls
from .tools.catalog import news_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_protocol import ClientTools
    from enclave_protocol.events import CatalogChangedPayload
    from enclave_protocol.messages import Envelope

    from .access import Account, Caller
    from .config import BrokerConfig
    from .links import Link
    from .metrics import Metrics
    from .new_session import NewSession
    from .store import Store
    from .tools import ApprovalHook, CatalogChange, Secrets, ToolRegistry

log = logging.getLogger("enclave.broker")


class Dispatcher:
    """The broker without its sockets. Its methods are called on one event loop.

    Args:
        config: sizes and waits.
        tools: what guests may call.
        metrics: where to count.
        gate: who may call; everybody if not given.
        secrets: what tools may be given.
        approve: who is asked about tools that need approval.
        store: keeps the sessions; in memory if not given.
    """

    def __init__(
        self,
        config: BrokerConfig,
        tools: ToolRegistry,
        metrics: Metrics,
        gate: Gate | None = None,
        *,
        secrets: Secrets | None = None,
        approve: ApprovalHook | None = None,
        store: Store | None = None,
    ) -> None:
        self.config = config
        self.store = store or MemoryStore()
        self.gate = gate or Gate(None, Signer())
        self.metrics = metrics
        self.tools = tools
        self.placer = Placer(queue_size=config.queue_size, queue_bytes=config.queue_bytes)
        self.directory = Directory(
            self.store,
            max_finished=config.retained_sessions,
            max_bytes=config.retained_bytes,
            max_age_s=config.retain_s,
        )
        self.links: dict[str, Link] = {}
        self.offers = Offers(config.default_limits, config.default_language)
        self.tool_calls = ToolCalls(config, metrics, self._send, secrets=secrets, approve=approve)
        self._client_calls = ClientCalls(self._give_up_call)
        self._routes: dict[str, BrokerSession] = {}
        self._overdue: dict[str, asyncio.TimerHandle] = {}  # when to stop waiting for the worker's final
        self._unread: dict[str, asyncio.TimerHandle] = {}  # when to stop waiting for a reader
        self._closing = False
        self._unsubscribe = tools.subscribe(self.catalog_changed)

    # Clients

    def submit(self, new: NewSession, caller: Caller) -> BrokerSession:
        """Accept a session and place it, or let it wait.

        Raises:
            Denied: the caller may make none, or none with this id.
            DuplicateSession: its id is taken by a session that has not ended, or is another tenant's.
            QuotaExceeded: the caller's tenant has none left.
            NoCapacity: the queue is full.
            RemoteProtocolError: no worker offers its profile or language, or it declares a tool that the broker has.
        """
        self.gate.allow(caller, Scope.CREATE)
        caller.require_session(new.session_id)
        self.offers.require(new, workers=len(self.links))
        if new.client_tools:
            self._refuse_taken(new, new.client_tools)
        session_id = new.session_id or caller.session_id or new_session_id()
        if session_id in self._routes or not self._replaceable(session_id, caller):
            raise DuplicateSession(session_id)
        if self._closing:
            raise NoCapacity("the broker is stopping")
        now = time.monotonic()
        limits = capped(new.limits, caller.limits)
        request = Execute(
            session_id=session_id,
            code=new.code,
            limits=_named(limits),
            language=new.language or UNSET,
            profile=new.profile,
            env=new.env or UNSET,
            files=new.files or UNSET,
        )
        session = BrokerSession(
            session_id,
            request,
            limits,
            now=now,
            wall=time.time(),
            log=self.store.new_log(self.config.log_bytes),
            client_tools=new.client_tools,
            channel=new.channel,
            fingerprint=new.fingerprint,
            tenant=caller.tenant,
        )
        account = self._admit(caller, now)
        decision = self.placer.submit(
            session_id,
            self._queue_deadline(session),
            profile=languages.need(new.profile, new.language),
            size_bytes=session.request_bytes,
        )
        if isinstance(decision, Refuse):
            account.give_back(now)
            raise NoCapacity("every slot is taken and the queue is full", retry_after_s=decision.retry_after_s)
        self._routes[session_id] = session
        self.directory.add(session)
        if isinstance(decision, Place):
            self._place(decision, now)
        return session

    def _admit(self, caller: Caller, now: float) -> Account:
        account = self.gate.ledger.account(caller.tenant)
        try:
            account.admit(now)
        except QuotaExceeded as error:
            self.metrics.quota_refused(caller.tenant, error.quota)
            raise
        return account

    def find(self, session_id: str, caller: Caller) -> BrokerSession | None:
        """Return a session, live or retained, if it exists as far as the caller is concerned."""
        session = self.directory.get(session_id)
        return session if session is not None and caller.sees(session) else None

    def visible(self, caller: Caller) -> list[BrokerSession]:
        """Return the caller's sessions, the finished ones first."""
        return [session for session in self.directory.sessions() if caller.sees(session)]

    def _replaceable(self, session_id: str, caller: Caller) -> bool:
        # A new session takes the place of a finished one of the same id, but never of another tenant's.
        finished = self.directory.get(session_id)
        return finished is None or finished.tenant == caller.tenant

    def _refuse_taken(self, new: NewSession, declared: ClientTools) -> None:
        try:
            refuse_taken(declared, self.tools.names())
        except RemoteProtocolError as error:
            error.session_id = new.session_id
            raise

    def cancel(self, session: BrokerSession, reason: str = "") -> None:
        """End a session soon: at once if it waits, else when its worker says so. An ended one stays as it is."""
        if not session.live:
            return
        message = f"session was cancelled: {reason}" if reason else "session was cancelled"
        if session.worker is None:
            self._end(session, Code.SESSION_CANCELLED, message)
            return
        session.cancelling = message
        self.store.update(session)
        self._send(session, encode(Cancel(session_id=session.session_id, reason=reason[:1000] or UNSET)))
        self._end_later(session, self.config.cancel_grace_s, Code.SESSION_CANCELLED, message)

    def delete(self, session: BrokerSession) -> None:
        """Cancel a session, and make it unfindable."""
        self.directory.remove(session.session_id)
        self.cancel(session, "deleted")

    def answer_call(self, session: BrokerSession, result: ToolResult) -> None:
        """Pass a client's tool result on.

        Raises:
            RemoteProtocolError: no such call waits for this client, or the result is too large.
        """
        call_id, session_id = result.call_id, session.session_id
        if not session.live or call_id not in session.calls:
            allowed = "the callId of a tool_call of this session"
            raise RemoteProtocolError(f"unknown call {call_id}", field="callId", allowed=allowed, session_id=session_id)
        message = encode(result)
        if len(message) > MAX_MESSAGE_BYTES:
            allowed = f"at most {MAX_MESSAGE_BYTES} bytes in all"
            raise RemoteProtocolError("too large", field="value", allowed=allowed, session_id=session_id)
        if not session.answer(call_id):
            reason = f"call {call_id} was answered before"
            raise RemoteProtocolError(reason, field="callId", allowed="one result per call", session_id=session_id)
        self._client_calls.answered(session_id, call_id)
        self.metrics.tool_calls.labels("ok" if result.success else "error").inc()
        self._send(session, message)

    def reader_came(self, session: BrokerSession) -> None:
        """Note that somebody reads the session: it need not be given up."""
        _cancel_timer(self._unread, session.session_id)

    def reader_left(self, session: BrokerSession) -> None:
        """Note that a reader is gone. If it was the last, the session is given a while and then cancelled."""
        if session.live and not session.log.readers and session.session_id not in self._unread:
            self._unread[session.session_id] = asyncio.get_running_loop().call_later(
                self.config.disconnect_grace_s, self._give_up, session
            )

    # Workers

    def link_up(self, link: Link, hello: Hello) -> None:
        """Offer the worker's slots."""
        self.offers.learn(link.name, hello)
        placed = self.placer.worker_up(
            link.name,
            max_sessions=hello.max_sessions,
            active=hello.active,
            draining=hello.draining,
            profiles=languages.offers(hello),
        )
        self._place_all(placed)

    def link_down(self, link: Link, reason: str) -> None:
        """End what was on the worker."""
        self.metrics.workers_lost.inc()
        for lost in self.placer.worker_down(link.name):
            self._lose(lost, link, reason)

    def link_pong(self, link: Link, pong: Pong) -> None:
        """Take in how busy the worker is."""
        placed = self.placer.worker_status(
            link.name, max_sessions=pong.max_sessions, active=pong.active, draining=pong.draining
        )
        self._place_all(placed)

    def link_rejection(self, link: Link, rejection: Rejection) -> None:
        """Handle a refusal. One of an `execute` ends the session; one for an ended session frees its slot."""
        self.metrics.rejections.labels("WORKER_REJECTION").inc()
        payload = rejection.payload
        log.debug("worker %s refused a message: %s", link.name, payload.message)
        session = None if rejection.session_id is UNSET else self._routes.get(rejection.session_id)
        if session is None or session.worker != link.name:
            return
        if session.live and session.request is None:
            return  # it runs: what was refused is a late tool result or the like
        if session.live:
            self._end(session, Code.VALIDATION_ERROR, f"the worker refused the session: {payload.message}")
        self._release(session)

    def link_event(self, link: Link, envelope: Envelope, line: bytes) -> None:
        """Pass an event on, and do what it asks for."""
        session = None if envelope.session_id is UNSET else self._routes.get(envelope.session_id)
        if session is None or session.worker != link.name:
            self.metrics.stray_events.inc()
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
                self._end(session, Code.SESSION_CANCELLED, session.cancelling or "")
            elif isinstance(step, ToolCalled):
                self.store.then(functools.partial(self._call_tool, session, step))
            elif isinstance(step, Ended):
                self._ended(session)
            else:
                self._broken(session, step)
        if final:
            self._release(session)

    # Tools

    def catalog_changed(self, change: CatalogChange) -> None:
        """Tell every live session which tools came and went."""
        news = news_of(change)
        for session in list(self._routes.values()):  # a link that breaks takes its sessions out
            self._tell(session, news)

    def _tell(self, session: BrokerSession, news: CatalogChangedPayload) -> None:
        if session.live and session.tell(news):
            self._send(session, encode(CatalogNotice(session_id=session.session_id, payload=news)))

    def _tell_rest(self, session: BrokerSession) -> None:
        news, session.untold = session.untold, None
        if news is not None:
            self._tell(session, news)

    # The clock

    def tick(self) -> None:
        """Do what is due: refuse who waited too long, tell the others that they still wait, forget old sessions."""
        now, wall = time.monotonic(), time.time()
        for refuse in self.placer.expire(now):
            session = self._routes[refuse.session_id]
            waited_ms = round((now - session.created) * 1000)
            message = f"no worker had a free slot within {waited_ms} ms"
            offered = self.offers.profiles()
            if offered and session.profile not in offered:
                message += f", nor offers {session.profile[:40]!r} (offered: {', '.join(offered)})"
            self._end(session, Code.NO_CAPACITY, message)
        for session_id in self.placer.waiting():
            self._routes[session_id].beat(now, wall)
        self.directory.expire(now)

    # The end

    def end_all(self) -> None:
        """End every session, because the broker stops, and accept no more."""
        self._closing = True
        self._unsubscribe()
        for session in [session for session in self._routes.values() if session.live]:
            self._cancel_on_worker(session, "broker stops")
            self._end(session, Code.SESSION_CANCELLED, "the broker is stopping")

    async def wait_tools_ended(self) -> None:
        """Wait for cancelled tools, but not for longer than `stop_grace_s`."""
        await self.tool_calls.stop(self.config.stop_grace_s)

    def validate(self) -> None:
        """Assert what is always true between two calls."""
        self.placer.validate()
        self.directory.validate()
        for session in self._routes.values():
            has_slot = self.placer.worker_of(session.session_id)
            assert has_slot == session.worker, f"{session.session_id}: slot on {has_slot}, routed to {session.worker}"
            waits = self.placer.is_waiting(session.session_id)
            assert session.live or has_slot, f"{session.session_id}: ended, and still routed"
            assert session.live or not waits, f"{session.session_id}: ended, and still in the queue"

    def _place_all(self, placed: Iterable[Place]) -> None:
        now = time.monotonic()
        for place in placed:
            self._place(place, now)

    def _place(self, place: Place, now: float) -> None:
        link, session = self.links[place.worker], self._routes[place.session_id]
        session.worker = place.worker
        session.worker_name = link.worker_id
        execute = encode(session.execute(now))
        self.store.update(session)
        self.store.then(functools.partial(self._send_to, place.worker, session, execute))
        self.metrics.queue_wait.observe(now - session.created)
        wall_s = session.limits.wall_ms / 1000
        message = f"the worker did not end the session within its {session.limits.wall_ms} ms"
        self._end_later(session, wall_s + self.config.final_grace_s, Code.DEADLINE_EXCEEDED, message)

    def _requeue(self, session: BrokerSession) -> None:
        self.metrics.requeues.inc()
        _cancel_timer(self._overdue, session.session_id)
        session.worker = session.worker_name = session.started = None
        self.store.update(session)
        self._tell_rest(session)
        placed = self.placer.refused(
            session.session_id, self._queue_deadline(session), size_bytes=session.request_bytes
        )
        self._place_all(placed)

    def _release(self, session: BrokerSession) -> None:
        session.worker = None
        self._routes.pop(session.session_id, None)
        self._place_all(self.placer.release(session.session_id))

    def _lose(self, lost: Lose, link: Link, reason: str) -> None:
        session = self._routes[lost.session_id]
        session.worker = None
        if session.live:
            self._end(session, Code.WORKER_LOST, f"worker {link.worker_id} was lost: {reason}")
        else:
            self._routes.pop(lost.session_id)

    def _broken(self, session: BrokerSession, broken: Broken) -> None:
        log.error("worker %s, session %s: %s", session.worker, session.session_id, broken.reason)
        self._cancel_on_worker(session, "broken stream")
        senseless = broken.code is Code.INTERNAL_ERROR
        self._end(
            session, broken.code, f"the worker's events made no sense: {broken.reason}" if senseless else broken.reason
        )

    def _end(self, session: BrokerSession, code: Code, message: str) -> None:
        """Write the final that no worker will, whatever state the session is in."""
        session.end(code, message, time.monotonic())
        self.placer.withdraw(session.session_id)
        self._ended(session)
        if session.worker is None:
            self._routes.pop(session.session_id, None)

    def _ended(self, session: BrokerSession) -> None:
        _cancel_timer(self._overdue, session.session_id)
        _cancel_timer(self._unread, session.session_id)
        self._client_calls.ended(session.session_id)
        self.tool_calls.session_ended(session.session_id)
        self.directory.finish(session)
        now = time.monotonic()
        cpu_ms = 0.0 if session.stats is None else session.stats.cpu_ms
        self.gate.ledger.account(session.tenant).ended(now, cpu_ms)
        self.metrics.ended(session.outcome, session.duration_ms(now) / 1000)
        self.metrics.tenant_ended(session.tenant, cpu_ms / 1000)

    def _end_later(self, session: BrokerSession, delay_s: float, code: Code, message: str) -> None:
        loop = asyncio.get_running_loop()
        earlier = self._overdue.get(session.session_id)
        if earlier is not None and earlier.when() <= loop.time() + delay_s:
            return  # asking again must not put off an ending
        _cancel_timer(self._overdue, session.session_id)
        self._overdue[session.session_id] = loop.call_later(delay_s, self._end_overdue, session, code, message)

    def _end_overdue(self, session: BrokerSession, code: Code, message: str) -> None:
        log.error("worker %s, session %s: no final in time", session.worker, session.session_id)
        self._cancel_on_worker(session, "overdue")
        self._end(session, code, message)

    def _cancel_on_worker(self, session: BrokerSession, reason: str) -> None:
        if session.worker is not None:
            message = encode(Cancel(session_id=session.session_id, reason=reason))
            self.store.then(functools.partial(self._send_to, session.worker, session, message))

    def _give_up(self, session: BrokerSession) -> None:
        self._unread.pop(session.session_id, None)
        if not session.log.readers:
            self.cancel(session, "its client went away")

    def _queue_deadline(self, session: BrokerSession) -> float:
        return session.created + min(self.config.queue_timeout_ms, session.limits.wall_ms) / 1000

    def _send(self, session: BrokerSession, message: bytes) -> None:
        if session.live and session.worker is not None:
            self.store.then(functools.partial(self._send_to, session.worker, session, message))

    def _send_to(self, worker: str, session: BrokerSession, message: bytes) -> None:
        if session.worker == worker:  # else it left that worker while the message waited for the store
            self.links[worker].send(message)

    # Tools

    def _call_tool(self, session: BrokerSession, called: ToolCalled) -> None:
        if not session.live:
            return
        payload = called.call.payload
        try:
            self.gate.ledger.account(session.tenant).call_tool(time.monotonic())
        except QuotaExceeded as error:
            session.answer(payload.call_id)  # whoever would have answered it: it is answered now
            self.metrics.quota_refused(session.tenant, error.quota)
            self.tool_calls.refuse(session, payload, Code.QUOTA_EXCEEDED, str(error), "refused")
            return
        self.metrics.tenant_called(session.tenant)
        tool = self.tools.get(payload.tool_name)
        who = answerer(payload.tool_name, broker_has=tool is not None, client_tools=session.client_tools)
        if who is Answerer.CLIENT:
            self._client_calls.left(session, payload.call_id, payload.tool_name)
            return
        session.answer(payload.call_id)
        if tool is None:
            reason = unknown(payload.tool_name, self.tools.names(), session.client_tools)
            self.tool_calls.refuse(session, payload, Code.UNKNOWN_TOOL, reason, "unknown")
        else:
            self.tool_calls.start(session, tool, payload, size_bytes=called.size_bytes)

    def _give_up_call(self, session: BrokerSession, call_id: str, reason: str) -> None:
        """Answer a call in place of the client, which took too long."""
        if session.answer(call_id):
            self.metrics.tool_calls.labels("error").inc()
            self._send(session, encode(tool_calls.failed(session.session_id, call_id, Code.TOOL_TIMEOUT, reason)))


_named = functools.lru_cache(maxsize=64)(Limits.named)  # most sessions share theirs


def _cancel_timer(timers: dict[str, asyncio.TimerHandle], session_id: str) -> None:
    timer = timers.pop(session_id, None)
    if timer is not None:
        timer.cancel()
