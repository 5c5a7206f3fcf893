"""Who answers the calls of tools: the broker's own tool, the session's client, or this with an error. Each once.

Theory of operation. A call is answered by whoever comes first to note it in its session (`BrokerSession.answer`): the
answers of all others are refused, or dropped. While the sources of tools were not all looked at, a call of a tool that
nobody has waits for one that may bring it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_protocol import MAX_MESSAGE_BYTES, Code, RemoteProtocolError, encode, tool_calls

from .access import QuotaExceeded
from .client_calls import Answerer, ClientCalls, answerer, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_protocol import ToolResult

    from .access import Ledger
    from .metrics import Metrics
    from .sessions import BrokerSession
    from .steps import ToolCalled
    from .tools import ToolCalls, ToolRegistry


class Answering:
    """The calls of all sessions.

    Args:
        tools: what guests may call.
        metrics: where to count.
        ledger: what tenants may still call.
        calls: runs the broker's tools.
        answer: passes the answer of a session's call on to its worker, if that still waits for it.
    """

    def __init__(
        self,
        tools: ToolRegistry,
        metrics: Metrics,
        ledger: Ledger,
        calls: ToolCalls,
        answer: Callable[[BrokerSession, str, bytes], None],
    ) -> None:
        self._tools = tools
        self._metrics = metrics
        self._ledger = ledger
        self._tool_calls = calls
        self._answer = answer
        self._client_calls = ClientCalls(self._give_up_call)
        self._early_calls: list[tuple[BrokerSession, ToolCalled]] | None = None  # None: every source was looked at
        self._closed = False

    def called(self, session: BrokerSession, called: ToolCalled) -> None:
        """Have a call answered, unless its session has ended meanwhile: by the broker's tool, or by the client."""
        if not session.live or self._closed:
            return
        payload = called.call.payload
        try:
            self._ledger.account(session.tenant).call_tool(time.monotonic())
        except QuotaExceeded as error:
            session.answer(payload.call_id)  # whoever would have answered it: it is answered now
            self._metrics.quota_refused(session.tenant, error.quota)
            self._tool_calls.refuse(session, payload, Code.QUOTA_EXCEEDED, str(error), "refused")
            return
        self._metrics.tenant_called(session.tenant)
        self._have_answered(session, called)

    def await_tools(self) -> None:
        """Let calls of tools that nobody has wait, until `tools_looked`: a source may be about to bring them."""
        self._early_calls = []

    def tools_looked(self) -> None:
        """Have the calls answered that waited for tools, unless their clients have done it meanwhile."""
        early, self._early_calls = self._early_calls or [], None
        for session, called in early:
            if session.live and not (self._closed or session.calls.get(called.call.payload.call_id, True)):
                self._have_answered(session, called)

    def call_again(self, session: BrokerSession, called: ToolCalled) -> None:
        """Have a call answered that a broker before this one left open: it was counted then, and may have been run."""
        payload = called.call.payload
        tool = self._tools.get(payload.tool_name)
        who = answerer(payload.tool_name, broker_has=tool is not None, client_tools=session.client_tools)
        if who is Answerer.CLIENT:
            self._client_calls.left(session, payload.call_id, payload.tool_name)
            return
        session.answer(payload.call_id)
        if tool is not None and tool.policy.retryable:
            self._tool_calls.start(session, tool, payload, size_bytes=called.size_bytes)
            return
        reason = "the broker was started again during this call: whether it had its effect is not known"
        self._tool_calls.refuse(session, payload, Code.INTERNAL_ERROR, reason, "error")

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
        if session.trace is not None:
            session.trace.answered(
                call_id, "ok" if result.error is UNSET else result.error.code or Code.EXECUTION_ERROR
            )
        self._metrics.tool_calls.labels("ok" if result.success else "error").inc()
        self._answer(session, call_id, message)

    def session_ended(self, session_id: str) -> None:
        """Answer nothing more of a session's."""
        self._client_calls.ended(session_id)
        self._tool_calls.session_ended(session_id)

    def close(self) -> None:
        """Have no call answered from now on that comes or waits for a tool: the broker stops."""
        self._closed = True

    def _have_answered(self, session: BrokerSession, called: ToolCalled) -> None:
        payload = called.call.payload
        tool = self._tools.get(payload.tool_name)
        if tool is None and self._early_calls is not None and payload.tool_name not in (session.client_tools or {}):
            self._early_calls.append((session, called))
            return
        who = answerer(payload.tool_name, broker_has=tool is not None, client_tools=session.client_tools)
        if who is Answerer.CLIENT:
            if session.trace is not None:
                session.trace.called(payload.call_id, payload.tool_name)
            self._client_calls.left(session, payload.call_id, payload.tool_name)
            return
        session.answer(payload.call_id)
        if tool is None:
            reason = unknown(payload.tool_name, self._tools.names(), session.client_tools)
            self._tool_calls.refuse(session, payload, Code.UNKNOWN_TOOL, reason, "unknown")
        else:
            self._tool_calls.start(session, tool, payload, size_bytes=called.size_bytes)

    def _give_up_call(self, session: BrokerSession, call_id: str, reason: str) -> None:
        """Answer a call in place of the client, which took too long."""
        if session.answer(call_id):
            self._metrics.tool_calls.labels("timeout").inc()
            if session.trace is not None:
                session.trace.answered(call_id, Code.TOOL_TIMEOUT)
            failed = tool_calls.failed(session.session_id, call_id, Code.TOOL_TIMEOUT, reason)
            self._answer(session, call_id, encode(failed))
