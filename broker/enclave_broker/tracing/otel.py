"""Spans by OpenTelemetry. Imported only where spans are collected: needs the extra `enclave[otel]`.

Theory of operation. The broker makes every span, its workers' too: they need no way to a collector and no credentials
for it, which would lie where unreviewed code runs, and `final.stats` says all there is to know of what they did.

    session             from acceptance to the `final`; a child of the client's span, if it named one
      queue             until a worker had a slot; once more if that worker had none after all
      place             until that worker was told, which waits for the store
      execute           until its `final`; the worker is told of it
        start           until the sandbox had the code: as long as the worker says, and since it says to have begun
        tool            one call, whoever answers it

Spans are made and ended where the broker says what happens; the SDK's own thread sends them in batches, and drops what
its queue has no room for. Whether a trace is recorded at all its sampler decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from enclave_protocol import Code, __version__
from enclave_protocol.trace_context import TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

    from enclave_protocol import Stats

log = logging.getLogger("enclave.broker.tracing")

SERVICE = "enclave-broker"
SESSION_ENDED = "SESSION_ENDED"
"""The outcome of a call whose session ended before it did."""
_UNNAMED = "unknown_service"
_NO_FAULT = frozenset({"ok", Code.SESSION_CANCELLED.value})
_NS_IN_MS = 1_000_000
_LONGEST_MS = 1e12
"""What a worker may say of itself is longer: any number of milliseconds, which need not fit a clock."""


class OtelTracing:
    """Sends spans of every session.

    Args:
        exporter: where they go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, _UNNAMED)).startswith(_UNNAMED):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        resource = resource.merge(Resource({SERVICE_VERSION: __version__}))
        # Not at the interpreter's exit, which a collector that is gone could hold up: `stop` has its time.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("enclave", __version__)

    def begin(self, *, session_id: str, tenant: str, profile: str, context: TraceContext | None) -> OtelSessionTrace:
        """Begin the spans of a session."""
        about = {"enclave.session.id": session_id, "enclave.tenant": tenant, "enclave.profile": profile}
        return OtelSessionTrace(self._tracer, about, context)

    async def stop(self, grace_s: float) -> None:
        """Send what is still to be sent."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        # It can take as long as a collector that does not answer. Left behind then, it keeps no program from ending.
        threading.Thread(target=shut_down, name="enclave-last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(grace_s):
                await sent.wait()
        except TimeoutError:
            log.warning("the last spans were not sent within %g s", grace_s)


class OtelSessionTrace:
    """The spans of one session. Every one is ended at the latest when the session ends."""

    __slots__ = ("_about", "_calls", "_execute", "_place", "_queue", "_session", "_tracer", "trace_id")

    def __init__(self, tracer: Tracer, about: dict[str, str], parent: TraceContext | None) -> None:
        self._tracer = tracer
        self._about = about
        self._session = tracer.start_span(
            "session",
            context=None if parent is None else set_span_in_context(_remote(parent)),
            kind=SpanKind.SERVER,
            attributes=about,
        )
        self.trace_id = f"{self._session.get_span_context().trace_id:032x}"
        self._queue: Span | None = self._child("queue")
        self._place: Span | None = None
        self._execute: Span | None = None
        self._calls: dict[str, Span] = {}

    def placing(self, worker_id: str) -> TraceContext:
        """End `queue`, and begin `place` and `execute`."""
        self._about = self._about | {"enclave.worker.id": worker_id}
        self._session.set_attribute("enclave.worker.id", worker_id)
        if self._queue is not None:
            self._queue.end()
            self._queue = None
        self._place = self._child("place")
        self._execute = self._child("execute", kind=SpanKind.CLIENT)
        return _context(self._execute)

    def placed(self) -> None:
        """End `place`."""
        if self._place is not None:
            self._place.end()
            self._place = None

    def unplaced(self, outcome: str) -> None:
        """End `execute`, and begin another `queue`."""
        self._end_execute(outcome, None)
        self._queue = self._child("queue")

    def called(self, call_id: str, tool: str) -> TraceContext:
        """Begin a `tool`."""
        span = self._child("tool", self._execute, kind=SpanKind.CLIENT)
        span.set_attributes(
            {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool, "gen_ai.tool.call.id": call_id}
        )
        self._calls[call_id] = span
        return _context(span)

    def answered(self, call_id: str, outcome: str) -> None:
        """End a `tool`."""
        span = self._calls.pop(call_id, None)
        if span is not None:
            _end(span, outcome)

    def ended(self, outcome: str, stats: Stats | None) -> None:
        """End what has not ended."""
        for call_id in list(self._calls):
            self.answered(call_id, SESSION_ENDED)
        if self._queue is not None:
            self._queue.end()
            self._queue = None
        self._end_execute(outcome, stats)
        _end(self._session, outcome)

    def _end_execute(self, outcome: str, stats: Stats | None) -> None:
        self.placed()
        span, self._execute = self._execute, None
        if span is None:
            return
        if stats is not None and stats.start_ms:
            self._started(span, stats)
            span.set_attributes({"enclave.cpu_ms": stats.cpu_ms, "enclave.peak_memory_bytes": stats.peak_memory_bytes})
        _end(span, outcome)

    def _started(self, execute: Span, stats: Stats) -> None:
        """Make `start` from what the worker said, whose clock is another: it ends with the session, by ours."""
        now = time.time_ns()
        began = max(getattr(execute, "start_time", 0), now - _ns(stats.duration_ms))
        span = self._tracer.start_span(
            "start", context=set_span_in_context(execute), attributes=self._about, start_time=began
        )
        span.end(min(now, began + _ns(stats.start_ms)))

    def _child(self, name: str, parent: Span | None = None, *, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        context = set_span_in_context(self._session if parent is None else parent)
        return self._tracer.start_span(name, context=context, kind=kind, attributes=self._about)


def _ns(ms: float) -> int:
    return round(min(ms, _LONGEST_MS) * _NS_IN_MS)


def _end(span: Span, outcome: str) -> None:
    span.set_attribute("enclave.outcome", outcome)
    if outcome not in _NO_FAULT:
        span.set_status(Status(StatusCode.ERROR, outcome))
    span.end()


def _context(span: Span) -> TraceContext:
    here = span.get_span_context()
    return TraceContext(
        f"{here.trace_id:032x}", f"{here.span_id:016x}", int(here.trace_flags), here.trace_state.to_header()
    )


def _remote(context: TraceContext) -> Span:
    state = TraceState.from_header([context.state]) if context.state else TraceState()
    return NonRecordingSpan(
        SpanContext(
            int(context.trace_id, 16),
            int(context.span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(context.flags),
            trace_state=state,
        )
    )
