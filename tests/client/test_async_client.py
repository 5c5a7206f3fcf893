"""`AsyncClient` against a broker that says exactly what each test wants."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from enclave_client import (
    AsyncClient,
    BrokerUnavailable,
    RequestRefused,
    SessionFailed,
    SessionLost,
    SessionTimeout,
    Tool,
    ToolError,
    connection,
    events,
)
from tests.client.fake_socket import FakeSocketBroker, Told, refusal, says_hello, waits_for_cancel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.client.fake_socket import Script


@contextlib.asynccontextmanager
async def client_of(script: Script, **settings: Any) -> AsyncIterator[tuple[AsyncClient, FakeSocketBroker]]:
    """A client of a fake broker, and the check that it leaves no task behind."""
    before = asyncio.all_tasks()
    async with asyncio.timeout(60):
        async with FakeSocketBroker(script) as broker:
            async with AsyncClient(broker.url, **settings) as client:
                yield client, broker
            after = {task.get_name() for task in asyncio.all_tasks() - before}
            assert not [name for name in after if name.startswith("enclave")]


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


# Tools


async def called(tools: Any, name: str, args: Any) -> dict[str, Any]:
    """Return what the guest is told when it calls a tool."""

    async def script(told: Told) -> None:
        await told.final(await told.call(name, args))

    async with client_of(script) as (client, _):
        result: dict[str, Any] = (await client.run("", tools=tools)).unwrap()
        return result


async def search(query: str, limit: int = 2) -> list[str]:
    """Search the web.

    In more words.
    """
    return [query] * limit


def parse(text: str) -> int:
    return int(text)


async def test_tools_are_declared_with_what_their_functions_say() -> None:
    async with client_of(says_hello) as (client, broker):
        await client.run("", tools={"find": search, "parse": Tool(parse, description="Read.", timeout_s=1.5)})
        [request] = await broker.wait_received("execute")

    find, other = request["tools"]
    assert (find["name"], find["description"]) == ("find", "Search the web.")
    assert find["inputSchema"]["properties"] == {
        "query": {"type": "string"},
        "limit": {"type": "integer", "default": 2},
    }
    assert find["inputSchema"]["required"] == ["query"]
    assert (other["name"], other["description"], other["timeoutMs"]) == ("parse", "Read.", 1500)


async def test_async_functions_are_awaited_and_plain_ones_run_in_threads() -> None:
    threads: list[threading.Thread] = []

    def where() -> str:
        threads.append(threading.current_thread())
        return "here"

    assert (await called([search], "search", {"query": "x"}))["value"] == ["x", "x"]
    assert (await called([where], "where", None))["value"] == "here"
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"query": 5}, "search: query: Expected `str`, got `int`; it takes (query: str, limit: int = 2)"),
        ({}, "missing required field `query`"),
        ({"query": "x", "more": 1}, "unknown field `more`"),
        ([1, 2], "query: Expected `str`, got `array`"),
    ],
)
async def test_arguments_that_do_not_fit_are_told_to_the_guest(args: Any, said: str) -> None:
    result = await called([search], "search", args)

    assert result["success"] is False
    assert result["error"]["code"] == "VALIDATION_ERROR"
    assert said in result["error"]["message"]


async def test_what_a_tool_raises_reaches_the_guest_with_its_code() -> None:
    def fails(kind: str) -> None:
        raise {"own": ToolError("no such page", "NOT_FOUND"), "exit": SystemExit(3), "stop": StopIteration(1)}[kind]

    async def cancels() -> None:
        raise asyncio.CancelledError

    error = (await called([fails], "fails", "own"))["error"]
    assert error == {"message": "no such page", "code": "NOT_FOUND"}
    assert (await called([parse], "parse", "x"))["error"]["code"] == "EXECUTION_ERROR"
    assert "SystemExit" in (await called([fails], "fails", "exit"))["error"]["message"]
    assert "StopIteration" in (await called([fails], "fails", "stop"))["error"]["message"]
    assert (await called([cancels], "cancels", None))["error"]["message"] == "CancelledError"


async def test_what_a_tool_returns_has_to_be_json_of_a_bounded_size() -> None:
    def returns(kind: str) -> object:
        return object() if kind == "object" else "x" * 6_000_000

    assert (await called([returns], "returns", "object"))["error"]["code"] == "RESULT_NOT_SERIALIZABLE"
    assert (await called([returns], "returns", "large"))["error"]["code"] == "RESULT_TOO_LARGE"


async def test_plain_tools_share_a_bounded_number_of_threads() -> None:
    running: list[int] = []
    peak: list[int] = []
    lock = threading.Lock()
    go_on = threading.Event()

    def works(number: int) -> int:
        with lock:
            running.append(number)
            peak.append(len(running))
            if len(peak) == 2:
                go_on.set()
        go_on.wait(60)
        with lock:
            running.remove(number)
        return number

    async def script(told: Told) -> None:
        for n in range(6):
            await told.event("tool_call", callId=f"c_{n}", toolName="works", args=n)
        values = [(await told.results.get())["value"] for _ in range(6)]
        await told.final(sorted(values))

    async with client_of(script, tool_threads=2) as (client, _):
        assert (await client.run("", tools=[works])).value == [0, 1, 2, 3, 4, 5]
    assert max(peak) == 2


async def test_a_tool_whose_session_ended_is_cancelled() -> None:
    started = asyncio.Event()
    ended = asyncio.Event()

    async def waits() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def script(told: Told) -> None:
        await told.event("tool_call", callId="c_1", toolName="waits", args=None)
        await started.wait()
        await told.fail("DEADLINE_EXCEEDED")

    async with client_of(script) as (client, _):
        await client.run("", tools=[waits])
        assert ended.is_set()


async def test_a_tool_whose_call_is_over_is_cancelled_while_the_session_goes_on() -> None:
    started = asyncio.Event()
    ended = asyncio.Event()

    async def waits() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def script(told: Told) -> None:
        await told.event("tool_call", callId="c_1", toolName="waits", args=None)
        await started.wait()
        await told.event("tool_result_applied", callId="c_1")
        await ended.wait()
        await told.final("went on")

    async with client_of(script) as (client, _):
        assert (await client.run("", tools=[waits])).value == "went on"


async def test_a_tool_that_ignores_its_cancellation_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave_client.session.TOOLS_GRACE_S", 0.01)
    started, let_go = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    async def script(told: Told) -> None:
        await told.event("tool_call", callId="c_1", toolName="stubborn", args=None)
        await started.wait()
        await told.final(1)

    async with client_of(script) as (client, _):
        assert (await client.run("", tools=[stubborn])).value == 1
        let_go.set()


async def test_tools_see_the_context_of_whoever_asked_for_the_session() -> None:
    trace = contextvars.ContextVar("trace", default="none")

    def plain() -> str:
        return trace.get()

    async def awaited() -> str:
        return trace.get()

    async def script(told: Told) -> None:
        if not told.execute["tools"]:
            await told.final()
            return
        one = await told.call("plain", None)
        other = await told.call("awaited", None, call_id="c_2")
        await told.final([one["value"], other["value"]])

    async with client_of(script) as (client, _):
        await client.run("return 0")  # so that the connection was made in another context
        trace.set("mine")
        assert (await client.run("", tools=[plain, awaited])).value == ["mine", "mine"]


# Connections that break


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


# The client's end, and its misuse


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


# Many inputs


async def test_every_input_has_its_result_as_it_ends_and_not_too_many_run_at_once() -> None:
    order = [2, 0, 1, 3]
    gates = [asyncio.Event() for _ in order]
    live: set[str] = set()
    peak: list[int] = []

    async def script(told: Told) -> None:
        live.add(told.session_id)
        peak.append(len(live))
        item = int(told.execute["code"].removeprefix("item = ").partition(";")[0])
        await gates[item].wait()
        live.discard(told.session_id)
        await told.final(item * 10)

    async with client_of(script) as (client, broker):
        ended = []
        items = client.map("return item", range(4), concurrency=3)
        await_first = asyncio.ensure_future(anext(items))
        await broker.wait_received("execute", 3)
        gates[order[0]].set()
        ended.append(await await_first)
        for n in order[1:]:
            gates[n].set()
            ended.append(await anext(items))
        assert [item async for item in items] == []

    assert [(item.index, item.input, item.result.value) for item in ended] == [(n, n, n * 10) for n in order]
    assert max(peak) == 3


async def test_an_input_that_has_yet_to_come_holds_up_no_result() -> None:
    more = asyncio.Event()

    async def inputs() -> AsyncIterator[str]:
        yield "first"
        await more.wait()
        yield "second"

    async with client_of(says_hello) as (client, _):
        items = client.map("return item", inputs())
        assert (await anext(items)).input == "first"
        more.set()
        assert [item.input async for item in items] == ["second"]


async def test_leaving_a_map_ends_the_sessions_that_still_run() -> None:
    async with client_of(waits_for_cancel) as (client, broker):
        items = client.map("", range(9), concurrency=3)
        first = asyncio.ensure_future(anext(items))
        await broker.wait_received("execute", 3)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len(await broker.wait_received("cancel", 3)) == 3


@pytest.mark.parametrize("error", ["refused", "inputs"])
async def test_what_goes_wrong_in_a_map_is_raised_and_ends_the_others(error: str) -> None:
    def inputs() -> Any:
        yield "runs"
        if error == "inputs":
            raise KeyError("the source broke")
        yield object()

    async with client_of(waits_for_cancel) as (client, broker):
        with pytest.raises((KeyError, RequestRefused)):
            async for _ in client.map("", inputs()):
                pass
        for told in broker.sessions.values():
            assert told.cancelled.is_set()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda client: client.map("", [1], concurrency=0), "concurrency"),
        (lambda client: client.map("", [1], session_id="s_1"), "session_id"),
    ],
)
async def test_a_map_that_makes_no_sense_is_refused(make: Callable[[AsyncClient], object], field: str) -> None:
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(RequestRefused) as refused:
            make(client)
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
