"""Real programs, seen from outside while real sessions run: their metrics, their logs and their spans."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from websockets.sync.client import connect

from enclave_broker.access import Scope
from enclave_broker.access.keys import key_lines, new_key
from enclave_protocol import Code
from tests.fleet.seeing.programs import Message, Program, program
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = PARENT.split("-")[1]
SECRET = "hunter2-hunter2"
OUTCOMES = {"ok", "TOOL_ERROR", *map(str, Code)}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("ENCLAVE_", "OTEL_"))}


class Fleet:
    """A worker and a broker that wants keys."""

    def __init__(self, worker: Program, broker: Program, user: str, operator: str) -> None:
        self.worker = worker
        self.broker = broker
        self._user, self._operator = user, operator

    def run(self, code: str, **body: Any) -> Message:
        """Run code; returns the payload of its `final`."""
        headers = {"Authorization": f"Bearer {self._user}", "traceparent": PARENT}
        events = self.broker.post("/sessions", {"code": code, **body}, headers)
        payload: Message = events[-1]["payload"]
        return payload

    def broker_metrics(self) -> dict[str, Metric]:
        return self.broker.metrics({"Authorization": f"Bearer {self._operator}"})

    def samples(self) -> tuple[dict[str, float], dict[str, float]]:
        """Every sample of the broker and of the worker, as it is written."""
        return flat(self.broker_metrics()), flat(self.worker.metrics())


def flat(families: dict[str, Metric]) -> dict[str, float]:
    found = {}
    for sample in (sample for family in families.values() for sample in family.samples):
        labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
        found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    (user, user_id), (operator, operator_id) = new_key(), new_key()
    session = frozenset({Scope.CREATE, Scope.READ, Scope.CONTROL})
    keys.write_text(
        key_lines(user, user_id, "acme", session) + key_lines(operator, operator_id, "ops", frozenset({Scope.METRICS}))
    )
    as_json = ("--port", "0", "--log-format", "json")
    worker_options = ("--level", "BEST", "--max-sessions", "2", "--worker-id", "w-seen", "--debug")
    broker_options = (
        "--keys-file",
        str(keys),
        "--log-level",
        "debug",
        "--tools",
        "tests.fleet.seeing.tools_of_the_test",
    )
    with program("enclave_worker.cli", *as_json, *worker_options, env=ENVIRONMENT) as worker:
        env = ENVIRONMENT | {"ENCLAVE_SECRET_KEY": SECRET}
        with program("enclave_broker.cli", *as_json, "--worker", worker.url, *broker_options, env=env) as broker:
            made = Fleet(worker, broker, user, operator)
            until_ready(broker)
            yield made


def until_ready(broker: Program) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not broker.answers("/readyz"):
        assert time.monotonic() < deadline, "the broker found no worker"
        time.sleep(0.01)


# What happens, and which sample of the broker's and of the worker's it moves, by how much.
HAPPENINGS: dict[str, tuple[dict[str, Any], dict[str, float], dict[str, float]]] = {
    "a session ends well": (
        {"code": "return 1"},
        {
            'enclave_sessions_total{outcome="ok"}': 1,
            "enclave_session_duration_seconds_count": 1,
            "enclave_session_start_seconds_count": 1,
            "enclave_queue_wait_seconds_count": 1,
            'enclave_tenant_sessions_total{tenant="acme"}': 1,
            'enclave_http_requests_total{method="POST",route="/sessions",status="200"}': 1,
        },
        {'enclave_executions_total{outcome="ok"}': 1, "enclave_execution_duration_seconds_count": 1},
    ),
    "a session fails": (
        {"code": "1 / 0"},
        {'enclave_sessions_total{outcome="EXECUTION_ERROR"}': 1},
        {'enclave_executions_total{outcome="EXECUTION_ERROR"}': 1},
    ),
    "output is cut": (
        {"code": "print('x' * 5000)", "limits": {"maxStdoutBytes": 1000}},
        {},
        {"enclave_output_truncated_total": 1},
    ),
    "a tool is called": (
        {"code": "return await call_tool('add', {'a': 1, 'b': 2})"},
        {
            'enclave_tool_calls_total{outcome="ok"}': 1,
            "enclave_tool_call_duration_seconds_count": 1,
            'enclave_tenant_tool_calls_total{tenant="acme"}': 1,
        },
        {},
    ),
    "a tool fails": (
        {"code": "await call_tool('add', {'a': 'x'})"},
        {'enclave_tool_calls_total{outcome="error"}': 1},
        {},
    ),
    "a tool takes too long": (
        {"code": "await call_tool('never', {})"},
        {'enclave_tool_calls_total{outcome="timeout"}': 1},
        {},
    ),
    "nobody has the tool": (
        {"code": "await call_tool('nothing', {})"},
        {'enclave_tool_calls_total{outcome="unknown"}': 1},
        {},
    ),
    "a worker refuses": (
        {"code": "return 1", "limits": {"memoryLimitBytes": 2**50}},
        {'enclave_rejections_total{code="WORKER_REJECTION"}': 1},
        {'enclave_messages_refused_total{field="limits"}': 1},
    ),
}


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_a_metric_moves_when_its_thing_happens(fleet: Fleet, happening: str) -> None:
    body, of_broker, of_worker = HAPPENINGS[happening]
    before = fleet.samples()
    fleet.run(**body)
    after = fleet.samples()
    for now, then, expected in zip(after, before, (of_broker, of_worker), strict=True):
        moved = {name: now.get(name, 0.0) - then.get(name, 0.0) for name in expected}
        assert moved == expected


def test_processor_time_of_guests_is_counted_on_both_programs(fleet: Fleet) -> None:
    before = fleet.samples()
    fleet.run("sum(range(2_000_000))")
    (broker, worker), (broker_before, worker_before) = fleet.samples(), before
    tenant = 'enclave_tenant_cpu_seconds_total{tenant="acme"}'
    assert broker[tenant] > broker_before.get(tenant, 0.0)
    assert worker["enclave_execution_cpu_seconds_total"] > worker_before["enclave_execution_cpu_seconds_total"]


def test_a_sandbox_is_taken_warm_or_made_for_who_waits(fleet: Fleet) -> None:
    before = fleet.samples()[1]
    fleet.run("return 1")
    after = fleet.samples()[1]
    names = [f'enclave_pool_acquire_seconds_count{{result="{result}"}}' for result in ("warm", "cold")]
    assert sum(after[name] - before[name] for name in names) == 1


def test_every_family_is_described_and_no_name_is_on_both_programs(fleet: Fleet) -> None:
    fleet.run("return 1")
    broker, worker = fleet.broker_metrics(), fleet.worker.metrics()
    for family in (*broker.values(), *worker.values()):
        assert family.documentation, family.name
        assert family.type in {"counter", "gauge", "histogram"}, family.name
    common = broker.keys() & worker.keys()
    assert {name for name in common if not name.startswith("process_")} == {"enclave_build_info"}
    roles = {program["enclave_build_info"].samples[0].labels["role"] for program in (broker, worker)}
    assert roles == {"broker", "worker"}


def test_labels_are_of_closed_lists_and_hold_nothing_that_anybody_wrote(fleet: Fleet) -> None:
    session_id = "s_neverALabel"
    fleet.run("raise ValueError('never_a_label')", sessionId=session_id)
    fleet.broker.answers(f"/sessions/{session_id}/never_a_route")
    fleet.broker.answers("/never_a_route")
    for families in (fleet.broker_metrics(), fleet.worker.metrics()):
        samples = [sample for family in families.values() for sample in family.samples]
        values = {value for sample in samples for value in sample.labels.values()}
        assert not [value for value in values if "never" in value.lower()]
        outcomes = [s for s in samples if s.name in {"enclave_sessions_total", "enclave_executions_total"}]
        assert {sample.labels["outcome"] for sample in outcomes} <= OUTCOMES


def test_every_line_is_an_object_and_says_what_it_is_about(fleet: Fleet) -> None:
    session_id = "s_logged"
    fleet.run("await call_tool('add', {'a': 1, 'b': 2})", sessionId=session_id)
    fleet.run("await call_tool('tell', {})")
    fleet.broker.wait_said("it is [secret:KEY]")
    fleet.broker.wait_said("enclave.audit", session_id)
    fleet.worker.wait_said("session ended", session_id)
    ended = [line for line in fleet.broker.objects() if line["message"].startswith("session ended: ok")]
    [about] = [line for line in ended if line.get("sessionId") == session_id]
    assert about.items() >= {"workerId": "w-seen", "tenant": "acme", "traceId": TRACE, "level": "debug"}.items()
    mine = [line for line in fleet.worker.objects() if line.get("sessionId") == session_id]
    assert [line["message"] for line in mine] == ["session started", "session ended: OK"]
    assert {line["traceId"] for line in mine} == {TRACE}
    assert {line["workerId"] for line in fleet.worker.objects()} == {"w-seen"}
    [audited] = [
        line for line in fleet.broker.objects() if line["logger"] == "enclave.audit" and line["sessionId"] == session_id
    ]
    assert (audited["tool"], audited["tenant"]) == ("add", "acme")
    for which in (fleet.worker, fleet.broker):
        for line in which.objects():
            assert {"time", "level", "logger", "message"} <= line.keys()
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert SECRET not in "".join(which.lines)


def test_nobody_can_write_a_line_of_their_own_into_the_log(fleet: Fleet) -> None:
    forged = '\n{"level":"error","message":"forged"}\n\x1b[2J'
    fleet.run(f"await call_tool({forged!r}, {{}})")
    fleet.broker.wait_said("x1b[2J", "enclave.audit")
    with connect(fleet.worker.url) as worker:
        worker.send(json.dumps({"type": "execute", "code": "1", "profile": forged}))
        fleet.worker.wait_said("x1b[2J", "refused a message")
    for which in (fleet.broker, fleet.worker):
        assert "forged" not in {line["message"] for line in which.objects()}
        assert not any("\x1b" in line for line in which.lines)


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP; keeps the names of spans, and who they are of."""

    spans: list[Any]
    services: set[str]
    came: threading.Event

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.came.set()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


