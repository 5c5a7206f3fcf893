"""Calls through a broker: to the tool and back, in time or given up, and audited."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from enclave_protocol import Final
from tests.broker.conftest import fleet
from tests.fakes import FakeSession, FakeWorker


def add(a: int, b: int = 1) -> int:
    return a + b


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
