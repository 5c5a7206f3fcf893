"""OpenTelemetry's own variables say whether spans are collected, and where they go."""

from __future__ import annotations

import sys

import pytest

from enclave_broker.tracing import PassOn
from enclave_broker.tracing.options import load_tracing, wants_spans

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_spans_are_collected_where_the_environment_says_where_they_go(
    environ: dict[str, str],
    wanted: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    assert wants_spans(environ) is wanted
    if not wanted:
        assert isinstance(load_tracing(environ), PassOn)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not here (allowed: otlp, none)"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc' is not spoken here (allowed: http/protobuf)"),
    ],
)
def test_a_way_that_there_is_not_is_refused_by_name(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        load_tracing(environ)


def test_without_the_extra_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"pip install 'enclave\[otel\]'"):
        load_tracing(ENDPOINT)
