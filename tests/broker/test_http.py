"""The HTTP door, over a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from enclave_broker.access import LOCAL
from enclave_broker.http import MAX_BODY_BYTES
from enclave_broker.new_session import NewSession
from tests.broker.conftest import fleet, parse, start
from tests.fakes import FakeSession, FakeWorker, returns_its_code, waits_for_cancel


async def test_a_session_streams_from_init_to_final() -> None:
    async with fleet(FakeWorker()) as running:
        response = await running.http.post("/sessions", json={"code": "return 1"})
        events = parse(response.text)
        assert [event["type"] for event in events] == ["session_init", "stdout", "final"]
        assert [event["seq"] for event in events] == [1, 2, 3]
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-session-id"] == events[0]["sessionId"]


async def test_events_arrive_as_they_happen() -> None:
    go_on = asyncio.Event()

    async def pauses(session: FakeSession) -> None:
        await session.stdout("first")
        await go_on.wait()
        await session.final()

    async with (
        fleet(FakeWorker(pauses)) as running,
        running.http.stream("POST", "/sessions", json={"code": ""}) as response,
    ):
        lines = response.aiter_lines()
        assert json.loads(await anext(lines))["type"] == "session_init"
        assert json.loads(await anext(lines))["payload"] == {"chunk": "first"}
        go_on.set()
        assert json.loads(await anext(lines))["type"] == "final"


async def test_limits_reach_the_worker_by_every_name_they_have() -> None:
    async with fleet(FakeWorker()) as running:
        body = {"code": "1", "config": {"maxExecutionMs": 5000}, "limits": {"timeout": 70, "maxToolCalls": 3}}
        await running.http.post("/sessions", json=body)
        (execute,) = await running.workers[0].wait_received("execute")
        limits = execute["limits"]
        assert (limits["sessionTtlMs"], limits["deadlineMs"], limits["maxToolCalls"]) == (5000, 70, 3)
        assert limits["maxStdoutBytes"] == 262_144  # the broker's promise, whatever the worker's own default is
        assert execute["firstSeq"] == 2


BAD = [
    ("{", "", "JSON"),
    ("[]", "", "Expected `object`"),
    ('{"code": "\udce9"}', "", "JSON"),
    ("{}", "code", "missing"),
    ({"code": 1}, "code", "str"),
    ({"code": "1", "sessionId": 5}, "sessionId", "str"),
    ({"code": "1", "sessionId": "weird id"}, "sessionId", "not a session id"),
    ({"code": "1", "limits": []}, "limits", "object"),
    ({"code": "1", "limits": {"maxToolCalls": 0}}, "limits.maxToolCalls", ">= 1"),
    ({"code": "1", "limits": {"nonsense": 1}}, "limits.nonsense", "unknown limit"),
    ({"code": "1", "config": {"maxExecutionMs": "1"}}, "config.maxExecutionMs", "int"),
    ({"code": "1", "config": {"maxExecutionMs": 0}}, "config.maxExecutionMs", ">= 1"),
    ({"code": "1", "config": {"speed": 1}}, "config.speed", "unknown field"),
    ({"code": "1", "profle": "python"}, "profle", "unknown field"),
    ({"code": "1", "language": "cobol"}, "language", "cobol"),
    ({"code": "1", "profile": "gpu"}, "profile", "gpu"),
    ({"code": "1", "profile": "p" * 129}, "profile", "no name"),
    ({"code": "1", "profile": ""}, "profile", "no name"),
    ({"code": "1", "tools": "search"}, "tools", "array"),
    ({"code": "1", "tools": ["search", 5]}, "tools[1]", "neither"),
    ({"code": "1", "encryption": {"mode": "on"}}, "encryption.mode", "on"),
    ({"code": "1", "protocolVersion": 3}, "protocolVersion", "3"),
]


@pytest.mark.parametrize(("body", "field", "said"), BAD)
async def test_a_bad_request_is_told_which_field_and_why(body: Any, field: str, said: str) -> None:
    async with fleet(FakeWorker()) as running:
        raw = body if isinstance(body, str) else json.dumps(body)
        response = await running.http.post("/sessions", content=raw.encode("utf-8", "surrogateescape"))
        error = response.json()
        assert (response.status_code, error["code"]) == (400, "INVALID_REQUEST")
        details = error.get("details", {})
        assert details.get("field", "") == field
        assert said in error["message"]
        assert details.get("allowed") or said == "Expected `object`"
        assert running.metric("enclave_rejections_total", code="INVALID_REQUEST") == 1
        assert running.workers[0].received == []


async def test_code_over_its_limit_is_told_the_limit_and_its_size() -> None:
    async with fleet(FakeWorker()) as running:
        response = await running.http.post("/sessions", json={"code": "é" * 1_000_000})
        error = response.json()
        assert (response.status_code, error["code"], error["details"]["field"]) == (413, "CODE_TOO_LARGE", "code")
        assert (error["details"]["limit"], error["details"]["actual"]) == (1024 * 1024, 2_000_000)


async def test_code_at_its_limit_runs_even_when_every_byte_is_escaped() -> None:
    async with fleet(FakeWorker()) as running:
        code = "\x01" * (1024 * 1024)
        response = await running.http.post("/sessions", json={"code": code})
        assert parse(response.text)[-1]["payload"]["result"] == code


async def test_a_huge_request_is_refused_before_it_is_read() -> None:
    async with fleet(FakeWorker()) as running:
        response = await running.http.post("/sessions", content=b" " * (MAX_BODY_BYTES + 1))
        assert (response.status_code, response.json()["code"]) == (413, "REQUEST_TOO_LARGE")


async def test_a_live_sessions_id_can_not_be_used_and_a_finished_ones_can() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running:
        first = await start(running, "s_1")
        response = await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        assert (response.status_code, response.json()["code"]) == (409, "DUPLICATE_SESSION")
        await running.http.post("/sessions/s_1/cancel")
        assert parse(await first)[-1]["payload"]["error"]["code"] == "SESSION_CANCELLED"
        running.workers[0].script = returns_its_code
        again = await running.http.post("/sessions", json={"code": "2", "sessionId": "s_1"})
        assert parse(again.text)[-1]["payload"]["result"] == "2"


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async with fleet(FakeWorker(waits_for_cancel, max_sessions=1), queue_size=0) as running:
        first = await start(running, "s_1")
        response = await running.http.post("/sessions", json={"code": "1"})
        assert (response.status_code, response.json()["code"]) == (503, "NO_CAPACITY")
        assert int(response.headers["retry-after"]) >= 1
        await running.http.post("/sessions/s_1/cancel")
        await first


async def test_sessions_can_be_listed_and_described() -> None:
    async with fleet(FakeWorker()) as running:
        await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        listed = (await running.http.get("/sessions")).json()
        assert listed["total"] == 1
        info = (await running.http.get("/sessions/s_1")).json()
        assert info["state"] == "completed"
        assert info["outcome"] == "ok"
        assert info["expiresAt"] - info["createdAt"] == 60_000
        assert set(info["stats"]) == {"duration", "toolCallCount"}
        assert info["worker"] == "fake"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sessions/s_none"),
        ("DELETE", "/sessions/s_none"),
        ("POST", "/sessions/s_none/cancel"),
        ("GET", "/sessions/s_none/stream"),
        ("GET", "/nowhere"),
    ],
)
async def test_what_is_not_there_is_404_in_the_same_shape(method: str, path: str) -> None:
    async with fleet() as running:
        response = await running.http.request(method, path)
        assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")


async def test_the_wrong_method_is_405_and_says_which_are_right() -> None:
    async with fleet() as running:
        response = await running.http.put("/sessions")
        assert (response.status_code, response.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert "POST" in response.headers["allow"]


@pytest.mark.parametrize("kind", ["application/json", "text/plain;charset=UTF-8"])
async def test_a_cancel_of_any_content_type_ends_the_session(kind: str) -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running:
        stream = await start(running, "s_1")
        response = await running.http.post(
            "/sessions/s_1/cancel", content='{"reason": "bored"}', headers={"content-type": kind}
        )
        assert response.json() == {"success": True, "sessionId": "s_1"}
        assert parse(await stream)[-1]["payload"]["error"]["code"] == "SESSION_CANCELLED"
        (cancel,) = await running.workers[0].wait_received("cancel")
        assert cancel["reason"] == "bored"
        assert (await running.http.post("/sessions/s_1/cancel")).status_code == 200  # again changes nothing
        wrong = await running.http.post("/sessions/s_1/cancel", content='{"reason": 5}')
        assert wrong.json()["details"]["field"] == "reason"


async def test_a_session_that_waits_can_be_cancelled() -> None:
    async with fleet() as running:
        async with running.http.stream("POST", "/sessions", json={"code": "1", "sessionId": "s_1"}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            waits = json.loads(await anext(lines))
            assert (waits["type"], waits["payload"]) == ("status", {"state": "queued", "queuePosition": 1})
            await running.http.post("/sessions/s_1/cancel")
            assert json.loads(await anext(lines))["payload"]["error"]["code"] == "SESSION_CANCELLED"
        assert running.broker.dispatcher.placer.statistics().waiting == 0


async def test_a_deleted_session_is_gone_at_once_and_its_stream_still_ends() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running:
        stream = await start(running, "s_1")
        assert (await running.http.delete("/sessions/s_1")).json() == {"success": True, "sessionId": "s_1"}
        assert (await running.http.get("/sessions/s_1")).status_code == 404
        assert parse(await stream)[-1]["payload"]["error"]["code"] == "SESSION_CANCELLED"
        assert (await running.http.get("/sessions")).json()["total"] == 0


@pytest.mark.parametrize("name", ["fromSeq", "from"])
async def test_a_replay_is_byte_for_byte_what_the_stream_was(name: str) -> None:
    async with fleet(FakeWorker()) as running:
        stream = (await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})).content
        lines = stream.splitlines(keepends=True)
        for seq in range(5):
            replay = (await running.http.get("/sessions/s_1/stream", params={name: seq})).content
            assert replay == b"".join(lines[max(0, seq - 1) :])
        assert (await running.http.get("/sessions/s_1/stream")).content == stream


@pytest.mark.parametrize("seq", ["x", "-1", "1.5", "9" * 20])
async def test_a_replay_from_no_number_is_refused(seq: str) -> None:
    async with fleet(FakeWorker()) as running:
        await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        response = await running.http.get("/sessions/s_1/stream", params={"fromSeq": seq})
        assert (response.status_code, response.json()["details"]["field"]) == (400, "fromSeq")


async def test_trimmed_history_is_410_and_says_what_is_left() -> None:
    async def talks(session: FakeSession) -> None:
        for _ in range(20):
            await session.stdout("x" * 100)
        await session.final()

    async with fleet(FakeWorker(talks), log_bytes=1000) as running:
        session = running.broker.dispatcher.submit(NewSession(code="1", session_id="s_1"), LOCAL)
        await running.wait_until(lambda: not session.live)
        response = await running.http.get("/sessions/s_1/stream?fromSeq=2")
        assert (response.status_code, response.json()["code"]) == (410, "EVENTS_GONE")
        first = response.json()["details"]["firstSeq"]
        kept = parse((await running.http.get(f"/sessions/s_1/stream?fromSeq={first}")).text)
        assert [event["seq"] for event in kept] == list(range(first, 23))


async def test_a_second_reader_sees_the_same_stream_live() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running:
        stream = await start(running, "s_1")
        second = asyncio.create_task(running.http.get("/sessions/s_1/stream"))
        await running.wait_until(lambda: running.metric("enclave_stream_resumes_total") == 1)
        await running.http.post("/sessions/s_1/cancel")
        assert await stream == (await second).text


async def test_a_session_whose_client_went_away_is_cancelled_after_a_while() -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=0.02) as running:
        async with running.http.stream("POST", "/sessions", json={"code": "1"}) as response:
            await anext(response.aiter_lines())
        (cancel,) = await running.workers[0].wait_received("cancel")
        assert "went away" in cancel["reason"]


async def test_a_client_that_comes_back_in_time_takes_its_session_over() -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=20) as running:
        async with running.http.stream("POST", "/sessions", json={"code": "1", "sessionId": "s_1"}) as response:
            lines = response.aiter_lines()
            await anext(lines)
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        await running.wait_until(lambda: not session.log.readers)
        back = asyncio.create_task(running.http.get("/sessions/s_1/stream?fromSeq=2"))
        await running.wait_until(lambda: session.log.readers == 1)
        assert not running.broker.dispatcher.readers._unread
        await running.http.post("/sessions/s_1/cancel")
        assert parse((await back).text)[-1]["type"] == "final"


async def test_a_reader_that_takes_nothing_is_cut_off_and_its_worker_never_waits() -> None:
    async def floods(session: FakeSession) -> None:
        for _ in range(300):
            await session.stdout("x" * 50_000)
        await session.final()

    async with fleet(FakeWorker(floods), log_bytes=100_000) as running:
        body = b'{"code":"1","sessionId":"s_1"}'
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # else the kernel takes as much as it likes
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (running.broker.host, running.broker.port))
        reader, writer = await asyncio.open_connection(sock=client, limit=1)
        writer.write(b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await running.workers[0].wait_received("execute")
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        await running.wait_until(lambda: not session.live)
        assert session.outcome == "ok"
        received = bytearray()
        while chunk := await reader.read(1 << 20):
            received += chunk
        assert b'"final"' not in received
        assert not received.endswith(b"0\r\n\r\n")  # no false end
        assert running.metric("enclave_readers_cut_total") == 1
        writer.close()
        await writer.wait_closed()


async def test_finished_sessions_are_kept_up_to_a_number() -> None:
    async with fleet(FakeWorker(), retained_sessions=2) as running:
        for i in range(4):
            await running.http.post("/sessions", json={"code": "1", "sessionId": f"s_{i}"})
        listed = (await running.http.get("/sessions")).json()["sessions"]
        assert [info["sessionId"] for info in listed] == ["s_2", "s_3"]


async def test_finished_sessions_are_kept_up_to_an_age() -> None:
    async with fleet(FakeWorker(), retain_s=0.01) as running:
        await running.http.post("/sessions", json={"code": "1"})
        await running.wait_until(lambda: not running.broker.dispatcher.directory.sessions())


async def test_a_fleet_that_only_drains_is_not_ready() -> None:
    worker = FakeWorker()
    worker.draining = True
    async with fleet(worker) as running:
        answer = await running.http.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")


async def test_health_readiness_metrics_and_docs_answer() -> None:
    async with fleet(FakeWorker()) as running:
        assert (await running.http.get("/healthz")).json()["status"] == "ok"
        assert (await running.http.get("/readyz")).status_code == 200
        await running.http.post("/sessions", json={"code": "1"})
        metrics = (await running.http.get("/metrics")).text
        assert 'enclave_sessions_total{outcome="ok"} 1.0' in metrics
        assert 'enclave_workers{state="connected"} 1.0' in metrics
        page = (await running.http.get("/docs")).text
        assert "/sessions/{session_id}/stream" in page
        assert "fromSeq" in page
        assert "http" not in page.lower().replace("<!doctype html>", ""), "the page must need nothing from elsewhere"


async def test_the_openapi_document_has_every_route_and_the_types_of_the_requests() -> None:
    async with fleet() as running:
        document = (await running.http.get("/docs/openapi.json")).json()
        assert set(document["paths"]) >= {
            "/sessions",
            "/sessions/{session_id}",
            "/sessions/{session_id}/cancel",
            "/sessions/{session_id}/stream",
            "/healthz",
            "/readyz",
            "/metrics",
        }
        body = document["paths"]["/sessions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        name = body["$ref"].rpartition("/")[2]
        assert "sessionId" in document["components"]["schemas"][name]["properties"]
        assert "SessionConfig" in json.dumps(document["components"]["schemas"][name])


async def test_a_stopping_broker_ends_every_stream() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running:
        stream = await start(running, "s_1")
        await running.broker.stop()
        error = parse(await stream)[-1]["payload"]["error"]
        assert (error["code"], error["message"]) == ("SESSION_CANCELLED", "the broker is stopping")
