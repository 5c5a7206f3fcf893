"""Tools that are functions of the client's, called by code on a broker that says exactly what each test wants."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import Any

import pytest

from enclave_client import Tool, ToolError
from tests.client.clients import client_of, search
from tests.client.fake_socket import Told, says_hello


async def called(tools: Any, name: str, args: Any) -> dict[str, Any]:
    """Return what the guest is told when it calls a tool."""

    async def script(told: Told) -> None:
        await told.final(await told.call(name, args))

    async with client_of(script) as (client, _):
        result: dict[str, Any] = (await client.run("", tools=tools)).unwrap()
        return result


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
