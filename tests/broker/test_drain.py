"""Draining: nothing new, nothing lost, an end. Of the broker, and of one worker by the broker."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.asyncio.client import connect

from enclave_broker.access import LOCAL, Scope
from enclave_broker.new_session import NewSession
from enclave_broker.store.logs import ShelvedLog
from tests.broker.access.tenants import two_tenants
from tests.broker.conftest import Fleet, fleet, start
from tests.broker.test_broker import Command
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 30


class Gate:
    """A script whose sessions with the code `long` end when the gate is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, session: FakeSession) -> None:
        await session.stdout("running\n")
        if session.execute["code"] == "long":
            await self.opened.wait()
        await session.final(session.execute["code"])


def final(text: str) -> dict[str, Any]:
    event = json.loads(text.splitlines()[-1])
    assert event["type"] == "final"
    payload: dict[str, Any] = event["payload"]
    return payload


async def stopped(running: Fleet) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await running.broker.wait_stopped()


async def test_a_drained_broker_refuses_what_is_new_ends_what_it_has_and_stops() -> None:
    gate = Gate()
    async with fleet(FakeWorker(gate, max_sessions=1), grace_s=PATIENCE_S) as running:
        http, dispatcher = running.http, running.broker.dispatcher
        first = await start(running, "s_1", code="long")
        queued = asyncio.create_task(http.post("/sessions", json={"code": "queued", "sessionId": "s_2"}))
        await running.wait_until(lambda: dispatcher.placer.statistics().waiting == 1)
        async with connect(running.broker.url.replace("http", "ws") + "/ws", proxy=None) as socket:
            await socket.recv()
            answer = await http.post("/drain")
            assert (answer.status_code, answer.json()) == (202, {"live": 2, "graceS": PATIENCE_S})
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert (await http.get("/healthz")).status_code == 200
            refused = await http.post("/sessions", json={"code": "1"})
            assert (refused.status_code, refused.json()["code"]) == (503, "NO_CAPACITY")
            assert int(refused.headers["retry-after"]) >= 1
            await socket.send(json.dumps({"type": "execute", "code": "1"}))
            told = json.loads(await socket.recv())
            assert told["payload"]["error"]["code"] == "NO_CAPACITY"
            assert told["payload"]["error"]["retryable"] is True
            assert (await http.post("/drain")).json()["live"] == 2  # asked again, it goes on as before
            late = asyncio.create_task(http.get("/sessions/s_1/stream", params={"fromSeq": 2}))
            await running.wait_until(lambda: dispatcher.directory.sessions()[0].log.readers == 2)
            gate.opened.set()
            assert final(await first)["result"] == "long"
            assert final((await queued).text)["result"] == "queued"
            assert final((await late).text)["result"] == "long"
            await stopped(running)
            assert socket.close_code is None or socket.close_code == 1012
        with pytest.raises(httpx.TransportError):
            await http.get("/healthz")


async def test_what_does_not_end_within_the_grace_is_ended() -> None:
    async with fleet(FakeWorker(waits_for_cancel), grace_s=0.05) as running:
        session = await start(running, "s_1")
        running.broker.drain()
        error = final(await session)["error"]
        assert (error["code"], error["message"]) == ("SESSION_CANCELLED", "the broker is stopping")
        await stopped(running)


async def test_an_idle_broker_drains_at_once_and_stop_waits_for_no_drain() -> None:
    async with fleet(FakeWorker(waits_for_cancel), grace_s=3600) as running:
        session = await start(running, "s_1")
        running.broker.drain()
        await running.broker.stop()
        assert final(await session)["error"]["code"] == "SESSION_CANCELLED"
    async with fleet(FakeWorker(), grace_s=3600) as running:
        running.broker.drain()
        await stopped(running)


async def test_who_reads_a_session_whose_end_is_stored_is_waited_for(tmp_path: Path) -> None:
    async with fleet(FakeWorker(), store=f"sqlite:{tmp_path / 'sessions'}") as running:
        dispatcher = running.broker.dispatcher
        session = dispatcher.submit(NewSession(code="1"), LOCAL)
        reader = session.log.subscribe(1, lambda: None)
        await running.wait_until(lambda: isinstance(session.log, ShelvedLog))
        assert not dispatcher.idle
        reader.take()
        assert reader.finished
        reader.close()
        assert dispatcher.idle


