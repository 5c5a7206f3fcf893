"""Streams as readers ask for them: Server-Sent Events, from a number on, filtered; and requests that are repeated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.access import LOCAL
from enclave_broker.api import decode_create
from tests.broker.conftest import fleet, parse, start
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from httpx import Response

    from tests.broker.conftest import Fleet

SSE = {"accept": "text/event-stream"}


def frames(text: str) -> list[dict[str, str]]:
    """Read Server-Sent Events as a browser does."""
    assert text.endswith("\n\n")
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in text[:-2].split("\n\n")]


async def talks(session: FakeSession) -> None:
    for _ in range(8):
        await session.stdout("x" * 1000)
    await session.final()


async def unread(running: Fleet, body: bytes) -> None:
    """Run a session that nobody reads to its end."""
    dispatcher = running.broker.dispatcher
    session = dispatcher.submit(decode_create(body, dispatcher.offers.limits_of)[0], LOCAL)
    await running.wait_until(lambda: not session.live)


async def test_a_session_is_sent_as_server_sent_events_if_asked_for() -> None:
    async with fleet(FakeWorker()) as running:
        response = await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"}, headers=SSE)
        assert response.headers["content-type"].startswith("text/event-stream")
        head, *events = frames(response.text)
        assert head == {"retry": "1000"}
        assert [(event["id"], event["event"]) for event in events] == [
            ("1", "session_init"),
            ("2", "stdout"),
            ("3", "final"),
        ]
        lines = (await running.http.get("/sessions/s_1/stream")).text.splitlines()
        assert [event["data"] for event in events] == lines


async def test_who_comes_back_gets_the_event_after_the_last_it_saw() -> None:
    async with fleet(FakeWorker()) as running:
        await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        url = "/sessions/s_1/stream?fromSeq=1"  # a browser repeats its first URL
        seen = {"last-event-id": "1"}
        back = await running.http.get(url, headers=SSE | seen)
        assert [event["id"] for event in frames(back.text)[1:]] == ["2", "3"]
        ndjson = await running.http.get(url, headers=seen)
        assert [event["seq"] for event in parse(ndjson.text)] == [2, 3]
        wrong = await running.http.get(url, headers={"last-event-id": "x"})
        assert (wrong.status_code, wrong.json()["details"]["field"]) == (400, "Last-Event-ID")


async def test_an_event_source_that_has_seen_the_final_is_told_not_to_come_again() -> None:
    async with fleet(FakeWorker()) as running:
        await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        for seen in ("3", "99"):
            response = await running.http.get("/sessions/s_1/stream", headers=SSE | {"last-event-id": seen})
            assert (response.status_code, response.content) == (204, b"")


async def test_trimmed_history_is_410_for_who_comes_back_too_late() -> None:
    async with fleet(FakeWorker(talks), log_bytes=3000) as running:
        await unread(running, b'{"code": "1", "sessionId": "s_1"}')
        response = await running.http.get("/sessions/s_1/stream", headers=SSE | {"last-event-id": "1"})
        assert (response.status_code, response.json()["code"]) == (410, "EVENTS_GONE")
        assert response.json()["details"]["firstSeq"] > 2


FILTER = {"mode": "include", "rules": [{"types": {"types": ["log"]}}]}


async def logs(session: FakeSession) -> None:
    await session.stdout("a")
    await session.event("log", {"level": "info", "message": "search: 3 found"})
    await session.event("log", {"level": "warn", "message": "slow"})
    await session.final()


async def filtered(config: Any, **headers: str) -> tuple[Response, Response]:
    """Return what a session says to who made it with a filter, and to who reads it with the same one."""
    async with fleet(FakeWorker(logs)) as running:
        body = {"code": "1", "sessionId": "s_1", "filter": config}
        made = await running.http.post("/sessions", json=body, headers=headers)
        read = await running.http.get("/sessions/s_1/stream", params={"filter": json.dumps(config)}, headers=headers)
        return made, read


async def test_a_filter_takes_events_out_and_never_numbers_them_anew() -> None:
    for response in await filtered(FILTER):
        events = [(event["seq"], event["type"]) for event in parse(response.text)]
        assert events == [(1, "session_init"), (3, "log"), (4, "log"), (5, "final")]


async def test_a_filter_looks_into_events_and_the_final_always_comes() -> None:
    patterns = [{"type": "regex", "pattern": r"\b\d+ found$", "field": "payload.message"}]
    config = {"mode": "include", "rules": [{"content": {"patterns": patterns}}], "alwaysAllow": []}
    for response in await filtered(config):
        assert [event["seq"] for event in parse(response.text)] == [3, 5]


async def test_filtered_server_sent_events_leave_their_place_behind() -> None:
    for response in await filtered({"mode": "exclude", "rules": [{}], "alwaysAllow": ["session_init"]}, **SSE):
        kept = [event for event in frames(response.text) if "data" in event]
        assert [(event["id"], event["event"]) for event in kept] == [("1", "session_init"), ("5", "final")]


async def test_a_malformed_filter_is_refused_wherever_it_stands() -> None:
    async with fleet(FakeWorker()) as running:
        bad = {"mode": "include", "rules": [{"types": {"types": ["nonsense"]}}]}
        made = await running.http.post("/sessions", json={"code": "1", "filter": bad})
        await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        read = await running.http.get("/sessions/s_1/stream", params={"filter": json.dumps(bad)})
        for response in (made, read):
            error = response.json()
            assert (response.status_code, error["code"]) == (400, "INVALID_FILTER")
            assert error["details"]["field"] == "filter.rules[0].types.types[0]"
            assert "stdout" in error["details"]["allowed"]
        for text in ("{", "", '"x"'):
            response = await running.http.get("/sessions/s_1/stream", params={"filter": text})
            assert (response.status_code, response.json()["code"]) == (400, "INVALID_FILTER")
        assert len(await running.workers[0].wait_received("execute")) == 1


async def test_the_same_request_made_again_is_answered_from_the_events_it_had() -> None:
    async with fleet(FakeWorker()) as running:
        first = await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        again = await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        assert again.content == first.content
        assert again.headers["x-enclave-replayed"] == "true"
        assert "x-enclave-replayed" not in first.headers
        assert len(running.workers[0].received) == 1


async def test_a_request_that_never_got_to_a_worker_runs_when_it_is_made_again() -> None:
    async with fleet(queue_timeout_ms=1) as running:
        body = {"code": "1", "sessionId": "s_1"}
        first = await running.http.post("/sessions", json=body)
        assert parse(first.text)[-1]["payload"]["error"]["code"] == "NO_CAPACITY"
        again = await running.http.post("/sessions", json=body)
        assert "x-enclave-replayed" not in again.headers
        assert again.text != first.text


async def test_a_request_without_an_id_of_its_own_runs_every_time() -> None:
    async with fleet(FakeWorker()) as running:
        for count in (1, 2):
            await running.http.post("/sessions", json={"code": "1"})
            assert len(running.workers[0].received) == count


async def test_a_live_sessions_id_is_409_for_the_same_request_too_and_says_where_its_events_are() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running:
        first = await start(running, "s_1")
        again = await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        assert (again.status_code, again.json()["code"]) == (409, "DUPLICATE_SESSION")
        assert "/sessions/s_1/stream" in again.json()["message"]
        await running.http.post("/sessions/s_1/cancel")
        await first


async def test_an_answer_that_is_no_longer_kept_is_not_run_again() -> None:
    async with fleet(FakeWorker(talks), log_bytes=3000) as running:
        body = b'{"code": "1", "sessionId": "s_1"}'
        await unread(running, body)
        response = await running.http.post("/sessions", content=body)
        assert (response.status_code, response.json()["code"]) == (410, "EVENTS_GONE")
        assert len(running.workers[0].received) == 1


@pytest.mark.parametrize("event", ["heartbeat", "stdout"])
async def test_heartbeats_and_output_reach_an_event_source_as_they_come(event: str) -> None:
    async def beats(session: FakeSession) -> None:
        if event == "heartbeat":
            await session.event("heartbeat", {"ts": "2026-01-01T00:00:00Z"})
        else:
            await session.stdout("x")
        await session.cancelled.wait()
        await session.fail("SESSION_CANCELLED")

    async with fleet(FakeWorker(beats)) as running:
        body = {"code": "1", "sessionId": "s_1"}
        async with running.http.stream("POST", "/sessions", json=body, headers=SSE) as response:
            lines = response.aiter_lines()
            async for line in lines:
                if line == f"event: {event}":
                    break
            await running.http.post("/sessions/s_1/cancel")
            assert [line async for line in lines][-3] == "event: final"
