"""An OpenTelemetry collector: a real HTTP server that takes OTLP, and the tree of the spans that it got."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.broker.tools.sources.http_server import Answer, Asked, HttpServer, http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATH = "/v1/traces"


@dataclass
class Span:
    """One span, as a person reads it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    start_ns: int
    end_ns: int
    kind: int
    failed: str
    """What is said of its failure; empty for none."""
    attributes: dict[str, Any] = field(default_factory=dict)


class Collector:
    """What has been collected."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Span] = []

    @property
    def url(self) -> str:
        """Where spans are sent."""
        return self.server.url + PATH

    def take(self, asked: Asked) -> Answer:
        assert (asked.method, asked.header("content-type")) == ("POST", "application/x-protobuf")
        request = ExportTraceServiceRequest.FromString(asked.body)
        for resource in request.resource_spans:
            self.resources.append(_attributes(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans += [_span(span) for span in scope.spans]
        return Answer(b"", content_type="application/x-protobuf")

    def one(self, name: str) -> Span:
        """Return the only span of a name."""
        [span] = self.named(name)
        return span

    def named(self, name: str) -> list[Span]:
        """Return the spans of a name, the earliest first."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_ns)

    def tree(self) -> set[tuple[str, str]]:
        """Return every span with its parent, by name; a parent from elsewhere is `(remote)`, none is empty."""
        names = {span.span_id: span.name for span in self.spans}
        return {(names.get(span.parent_id, "(remote)") if span.parent_id else "", span.name) for span in self.spans}


def _span(span: Any) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        kind=span.kind,
        failed=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else "",
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Run one."""
    async with http_server() as server:
        made = Collector(server)
        server.routes[PATH] = made.take
        yield made
