"""The spans of a session: which there are, whose children, and what they say."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from enclave_broker import tool
from enclave_broker.tools.tool import ToolContext  # noqa: TC001 - read at run time, as a tool's annotations are
from enclave_broker.tracing.otel import OtelTracing
from enclave_protocol.trace_context import parse_trace
from tests.broker.conftest import fleet, start
from tests.broker.tracing.collector import collector
from tests.broker.ws.sockets import client_of
from tests.fakes import STATS, FakeSession, FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.broker.conftest import Fleet
    from tests.broker.tracing.collector import Collector

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SEEN: list[ToolContext] = []


@tool
def look_up(context: ToolContext) -> str:
    SEEN.append(context)
    return "found"


async def calls_and_ends(session: FakeSession) -> None:
    await session.call("look_up")
    stats = {**STATS, "durationMs": 30.0, "startMs": 2.0, "cpuMs": 7.5, "peakMemoryBytes": 1000}
    await session.event("final", {"ok": True, "result": 1, "stats": stats})


@contextlib.asynccontextmanager
async def traced(worker: FakeWorker, **settings: Any) -> AsyncIterator[tuple[Collector, Fleet]]:
    """Run a fleet and a collector, which has every span when the block is over."""
    async with collector() as spans:
        tracing = OtelTracing(OTLPSpanExporter(endpoint=spans.url))
        async with fleet(worker, tracing=tracing, **settings) as running:
            yield spans, running


async def test_a_session_is_a_tree_of_spans_below_its_clients() -> None:
    SEEN.clear()
    async with traced(FakeWorker(calls_and_ends), tools=[look_up]) as (spans, running):
        headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
        body = {"code": "1", "sessionId": "s_1", "profile": "python"}
        assert (await running.http.post("/sessions", json=body, headers=headers)).status_code == 200
        [execute] = await running.workers[0].wait_received("execute")
    assert spans.tree() == {
        ("(remote)", "session"),
        ("session", "queue"),
        ("session", "place"),
        ("session", "execute"),
        ("execute", "start"),
        ("execute", "tool"),
    }
    assert {span.trace_id for span in spans.spans} == {TRACE}
    assert spans.one("session").parent_id == SPAN
    about = {"enclave.session.id": "s_1", "enclave.tenant": "default", "enclave.profile": "python"}
    assert spans.one("queue").attributes == about
    for name in ("session", "place", "execute", "start", "tool"):
        assert spans.one(name).attributes.items() >= (about | {"enclave.worker.id": "fake"}).items(), name
    for name in ("session", "execute", "tool"):
        assert spans.one(name).attributes["enclave.outcome"] == "ok"
        assert not spans.one(name).failed
    assert spans.one("execute").attributes["enclave.cpu_ms"] == 7.5
    assert spans.one("tool").attributes["gen_ai.tool.name"] == "look_up"
    assert {resource["service.name"] for resource in spans.resources} == {"enclave-broker"}
    # Who is told, is told of the span that it is a child of.
    assert execute["traceparent"] == f"00-{TRACE}-{spans.one('execute').span_id}-01"
    assert "tracestate" not in execute
    [context] = SEEN
    assert context.trace_headers == {
        "traceparent": f"00-{TRACE}-{spans.one('tool').span_id}-01",
        "tracestate": "vendor=1",
    }


async def test_spans_follow_each_other_and_lie_within_their_parents() -> None:
    async with traced(FakeWorker(calls_and_ends), tools=[look_up]) as (spans, running):
        await running.http.post("/sessions", json={"code": "1"})
    by_id = {span.span_id: span for span in spans.spans}
    for span in spans.spans:
        assert span.start_ns <= span.end_ns
        if span.parent_id:
            assert by_id[span.parent_id].start_ns <= span.start_ns
    for span in (spans.one("queue"), spans.one("place"), spans.one("execute"), spans.one("tool")):
        assert span.end_ns <= spans.one("session").end_ns
    assert spans.one("queue").end_ns <= spans.one("place").start_ns
    assert spans.one("start").end_ns - spans.one("start").start_ns == 2_000_000


async def test_a_worker_that_claims_more_time_than_a_clock_can_tell_is_not_believed() -> None:
    async def exaggerates(session: FakeSession) -> None:
        stats = {**STATS, "durationMs": 1e308, "startMs": 1e308}
        await session.event("final", {"ok": True, "result": 1, "stats": stats})

    async with traced(FakeWorker(exaggerates)) as (spans, running):
        await running.http.post("/sessions", json={"code": "1"})
    start, execute = spans.one("start"), spans.one("execute")
    assert execute.start_ns <= start.start_ns <= start.end_ns <= execute.end_ns


async def test_a_session_without_a_client_in_a_trace_is_a_trace_of_its_own() -> None:
    async with traced(FakeWorker(calls_and_ends), tools=[look_up]) as (spans, running):
        for traceparent in ("", "00-junk", f"{PARENT},{PARENT}"):
            await running.http.post("/sessions", json={"code": "1"}, headers={"traceparent": traceparent})
    roots = spans.named("session")
    assert [root.parent_id for root in roots] == ["", "", ""]
    assert len({root.trace_id for root in roots} - {TRACE}) == 3


async def test_a_client_of_the_websocket_names_its_trace_in_execute() -> None:
    tools = [look_up]
    async with traced(FakeWorker(calls_and_ends), tools=tools) as (spans, running), client_of(running) as client:
        await client.send("execute", code="1", traceparent=PARENT, tracestate="vendor=1")
        await client.next("final")
        await client.send("execute", code="1", traceparent=["no", "context"], tracestate=7)
        await client.next("final")
    first, second = spans.named("session")
    assert (first.trace_id, first.parent_id) == (TRACE, SPAN)
    assert second.trace_id != TRACE


async def test_every_run_of_a_batch_is_a_child_of_the_client() -> None:
    async with traced(FakeWorker(calls_and_ends), tools=[look_up]) as (spans, running):
        body = {"code": "1", "inputs": [1, 2, 3]}
        await running.http.post("/sessions:batch", json=body, headers={"traceparent": PARENT})
    assert [span.parent_id for span in spans.named("session")] == [SPAN] * 3


async def test_a_worker_that_has_no_slot_after_all_ends_one_execute_and_begins_another_queue() -> None:
    attempts: list[str] = []

    async def refuses_once(session: FakeSession) -> None:
        attempts.append(session.session_id)
        if len(attempts) == 1:
            await session.refuse()
        else:
            await session.final(1)

    async with traced(FakeWorker(refuses_once)) as (spans, running):
        await running.http.post("/sessions", json={"code": "1"})
    refused, ran = spans.named("execute")
    assert (refused.failed, ran.failed) == ("NO_CAPACITY", "")
    assert [len(spans.named(name)) for name in ("session", "queue", "place", "start")] == [1, 2, 2, 0]


async def test_a_call_that_is_open_when_its_session_ends_ends_with_it() -> None:
    async def leaves_a_call(session: FakeSession) -> None:
        await session.event("tool_call", {"callId": "c_1", "toolName": "theirs", "args": None})
        await session.fail("EXECUTION_ERROR")

    async with traced(FakeWorker(leaves_a_call)) as (spans, running):
        await running.http.post("/sessions", json={"code": "1", "tools": ["theirs"]})
    assert (spans.one("tool").failed, spans.one("execute").failed) == ("SESSION_ENDED", "EXECUTION_ERROR")
    assert spans.one("session").failed == "EXECUTION_ERROR"


async def test_a_call_that_the_client_answers_is_a_span_too() -> None:
    async def calls(session: FakeSession) -> None:
        await session.call("theirs")
        await session.final(1)

    async with traced(FakeWorker(calls)) as (spans, running), client_of(running) as client:
        await client.send("execute", code="1", tools=["theirs"])
        call = await client.next("tool_call")
        where = {"sessionId": call["sessionId"], "callId": call["payload"]["callId"]}
        await client.send("tool_result", **where, error={"message": "no", "code": "NOT_FOUND"})
        await client.next("final")
    assert spans.one("tool").failed == "NOT_FOUND"


async def test_a_tool_that_nobody_has_is_a_span_that_failed() -> None:
    async def calls(session: FakeSession) -> None:
        await session.call("nobodys")
        await session.final(1)

    async with traced(FakeWorker(calls)) as (spans, running):
        await running.http.post("/sessions", json={"code": "1"})
    assert spans.one("tool").failed == "UNKNOWN_TOOL"


async def test_a_session_that_never_had_a_worker_has_a_queue_and_no_more() -> None:
    async with traced(FakeWorker(waits_for_cancel, max_sessions=1)) as (spans, running):
        first = await start(running, "s_1")
        async with client_of(running) as client:
            await client.send("execute", code="1", sessionId="s_2")
            await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)
            await client.send("cancel", sessionId="s_2")
            await client.next("final")
        await running.http.post("/sessions/s_1/cancel")
        await first
    waited = [span for span in spans.spans if span.attributes["enclave.session.id"] == "s_2"]
    assert {span.name for span in waited} == {"session", "queue"}
    [session] = (span for span in waited if span.name == "session")
    assert (session.attributes["enclave.outcome"], session.failed) == ("SESSION_CANCELLED", "")


async def test_a_trace_that_its_client_does_not_record_is_not_recorded_here_but_passed_on() -> None:
    SEEN.clear()
    async with traced(FakeWorker(calls_and_ends), tools=[look_up]) as (spans, running):
        await running.http.post("/sessions", json={"code": "1"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
        [execute] = await running.workers[0].wait_received("execute")
    assert spans.spans == []
    for told in (execute["traceparent"], SEEN[0].traceparent):
        context = parse_trace(told)
        assert context is not None
        assert (context.trace_id, context.flags) == (TRACE, 0)
