"""A fleet that is asked for more than it has, by clients: whose turn it is, what those who wait and the others hear."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from tests.broker.access.tenants import two_tenants
from tests.broker.conftest import Fleet, fleet, parse, start
from tests.broker.ws.sockets import client_of
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from pathlib import Path

    import httpx


def waiting(running: Fleet) -> int:
    return len(running.broker.dispatcher.placer.queue)


async def test_tenants_that_wait_take_turns(tmp_path: Path) -> None:
    worker = FakeWorker(waits_for_cancel, max_sessions=1)
    async with two_tenants(tmp_path, worker) as (tenants, acme, rival):
        running = tenants.running
        tasks = [await tenants.start(acme, "s_1")]

        async def post(client: httpx.AsyncClient, session_id: str) -> None:
            await client.post("/sessions", json={"code": "1", "sessionId": session_id})

        for client, session_id in ((acme, "s_2"), (acme, "s_3"), (acme, "s_4"), (rival, "s_5"), (rival, "s_6")):
            before = waiting(running)
            tasks.append(asyncio.create_task(post(client, session_id)))  # type: ignore[arg-type]
            await running.wait_until(lambda before=before: waiting(running) > before)  # type: ignore[misc]
        order = []
        for number in range(1, 7):
            order.append((await worker.wait_received("execute", number))[-1]["sessionId"])
            client = acme if order[-1] <= "s_4" else rival
            await client.post(f"/sessions/{order[-1]}/cancel")
        await asyncio.gather(*tasks)
    assert order == ["s_1", "s_2", "s_5", "s_3", "s_6", "s_4"]


async def test_who_waits_is_told_how_long_the_line_is_and_that_it_has_moved() -> None:
    worker = FakeWorker(waits_for_cancel, max_sessions=1)
    async with fleet(worker) as running:
        first = await start(running, "s_1")
        second = asyncio.create_task(running.http.post("/sessions", json={"code": "1", "sessionId": "s_2"}))
        await running.wait_until(lambda: waiting(running) == 1)
        async with running.http.stream("POST", "/sessions", json={"code": "1", "sessionId": "s_3"}) as response:
            lines = response.aiter_lines()
            heard = [json.loads(await anext(lines)) for _ in range(2)]
            await running.http.post("/sessions/s_1/cancel")
            heard.append(json.loads(await anext(lines)))
            await running.http.post("/sessions/s_2/cancel")
            heard.append(json.loads(await anext(lines)))
            await running.http.post("/sessions/s_3/cancel")
            heard += [json.loads(line) async for line in lines]
        await first
        placed_at_once = [event["type"] for event in parse((await second).text)]
    kinds = ["session_init", "status", "status", "stdout", "final"]
    assert [(event["seq"], event["type"]) for event in heard] == list(enumerate(kinds, 1))
    assert [event["payload"] for event in heard[1:3]] == [
        {"state": "queued", "queuePosition": 2},
        {"state": "queued", "queuePosition": 1},
    ]
    assert placed_at_once == ["session_init", "status", "stdout", "final"]


async def test_a_session_that_is_placed_at_once_is_told_of_no_line() -> None:
    async with fleet(FakeWorker()) as running:
        events = parse((await running.http.post("/sessions", json={"code": "1"})).text)
    assert [event["type"] for event in events] == ["session_init", "stdout", "final"]


async def test_a_wait_that_would_be_too_long_is_refused_at_once_in_every_way_to_ask() -> None:
    async def holds_when_told(session: FakeSession) -> None:
        await (waits_for_cancel(session) if session.session_id == "s_holds" else session.final(1))

    worker = FakeWorker(holds_when_told, max_sessions=1)
    async with fleet(worker, queue_wait_ms=0, queue_timeout_ms=500) as running, client_of(running) as socket:
        for _ in range(10):
            await running.http.post("/sessions", json={"code": "1"})
        task = await start(running, "s_holds")
        await running.wait_until(lambda: running.broker.dispatcher.placer.refuses("anybody") is not None)

        response = await running.http.post("/sessions", json={"code": "1"})
        named = await running.http.post("/sessions", json={"code": "1", "sessionId": "s_named"})
        await socket.send("execute", sessionId="s_socket", code="1")
        final = await socket.next("final")
        batch = parse((await running.http.post("/sessions:batch", json={"items": [{"code": "1"}]})).text)
        await running.http.post("/sessions/s_holds/cancel")
        await task
    refusals: list[dict[str, Any]] = [response.json(), named.json(), batch[0]["error"]]
    for refusal in refusals:
        assert refusal["code"] == "NO_CAPACITY"
        assert "the wait for one would be too long" in refusal["message"]
        assert refusal["details"]["retryAfterMs"] >= 1000
    assert (response.status_code, named.status_code) == (503, 503)
    assert int(response.headers["retry-after"]) >= 1
    assert final["payload"]["error"]["retryAfterMs"] >= 1000
    assert worker.received[-1]["type"] != "execute"


async def test_a_worker_whose_sessions_fail_has_fewer_of_them() -> None:
    async def fails(session: FakeSession) -> None:
        await session.fail("INTERNAL_ERROR")

    good, bad = FakeWorker(name="good"), FakeWorker(fails, name="bad", max_sessions=21)
    async with fleet(good, bad) as running:
        for _ in range(40):
            await running.http.post("/sessions", json={"code": "1"})
        failed = sum(message["type"] == "execute" for message in bad.received)
        assert 3 <= failed < 30, "it has the most slots, but after a few only one every two seconds"
        assert running.broker.dispatcher.placer.statistics().failing == 1
