"""Each of a worker's metrics moves when its thing happens. Those that are not here are named by the tests of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from enclave_worker.metrics import WorkerMetrics
from tests.support import PATIENCE_S, client_of, running

if TYPE_CHECKING:
    from enclave_worker.runtime import RuntimeWorker

POOLS = 3
"""Of a worker with one profile: bare, full and JavaScript."""


def value(worker: RuntimeWorker, name: str, **labels: str) -> float | None:
    return worker.metrics.registry.get_sample_value(name, labels)


def test_the_level_and_the_layers_that_are_missing_are_shown_as_they_are_now() -> None:
    metrics = WorkerMetrics()
    metrics.describe("STANDARD", ["landlock", "cgroups"])
    metrics.describe("STANDARD", ["landlock"])
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
    assert samples["enclave_level_info", "STANDARD"] == 1
    assert samples["enclave_layer_missing", "landlock"] == 1
    assert ("enclave_layer_missing", "cgroups") not in samples


async def cut_off(worker: RuntimeWorker) -> None:
    """Start a session as a broker that resumes does, and cut the connection."""
    async with client_of(worker.url) as broker:
        await broker.send({"type": "welcome", "revision": 2, "brokerId": "b_1"})
        session_id = await broker.start("print('one', flush=True)\nwhile True: pass")
        await broker.until_written(session_id, "one\n")
        assert value(worker, "enclave_sessions_detached") == 0
        broker.socket.transport.abort()


async def test_sessions_without_a_broker_and_the_events_that_are_kept_for_it_are_shown() -> None:
    async with running(level="BEST") as worker:
        assert value(worker, "enclave_level_info", level=worker.level) == 1
        assert value(worker, "enclave_events_kept_bytes") == 0
        await cut_off(worker)
        async with asyncio.timeout(PATIENCE_S):
            while value(worker, "enclave_sessions_detached") != 1:  # noqa: ASYNC110 - a connection's end has no event
                await asyncio.sleep(0.002)
        assert (value(worker, "enclave_events_kept_bytes") or 0) > 0


async def until_sandboxes(worker: RuntimeWorker, **expected: int) -> None:
    """Wait for so many sandboxes in each state: they are made and end without an event."""
    async with asyncio.timeout(PATIENCE_S):
        while expected != {state: value(worker, "enclave_pool_sandboxes", state=state) for state in expected}:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_sandboxes_are_shown_as_warm_as_taken_and_as_being_made() -> None:
    async with running(level="BEST", pool_size=1) as worker, client_of(worker.url) as client:
        await until_sandboxes(worker, warm=POOLS, starting=0, taken=0)
        session_id = await client.start("print('up', flush=True)\nwhile True: pass")
        await client.until_written(session_id, "up")
        await until_sandboxes(worker, taken=1)
        await client.send({"type": "cancel", "sessionId": session_id})
        await client.finish(session_id)
        await until_sandboxes(worker, warm=POOLS, starting=0, taken=0)


async def test_a_session_that_no_broker_came_back_for_is_counted() -> None:
    async with running(level="BEST", lease_s=0.01) as worker:
        await cut_off(worker)
        await worker.sessions.wait_idle()
        assert value(worker, "enclave_leases_expired_total") == 1