def test_real_programs_send_the_spans_of_a_real_session_where_the_environment_says(fleet: Fleet) -> None:
    Collector.spans, Collector.services, Collector.came = [], set(), threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = ENVIRONMENT | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_SERVICE_NAME": "my-broker",
        }
        try:
            with program("enclave_broker.cli", "--port", "0", "--worker", fleet.worker.url, env=env) as broker:
                until_ready(broker)
                broker.post("/sessions", {"code": "import asyncio; return 1"}, {"traceparent": PARENT})
                assert broker.stop() == 0
            assert Collector.came.wait(PATIENCE_S)
        finally:
            server.shutdown()
    names = {span.name: span for span in Collector.spans}
    assert set(names) == {"session", "queue", "place", "execute", "start"}
    assert Collector.services == {"my-broker"}
    assert {span.trace_id.hex() for span in Collector.spans} == {TRACE}
    assert names["start"].parent_span_id == names["execute"].span_id
    assert names["start"].end_time_unix_nano > names["start"].start_time_unix_nano


def test_a_collector_that_does_not_answer_holds_up_no_session_and_no_exit(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = ENVIRONMENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with program("enclave_broker.cli", "--port", "0", "--worker", fleet.worker.url, env=env) as broker:
            until_ready(broker)
            assert broker.post("/sessions", {"code": "return 1"})[-1]["payload"]["ok"]
            assert broker.stop() == 0
        assert any("the last spans were not sent" in line for line in broker.lines)


def test_a_wrong_way_for_spans_is_a_usage_error() -> None:
    env = ENVIRONMENT | {"OTEL_TRACES_EXPORTER": "zipkin"}
    command = [sys.executable, "-m", "enclave_broker.cli", "--worker", "ws://127.0.0.1:1/ws"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert "OTEL_TRACES_EXPORTER: 'zipkin' is not here (allowed: otlp, none)" in done.stderr
