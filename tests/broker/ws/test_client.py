"""The WebSocket door: the worker's own messages, several sessions on one socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from enclave_broker.access import LOCAL
from enclave_broker.new_session import NewSession
from enclave_broker.ws.client import SocketClient
from tests.broker.conftest import fleet
from tests.broker.ws.sockets import client_of
from tests.fakes import FakeSession, FakeWorker, returns_its_code, waits_for_cancel


async def calls_a_tool(session: FakeSession) -> None:
    await session.final(await session.call("ask", {"question": 1}))


async def test_the_broker_says_hello_and_answers_pings() -> None:
    async with fleet(FakeWorker(max_sessions=7)) as running, client_of(running) as client:
        await client.send("ping", timestamp=5)
        pong = await client.next()
        assert pong == {"type": "pong", "timestamp": 5, "active": 0, "maxSessions": 7, "draining": False}


async def test_sessions_share_a_socket_and_keep_their_own_order() -> None:
    async with fleet(FakeWorker()) as running, client_of(running) as client:
        for i in range(5):
            await client.send("execute", sessionId=f"s_{i}", code=str(i))
        told: dict[str, list[int]] = {}
        results: dict[str, Any] = {}
        while len(results) < 5:
            event = await client.next()
            told.setdefault(event["sessionId"], []).append(event["seq"])
            if event["type"] == "final":
                results[event["sessionId"]] = event["payload"]["result"]
        assert results == {f"s_{i}": str(i) for i in range(5)}
        assert all(seqs == [1, 2, 3] for seqs in told.values())


async def test_a_session_without_an_id_is_given_one() -> None:
    async with fleet(FakeWorker()) as running, client_of(running) as client:
        await client.send("execute", code="1")
        assert (await client.next())["sessionId"].startswith("s_")


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "tool_result", "success": True, "value": {"a": [1, None]}},
        {"type": "tool_result", "result": {"a": [1, None]}},
        {"type": "tool_result_submit", "payload": {"ok": True, "result": {"a": [1, None]}}},
    ],
)
async def test_a_client_answers_calls_of_tools_the_broker_does_not_have(answer: dict[str, Any]) -> None:
    async with fleet(FakeWorker(calls_a_tool)) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_1", code="1")
        call = await client.next("tool_call")
        if "payload" in answer:
            answer = answer | {"payload": answer["payload"] | {"callId": call["payload"]["callId"]}}
        else:
            answer = answer | {"callId": call["payload"]["callId"]}
        await client.socket.send(json.dumps(answer | {"sessionId": "s_1"}))
        final = await client.next("final")
        assert final["payload"]["result"]["value"] == {"a": [1, None]}


async def test_a_declared_tool_is_the_clients_and_another_name_is_unknown_at_once() -> None:
    async def calls_both(session: FakeSession) -> None:
        unknown = await session.call("other", call_id="c_1")
        await session.final([unknown["error"], await session.call("mine", call_id="c_2")])

    async with fleet(FakeWorker(calls_both)) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_1", code="1", tools=[{"name": "mine", "description": "Mine."}])
        while (await client.next("tool_call"))["payload"]["toolName"] != "mine":
            pass
        await client.send("tool_result", sessionId="s_1", callId="c_2", success=True, value=5)
        told, answered = (await client.next("final"))["payload"]["result"]
        assert told == {"code": "UNKNOWN_TOOL", "message": "no tool 'other' (tools: none; of the client: mine)"}
        assert answered["value"] == 5


async def test_a_declared_name_that_the_broker_has_is_refused() -> None:
    async with fleet(FakeWorker()) as running, client_of(running) as client:
        running.broker.tools.register("greet", str)
        await client.send("execute", sessionId="s_1", code="1", tools=["mine", "greet"])
        rejection = await client.next()
        assert (rejection["sessionId"], rejection["payload"]["field"]) == ("s_1", "tools[1].name")


async def test_a_cancel_ends_the_session() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_1", code="1")
        await client.next("stdout")
        await client.send("cancel", sessionId="s_1", payload={"reason": "enough"})
        assert (await client.next("final"))["payload"]["error"]["code"] == "SESSION_CANCELLED"


BAD = [
    ("{", "", None),
    ('{"type":"dance"}', "type", None),
    ('{"type":"execute"}', "code", None),
    ('{"type":"execute","code":5,"sessionId":"s_9"}', "code", "s_9"),
    ('{"type":"execute","code":"1","sessionId":"nine"}', "sessionId", None),
    ('{"type":"execute","code":"1","sessionId":"s_live"}', "sessionId", "s_live"),
    ('{"type":"execute","code":"1","sessionId":"s_9","limits":{"maxToolCalls":"x"}}', "limits.maxToolCalls", "s_9"),
    ('{"type":"execute","code":"1","sessionId":"s_9","profile":"gpu"}', "profile", "s_9"),
    ('{"type":"execute","code":"1","sessionId":"s_9","firstSeq":4}', "firstSeq", "s_9"),
    (json.dumps({"type": "execute", "code": "x" * 2_000_000, "sessionId": "s_9"}), "code", "s_9"),
    ('{"type":"execute","code":"1","sessionId":"s_9","tools":"ask"}', "tools", "s_9"),
    ('{"type":"execute","code":"1","sessionId":"s_9","tools":["ask",{"name":""}]}', "tools[1].name", "s_9"),
    ('{"type":"execute","code":"1","sessionId":"s_9","tools":["ask","ask"]}', "tools[1].name", "s_9"),
    ('{"type":"attach","sessionId":"s_unknown"}', "sessionId", "s_unknown"),
    ('{"type":"attach","sessionId":"s_live","fromSeq":"1"}', "fromSeq", "s_live"),
    ('{"type":"cancel","sessionId":"s_unknown"}', "sessionId", "s_unknown"),
    ('{"type":"cancel"}', "sessionId", None),
    ('{"type":"tool_result","sessionId":"s_unknown","callId":"c_1","value":1}', "sessionId", "s_unknown"),
    ('{"type":"tool_result","sessionId":"s_live","callId":"c_unknown","value":1}', "callId", "s_live"),
    ('{"type":"tool_result","sessionId":"s_live","callId":"one","value":1}', "callId", "s_live"),
    ('{"type":"tool_result","sessionId":"s_live","value":1}', "callId", "s_live"),
]


@pytest.mark.parametrize(("text", "field", "session_id"), BAD)
async def test_a_bad_message_is_told_which_field_and_touches_nothing(
    text: str, field: str, session_id: str | None
) -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_live", code="1")
        await client.next("stdout")
        await client.socket.send(text)
        rejection = await client.next()
        assert rejection["type"] == "error"
        assert "seq" not in rejection
        assert rejection.get("sessionId") == session_id
        assert rejection["payload"]["code"] == "VALIDATION_ERROR"
        assert rejection["payload"].get("field", "") == field
        assert running.metric("enclave_rejections_total", code="VALIDATION_ERROR") == 1
        await client.send("cancel", sessionId="s_live")
        final = await client.next()
        assert (final["type"], final["sessionId"]) == ("final", "s_live")


async def test_a_second_result_for_a_call_is_refused() -> None:
    async def goes_on(session: FakeSession) -> None:
        await session.call("ask")
        await session.cancelled.wait()
        await session.fail("SESSION_CANCELLED")

    async with fleet(FakeWorker(goes_on)) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_1", code="1")
        await client.next("tool_call")
        await client.send("tool_result", sessionId="s_1", callId="c_1", value=1)
        await client.next("tool_result_applied")
        await client.send("tool_result", sessionId="s_1", callId="c_1", value=2)
        rejection = await client.next()
        assert rejection["payload"]["field"] == "callId"
        assert "before" in rejection["payload"]["message"]
        assert len(await running.workers[0].wait_received("tool_result")) == 1


async def test_a_session_of_another_connection_can_not_be_touched() -> None:
    async with (
        fleet(FakeWorker(waits_for_cancel)) as running,
        client_of(running) as owner,
        client_of(running) as stranger,
    ):
        await owner.send("execute", sessionId="s_1", code="1")
        await owner.next("stdout")
        await stranger.send("cancel", sessionId="s_1")
        assert (await stranger.next("error"))["payload"]["field"] == "sessionId"


async def test_without_capacity_the_session_is_one_final() -> None:
    async with fleet(queue_size=0) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_1", code="1")
        final = await client.next()
        assert (final["type"], final["seq"], final["payload"]["error"]["code"]) == ("final", 1, "NO_CAPACITY")
        assert final["payload"]["error"]["retryAfterMs"] == 5000, "there is no worker"


async def test_sessions_of_a_closed_socket_are_cancelled_when_nobody_came_back_in_time() -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=0.0) as running:
        async with client_of(running) as client:
            for i in range(3):
                await client.send("execute", sessionId=f"s_{i}", code="1")
            await running.workers[0].wait_received("execute", 3)
        await running.workers[0].wait_received("cancel", 3)
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().reserved == 0)


async def test_more_sessions_than_a_socket_may_follow_are_refused_until_one_ends() -> None:
    async with fleet(FakeWorker(waits_for_cancel), socket_sessions=2) as running, client_of(running) as client:
        live = running.broker.dispatcher.submit(NewSession(session_id="s_live", code="1"), LOCAL)
        for name in ("s_1", "s_2"):
            await client.send("execute", sessionId=name, code="1")
            await client.next("stdout")
        await client.send("execute", sessionId="s_3", code="1")
        final = await client.next()
        assert (final["type"], final["sessionId"], final["payload"]["error"]["code"]) == ("final", "s_3", "NO_CAPACITY")
        assert "2 sessions of this connection" in final["payload"]["error"]["message"]
        assert "retryAfterMs" not in final["payload"]["error"], "nobody knows when one of its own ends"
        await client.send("attach", sessionId="s_live")
        rejection = await client.next()
        assert (rejection["type"], rejection["sessionId"]) == ("error", "s_live")
        await client.send("cancel", sessionId="s_1")
        await client.next("final")
        await client.send("attach", sessionId="s_live")
        assert (await client.next())["sessionId"] == "s_live"
        running.broker.dispatcher.cancel(live)


async def test_another_socket_reads_on_where_a_closed_one_stopped() -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=60.0) as running:
        async with client_of(running) as client:
            await client.send("execute", sessionId="s_1", code="1")
            assert (await client.next("stdout"))["seq"] == 2
        async with client_of(running) as client:
            await client.send("attach", sessionId="s_1", fromSeq=3)
            await client.send("cancel", sessionId="s_1")
            final = await client.next()
            assert (final["type"], final["seq"]) == ("final", 3)
        assert not running.workers[0].sessions


async def test_an_ended_session_is_replayed_to_whoever_attaches() -> None:
    async with fleet(FakeWorker()) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_1", code="1")
        await client.next("final")
        await client.send("attach", sessionId="s_1")
        assert [(await client.next())["seq"] for _ in range(3)] == [1, 2, 3]


async def test_two_sockets_may_read_one_session_and_the_first_answer_wins() -> None:
    async with fleet(FakeWorker(calls_a_tool)) as running, client_of(running) as one, client_of(running) as two:
        await one.send("execute", sessionId="s_1", code="1")
        await one.next("tool_call")
        await two.send("attach", sessionId="s_1")
        await two.next("tool_call")
        await two.send("tool_result", sessionId="s_1", callId="c_1", value="two")
        assert (await two.next("final"))["payload"]["result"]["value"] == "two"
        assert (await one.next("final"))["payload"]["result"]["value"] == "two"


@pytest.mark.parametrize(
    ("session_id", "from_seq", "field", "allowed"),
    [
        ("s_unknown", 1, "sessionId", "a session that is live or retained"),
        ("s_mine", 1, "sessionId", "a session that this connection does not read yet"),
        ("s_done", 2, "fromSeq", "3 or more"),
        ("s_done", 4, "fromSeq", "at most 3"),
        ("s_live", 4, "fromSeq", "at most 3"),
    ],
)
async def test_an_attach_that_can_not_be_served_says_from_where_it_could(
    session_id: str, from_seq: int, field: str, allowed: str
) -> None:
    async def runs(session: FakeSession) -> None:
        await (waits_for_cancel(session) if session.execute["code"] == "wait" else returns_its_code(session))

    async with fleet(FakeWorker(runs), log_bytes=1000) as running, client_of(running) as client:
        dispatcher = running.broker.dispatcher
        done = dispatcher.submit(NewSession(session_id="s_done", code="x" * 800), LOCAL)
        await running.wait_until(lambda: not done.live)
        live = dispatcher.submit(NewSession(session_id="s_live", code="wait"), LOCAL)
        await running.wait_until(lambda: live.log.next_seq == 3)
        await client.send("execute", sessionId="s_mine", code="wait")
        await client.next("stdout")
        await client.send("attach", sessionId=session_id, fromSeq=from_seq)
        rejection = await client.next()
        assert rejection["type"] == "error"
        assert (rejection["sessionId"], rejection["payload"]["field"]) == (session_id, field)
        assert rejection["payload"]["allowed"] == allowed
        first_kept = {"s_done": 3, "s_live": 1}.get(session_id)
        assert rejection["payload"].get("firstSeq") == (first_kept if field == "fromSeq" else None)
        dispatcher.cancel(live)


async def test_a_client_that_does_not_read_is_cut_off_and_its_worker_never_waits() -> None:
    async def floods(session: FakeSession) -> None:
        for _ in range(400):
            await session.stdout("x" * 50_000)
        await session.final()

    async with fleet(FakeWorker(floods), log_bytes=100_000) as running:
        async with client_of(running) as client:
            client.socket.transport.pause_reading()
            await client.send("execute", sessionId="s_1", code="1")
            await running.workers[0].wait_received("execute")
            session = running.broker.dispatcher.directory.get("s_1")
            assert session is not None
            await running.wait_until(lambda: not session.live)
            assert session.outcome == "ok"
            client.socket.transport.resume_reading()
            await client.socket.wait_closed()
        assert client.socket.close_code == 4008
        assert running.metric("enclave_readers_cut_total") == 1


async def test_an_id_whose_events_are_still_being_sent_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream would go on under the other's name, and the other's would never begin."""
    held, refused, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    send, reply = SocketClient._send, SocketClient._reply

    async def slow(self: SocketClient, line: bytes) -> None:
        if b'"final"' in line:
            held.set()
            await go.wait()
        await send(self, line)

    def seen(self: SocketClient, line: bytes) -> None:
        reply(self, line)
        if b'"error"' in line:
            refused.set()

    monkeypatch.setattr(SocketClient, "_send", slow)
    monkeypatch.setattr(SocketClient, "_reply", seen)
    async with fleet(FakeWorker()) as running, client_of(running) as client:
        await client.send("execute", sessionId="s_x", code="1")
        await held.wait()
        await client.send("execute", sessionId="s_x", code="2")
        await refused.wait()
        go.set()
        assert (await client.next("final"))["payload"]["result"] == "1"
        assert "still being sent" in (await client.next("error"))["payload"]["message"]
