"""Each of the broker's metrics moves when its thing happens. Those that are not here are named by the tests of it."""

from __future__ import annotations

import asyncio
import threading

from enclave_broker import ToolFailure, tool
from enclave_broker.metrics import MAX_TENANTS, OTHER, Metrics
from enclave_broker.tools.sources.credentials import NO_CREDENTIALS
from enclave_broker.tools.sources.openapi import OpenApiSettings, OpenApiSource
from enclave_broker.tools.sources.policies import Policies
from tests.broker.conftest import Fleet, fleet, start
from tests.broker.tools.sources.http_server import Answer, http_server
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel


async def shown(running: Fleet, name: str, **labels: str) -> float:
    """Return a sample as of now: what is not counted is looked up when somebody asks."""
    await running.http.get("/metrics")
    return running.metric(name, **labels)


async def test_the_queue_the_slots_and_the_sessions_are_shown_as_they_are() -> None:
    async with fleet(FakeWorker(waits_for_cancel, max_sessions=1)) as running:
        worker = running.workers[0]
        assert await shown(running, "enclave_slots", state="free") == 1
        first = await start(running, "s_1")
        second = asyncio.create_task(running.http.post("/sessions", json={"code": "1", "sessionId": "s_2"}))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)
        assert await shown(running, "enclave_queue_depth") == 1
        assert await shown(running, "enclave_sessions_active") == 2
        assert await shown(running, "enclave_tenant_sessions_active", tenant="default") == 2
        assert [await shown(running, "enclave_slots", state=state) for state in ("reserved", "free", "other")] == [
            1,
            0,
            0,
        ]
        for session_id in ("s_2", "s_1"):
            await running.http.post(f"/sessions/{session_id}/cancel")
        await asyncio.gather(first, second)
        worker.active_elsewhere = 1
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().free == 0)
        assert await shown(running, "enclave_slots", state="other") == 1
        assert await shown(running, "enclave_queue_depth") == 0


async def test_a_worker_that_is_lost_is_counted_and_shown_where_it_is() -> None:
    async with fleet(FakeWorker()) as running:
        assert await shown(running, "enclave_workers", state="connected") == 1
        await running.workers[0].kill()
        await running.wait_workers(0)
        assert await shown(running, "enclave_workers", state="connected") == 0
        assert sum([await shown(running, "enclave_workers", state=state) for state in ("away", "disconnected")]) == 1
        assert running.metric("enclave_workers_lost_total") == 1


async def test_a_call_that_waits_for_a_thread_is_shown() -> None:
    release = threading.Event()

    def blocks() -> None:
        release.wait()

    async def calls_twice(session: FakeSession) -> None:
        for call_id in ("c_1", "c_2"):
            await session.event("tool_call", {"callId": call_id, "toolName": "blocks", "args": {}})
        await session.results.get()
        await session.results.get()
        await session.final(1)

    async with fleet(FakeWorker(calls_twice), tools=[blocks], tool_threads=1) as running:
        answer = asyncio.create_task(running.http.post("/sessions", json={"code": "1"}))
        await running.wait_until(lambda: running.metric("enclave_tool_calls_waiting") == 1)
        release.set()
        await answer
        assert running.metric("enclave_tool_calls_waiting") == 0


async def test_further_attempts_at_a_call_are_counted() -> None:
    attempts: list[int] = []

    @tool(retryable=True)
    async def busy_at_first() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise ToolFailure("BUSY", "busy", retryable=True, retry_after_ms=0)
        return 1

    async def calls(session: FakeSession) -> None:
        await session.call("busy_at_first", {})
        await session.final(1)

    async with fleet(FakeWorker(calls), tools=[busy_at_first]) as running:
        await running.http.post("/sessions", json={"code": "1"})
        assert running.metric("enclave_tool_retries_total") == 2


async def test_a_source_of_tools_is_well_or_unwell() -> None:
    answers = {"status": 500}
    async with http_server() as server:
        server.routes["/openapi.json"] = lambda _: Answer({"openapi": "3.1.0", "paths": {}}, answers["status"])
        where = f"{server.url}/openapi.json"
        settings = OpenApiSettings(
            name="api",
            document=where,
            credentials=NO_CREDENTIALS,
            policies=Policies(),
            poll_interval_s=0.01,
            retry_first_s=0.001,
            retry_most_s=0.01,
        )
        async with fleet(FakeWorker(), sources=[OpenApiSource(settings)]) as running:
            await running.wait_until(lambda: running.metric("enclave_tool_sources", state="unwell") == 1)
            answers["status"] = 200
            await running.wait_until(lambda: running.metric("enclave_tool_sources", state="well") == 1)
            assert running.metric("enclave_tool_sources", state="unwell") == 0


def test_a_store_that_fails_is_shown() -> None:
    metrics, failure = Metrics(), [""]
    metrics.watch_store(lambda: failure[0])
    assert metrics.registry.get_sample_value("enclave_store_failing") == 0
    failure[0] = "the disk is full"
    assert metrics.registry.get_sample_value("enclave_store_failing") == 1


async def test_requests_are_counted_by_their_route_whatever_they_ask_for() -> None:
    async with fleet(FakeWorker()) as running:
        await running.http.get("/sessions/s_1")
        await running.http.get("/sessions/s_2")
        await running.http.get("/no/such/route")
        await running.http.request("BREW", "/healthz")
        await running.http.get("/sessions", headers={"Origin": "https://stranger.example"})

        def count(method: str, route: str, status: str) -> float:
            return running.metric("enclave_http_requests_total", method=method, route=route, status=status)

        assert count("GET", "/sessions/{session_id}", "404") == 2
        assert count("GET", OTHER, "404") == 1
        assert count("GET", OTHER, "403") == 1
        routes = {
            sample.labels["route"]
            for family in running.broker.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "enclave_http_requests_total"
        }
        assert not any("s_1" in route or "such" in route for route in routes)


def test_only_so_many_tenants_have_labels_of_their_own() -> None:
    metrics = Metrics()
    for number in range(MAX_TENANTS + 5):
        metrics.tenant_called(f"t{number}")
    value = metrics.registry.get_sample_value
    assert value("enclave_tenant_tool_calls_total", {"tenant": OTHER}) == 5
    assert value("enclave_tenant_tool_calls_total", {"tenant": "t0"}) == 1