async def test_the_command_finishes_what_it_has_when_told_to_stop_and_exits_with_zero() -> None:
    gate = Gate()
    async with FakeWorker(gate) as worker:
        command = await Command.start("--port", "0", "--worker", worker.url, "--grace-s", str(PATIENCE_S))
        async with httpx.AsyncClient(base_url=await command.url(), timeout=PATIENCE_S) as http:
            session = asyncio.create_task(http.post("/sessions", json={"code": "long"}))
            await worker.wait_received("execute")
            command.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while (await http.get("/readyz")).status_code != 503:  # noqa: ASYNC110 - another process has no event
                    await asyncio.sleep(0.01)
            gate.opened.set()
            assert final((await session).text)["result"] == "long"
        code, said = await command.end()
    assert code == 0
    assert "Traceback" not in said


async def test_told_twice_the_command_waits_for_nobody() -> None:
    async with FakeWorker(waits_for_cancel) as worker:
        command = await Command.start("--port", "0", "--worker", worker.url, "--grace-s", "3600")
        async with httpx.AsyncClient(base_url=await command.url(), timeout=PATIENCE_S) as http:
            session = asyncio.create_task(http.post("/sessions", json={"code": "1"}))
            await worker.wait_received("execute")
            command.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while (await http.get("/readyz")).status_code != 503:  # noqa: ASYNC110 - another process has no event
                    await asyncio.sleep(0.01)
            command.process.send_signal(signal.SIGTERM)
            assert final((await session).text)["error"]["code"] == "SESSION_CANCELLED"
        assert (await command.end())[0] == 0


async def test_only_an_operators_key_drains(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, acme, _):
        for path in ("/drain", "/workers/fake/drain"):
            refused = await acme.post(path)
            assert (refused.status_code, refused.json()["code"]) == (403, "INSUFFICIENT_SCOPE")
        key = tenants.file.add("ops", frozenset({Scope.OPERATE}))
        tenants.broker.reload_keys()
        async with tenants.client(key) as ops:
            assert (await ops.post("/workers/fake/drain")).status_code == 202
            assert (await ops.post("/sessions", json={"code": "1"})).status_code == 403
            assert (await ops.post("/drain")).status_code == 202
        await stopped(tenants.running)


async def test_a_drained_worker_gets_nothing_new_is_told_and_its_successor_is_used() -> None:
    gate = Gate()
    worker, other = FakeWorker(gate, name="first", max_sessions=50), FakeWorker(name="other", max_sessions=1)
    worker.hello = {"instance": "i_1", "maxRevision": 2}
    async with fleet(worker, other) as running:
        http, fleet_ = running.http, running.broker.dispatcher.fleet
        session = await start(running, "s_1", code="long")
        unknown = await http.post("/workers/nobody/drain")
        assert (unknown.status_code, unknown.json()["details"]["field"]) == (404, "workerId")
        drained = await http.post("/workers/first/drain")
        assert (drained.status_code, drained.json()) == (202, {"links": [worker.url], "busy": True})
        assert "operator" in (await worker.wait_received("drain"))[0]["reason"]
        await worker.wait_pinged()
        await worker.wait_pinged()  # what it says of itself in its pongs changes nothing
        for code in ("a", "b"):
            assert final((await http.post("/sessions", json={"code": code})).text)["result"] == code
        assert len(await worker.wait_received("execute")) == 1
        assert (await http.get("/readyz")).status_code == 200
        gate.opened.set()
        assert final(await session)["result"] == "long"
        await worker.kill()
        await running.wait_workers(1)
        worker.hello = {"instance": "i_2", "maxRevision": 2}
        await worker.start()
        await running.wait_workers(2)
        assert not fleet_.links[worker.url].retiring
        assert final((await http.post("/sessions", json={"code": "c"})).text)["result"] == "c"
        assert len(await worker.wait_received("execute", 2)) == 2


async def test_a_drained_worker_whose_connection_was_cut_stays_drained() -> None:
    worker = FakeWorker()
    worker.hello = {"instance": "i_1", "maxRevision": 2}
    async with fleet(worker) as running:
        await running.http.post("/workers/fake/drain")
        await worker.kill()
        await running.wait_workers(0)
        await worker.start()
        await running.wait_workers(1)
        assert (await running.http.get("/readyz")).json()["status"] == "draining"
