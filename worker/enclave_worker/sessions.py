"""The live sessions of a worker: who is taken, and by what name each can be reached.

A session that may outlive its connection has a `Holding` for a sink, which stands between it and the connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from enclave_protocol import (
    Cancel,
    CatalogNotice,
    Code,
    Execute,
    RemoteProtocolError,
    SessionId,
    ToolResult,
    new_session_id,
)

from .brokers import Brokers
from .holdings import Holding, Holdings
from .instructions import Emit
from .listeners import Listeners
from .request import read_request
from .run import Run
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import RuntimeConfig
    from .holdings import Sink
    from .metrics import WorkerMetrics
    from .pools import Pools

log = logging.getLogger("enclave.worker")


class Totals(msgspec.Struct):
    """Counts since the worker started."""

    executions: int = 0
    successful: int = 0
    failed: int = 0
    cancelled: int = 0
    execution_ms: float = 0.0


class Sessions:
    """Starts, feeds and ends sessions. `active` never exceeds `max_sessions`."""

    def __init__(
        self,
        config: RuntimeConfig,
        pools: Pools,
        metrics: WorkerMetrics,
        listeners: Listeners | None = None,
    ) -> None:
        self.config = config
        self.pools = pools
        self.metrics = metrics
        self.listeners = listeners or Listeners()
        self.totals = Totals()
        self.draining = False
        """Whether no more are taken. Set by `drain`."""
        self.drain_asked = asyncio.Event()
        self.on_drain: dict[Callable[[str], None], None] = {}
        """Called with the reason, once, when no more sessions are taken."""
        self.loop = asyncio.get_running_loop()
        self.brokers = Brokers()
        self.holdings = Holdings(config, metrics, self._lease_over)
        self._runs: dict[SessionId, Run] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Sessions that hold a slot."""
        return len(self._runs)

    def execute(self, message: Execute, sink: Sink, *, outlives: bool = False) -> SessionId:
        """Start a session whose events go to `sink`; `outlives` keeps it, for its lease, when that is abandoned.

        Without a free slot the session is not accepted, and its only event is a `final` with `NO_CAPACITY`.

        Raises:
            RemoteProtocolError: a field is not acceptable; nothing was started.
        """
        session_id = new_session_id() if message.session_id is UNSET else SessionId(message.session_id)
        if session_id in self._runs:
            raise _bad(session_id, "sessionId", "a live session has this id", "an id no live session has")
        if session_id in self.holdings:
            raise _bad(session_id, "sessionId", "one that ended and is not acknowledged has this id", "another id")
        try:
            request = read_request(message, self.pools.offers, self.config.max_code_bytes)
        except RemoteProtocolError as error:
            error.session_id = session_id
            raise
        first_seq = 1 if message.first_seq is UNSET else message.first_seq
        session = Session(
            session_id,
            request.limits,
            now_s=time.monotonic(),
            first_seq=first_seq,
            queue_ms=0.0 if message.queue_ms is UNSET else message.queue_ms,
            allowance=request.offer.allowance,
        )
        why = self._full(outlives=outlives)
        if why:
            self.metrics.refused.inc()
            for instruction in (*session.fail(Code.NO_CAPACITY, why), *session.ended(None, time.monotonic())):
                if isinstance(instruction, Emit):
                    sink.deliver(instruction.line)
            return session_id
        # The slot is taken in the step that found it free.
        if outlives:
            sink = self.holdings.hold(session_id, sink, first_seq)
        run = Run(self, session, request, sink)
        self._runs[session_id] = run
        self._idle.clear()
        run.start(announce=message.first_seq is UNSET)
        return session_id

    def cancel(self, message: Cancel) -> None:
        """End a session now; raises RemoteProtocolError if there is none."""
        reason = "cancelled" if message.reason is UNSET else f"cancelled: {message.reason}"
        self._find(message.session_id).cancel(reason)

    def tool_result(self, message: ToolResult) -> None:
        """Give a tool call its result; raises RemoteProtocolError for an unknown session or call."""
        self._find(message.session_id).tool_result(message)

    def catalog_changed(self, message: CatalogNotice) -> None:
        """Tell a session's reader that the tools changed; a session that has ended has none."""
        run = self._runs.get(SessionId(message.session_id))
        if run is not None:
            run.catalog_changed(message)

    def abandon(self, sink: Sink) -> None:
        """The sink is gone: end its sessions, but for those that outlive it."""
        self.holdings.detach(sink)
        for run in list(self._runs.values()):
            if run.sink is sink:
                run.abandon()

    def resume(self, sink: Sink) -> None:
        """The sink can take more: read its guests again."""
        for run in self._runs.values():
            if run.sink is sink:
                run.resume()
        self.holdings.drained()

    def drain(self, reason: str) -> None:
        """Take no more sessions, for good, and say so. Safe to call again."""
        if self.draining:
            return
        self.draining = True
        self.drain_asked.set()
        log.info("draining: %s; %d sessions are live", reason, self.active)
        for listener in tuple(self.on_drain):
            listener(reason)

    async def wait_drained(self) -> None:
        """Return when no more are taken, none is live, and nobody is to come for the last events of one."""
        await self.drain_asked.wait()
        await self.wait_idle()
        await self.holdings.wait_empty()

    async def wait_idle(self) -> None:
        """Return when no session is live."""
        await self._idle.wait()

    async def end_all(self, reason: str) -> None:
        """End every session, as one that can be tried elsewhere, and wait until each has had its `final`."""
        for run in list(self._runs.values()):
            run.fail(Code.WORKER_LOST, reason)
        await self.wait_idle()

    def forget(self, run: Run, code: str, duration_s: float, cpu_s: float) -> None:
        """A run is over: free its slot and count it."""
        session_id = run.session.session_id
        del self._runs[session_id]
        if not self._runs:
            self._idle.set()
        if isinstance(run.sink, Holding):
            self.holdings.ended(run.sink)
        self.totals.executions += 1
        self.totals.execution_ms += duration_s * 1000
        self.metrics.ended(code, duration_s, cpu_s=cpu_s, truncated=run.session.truncated)
        if code == "OK":
            self.totals.successful += 1
            self.listeners.complete.notify(session_id)
        elif code == Code.SESSION_CANCELLED:
            self.totals.cancelled += 1
            self.listeners.cancel.notify(session_id, code)
        else:
            self.totals.failed += 1
            self.listeners.error.notify(session_id, code)

    def _find(self, session_id: str) -> Run:
        run = self._runs.get(SessionId(session_id))
        if run is None:
            raise _bad(session_id, "sessionId", "no such session is live here", "the id of a live session")
        return run

    def _full(self, *, outlives: bool) -> str:
        """Return why no session can be started now, empty if one can."""
        if self.draining:
            return "the worker is draining"
        if len(self._runs) >= self.config.max_sessions:
            return f"all {self.config.max_sessions} slots are taken"
        if outlives and self.holdings.crowded:
            return "too many events wait for their broker's acknowledgement"
        return ""

    def _lease_over(self, session_id: SessionId, reason: str) -> None:
        self._runs[session_id].cancel(reason)


def _bad(session_id: str, field: str, reason: str, allowed: str) -> RemoteProtocolError:
    return RemoteProtocolError(reason, field=field, allowed=allowed, session_id=session_id)
