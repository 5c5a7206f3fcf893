"""Where nobody collects spans, a client's trace is passed on as it is, and what is in none stays in none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker import tool
from enclave_broker.tools import Secrets
from enclave_broker.tools.sources.credentials import NO_CREDENTIALS
from enclave_broker.tools.sources.mcp_source import McpSettings, McpSource
from enclave_broker.tools.sources.openapi import OpenApiSettings, OpenApiSource
from enclave_broker.tools.sources.policies import Policies
from enclave_broker.tools.tool import ToolContext  # noqa: TC001 - read at run time, as a tool's annotations are
from tests.broker.conftest import fleet
from tests.broker.tools.sources.http_server import Answer, http_server, serving
from tests.broker.ws.sockets import client_of
from tests.fakes import FakeSession, FakeWorker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {"traceparent": PARENT, "tracestate": "rojo=1,congo=2"}
SEEN: list[ToolContext] = []


@tool
def look_up(context: ToolContext) -> str:
    SEEN.append(context)
    return "found"


def calling(name: str, args: Any = None) -> Callable[[FakeSession], Awaitable[None]]:
    async def script(session: FakeSession) -> None:
        result = await session.call(name, args)
        await session.final(result)

    return script


async def test_a_trace_is_passed_on_to_worker_and_tool() -> None:
    SEEN.clear()
    async with fleet(FakeWorker(calling("look_up")), tools=[look_up]) as running:
        await running.http.post("/sessions", json={"code": "1"}, headers=HEADERS)
        await running.http.post("/sessions:batch", json={"code": "1", "inputs": [1]}, headers=HEADERS)
        async with client_of(running) as client:
            await client.send("execute", code="1", **HEADERS)
            await client.next("final")
        executes = await running.workers[0].wait_received("execute", 3)
    assert [execute["traceparent"] for execute in executes] == [PARENT] * 3
    assert [context.trace_headers for context in SEEN] == [HEADERS] * 3


@pytest.mark.parametrize("headers", [[], [("traceparent", "junk")], [("traceparent", PARENT)] * 2])
async def test_a_session_in_no_trace_is_told_of_none(headers: list[tuple[str, str]]) -> None:
    SEEN.clear()
    async with fleet(FakeWorker(calling("look_up")), tools=[look_up]) as running:
        answer = await running.http.post("/sessions", json={"code": "1"}, headers=headers)
        assert answer.status_code == 200
        [execute] = await running.workers[0].wait_received("execute")
    assert "traceparent" not in execute
    assert SEEN[0].trace_headers == {}


async def test_a_tool_that_is_an_http_request_carries_the_trace_and_no_guest_can_set_another() -> None:
    parameter = {"name": "traceparent", "in": "header", "schema": {"type": "string"}}
    document = {
        "openapi": "3.1.0",
        "paths": {"/find": {"get": {"operationId": "find", "parameters": [parameter]}}},
    }
    async with http_server() as server:
        server.routes |= {"/openapi.json": lambda _: Answer(document), "/find": lambda _: Answer("found")}
        where = f"{server.url}/openapi.json"
        settings = OpenApiSettings(name="api", document=where, credentials=NO_CREDENTIALS, policies=Policies())
        source = OpenApiSource(settings)
        worker = FakeWorker(calling("api_find", {}))
        async with fleet(worker, sources=[source]) as running:
            await running.http.post("/sessions", json={"code": "1"}, headers=HEADERS)
            await running.http.post("/sessions", json={"code": "1"})
            worker.script = calling("api_find", {"traceparent": "mine"})
            answer = await running.http.post("/sessions", json={"code": "1"}, headers=HEADERS)
            assert "VALIDATION_ERROR" in answer.text
        traced, plain = [asked for asked in server.asked if asked.path == "/find"]
    assert [value for name, value in traced.headers if name == "traceparent"] == [PARENT]
    assert traced.header("tracestate") == HEADERS["tracestate"]
    assert plain.header("traceparent") is None


async def test_a_call_of_an_mcp_server_over_http_carries_the_trace_in_its_header_and_its_meta() -> None:
    from tests.broker.tools.sources import mcp_modern  # noqa: PLC0415 - an application can be started only once

    told: list[tuple[list[str], Any]] = []
    app = mcp_modern.server.streamable_http_app()

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        parents = [value.decode() for name, value in scope.get("headers", ()) if name == b"traceparent"]

        async def heard() -> Any:
            message = await receive()
            if b"tools/call" in message.get("body", b""):
                told.append((parents, json.loads(message["body"])["params"].get("_meta")))
            return message

        await app(scope, heard, send)

    async with serving(listening) as url:
        settings = McpSettings(name="m", policies=Policies(), url=f"{url}/mcp", env={}, headers={})
        source = McpSource(settings, Secrets())
        async with fleet(FakeWorker(calling("m_add", {"a": 1})), sources=[source]) as running:
            await running.wait_until(lambda: source.connected)
            await running.http.post("/sessions", json={"code": "1"}, headers=HEADERS)
            await running.http.post("/sessions", json={"code": "1"})
    (parents, meta), (none, other) = told
    assert parents == [PARENT]
    assert meta.items() >= HEADERS.items()
    assert none == []
    assert "traceparent" not in (other or {})


def test_a_broker_that_is_not_told_where_spans_go_imports_nothing_for_them() -> None:
    code = (
        "import os, sys; import enclave_broker.cli; from enclave_broker.tracing.options import load_tracing; "
        "load_tracing({}); print(*[name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
