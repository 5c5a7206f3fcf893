"""Where spans go, as OpenTelemetry's own variables say it: https://opentelemetry.io/docs/specs/otel/protocol/exporter/."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import PassOn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .base import Tracing

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"


def load_tracing(environ: Mapping[str, str]) -> Tracing:
    """Return what collects spans if the environment says where they go, and imports nothing for it otherwise.

    Raises:
        ValueError: they are to go by a way that there is not, or OpenTelemetry is not installed.
    """
    if not wants_spans(environ):
        return PassOn()
    asked = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if asked != PROTOCOL:
        raise ValueError(f"{PROTOCOLS[1]}: {asked!r} is not spoken here (allowed: {PROTOCOL})")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra

        from .otel import OtelTracing  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError(f"spans need OpenTelemetry ({error.name}): pip install 'enclave[otel]'") from error
    return OtelTracing(OTLPSpanExporter())


def wants_spans(environ: Mapping[str, str]) -> bool:
    """Return whether the environment says where spans go; raises ValueError for an exporter that there is not."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in {"", "otlp", "none"}:
        raise ValueError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not here (allowed: otlp, none)")
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return exporter == "otlp" or any(environ.get(name) for name in ENDPOINTS)
