"""`AsyncClient`, its sessions and its end, against a broker that says exactly what each test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from enclave_client import (
    AsyncClient,
    BrokerUnavailable,
    RequestRefused,
    SessionFailed,
    SessionLost,
    SessionTimeout,
    events,
)
from tests.client.clients import client_of
from tests.client.fake_socket import FakeSocketBroker, Told, says_hello, waits_for_cancel


async def test_a_run_ends_with_all_there_is_to_know() -> None:
    async def script(told: Told) -> None:
        await told.stdout("a")
        await told.event("stderr", chunk="b")
        await told.stdout("c")
        stats = {"durationMs": 1.5, "toolCallCount": 0, "stdoutBytes": 2}
        await told.event("final", ok=True, result=[1, {"x": None}], stats=stats)

    async with client_of(script) as (client, broker):
        result = await client.run("return ...", session_id="s_mine")
        [request] = await broker.wait_received("execute")

    assert (result.ok, result.value, result.error) == (True, [1, {"x": None}], None)
    assert (result.stdout, result.stderr, result.session_id) == ("ac", "b", "s_mine")
    assert result.stats.duration_ms == 1.5
    assert request == {"type": "execute", "sessionId": "s_mine", "code": "return ...", "tools": []}


async def test_failing_code_is_a_value_and_an_exception_only_where_it_is_asked_for() -> None:
    async def script(told: Told) -> None:
        await told.fail("EXECUTION_ERROR", "ValueError: no", name="ValueError", line=3, stack="...")

    async with client_of(script) as (client, _):
        result = await client.run("")
        with pytest.raises(SessionFailed) as failed:
            await client.run("", check=True)

    assert result.error is not None
    assert (result.error.code, result.error.name, result.error.line) == ("EXECUTION_ERROR", "ValueError", 3)
    assert str(result.error) == "EXECUTION_ERROR: ValueError: no (line 3)"
    assert failed.value.result.error == result.error
    with pytest.raises(SessionFailed):
        result.unwrap()


async def test_a_full_fleet_is_a_value_that_says_it_can_be_tried_again() -> None:
    async def script(told: Told) -> None:
        await told.fail("NO_CAPACITY", "every slot is taken")

    async with client_of(script) as (client, _):
        result = await client.run("")

    assert result.error is not None
    assert result.error.retryable


async def test_handlers_hear_of_events_as_they_come() -> None:
    heard: list[object] = []
    go_on = asyncio.Event()

    async def script(told: Told) -> None:
        await told.stdout("1")
        await go_on.wait()
        await told.event("stderr", chunk="2")
        await told.final()

    async def on_stdout(chunk: str) -> None:
        heard.append(chunk)
        go_on.set()

    async with client_of(script) as (client, _):
        await client.run(
            "", on_stdout=on_stdout, on_stderr=heard.append, on_event=lambda event: heard.append(type(event))
        )

    assert heard == [events.SessionInit, events.Stdout, "1", events.Stderr, "2", events.Final]


async def test_a_handler_that_raises_ends_the_session_and_is_heard() -> None:
    def on_stdout(chunk: str) -> None:
        raise KeyError(chunk)

    async with client_of(waits_for_cancel) as (client, broker):
        with pytest.raises(KeyError, match="running"):
            await client.run("", on_stdout=on_stdout)
        await broker.wait_received("cancel")


async def test_a_stream_yields_typed_events_and_then_has_a_result() -> None:
    async with client_of(says_hello) as (client, _), client.stream("x") as session:
        with pytest.raises(RuntimeError, match="no result yet"):
            _ = session.result
        kinds = [type(event) async for event in session]
        assert await session.wait() is session.result

    assert kinds == [events.SessionInit, events.Stdout, events.Final]
    assert session.result.value == "x"


async def test_events_can_be_had_as_the_bytes_they_came_in() -> None:
    async with client_of(says_hello) as (client, broker), client.stream("x") as session:
        lines = [line async for line in session.lines()]
        assert lines == [line.encode() for line in broker.sessions[session.session_id].log]
    assert session.result.stdout == "hello\n"


async def test_events_of_unknown_types_are_skipped() -> None:
    async def script(told: Told) -> None:
        await told.event("novelty", x=1)
        await told.event("stdout", chunk=5)  # of a known type, but none
        await told.final(1)

    async with client_of(script) as (client, _), client.stream("") as session:
        assert [type(event) async for event in session] == [events.SessionInit, events.Final]


async def test_an_unreadable_end_is_no_endless_wait() -> None:
    async def script(told: Told) -> None:
        await told.event("final", ok="perhaps")

    async with client_of(script) as (client, _):
        with pytest.raises(SessionLost, match="its end cannot be read"):
            await client.run("")


async def test_cancelling_ends_the_stream_with_its_final() -> None:
    async with client_of(waits_for_cancel) as (client, broker), client.stream("") as session:
        session.cancel("seen enough")
        session.cancel("again")
        result = await session.wait()
        assert broker.sessions[session.session_id].reason == "seen enough"

    assert result.error is not None
    assert result.error.code == "SESSION_CANCELLED"
    assert len([message for message in broker.received if message["type"] == "cancel"]) == 1


async def test_a_session_that_is_left_early_is_over_when_the_block_is() -> None:
    async with client_of(waits_for_cancel) as (client, broker):
        async with client.stream("") as session:
            async for event in session:
                if isinstance(event, events.Stdout):
                    break
        assert broker.sessions[session.session_id].cancelled.is_set()
    assert session.result.error is not None
    assert session.result.error.code == "SESSION_CANCELLED"


async def test_a_cancelled_run_ends_its_session() -> None:
    async with client_of(waits_for_cancel) as (client, broker):
        running = asyncio.create_task(client.run(""))
        await broker.wait_received("execute")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await broker.wait_received("cancel")


async def test_waiting_ends_after_wait_s_whatever_the_broker_does() -> None:
    async def script(told: Told) -> None:
        if told.execute["code"] == "never ends":
            await asyncio.Event().wait()
        await told.final()

    async with client_of(script) as (client, broker):
        await client.run("")  # so that there is a connection: what was never sent is not cancelled either
        with pytest.raises(SessionTimeout, match="wait_s") as late:
            await client.run("never ends", wait_s=0.05)
        assert isinstance(late.value, TimeoutError)
        await broker.wait_received("cancel")


async def test_waiting_ends_although_the_broker_never_answers() -> None:
    async with client_of(says_hello) as (client, broker):
        broker.deaf = {"execute", "cancel"}
        with pytest.raises(SessionTimeout):
            await client.run("", wait_s=0.05)


async def test_closing_ends_what_still_runs() -> None:
    async with FakeSocketBroker(waits_for_cancel) as broker:
        client = AsyncClient(broker.url)
        running = asyncio.create_task(client.run(""))
        await broker.wait_received("execute")
        await client.close()
        result = await running
        assert result.error is not None
        assert result.error.code == "SESSION_CANCELLED"
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.run("")


async def test_closing_without_a_broker_loses_what_still_runs() -> None:
    async with FakeSocketBroker(waits_for_cancel) as broker:
        client = AsyncClient(broker.url)
        async with client.stream("") as session:
            await broker.stop()
            waiting = asyncio.create_task(session.wait())
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(SessionLost):
                await waiting


def test_a_client_belongs_to_one_event_loop() -> None:
    client = AsyncClient("http://127.0.0.1:1")

    async def use() -> None:
        with contextlib.suppress(BrokerUnavailable):
            await client.run("")
        await asyncio.sleep(0)

    async def end() -> None:
        for wiring in client._wirings:
            await wiring.close()

    async def use_and_end() -> None:
        await use()
        await end()

    asyncio.run(use_and_end())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(use())


@pytest.mark.parametrize("name", ["timeout", "on_stdout"])
async def test_an_option_that_does_not_exist_is_not_passed_over(name: str) -> None:
    options: Any = {name: 5}
    client = AsyncClient("http://127.0.0.1:1")
    for use in (client.stream, lambda code, **options: client.map(code, [], **options)):
        with pytest.raises(TypeError, match=name):
            use("", **options)
    if name == "timeout":
        with pytest.raises(TypeError, match=r"timeout .*timeout_s"):
            await client.run("", **options)


async def test_a_session_is_entered_once() -> None:
    async with client_of(says_hello) as (client, _):
        async with client.stream("") as session:
            await session.wait()
        with pytest.raises(RuntimeError, match="entered once"):
            async with session:
                pass


async def test_an_id_of_a_session_that_runs_is_refused_and_leaves_that_one_alone() -> None:
    async with client_of(waits_for_cancel) as (client, broker), client.stream("", session_id="s_mine") as session:
        with pytest.raises(RequestRefused, match="has not ended"):
            await client.run("", session_id="s_mine")
        assert not broker.sessions["s_mine"].cancelled.is_set()
        session.cancel()
        await session.wait()


# Attaching


async def test_a_session_that_another_client_began_can_be_read_from_any_event() -> None:
    async with client_of(waits_for_cancel) as (client, broker), client.stream("", session_id="s_shared") as session:
        async with AsyncClient(broker.url) as other, other.attach("s_shared", from_seq=2) as attached:
            assert (await anext(attached)).seq == 2
            session.cancel()
            result = await attached.wait()
        assert (await session.wait()).error == result.error
    assert result.stdout == "running\n"


@pytest.mark.parametrize(("session_id", "field"), [("s_unknown", "sessionId"), ("s_old", "fromSeq")])
async def test_attaching_to_what_is_not_there_is_refused(session_id: str, field: str) -> None:
    async with client_of(says_hello) as (client, broker):
        await client.run("", session_id="s_old")
        broker.sessions["s_old"].trimmed = 2
        with pytest.raises(RequestRefused) as refused:
            async with client.attach(session_id):
                pass
        assert refused.value.field == field


async def test_requests_travel_as_they_were_meant() -> None:
    async with client_of(says_hello) as (client, broker):
        await client.run(
            "x\u2028 žluť 🐎",
            language="python",
            profile="data",
            env={"A": "1"},
            files={"a.txt": "text", "b.bin": b"\xff"},
            timeout_s=1.5,
            limits={"maxToolCalls": 5},
        )
        [request] = await broker.wait_received("execute")
    assert json.loads(json.dumps(request)) == {
        "type": "execute",
        "sessionId": request["sessionId"],
        "code": "x\u2028 žluť 🐎",
        "limits": {"maxToolCalls": 5, "deadlineMs": 1500, "sessionTtlMs": 1500},
        "language": "python",
        "profile": "data",
        "env": {"A": "1"},
        "files": {"a.txt": "text", "b.bin": {"base64": "/w=="}},
        "tools": [],
    }
