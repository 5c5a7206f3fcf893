"""What the broker says of a session to its trace, and the trace of one whose spans nobody collects."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from enclave_protocol import Stats
    from enclave_protocol.trace_context import TraceContext

carried: contextvars.ContextVar[TraceContext | None] = contextvars.ContextVar("enclave_trace", default=None)
"""Where the tool call that runs in this context belongs: for a library that sends requests in its stead."""


class SessionTrace(Protocol):
    """A session's place in a trace. Told what becomes of the session; none of these may block.

    A context that one of these returns is that of whatever is done next on the session's behalf, elsewhere.
    """

    @property
    def trace_id(self) -> str:
        """The trace's id."""

    def placing(self, worker_id: str) -> TraceContext:
        """It has a slot of this worker, which is now told to run it."""

    def placed(self) -> None:
        """The worker was told."""

    def unplaced(self, outcome: str) -> None:
        """The worker does not run it after all: it waits again."""

    def called(self, call_id: str, tool: str) -> TraceContext:
        """Its guest calls a tool."""

    def answered(self, call_id: str, outcome: str) -> None:
        """The call is over: `ok`, or the code of its error. A call that is over stays as it is."""

    def ended(self, outcome: str, stats: Stats | None) -> None:
        """It has its `final`: `ok`, or the code of its error. Nothing follows."""


class Tracing(Protocol):
    """Where the traces of a broker's sessions go."""

    def begin(self, *, session_id: str, tenant: str, profile: str, context: TraceContext | None) -> SessionTrace | None:
        """Take in a session that was just accepted; None if it belongs to no trace.

        Args:
            session_id: its id.
            tenant: whose it is.
            profile: what it runs in.
            context: what its client said.
        """

    async def stop(self, grace_s: float) -> None:
        """Let go of everything; what is still to be sent has so long."""


class PassOn:
    """Collects no spans: who is told of a session's trace is told what its client said."""

    def begin(self, *, session_id: str, tenant: str, profile: str, context: TraceContext | None) -> SessionTrace | None:
        """Return the trace that the client named, if it did."""
        return None if context is None else _Passed(context)

    async def stop(self, grace_s: float) -> None:
        """There is nothing to let go of."""


class _Passed:
    """A trace that the broker has no part in."""

    __slots__ = ("_context",)

    def __init__(self, context: TraceContext) -> None:
        self._context = context

    @property
    def trace_id(self) -> str:
        return self._context.trace_id

    def placing(self, worker_id: str) -> TraceContext:
        return self._context

    def placed(self) -> None:
        pass

    def unplaced(self, outcome: str) -> None:
        pass

    def called(self, call_id: str, tool: str) -> TraceContext:
        return self._context

    def answered(self, call_id: str, outcome: str) -> None:
        pass

    def ended(self, outcome: str, stats: Stats | None) -> None:
        pass
