"""The calls of tools that run now: for whom, for how long, and what is said when they are over.

Theory of operation. Each call is one task, owned here. It is over once: when its tool has answered, when its time is
up, or when its session ends; whichever comes first answers the guest (in the last case nobody) and writes the audit
line. A call that is over while its task still runs is cancelled; if the tool ignores that, the task stays in
`_given_up` until the tool returns: counted, holding its place at the tool's gate, and holding up nobody else.

When a broker stops, a task that does not end in time is left behind, with the loop it runs on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_protocol import Code, encode, tool_calls
from enclave_protocol.events import iso_time

from . import audit
from .references import References
from .runner import Call, ToolRunner
from .secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_broker.config import BrokerConfig
    from enclave_broker.metrics import Metrics
    from enclave_broker.sessions import BrokerSession
    from enclave_protocol import ToolResult
    from enclave_protocol.events import ToolCallPayload

    from .approval import ApprovalHook
    from .tool import Tool

log = logging.getLogger("enclave.broker")


@dataclass(slots=True, eq=False)
class _Running:
    call: Call
    session: BrokerSession
    started: float
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None


class ToolCalls:
    """The running calls of one broker. Its methods are called on one event loop.

    Args:
        config: threads, and room for stored results.
        metrics: where to count.
        answer: passes the answer of a session's call on to its worker, if that still waits for it.
        secrets: what tools may be given; none if not given.
        approve: who is asked about tools that need approval; nobody if not given, which refuses them.
    """

    def __init__(
        self,
        config: BrokerConfig,
        metrics: Metrics,
        answer: Callable[[BrokerSession, str, bytes], None],
        *,
        secrets: Secrets | None = None,
        approve: ApprovalHook | None = None,
    ) -> None:
        self._metrics = metrics
        self._pass_on = answer
        secrets = secrets or Secrets()
        stored = References(session_bytes=config.tool_ref_bytes, total_bytes=config.tool_ref_total_bytes)
        self._runner = ToolRunner(secrets, stored, approve, threads=config.tool_threads)
        self._audit = audit.AuditLog(secrets.scrubber)
        self._stored = stored
        self._running: dict[str, set[_Running]] = {}  # by session, until they are over
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_up: set[asyncio.Task[None]] = set()
        metrics.watch_tools(self._runner.threads.statistics, lambda: len(self._given_up), lambda: stored.used_bytes)

    @property
    def running(self) -> int:
        """How many tools run, those that were given up included."""
        return len(self._tasks)

    def start(self, session: BrokerSession, tool: Tool, payload: ToolCallPayload, *, size_bytes: int) -> None:
        """Run a call; its result, or its error, is sent when there is one.

        Args:
            session: whose guest calls.
            tool: what it calls.
            payload: the call.
            size_bytes: of the call as it came.
        """
        limits, now, loop = session.limits, time.monotonic(), asyncio.get_running_loop()
        wait_ms = min(limits.tool_wait_ms, tool.policy.timeout_ms or limits.tool_wait_ms)
        call = Call(
            tool=tool,
            args=payload.args,
            session_id=session.session_id,
            call_id=payload.call_id,
            tenant=session.tenant,
            size_bytes=size_bytes,
            max_result_bytes=limits.max_tool_result_bytes,
            deadline=now + wait_ms / 1000,
            trace=None if session.trace is None else session.trace.called(payload.call_id, payload.tool_name),
        )
        running = _Running(call, session, now)
        self._running.setdefault(session.session_id, set()).add(running)
        running.timer = loop.call_later(wait_ms / 1000, self._time_over, running, wait_ms)
        running.task = task = loop.create_task(self._run(running), name="enclave-tool-call")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def refuse(self, session: BrokerSession, payload: ToolCallPayload, code: str, message: str, outcome: str) -> None:
        """Answer a call that is not run, and count it as `outcome`."""
        line = audit.AuditLine(
            at=iso_time(time.time()),
            session_id=session.session_id,
            call_id=payload.call_id,
            tenant=session.tenant,
            tool=payload.tool_name,
            outcome=code,
            duration_ms=0.0,
        )
        failed = tool_calls.failed(session.session_id, payload.call_id, code, message)
        self._pass_on(session, payload.call_id, encode(failed))
        self._audit.write(line)
        self._metrics.tool_calls.labels(outcome).inc()
        if session.trace is not None:
            session.trace.called(payload.call_id, payload.tool_name)
            session.trace.answered(payload.call_id, code)

    def session_ended(self, session_id: str) -> None:
        """Give up the calls of a session, and forget the results it has stored."""
        for running in list(self._running.get(session_id, ())):
            self._over(running, audit.SESSION_ENDED)
            self._metrics.tool_calls.labels("session_ended").inc()
            self._give_up(running)
        self._stored.drop(session_id)

    async def stop(self, grace_s: float) -> None:
        """Let the threads go, and wait for cancelled calls, but no longer than `grace_s`."""
        self._audit.flush()
        self._runner.close()
        if self._tasks:
            _, stuck = await asyncio.wait(self._tasks, timeout=grace_s)
            if stuck:
                log.warning("%d tool calls ignore their cancellation and are left behind", len(stuck))

    async def _run(self, running: _Running) -> None:
        result = await self._runner.run(running.call)
        if not running.call.over:
            self._answer(running, result)

    def _time_over(self, running: _Running, wait_ms: int) -> None:
        call = running.call
        message = f"{call.tool.name} took over {wait_ms} ms"
        self._answer(running, self._runner.failed(call, Code.TOOL_TIMEOUT, message))
        self._give_up(running)

    def _answer(self, running: _Running, result: ToolResult) -> None:
        self._pass_on(
            running.session, running.call.call_id, encode(result)
        )  # first: what follows can be written while the guest goes on
        code = "ok" if result.error is UNSET or result.error.code is UNSET else str(result.error.code)
        self._over(running, code)
        outcome = "ok" if result.success else "timeout" if code == Code.TOOL_TIMEOUT else "error"
        self._metrics.tool_calls.labels(outcome).inc()

    def _over(self, running: _Running, outcome: str) -> None:
        call = running.call
        call.over = True
        if running.timer is not None:
            running.timer.cancel()
        others = self._running[call.session_id]
        others.discard(running)
        if not others:
            del self._running[call.session_id]
        if running.session.trace is not None:
            running.session.trace.answered(call.call_id, outcome)
        elapsed_s = time.monotonic() - running.started
        self._metrics.tool_duration.observe(elapsed_s)
        self._metrics.tool_retries.inc(max(call.attempts - 1, 0))
        self._audit.write(_line(call, outcome, elapsed_s * 1000))

    def _give_up(self, running: _Running) -> None:
        if running.task is not None and not running.task.done():
            self._given_up.add(running.task)
            running.task.cancel()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._given_up.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("running a tool failed", exc_info=error)


def _line(call: Call, outcome: str, duration_ms: float) -> audit.AuditLine:
    return audit.AuditLine(
        at=iso_time(time.time()),
        session_id=call.session_id,
        call_id=call.call_id,
        tenant=call.tenant,
        tool=call.tool.name,
        service=call.tool.service,
        outcome=outcome,
        duration_ms=round(duration_ms, 3),
        attempts=call.attempts or UNSET,
        approved=UNSET if call.approved is None else call.approved,
        args_bytes=UNSET if call.args_bytes is None else call.args_bytes,
        args_sha256=call.args_sha256 or UNSET,
        result_bytes=UNSET if call.result_bytes is None else call.result_bytes,
        reference=call.reference or UNSET,
    )
