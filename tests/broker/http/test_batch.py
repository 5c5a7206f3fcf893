"""Many runs in one request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from enclave_broker.http.batch import decode_batch
from enclave_broker.languages import Unsaid
from enclave_protocol import Limits
from tests.broker.conftest import fleet, parse
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel


async def test_every_run_has_its_line_and_the_last_line_sums_up() -> None:
    async def run(session: FakeSession) -> None:
        if "2" in session.execute["code"]:
            await session.fail("EXECUTION_ERROR", "two")
        else:
            await session.final(session.execute["code"])

    async with fleet(FakeWorker(run)) as running:
        body = {"code": "return item", "inputs": [0, 1, 2, "3"], "limits": {"maxToolCalls": 7}}
        response = await running.http.post("/sessions:batch", json=body)
        assert response.headers["content-type"] == "application/x-ndjson"
        *lines, summary = parse(response.text)
        items = sorted(lines, key=lambda line: line["index"])
        assert [(item["type"], item["index"], item["ok"]) for item in items] == [
            ("item", 0, True),
            ("item", 1, True),
            ("item", 2, False),
            ("item", 3, True),
        ]
        assert [item.get("result") for item in items] == [
            "item = 0; return item",
            "item = 1; return item",
            None,
            "item = '3'; return item",
        ]
        assert items[2]["error"] == {"message": "two", "code": "EXECUTION_ERROR"}
        assert all(item["stats"]["durationMs"] == 1.5 for item in items)
        kept = await running.http.get(f"/sessions/{items[0]['sessionId']}/stream")
        assert parse(kept.text)[-1]["payload"]["result"] == "item = 0; return item"
        assert summary.pop("durationMs") >= 0
        assert summary == {"type": "summary", "total": 4, "succeeded": 3, "failed": 1}
        executes = await running.workers[0].wait_received("execute", 4)
        assert {execute["limits"]["maxToolCalls"] for execute in executes} == {7}


async def test_items_are_codes_with_settings_that_go_before_the_batchs() -> None:
    async with fleet(FakeWorker()) as running:
        items = [{"code": "a"}, {"code": "b", "env": {"X": "own"}, "limits": {"maxToolCalls": 3}}]
        body = {"items": items, "env": {"X": "all"}, "limits": {"maxToolCalls": 7}, "concurrency": 1}
        lines = parse((await running.http.post("/sessions:batch", json=body)).text)
        assert [line.get("result") for line in lines] == ["a", "b", None]
        first, second = await running.workers[0].wait_received("execute", 2)
        assert (first["env"], first["limits"]["maxToolCalls"]) == ({"X": "all"}, 7)
        assert (second["env"], second["limits"]["maxToolCalls"]) == ({"X": "own"}, 3)


async def test_no_more_run_at_once_than_was_said() -> None:
    most = 0

    async def run(session: FakeSession) -> None:
        nonlocal most
        most = max(most, len(session.worker.sessions))
        await session.stdout("x")
        await session.final()

    async with fleet(FakeWorker(run)) as running:
        body = {"code": "", "inputs": list(range(20)), "concurrency": 3}
        assert parse((await running.http.post("/sessions:batch", json=body)).text)[-1]["succeeded"] == 20
        assert 1 < most <= 3


async def test_results_come_as_runs_end_and_not_in_their_order() -> None:
    second_ended = asyncio.Event()

    async def run(session: FakeSession) -> None:
        if session.execute["code"] == "slow":
            await second_ended.wait()
        await session.final()

    async with fleet(FakeWorker(run)) as running:
        body = {"items": [{"code": "slow"}, {"code": "fast"}]}
        async with running.http.stream("POST", "/sessions:batch", json=body) as response:
            lines = response.aiter_lines()
            assert json.loads(await anext(lines))["index"] == 1
            second_ended.set()
            assert [json.loads(line).get("index") async for line in lines] == [0, None]


async def test_a_batch_waits_for_room_where_a_single_request_is_refused() -> None:
    async with fleet(FakeWorker(max_sessions=1), queue_size=0) as running:
        body = {"code": "", "inputs": [1, 2], "concurrency": 2}
        assert parse((await running.http.post("/sessions:batch", json=body)).text)[-1]["succeeded"] == 2


async def test_a_run_that_finds_no_room_in_time_says_so_on_its_line() -> None:
    async with fleet(FakeWorker(waits_for_cancel, max_sessions=1), queue_size=0, queue_timeout_ms=1) as running:
        body = {"code": "", "inputs": [1, 2], "concurrency": 2, "limits": {}}
        async with running.http.stream("POST", "/sessions:batch", json=body) as response:
            line = json.loads(await anext(response.aiter_lines()))
        assert (line["ok"], line["error"]["code"]) == (False, "NO_CAPACITY")
        await running.wait_until(lambda: running.broker.dispatcher.directory.live == 0)


async def test_who_leaves_cancels_what_runs_and_nothing_more_begins() -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=60.0) as running:
        body = {"code": "", "inputs": list(range(10)), "concurrency": 2}
        async with running.http.stream("POST", "/sessions:batch", json=body):
            await running.workers[0].wait_received("execute", 2)
        cancels = await running.workers[0].wait_received("cancel", 2)
        assert all("went away" in cancel["reason"] for cancel in cancels)
        await running.wait_until(lambda: running.broker.dispatcher.directory.live == 0)
        assert len(await running.workers[0].wait_received("execute")) == 2


BAD: list[tuple[Any, str, str]] = [
    ({}, "items", "what to run"),
    ({"code": "1"}, "items", "what to run"),
    ({"inputs": [1]}, "items", "what to run"),
    ({"code": "1", "inputs": [], "items": []}, "items", "what to run"),
    ({"code": "1", "items": [{"code": "2"}]}, "items", "what to run"),
    ({"code": "1", "inputs": [0] * 1001}, "inputs", "length"),
    ({"code": "1", "inputs": [1], "concurrency": 65}, "concurrency", "<= 64"),
    ({"code": "1", "inputs": [1], "concurrency": 0}, "concurrency", ">= 1"),
    ({"code": "1", "inputs": [1], "limits": {"x": 1}}, "limits.x", "unknown limit"),
    ({"code": "1", "inputs": [1], "sessionId": "s_1"}, "sessionId", "unknown field"),
    ({"items": [{"code": "1"}, {"code": "1", "limits": {"x": 1}}]}, "items[1].limits.x", "unknown limit"),
    ({"items": [{"code": "1"}, {}]}, "items[1].code", "missing"),
]


async def test_a_malformed_batch_is_refused_as_a_whole_with_the_field() -> None:
    async with fleet(FakeWorker()) as running:
        for body, field, said in BAD:
            response = await running.http.post("/sessions:batch", json=body)
            error = response.json()
            assert (response.status_code, error["code"], error["details"]["field"]) == (400, "INVALID_REQUEST", field)
            assert said in error["message"]
        assert running.workers[0].received == []


async def test_an_empty_batch_is_only_its_summary() -> None:
    async with fleet() as running:
        lines = parse((await running.http.post("/sessions:batch", json={"code": "", "inputs": []})).text)
        assert [line["type"] for line in lines] == ["summary"]


async def test_an_input_that_makes_the_code_too_large_fails_alone() -> None:
    async with fleet(FakeWorker()) as running:
        body = {"code": "return item", "inputs": ["x" * 1_100_000, 1], "concurrency": 1}
        lines = parse((await running.http.post("/sessions:batch", json=body)).text)
        assert [line.get("ok") for line in lines] == [False, True, None]
        assert lines[0]["error"]["code"] == "CODE_TOO_LARGE"


@pytest.mark.parametrize("path", ["/sessions:other", "/sessions:batch/1"])
async def test_other_names_beside_it_are_not_found(path: str) -> None:
    async with fleet() as running:
        assert (await running.http.post(path, json={})).status_code == 404


def test_what_items_share_is_read_once() -> None:
    """A thousand items of a few bytes, with files that take ten milliseconds to check, took the loop ten seconds."""
    files = {"a/" * 500 + str(i): "" for i in range(100)}
    body = {"items": [{"code": ""}, {"code": "", "files": {"own": ""}}], "files": files, "env": {"A": "1"}}
    batch = decode_batch(json.dumps(body).encode(), lambda _: Limits(), Unsaid())
    shared, own = (make() for make in batch.runs)
    assert (shared.files, shared.env) == (files, {"A": "1"})
    assert (own.files, own.env) == ({"own": ""}, {"A": "1"})
