"""Word of changed tools in the streams of live sessions: numbered, once, and the same on every replay."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from enclave_broker.tools import ToolRegistry
from tests.broker.conftest import Fleet, fleet
from tests.broker.tools.stubs.schemas import fake
from tests.fakes import FakeSession, FakeWorker

CODE = {"code": "return 1", "config": {"heartbeatIntervalMs": 0}}


async def stream(running: Fleet) -> list[dict[str, Any]]:
    """Run a session to its end, and check that a replay of its stream is the same, byte for byte."""
    answer = await running.http.post("/sessions", json=CODE)
    session_id = answer.headers["x-session-id"]
    replay = await running.http.get(f"/sessions/{session_id}/stream")
    assert replay.content == answer.content
    events = [json.loads(line) for line in answer.content.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    return events


def changes(events: list[dict[str, Any]]) -> list[tuple[list[str], list[str]]]:
    payloads = [event["payload"] for event in events if event["type"] == "catalog_changed"]
    return [(payload["addedActions"], payload["removedActions"]) for payload in payloads]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_running_session_is_told_by_its_worker_which_numbers_the_event() -> None:
    registry = ToolRegistry()

    async def script(session: FakeSession) -> None:
        await session.stdout("before")
        await running.wait_until(lambda: session.session_id in started())
        registry.replace_source("pets", [fake("pets_get")])
        (notice,) = await worker.wait_received("catalog_changed")
        assert "seq" not in notice, "the worker's own events may be on their way"
        await session.stdout("on its way")
        await session.event("catalog_changed", notice["payload"])
        await session.final()

    def started() -> set[str]:
        return {each.session_id for each in running.broker.dispatcher.directory.sessions() if each.request is None}

    worker = FakeWorker(script)
    async with fleet(worker, tools=registry) as running:
        events = await stream(running)
    assert kinds(events) == ["session_init", "stdout", "stdout", "catalog_changed", "final"]
    assert changes(events) == [(["pets_get"], [])]
    assert events[3]["payload"]["version"] == registry.version


async def test_a_session_that_waits_for_a_slot_is_told_by_the_broker() -> None:
    registry = ToolRegistry()
    release = asyncio.Event()

    async def script(session: FakeSession) -> None:
        await release.wait()
        await session.final(session.execute["firstSeq"])

    worker = FakeWorker(script, max_sessions=1)
    async with fleet(worker, tools=registry) as running:
        first = asyncio.create_task(stream(running))
        await worker.wait_received("execute")
        second = asyncio.create_task(stream(running))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)
        registry.replace_source("pets", [fake("pets_get")])
        registry.replace_source("pets", [])
        release.set()
        waited = await second
        await first
    assert kinds(waited) == ["session_init", "status", "catalog_changed", "catalog_changed", "final"]
    assert changes(waited) == [(["pets_get"], []), ([], ["pets_get"])]
    assert waited[-1]["payload"]["result"] == 5, "the worker numbers on from there"


async def test_what_changes_before_the_workers_first_event_is_told_after_it_as_one_change() -> None:
    registry = ToolRegistry()

    async def script(session: FakeSession) -> None:
        registry.replace_source("pets", [fake("pets_a"), fake("pets_b")])
        registry.replace_source("pets", [fake("pets_b")])
        await session.stdout("first")
        (notice,) = await worker.wait_received("catalog_changed")
        await session.event("catalog_changed", notice["payload"])
        await session.final()

    worker = FakeWorker(script)
    async with fleet(worker, tools=registry) as running:
        events = await stream(running)
        assert len(await worker.wait_received("catalog_changed")) == 1
    assert kinds(events) == ["session_init", "stdout", "catalog_changed", "final"]
    assert changes(events) == [(["pets_b"], [])]


async def test_a_session_that_its_worker_refuses_is_told_while_it_waits_again() -> None:
    registry = ToolRegistry()
    refused = False

    async def script(session: FakeSession) -> None:
        nonlocal refused
        if not refused:
            refused = True
            registry.replace_source("pets", [fake("pets_get")])
            await session.refuse()
        else:
            await session.final()

    worker = FakeWorker(script)
    async with fleet(worker, tools=registry) as running:
        events = await stream(running)
        assert not [message for message in worker.received if message["type"] == "catalog_changed"]
    assert kinds(events) == ["session_init", "catalog_changed", "status", "final"]


async def test_a_session_that_has_ended_is_told_nothing_and_a_broker_that_stopped_hears_nothing() -> None:
    registry = ToolRegistry()
    worker = FakeWorker()
    async with fleet(worker, tools=registry) as running:
        before = await stream(running)
        registry.replace_source("pets", [fake("pets_get")])
        replay = await running.http.get(f"/sessions/{before[0]['sessionId']}/stream")
        assert len(replay.content.splitlines()) == len(before)
        assert not [message for message in worker.received if message["type"] == "catalog_changed"]
    registry.replace_source("pets", [])


async def test_a_worker_of_an_older_version_refuses_the_word_and_its_session_goes_on() -> None:
    registry = ToolRegistry()

    async def script(session: FakeSession) -> None:
        await session.stdout("first")
        await running.wait_until(
            lambda: all(each.request is None for each in running.broker.dispatcher.directory.sessions())
        )
        registry.replace_source("pets", [fake("pets_get")])
        await worker.wait_received("catalog_changed")
        payload = {"message": "type: unknown", "code": "VALIDATION_ERROR", "field": "type"}
        await session.raw({"type": "error", "sessionId": session.session_id, "payload": payload})
        await session.final()

    worker = FakeWorker(script)
    async with fleet(worker, tools=registry) as running:
        assert kinds(await stream(running)) == ["session_init", "stdout", "final"]
