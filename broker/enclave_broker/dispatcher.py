"""Everything that happens to sessions between their client and their worker.

Theory of operation. Two halves. This one is the clients': it accepts, finds and cancels, knows whether anybody reads
(`readers`), and has calls of tools answered (`answering`). `fleet` is the workers': it places sessions, takes in their
events, and writes the end of those that no worker ends.
Nothing in either waits: clients' requests, workers' events and the clock all come in as plain calls on one event loop,
and go out as lines in a log (read by cursors) and messages in a link's buffer. Only tools run beside it: see
`tools.calls`.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_protocol import Code, Execute, Limits, NoCapacity, RemoteProtocolError, new_session_id
from enclave_protocol.declared_tools import refuse_taken

from . import languages
from .access import Gate, QuotaExceeded, Scope, Signer, capped
from .answering import Answering
from .directory import Directory
from .fleet import Fleet
from .new_session import DuplicateSession
from .offers import Offers
from .placement import Placer, Refuse
from .readers import Readers
from .sessions import BrokerSession
from .store import MemoryStore
from .tools import ToolCalls
from .tools.catalog import news_of
from .tracing import PassOn

if TYPE_CHECKING:
    from enclave_protocol import ClientTools

    from .access import Account, Caller
    from .config import BrokerConfig
    from .metrics import Metrics
    from .new_session import NewSession
    from .placement import RefuseReason
    from .steps import ToolCalled
    from .store import Store
    from .tools import ApprovalHook, CatalogChange, Secrets, ToolRegistry
    from .tracing import Tracing

log = logging.getLogger("enclave.broker")

NO_CAPACITY: dict[RefuseReason, str] = {
    "queue_full": "every slot is taken and the queue is full",
    "long_wait": "every slot is taken and the wait for one would be too long",
    "deadline": "no slot became free in time",
}

DRAINED_S = 5.0
"""When to ask again, says a broker that drains: its successor, or another one behind the same address, may be there."""


class Dispatcher:
    """The broker without its sockets. Its methods are called on one event loop.

    Args:
        config: sizes and waits.
        tools: what guests may call.
        metrics: where to count.
        gate: who may call; everybody if not given.
        secrets: what tools may be given.
        approve: who is asked about tools that need approval.
        tracing: where sessions' traces go; no farther if not given.
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
        tracing: Tracing | None = None,
        store: Store | None = None,
    ) -> None:
        self.config = config
        self.tracing = tracing or PassOn()
        self.store = store or MemoryStore()
        self.gate = gate or Gate(None, Signer())
        self.metrics = metrics
        self.tools = tools
        self.placer = Placer(
            queue_size=config.queue_size,
            queue_bytes=config.queue_bytes,
            queue_wait_s=config.queue_wait_ms / 1000,
            shared=self.gate.closed,
        )
        retention = config.retention
        self.directory = Directory(
            self.store,
            max_finished=retention.sessions,
            max_bytes=retention.size_bytes,
            max_age_s=retention.age_s,
        )
        self.offers = Offers(config.default_limits, config.default_language)
        self.fleet = Fleet(config, metrics, self.store, placer=self.placer, offers=self.offers, owner=self)
        self.tool_calls = ToolCalls(config, metrics, self.fleet.outgoing.answer, secrets=secrets, approve=approve)
        self.answering = Answering(tools, metrics, self.gate.ledger, self.tool_calls, self.fleet.outgoing.answer)
        self.readers = Readers(config.disconnect_grace_s, self._give_up)
        self._closing = False
        self.draining = False
        """Whether no more sessions are accepted, because the broker is about to stop. Set by `drain`."""
        self._unsubscribe = tools.subscribe(self.catalog_changed)

    # Clients

    def submit(self, new: NewSession, caller: Caller) -> BrokerSession:
        """Accept a session and place it, or let it wait.

        Raises:
            Denied: the caller may make none, or none with this id.
            DuplicateSession: its id is taken by a session that has not ended, or is another tenant's.
            QuotaExceeded: the caller's tenant has none left.
            NoCapacity: the queue is full, or the wait for a slot would be too long.
            RemoteProtocolError: no worker offers its profile or language, or it declares a tool that the broker has.
        """
        self.gate.allow(caller, Scope.CREATE)
        caller.require_session(new.session_id)
        self.offers.require(new, workers=len(self.fleet.links))
        if new.client_tools:
            self._refuse_taken(new, new.client_tools)
        session_id = new.session_id or caller.session_id or new_session_id()
        if session_id in self.fleet.routes or not self._replaceable(session_id, caller):
            raise DuplicateSession(session_id)
        if self.crowded:
            try:
                self.turn_away(caller)
            except QuotaExceeded as error:
                self.metrics.quota_refused(caller.tenant, error.quota)
                raise
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
            traceparent=UNSET if new.trace is None else new.trace.traceparent,  # for a broker that is started again
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
            may_retry=new.retry == "safe",
        )
        account = self._admit(caller, now)
        decision = self.placer.submit(
            session_id,
            self.fleet.queue_deadline(session),
            profile=languages.need(new.profile, new.language),
            tenant=caller.tenant,
            size_bytes=session.request_bytes,
        )
        if isinstance(decision, Refuse):
            account.give_back(now)
            raise _no_capacity(decision)
        session.trace = self.tracing.begin(
            session_id=session_id, tenant=caller.tenant, profile=new.profile, context=new.trace
        )
        self.directory.add(session)
        self.fleet.enter(session, decision)
        return session

    @property
    def crowded(self) -> bool:
        """Whether `turn_away` is worth asking: no slot is free, or callers may have quotas, or the broker stops."""
        return not self.placer.has_free or self.gate.closed or self._closing or self.draining

    def turn_away(self, caller: Caller) -> None:
        """Raise what any new session of the caller's would be refused with now, whatever it asks for.

        Raises:
            QuotaExceeded: the caller's tenant has none left.
            NoCapacity: there is no slot, and no room to wait for one.
        """
        if self._closing or self.draining:
            raise NoCapacity("the broker is draining: ask another, or this one's successor", retry_after_s=DRAINED_S)
        self.gate.ledger.account(caller.tenant).check(time.monotonic(), self.placer.hold_s)
        refuse = self.placer.refuses(caller.tenant)
        if refuse is not None:
            raise _no_capacity(refuse)

    def _admit(self, caller: Caller, now: float) -> Account:
        account = self.gate.ledger.account(caller.tenant)
        try:
            account.admit(now, self.placer.hold_s)
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
        if session.live:
            message = f"session was cancelled: {reason}" if reason else "session was cancelled"
            self.fleet.cancel(session, reason, message)

    def delete(self, session: BrokerSession) -> None:
        """Cancel a session, and make it unfindable."""
        self.directory.remove(session.session_id)
        self.cancel(session, "deleted")

    def take_over(self, session: BrokerSession) -> None:
        """Take in a live session of an earlier broker, which nobody reads yet."""
        self.gate.ledger.account(session.tenant).take_over()
        self.fleet.routes[session.session_id] = session
        self.readers.await_one(session)

    # Tools

    def catalog_changed(self, change: CatalogChange) -> None:
        """Tell every live session which tools came and went."""
        self.fleet.tell_all(news_of(change))

    # The clock

    def tick(self) -> None:
        """Do what is due: refuse who waited too long, tell the others that they still wait, forget old sessions."""
        now, wall = time.monotonic(), time.time()
        for refuse in self.fleet.tick(now):
            session = self.fleet.routes[refuse.session_id]
            waited_ms = round((now - session.created) * 1000)
            message = f"no worker had a free slot within {waited_ms} ms"
            offered = self.offers.profiles()
            if offered and session.profile not in offered:
                message += f", nor offers {session.profile[:40]!r} (offered: {', '.join(offered)})"
            self.fleet.end(session, Code.NO_CAPACITY, message)
        for session_id in self.placer.queue:
            self.fleet.routes[session_id].beat(now, wall)
        self.directory.expire(now)

    # The end

    def drain(self) -> None:
        """Accept no more sessions; those that there are go on."""
        self.draining = True

    @property
    def idle(self) -> bool:
        """Whether every session has ended and whoever reads one has seen its end."""
        return not self.directory.live and not any(session.log.readers for session in self.directory.sessions())

    def end_all(self) -> None:
        """End every session, because the broker stops, and accept no more.

        What the store keeps is left to the next broker as it is: workers keep their sessions until it comes, and tool
        calls are given up, as if this one had been killed.
        """
        self._closing = True
        self.readers.close()
        self.answering.close()
        self._unsubscribe()
        if not self.store.durable or self.store.failure:
            self.fleet.end_all()
            return
        self.fleet.leave_all()
        for session_id in self.fleet.routes:
            self.readers.stop_waiting(session_id)
            self.answering.session_ended(session_id)

    async def wait_tools_ended(self) -> None:
        """Wait for cancelled tools, but not for longer than `stop_grace_s`."""
        await self.tool_calls.stop(self.config.stop_grace_s)

    def validate(self) -> None:
        """Assert what is always true between two calls."""
        self.placer.validate()
        self.directory.validate()
        self.fleet.validate()

    def session_ended(self, session: BrokerSession) -> None:
        """Account for a session that has just got its `final`, and let go of what it had here."""
        self.readers.stop_waiting(session.session_id)
        self.answering.session_ended(session.session_id)
        self.directory.finish(session)
        now = time.monotonic()
        cpu_ms = 0.0 if session.stats is None else session.stats.cpu_ms
        self.gate.ledger.account(session.tenant).ended(now, cpu_ms)
        start_ms = 0.0 if session.stats is None else session.stats.start_ms
        self.metrics.ended(session.outcome, session.duration_ms(now) / 1000, start_ms / 1000)
        self.metrics.tenant_ended(session.tenant, cpu_ms / 1000)
        if session.trace is not None:
            session.trace.ended(session.outcome, session.stats)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("session ended: %s after %g ms", session.outcome, session.duration_ms(now), extra=session.about)

    def find_ended(self, session_id: str) -> BrokerSession | None:
        """Return a session that has ended, if it is retained."""
        session = self.directory.get(session_id)
        return None if session is None or session.live else session

    def tool_called(self, session: BrokerSession, called: ToolCalled) -> None:
        """Have a call answered."""
        self.answering.called(session, called)

    def _give_up(self, session: BrokerSession) -> None:
        self.cancel(session, "its client went away")


def _no_capacity(refuse: Refuse) -> NoCapacity:
    return NoCapacity(NO_CAPACITY[refuse.reason], retry_after_s=refuse.retry_after_s)


_named = functools.lru_cache(maxsize=64)(Limits.named)  # most sessions share theirs
