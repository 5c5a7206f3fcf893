"""Connections that break, are refused or are none, by a broker that does exactly that."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from enclave_client import (
    AsyncClient,
    BrokerUnavailable,
    RequestRefused,
    SessionLost,
    SessionTimeout,
    connection,
    events,
)
from tests.client.clients import client_of, search
from tests.client.fake_socket import FakeSocketBroker, Told, refusal, says_hello, waits_for_cancel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.client.fake_socket import Script


@contextlib.asynccontextmanager
async def stuck(script: Script) -> AsyncIterator[tuple[AsyncClient, FakeSocketBroker]]:
    """A client with a connection that takes nothing."""
    async with client_of(script) as (client, broker):
        broker.reads = False
        with pytest.raises(SessionTimeout):
            await client.run("", wait_s=0.05)
        yield client, broker
        broker.cut()


async def test_a_broker_that_takes_nothing_is_not_waited_for_nor_are_requests_piled_up() -> None:
    async with stuck(says_hello) as (client, _):
        code = "#" * 1_000_000
        ends = await asyncio.gather(*(client.run(code, wait_s=0.1) for _ in range(40)), return_exceptions=True)
        assert {type(end) for end in ends} == {SessionTimeout}
        [wiring] = client._wirings
        assert wiring.engine.outgoing_bytes < connection.MAX_OUTGOING_BYTES + 2_000_000


async def test_closing_ends_sessions_that_could_not_be_asked_for_yet() -> None:
    async with stuck(says_hello) as (client, broker):
        code = "#" * 1_000_000
        runs = [asyncio.create_task(client.run(code)) for _ in range(40)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        broker.cut()
        await closing
        ends = await asyncio.gather(*runs, return_exceptions=True)
        assert all(isinstance(end, BrokerUnavailable) for end in ends)


async def test_a_lost_connection_loses_and_repeats_nothing() -> None:
    async def script(told: Told) -> None:
        for n in range(40):
            await told.stdout(f"{n} ")
            if n % 10 == 5:
                told.broker.cut()
        await told.final("end")

    async with client_of(script) as (client, broker):
        numbers: list[int] = []
        result = await client.run("", on_event=lambda event: numbers.append(event.seq))
        assert len(broker.handshakes) > 1

    assert result.stdout == "".join(f"{n} " for n in range(40))
    assert numbers == list(range(1, 43))


async def test_a_call_that_runs_while_the_connection_is_lost_is_answered_once_on_the_next() -> None:
    runs: list[str] = []
    go_on = asyncio.Event()

    async def slow(text: str) -> str:
        runs.append(text)
        await go_on.wait()
        return text

    async def script(told: Told) -> None:
        asyncio.get_running_loop().call_soon(told.broker.cut)
        await told.final((await told.call("slow", "once"))["value"])

    async with client_of(script) as (client, broker):
        running = asyncio.create_task(client.run("", tools=[slow]))
        await broker.wait_received("attach")
        go_on.set()
        assert (await running).value == "once"
        answers = await broker.wait_received("tool_result")

    assert (runs, len(answers)) == (["once"], 1)


async def test_an_answer_that_got_lost_is_sent_again() -> None:
    async def script(told: Told) -> None:
        await told.final((await told.call("search", "x"))["value"])

    async with client_of(script) as (client, broker):
        broker.deaf = {"tool_result"}
        running = asyncio.create_task(client.run("", tools=[search]))
        await broker.wait_received("tool_result")
        broker.deaf = set()
        broker.cut()
        assert (await running).value == ["x", "x"]


async def test_a_request_that_got_lost_is_sent_again() -> None:
    async with client_of(says_hello) as (client, broker):
        broker.deaf = {"execute"}
        running = asyncio.create_task(client.run("x"))
        await broker.wait_received("execute")
        broker.deaf = set()
        broker.cut()
        assert (await running).value == "x"


async def test_a_broker_that_comes_back_without_the_session_has_lost_it() -> None:
    async with client_of(waits_for_cancel) as (client, broker):
        async with client.stream("") as session:
            async for event in session:
                if isinstance(event, events.Stdout):
                    break
            await broker.stop()
            broker.forget()
            await broker.start()
            with pytest.raises(SessionLost, match="does not know it any more") as lost:
                await session.wait()
        assert (lost.value.last_seq, lost.value.reason) == (2, "forgotten")
        broker.script = says_hello
        assert (await client.run("and it goes on")).ok


async def test_a_broker_that_stays_away_loses_the_session_in_the_end() -> None:
    async with client_of(waits_for_cancel, reconnect_s=0.1) as (client, broker):
        async with client.stream("") as session:
            await broker.stop()
            with pytest.raises(SessionLost) as lost:
                await session.wait()
        assert lost.value.reason == "unreachable"
        with pytest.raises(BrokerUnavailable):
            await client.run("")


async def test_a_broker_that_is_killed_and_comes_back_with_its_sessions_is_waited_for_and_loses_nothing() -> None:
    ran: list[int] = []

    def square(n: int) -> int:
        ran.append(n)
        return n * n

    async def script(told: Told) -> None:
        first = await told.call("square", {"n": 3}, call_id="c_1")
        await told.broker.stop()
        second = asyncio.create_task(told.call("square", {"n": 4}, call_id="c_2"))
        await told.broker.start()
        await told.final([first["value"], (await second)["value"]])

    async with client_of(script) as (client, broker):
        result = await client.run("", tools=[square])
        attached = await broker.wait_received("attach")

    assert result.value == [9, 16]
    assert ran == [3, 4]
    assert attached[0]["fromSeq"] > 1


async def test_a_connection_that_nobody_needs_is_replaced_by_the_next_session() -> None:
    async with client_of(says_hello) as (client, broker):
        await client.run("")
        await broker.stop()
        await broker.start()
        assert (await client.run("again")).value == "again"
        assert len(broker.handshakes) == 2


async def test_nobody_there_is_told_at_once() -> None:
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
            await client.run("")


async def test_a_broker_that_takes_connections_and_drops_them_is_not_besieged(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []

    def pause_s(attempts: int, _jitter: float) -> float:
        pauses.append(attempts)
        return 0.0

    monkeypatch.setattr(connection, "pause_s", pause_s)

    async with client_of(waits_for_cancel) as (client, broker), client.stream("") as session:
        for count in range(1, 5):
            broker.deaf = {"attach"}
            broker.cut()
            await broker.wait_received("attach", count)
        assert pauses == [0, 0, 1, 2, 3]
        broker.deaf = set()
        broker.cut()
        session.cancel()
        await session.wait()


async def test_a_fault_of_our_own_ends_what_runs_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(says_hello) as (client, _):
        with monkeypatch.context() as patch:
            patch.setattr("enclave_client.engine.Engine.next_frame", lambda _: 1 / 0)
            with pytest.raises(BrokerUnavailable, match="unhandled errors"):
                await client.run("")
        assert "fault of the client's own" in caplog.text
        assert (await client.run("x")).value == "x"


async def test_many_sessions_share_one_connection() -> None:
    async with client_of(says_hello) as (client, broker):
        results = await asyncio.gather(*(client.run(str(n)) for n in range(50)))
        assert len(broker.handshakes) == 1
    assert [result.value for result in results] == [str(n) for n in range(50)]


async def test_more_sessions_than_a_connection_takes_are_given_another() -> None:
    async def script(told: Told) -> None:
        if len(told.broker.sessions) == 450:
            everybody.set()
        await everybody.wait()
        await told.final()

    everybody = asyncio.Event()
    async with client_of(script) as (client, broker):
        results = await asyncio.gather(*(client.run("") for _ in range(450)))
        assert all(result.ok for result in results)
        assert len(broker.handshakes) == 3
        await client.run("")
        assert len(broker.handshakes) == 3


async def test_a_reader_that_is_too_slow_loses_its_session_and_no_other() -> None:
    full = asyncio.Event()

    async def script(told: Told) -> None:
        if told.execute["code"] == "quick":
            await told.final("quick")
            return
        for _ in range(100):
            await told.stdout("x" * 1000)
        await told.cancelled.wait()
        full.set()

    async with client_of(script, buffer_bytes=20_000) as (client, _), client.stream("") as session:
        await full.wait()
        assert (await client.run("quick")).ok
        with pytest.raises(SessionLost, match="20000 bytes behind"):
            await session.wait()


# The handshake


async def test_the_key_and_the_subprotocol_are_in_the_handshake_and_the_key_nowhere_else() -> None:
    async with client_of(says_hello, api_key="ek_secret") as (client, broker):
        await client.run("")
        assert broker.handshakes[0].headers["Authorization"] == "Bearer ek_secret"
        assert broker.handshakes[0].headers["Sec-WebSocket-Protocol"] == "enclave.v2"
        assert broker.handshakes[0].path == "/ws"
        assert "ek_secret" not in repr(client) + repr(vars(client)["_settings"])


async def test_the_address_and_the_key_may_be_given_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeSocketBroker(says_hello) as broker:
        monkeypatch.setenv("ENCLAVE_BROKER", broker.url + "/behind/a/proxy/")
        monkeypatch.setenv("ENCLAVE_API_KEY", "ek_environment")
        async with AsyncClient() as client:
            await client.run("")
        assert broker.handshakes[0].headers["Authorization"] == "Bearer ek_environment"
        assert broker.handshakes[0].path == "/behind/a/proxy/ws"


async def test_a_refused_key_is_the_callers_error_and_not_tried_again() -> None:
    async with client_of(says_hello, api_key="wrong") as (client, broker):
        broker.refusal = refusal(401, b'{"code":"UNAUTHORIZED","message":"no such key"}')
        with pytest.raises(RequestRefused, match="no such key") as refused:
            await client.run("")
        assert refused.value.code == "UNAUTHORIZED"
        assert len(broker.handshakes) == 1


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    async with FakeSocketBroker(says_hello) as elsewhere, client_of(says_hello, api_key="ek") as (client, broker):
        broker.refusal = refusal(307, b"", "Temporary Redirect", Location=f"{elsewhere.url}/ws".replace("http", "ws"))
        with pytest.raises(RequestRefused, match=f"it is at ws://127.0.0.1:{elsewhere.port}"):
            await client.run("")
        assert elsewhere.handshakes == []


async def test_a_proxy_that_has_no_broker_is_no_refusal() -> None:
    async with client_of(says_hello) as (client, broker):
        broker.refusal = refusal(502, b"<html>bad gateway</html>", "Bad Gateway")
        with pytest.raises(BrokerUnavailable, match="HTTP_502"):
            await client.run("")


@pytest.mark.parametrize(
    ("hello", "said", "timeout_s"),
    [
        ({"type": "pong", "timestamp": 1}, "not as a broker", 60),
        ({"not": "a message"}, "type", 60),
        (None, "no answer in", 0.1),
    ],
)
async def test_something_else_that_speaks_websocket_is_said_so(
    hello: dict[str, Any] | None, said: str, timeout_s: float
) -> None:
    async with client_of(says_hello, connect_timeout_s=timeout_s) as (client, broker):
        broker.hello = hello
        with pytest.raises(BrokerUnavailable, match=said):
            await client.run("")


async def test_another_protocol_version_is_refused_with_both_named() -> None:
    async with client_of(says_hello) as (client, broker):
        broker.hello = {**(broker.hello or {}), "protocolVersion": 3}
        with pytest.raises(RequestRefused, match="protocol version 3, not 2"):
            await client.run("")


@pytest.mark.parametrize(
    "url",
    ["localhost:3000", "ws://h/ws", "http://", "http://h:99999", "http://user:pass@h", "http://h/?q", "http://h:0"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        AsyncClient(url)


@pytest.mark.parametrize("key", ["ek_1\r\nX-Evil: 1", "ek 1", "klíč", "ek_\x00"])
def test_a_key_that_could_not_be_one_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as refused:
        AsyncClient(api_key=key)
    assert key not in str(refused.value)


async def test_a_key_may_come_with_the_end_of_its_line() -> None:
    async with client_of(says_hello, api_key=" ek_1\n") as (client, broker):
        await client.run("")
        assert broker.handshakes[0].headers["Authorization"] == "Bearer ek_1"
