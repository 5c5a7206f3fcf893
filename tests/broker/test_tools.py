"""Tools: what guests may call, and what they are told when it goes wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import msgspec
import pytest

from enclave_broker import ToolContext, ToolRegistry, tool
from enclave_broker.tools import Call, FunctionTool, Secrets, ToolRunner
from enclave_broker.tools.references import References
from enclave_protocol import Final, ToolResult
from tests.broker import sample_tools
from tests.broker.conftest import fleet
from tests.fakes import FakeSession, FakeWorker


async def call(function: Any, args: Any = None, *, max_bytes: int = 1000) -> Any:
    """Run one call; returns its value, or (code, message)."""
    runner = ToolRunner(Secrets(), References(session_bytes=1000, total_bytes=1000), None, threads=2)
    tool = FunctionTool(function, name="t")
    try:
        result = await runner.run(
            Call(tool=tool, args=args, session_id="s_1", call_id="c_1", max_result_bytes=max_bytes)
        )
    finally:
        runner.close()
    return json.loads(bytes(result.value)) if result.success else error_of(result)  # type: ignore[arg-type]


def error_of(result: ToolResult) -> tuple[str, str]:
    error = msgspec.to_builtins(result.error)
    return error["code"], error["message"]


def add(a: int, b: int = 1) -> int:
    return a + b


async def add_async(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


@pytest.mark.parametrize("function", [add, add_async])
async def test_an_object_of_arguments_becomes_keyword_arguments(function: Any) -> None:
    assert await call(function, {"a": 1, "b": 2}) == 3
    assert await call(function, {"a": 1}) == 2


async def test_any_other_value_is_the_one_argument() -> None:
    assert await call(lambda value: value, [1, 2]) == [1, 2]
    assert await call(lambda: "nothing given") == "nothing given"
    assert await call(lambda value: value, None) is None


@pytest.mark.parametrize("function", [add, add_async])
@pytest.mark.parametrize("args", [{}, {"a": 1, "c": 2}, None])
async def test_wrong_arguments_are_told_what_is_expected(function: Any, args: Any) -> None:
    if args is None:
        function = lambda: 1  # noqa: E731 - a function without parameters
        args = [5]
    code, message = await call(function, args)
    assert code == "VALIDATION_ERROR"
    assert "it takes (" in message


async def test_a_type_error_inside_a_tool_is_not_taken_for_wrong_arguments() -> None:
    assert (await call(lambda: 1 + "1"))[0] == "EXECUTION_ERROR"  # type: ignore[operator]


async def test_an_exception_reaches_the_guest_with_its_type() -> None:
    def fails() -> None:
        raise ValueError("no such city")

    assert await call(fails) == ("EXECUTION_ERROR", "ValueError: no such city")


class Unprintable(Exception):  # noqa: N818 - what it is, not what went wrong
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error", [StopIteration(1), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Unprintable()]
)
async def test_no_exception_of_a_tools_in_a_thread_harms_the_broker(error: BaseException) -> None:
    def fails() -> None:
        raise error

    assert (await call(fails))[0] == "EXECUTION_ERROR"


async def test_an_async_tool_that_exits_or_lets_a_cancellation_escape_harms_nobody() -> None:
    async def leaves() -> None:
        raise SystemExit(1)

    async def cancels() -> None:
        raise asyncio.CancelledError

    assert (await call(leaves))[0] == "EXECUTION_ERROR"
    assert (await call(cancels))[0] == "EXECUTION_ERROR"


async def test_builtins_and_objects_may_be_tools() -> None:
    class Double:
        async def __call__(self, n: int) -> int:
            return 2 * n

    assert await call(max, [3, 1, 2]) == 3
    assert await call(Double(), {"n": 4}) == 8


async def test_an_error_keeps_its_own_code() -> None:
    class QuotaError(Exception):
        code = "QUOTA"

    def fails() -> None:
        raise QuotaError("too much")

    assert await call(fails) == ("QUOTA", "QuotaError: too much")


async def test_a_result_that_is_not_json_is_told_so() -> None:
    assert (await call(object))[0] == "RESULT_NOT_SERIALIZABLE"


async def test_a_result_over_the_limit_is_told_both_sizes() -> None:
    code, message = await call(lambda: "x" * 2000)
    assert code == "RESULT_TOO_LARGE"
    assert "2002" in message
    assert "1000" in message


async def test_a_tool_may_ask_who_calls() -> None:
    def who(context: ToolContext, extra: int) -> list[Any]:
        return [context.session_id, context.call_id, extra]

    assert await call(who, {"extra": 1}) == ["s_1", "c_1", 1]
    assert "(extra: " in (await call(who, {}))[1]


def test_a_module_offers_what_is_marked() -> None:
    registry = ToolRegistry()
    assert registry.load(sample_tools.__name__) == 2
    assert registry.names() == ["add", "greet"]
    found = registry.get("add")
    assert found is not None
    assert found.description == "Add two numbers."


@pytest.mark.parametrize("module", ["no.such.module", "json"])
def test_a_module_without_tools_is_an_error(module: str) -> None:
    with pytest.raises(ValueError, match=module):
        ToolRegistry().load(module)


def test_two_tools_can_not_have_one_name() -> None:
    with pytest.raises(ValueError, match="'add'"):
        ToolRegistry([add, add])


def test_the_mark_leaves_the_function_as_it_is() -> None:
    assert tool(add) is add


def calling(name: str, args: Any) -> Any:
    async def script(session: FakeSession) -> None:
        await session.final(await session.call(name, args))

    return script


async def result_through(running: Any, **options: Any) -> dict[str, Any]:
    final = [event async for event in running.broker.execute("1", **options)][-1]
    assert isinstance(final, Final)
    result: dict[str, Any] = final.payload.result  # type: ignore[assignment]
    return result


async def test_a_call_travels_to_the_tool_and_back() -> None:
    async with fleet(FakeWorker(calling("add", {"a": 20, "b": 22})), tools=[add]) as running:
        assert (await result_through(running))["value"] == 42
        assert running.metric("enclave_tool_calls_total", outcome="ok") == 1


async def test_a_call_of_an_unknown_tool_is_answered() -> None:
    async with fleet(FakeWorker(calling("nope", {}))) as running:
        assert (await result_through(running))["error"]["code"] == "UNKNOWN_TOOL"


async def test_a_tool_that_takes_too_long_is_given_up() -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    async with fleet(FakeWorker(calling("waits", {})), tools=[waits]) as running:
        assert (await result_through(running, limits={"toolTimeoutMs": 5}))["error"]["code"] == "TOOL_TIMEOUT"


async def test_a_sessions_tools_are_cancelled_with_it() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def calls_and_ends(session: FakeSession) -> None:
        await session.event("tool_call", {"callId": "c_1", "toolName": "waits", "args": None})
        await started.wait()
        await session.final()

    async with fleet(FakeWorker(calls_and_ends), tools=[waits]) as running:
        await result_through(running)
        async with asyncio.timeout(20):
            await cancelled.wait()


async def test_tools_that_never_return_hold_nobody_up() -> None:
    release = threading.Event()
    let_go = asyncio.Event()

    def stuck() -> None:
        release.wait()

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def calls_both(session: FakeSession) -> None:
        for i, name in enumerate(["stuck", "stubborn"]):
            await session.event("tool_call", {"callId": f"c_{i}", "toolName": name, "args": None})
        await session.cancelled.wait()
        await session.fail("SESSION_CANCELLED")

    async with fleet(FakeWorker(calls_both), tools=[stuck, stubborn], stop_grace_s=0.01) as running:
        waiting = asyncio.create_task(result_through(running, session_id="s_1"))
        await running.wait_until(lambda: len(running.broker.dispatcher.tool_calls._tasks) == 2)
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        running.broker.dispatcher.cancel(session)
        await waiting
        await running.broker.stop()
        let_go.set()
        release.set()
