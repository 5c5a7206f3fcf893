"""Profiles, environment variables and files on their way through the broker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from enclave_protocol import Final, RemoteProtocolError
from enclave_protocol.inputs import MAX_FILES_BYTES
from tests.broker.conftest import fleet
from tests.fakes import FakeWorker, waits_for_cancel


def offering(*profiles: str, **hello: Any) -> FakeWorker:
    worker = FakeWorker(name="-".join(profiles))
    worker.hello = {"profiles": list(profiles), **hello}
    return worker


def final_of(text: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(text.splitlines()[-1])["payload"]
    return payload


async def test_a_session_runs_on_a_worker_that_offers_its_profile() -> None:
    async with fleet(offering("python"), offering("data"), offering("python")) as running:
        for _ in range(4):
            assert final_of((await running.http.post("/sessions", json={"code": "1", "profile": "data"})).text)["ok"]
        assert [len(await running.workers[1].wait_received("execute", 4)), *executes(running.workers[::2])] == [4, 0, 0]
        (first, *_) = running.workers[1].received
        assert first["profile"] == "data"


def executes(workers: list[FakeWorker]) -> list[int]:
    return [sum(message["type"] == "execute" for message in worker.received) for worker in workers]


async def test_a_profile_that_nobody_offers_is_refused_and_told_what_is_offered() -> None:
    async with fleet(offering("python", "data"), offering("python")) as running:
        response = await running.http.post("/sessions", json={"code": "1", "profile": "gpu"})

        assert response.status_code == 400
        assert response.json() == {
            "code": "INVALID_REQUEST",
            "message": "no worker offers 'gpu'",
            "details": {"field": "profile", "allowed": "data, python"},
        }
        assert executes(running.workers) == [0, 0]
        with pytest.raises(RemoteProtocolError, match="no worker offers 'gpu'"):
            await anext(running.broker.execute("1", profile="gpu"))


async def test_as_long_as_a_worker_has_not_said_what_it_offers_a_session_waits_for_it() -> None:
    silent = FakeWorker()
    silent.hello = None
    async with fleet(offering("python"), strangers=[silent], queue_timeout_ms=1) as running:
        response = await running.http.post("/sessions", json={"code": "1", "profile": "data"})

        error = final_of(response.text)["error"]
        assert error["code"] == "NO_CAPACITY"
        assert error["message"].endswith("nor offers 'data' (offered: python)")


async def test_a_session_waits_for_its_own_profile_only() -> None:
    data = offering("data")
    data.script, data.max_sessions = waits_for_cancel, 1
    async with (
        fleet(offering("python"), data) as running,
        running.http.stream("POST", "/sessions", json={"code": "1", "profile": "data", "sessionId": "s_1"}),
    ):
        await data.wait_received("execute")
        async with running.http.stream("POST", "/sessions", json={"code": "1", "profile": "data", "sessionId": "s_2"}):
            assert running.broker.dispatcher.placer.waiting() == ["s_2"]
            assert final_of((await running.http.post("/sessions", json={"code": "1"})).text)["ok"]
            await running.http.post("/sessions/s_1/cancel")
            await data.wait_received("execute", 2)
            await running.http.post("/sessions/s_2/cancel")


async def test_a_profiles_limits_are_what_its_sessions_limits_start_from() -> None:
    worker = offering("python", "data", profileLimits={"data": {"maxToolCalls": 3, "deadlineMs": 9}})
    async with fleet(worker) as running:
        for body in ({}, {"profile": "data"}, {"profile": "data", "limits": {"deadlineMs": 7}}):
            await running.http.post("/sessions", json={"code": "1", **body})
        received = await worker.wait_received("execute", 3)

        limits = [(message["limits"]["maxToolCalls"], message["limits"]["deadlineMs"]) for message in received]
        assert limits == [(50, 0), (3, 9), (3, 7)]


async def test_a_limit_of_a_worker_that_the_broker_does_not_know_leaves_its_own() -> None:
    worker = offering("python", profileLimits={"python": {"maxDreams": 3}})
    async with fleet(worker) as running:
        assert final_of((await running.http.post("/sessions", json={"code": "1"})).text)["ok"]


async def test_variables_and_files_reach_the_worker_as_they_came() -> None:
    given = {"env": {"A": "1"}, "files": {"a/b": "ä", "c": {"base64": "/wA="}}}
    async with fleet(FakeWorker()) as running:
        await running.http.post("/sessions", json={"code": "1", **given})
        async with connect(running.broker.url.replace("http", "ws") + "/ws", proxy=None) as socket:
            await socket.send(json.dumps({"type": "execute", "sessionId": "s_2", "code": "1", **given}))
            await running.workers[0].wait_received("execute", 2)
        files: dict[str, str | bytes] = {"a/b": "ä", "c": b"\xff\0"}
        events = [event async for event in running.broker.execute("1", env={"A": "1"}, files=files)]
        assert isinstance(events[-1], Final)

        received = await running.workers[0].wait_received("execute", 3)
        assert [{"env": message["env"], "files": message["files"]} for message in received] == [given] * 3


async def test_without_any_the_worker_is_told_of_none() -> None:
    async with fleet(FakeWorker()) as running:
        await running.http.post("/sessions", json={"code": "1"})
        (execute,) = await running.workers[0].wait_received("execute")
        assert not {"env", "files"} & execute.keys()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"env": {"1": ""}}, "env.1"),
        ({"env": 5}, "env"),
        ({"files": {"../a": ""}}, "files.../a"),
        ({"files": {"a": "x" * MAX_FILES_BYTES}}, "files"),
        ({"files": []}, "files"),
    ],
)
async def test_a_bad_variable_or_file_is_refused_by_field_at_either_door(given: dict[str, Any], field: str) -> None:
    async with fleet(FakeWorker()) as running:
        response = await running.http.post("/sessions", json={"code": "1", **given})
        assert (response.status_code, response.json()["details"]["field"]) == (400, field)
        assert response.json()["details"]["allowed"]
        async with connect(running.broker.url.replace("http", "ws") + "/ws", proxy=None) as socket:
            assert json.loads(await socket.recv())["profiles"] == ["python"]
            await socket.send(json.dumps({"type": "execute", "sessionId": "s_1", "code": "1", **given}))
            rejection = json.loads(await socket.recv())
        assert (rejection["sessionId"], rejection["payload"]["field"]) == ("s_1", field)
        assert executes(running.workers) == [0]


async def test_the_largest_files_of_escaped_text_pass() -> None:
    body = b'{"code":"1","files":{"f":"' + b"\\u0041" * (MAX_FILES_BYTES - 1) + b'"}}'
    async with fleet(FakeWorker()) as running:
        assert final_of((await running.http.post("/sessions", content=body)).text)["ok"]
