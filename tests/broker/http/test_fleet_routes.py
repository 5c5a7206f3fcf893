"""`GET /fleet` shows the workers, the queue and the tenants to who runs the fleet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclave_broker.access import Scope
from tests.broker.access.tenants import two_tenants
from tests.broker.conftest import fleet, start
from tests.fakes import FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_fleet_is_shown_with_its_workers_queue_and_tenants() -> None:
    async with fleet(FakeWorker(waits_for_cancel, max_sessions=1), queue_size=7) as running:
        running_one = await start(running, "s_1")
        waiting_one = asyncio.create_task(running.http.post("/sessions", json={"code": "1", "sessionId": "s_2"}))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)

        shown = (await running.http.get("/fleet")).json()

        for session_id in ("s_1", "s_2"):
            await running.http.post(f"/sessions/{session_id}/cancel")
        await asyncio.gather(running_one, waiting_one)
    url = running.workers[0].url
    [worker] = shown["workers"]
    assert (worker["name"], worker["state"]) == (url, "up")
    assert (worker["slots"], worker["used"], worker["foreign"]) == (1, 1, 0)
    assert worker["workerId"] == "fake"
    assert worker["profiles"] == ["python"]
    assert shown["queue"] == {"waiting": 1, "size": 7}
    assert (shown["active"], shown["draining"]) == (2, False)
    assert shown["tenants"] == [{"tenant": "default", "active": 2, "waiting": 1}]
    assert shown["now"] >= shown["startedAt"] > 0


async def test_a_worker_that_is_gone_is_disconnected_and_one_that_drains_says_so() -> None:
    worker = FakeWorker()
    async with fleet(worker) as running:
        worker.draining = True
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().draining == 1)
        assert [each["state"] for each in (await running.http.get("/fleet")).json()["workers"]] == ["draining"]
        await worker.stop()
        await running.wait_workers(0)
        [gone] = (await running.http.get("/fleet")).json()["workers"]
        assert gone["state"] in {"disconnected", "away"}


async def test_only_a_key_with_the_scope_for_metrics_sees_the_fleet(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, acme, _):
        assert (await acme.get("/fleet")).status_code == 403
        operator = tenants.file.add("operator", frozenset({Scope.METRICS}))
        tenants.broker.reload_keys()
        async with tenants.client(operator) as client:
            assert (await client.get("/fleet")).status_code == 200


async def test_public_metrics_do_not_make_the_fleet_public(tmp_path: Path) -> None:
    async with (
        two_tenants(tmp_path, FakeWorker(), public_metrics=True) as (tenants, _, _),
        tenants.client(None) as nobody,
    ):
        assert (await nobody.get("/metrics")).status_code == 200
        assert (await nobody.get("/fleet")).status_code == 401
