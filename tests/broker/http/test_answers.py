"""Tool calls that an HTTP client answers."""

from __future__ import annotations

import functools
import json
from typing import Any

from tests.broker.conftest import fleet, start
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel


async def calls(session: FakeSession) -> None:
    """Return what the tool `ask` was answered with."""
    answer = await session.call("ask", {"q": 1})
    await session.final([answer["success"], answer.get("value"), answer.get("error")])


SPELLINGS: list[tuple[dict[str, Any], list[Any]]] = [
    ({"callId": "c_1", "result": {"a": 1}}, [True, {"a": 1}, None]),
    ({"callId": "c_1", "success": True, "value": [1, 2]}, [True, [1, 2], None]),
    ({"callId": "c_1"}, [True, None, None]),
    ({"callId": "c_1", "error": {"message": "no", "code": "NOPE"}}, [False, None, {"message": "no", "code": "NOPE"}]),
    (
        {"type": "tool_result", "sessionId": "SESSION", "callId": "c_1", "result": None, "error": None},
        [True, None, None],
    ),
    (
        {"protocolVersion": 2, "type": "tool_result_submit", "payload": {"callId": "c_1", "ok": True, "result": 5}},
        [True, 5, None],
    ),
]


async def test_an_answer_reaches_the_guest_in_every_spelling_and_content_type() -> None:
    async with fleet(FakeWorker(calls)) as running:
        for i, (body, expected) in enumerate(SPELLINGS * 2):
            kind = {"content-type": "application/json" if i < len(SPELLINGS) else "text/plain"}
            task = await start(running, f"s_{i}", tools=["ask"])
            session = running.broker.dispatcher.directory.get(f"s_{i}")
            assert session is not None
            await running.wait_until(functools.partial(bool, session.calls))
            answer = json.dumps(body).replace("SESSION", f"s_{i}")
            response = await running.http.post(f"/sessions/s_{i}/tool-result", content=answer, headers=kind)
            assert response.json() == {"success": True, "sessionId": f"s_{i}"}
            assert json.loads((await task).splitlines()[-1])["payload"]["result"] == expected


async def test_a_tool_that_was_not_declared_is_nobodys() -> None:
    async with fleet(FakeWorker(calls)) as running:
        response = await running.http.post("/sessions", json={"code": "1", "tools": [{"name": "other"}]})
        success, _, error = json.loads(response.text.splitlines()[-1])["payload"]["result"]
        assert (success, error["code"]) == (False, "UNKNOWN_TOOL")
        assert "other" in error["message"]


async def test_an_answer_that_nobody_waits_for_is_told_why() -> None:
    async with fleet(FakeWorker(calls)) as running:
        task = await start(running, "s_1", tools=["ask"])
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        await running.wait_until(lambda: bool(session.calls))
        for body, status, code, field in (
            ({"callId": "c_other", "result": 1}, 404, "NOT_FOUND", "callId"),
            ({"callId": "call_1"}, 400, "INVALID_REQUEST", "callId"),
            ({"result": 1}, 400, "INVALID_REQUEST", "callId"),
            ({"callId": "c_1", "sessionId": "s_2"}, 400, "INVALID_REQUEST", "sessionId"),
            ({"payload": {"callId": "c_1", "sessionId": "s_2"}}, 400, "INVALID_REQUEST", "payload.sessionId"),
            ({"callId": "c_1", "success": True, "error": {"message": "no"}}, 400, "INVALID_REQUEST", "error"),
            ({"callId": "c_1", "type": "cancel"}, 400, "INVALID_REQUEST", "type"),
            ({"type": "enc", "payload": {}}, 400, "INVALID_REQUEST", "payload.kid"),
            (
                {"type": "enc", "payload": {"kid": "k", "nonceB64": "n", "ciphertextB64": "c"}},
                400,
                "INVALID_REQUEST",
                "type",
            ),
            ([], 400, "INVALID_REQUEST", ""),
        ):
            response = await running.http.post("/sessions/s_1/tool-result", json=body)
            error = response.json()
            assert (response.status_code, error["code"], error.get("details", {}).get("field", "")) == (
                status,
                code,
                field,
            )
        await running.http.post("/sessions/s_1/tool-result", json={"callId": "c_1", "result": 1})
        await task
        response = await running.http.post("/sessions/s_1/tool-result", json={"callId": "c_1", "result": 1})
        assert (response.status_code, response.json()["code"]) == (409, "SESSION_ENDED")
        assert (await running.http.post("/sessions/s_none/tool-result", json={"callId": "c_1"})).status_code == 404


async def test_an_answered_call_is_not_answered_again() -> None:
    async def asks(session: FakeSession) -> None:
        await session.event("tool_call", {"callId": "c_1", "toolName": "ask", "args": None})
        await waits_for_cancel(session)

    async with fleet(FakeWorker(asks)) as running:
        task = await start(running, "s_1", tools=["ask"])
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        await running.wait_until(lambda: bool(session.calls))
        for status, code in ((200, None), (409, "ALREADY_ANSWERED")):
            response = await running.http.post("/sessions/s_1/tool-result", json={"callId": "c_1", "result": 1})
            assert (response.status_code, response.json().get("code")) == (status, code)
        assert len(await running.workers[0].wait_received("tool_result")) == 1
        await running.http.post("/sessions/s_1/cancel")
        await task
