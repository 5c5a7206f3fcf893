"""Calls through a broker: to the tool and back, in time or given up, and audited."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import threading
from typing import TYPE_CHECKING, Any

from enclave_broker import ApprovalRequest, create_broker, tool
from enclave_protocol import Final, Limits
from tests.broker.conftest import fleet
from tests.fakes import FakeSession, FakeWorker

if TYPE_CHECKING:
    import pytest

    from tests.broker.conftest import Fleet


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
        async with asyncio.timeout(60):
            await cancelled.wait()


async def stubborn(let_go: asyncio.Event) -> None:
    """Wait, whatever is cancelled."""
    while not let_go.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await let_go.wait()


async def test_tools_that_never_return_do_not_hold_up_the_end_of_a_session_or_of_the_broker() -> None:
    release, let_go = threading.Event(), asyncio.Event()

    def stuck() -> None:
        release.wait()

    async def waits() -> None:
        await stubborn(let_go)

    async def calls_both(session: FakeSession) -> None:
        for i, name in enumerate(["stuck", "waits"]):
            await session.event("tool_call", {"callId": f"c_{i}", "toolName": name, "args": None})
        await session.cancelled.wait()
        await session.fail("SESSION_CANCELLED")

    async with fleet(FakeWorker(calls_both), tools=[stuck, waits], stop_grace_s=0.01) as running:
        waiting = asyncio.create_task(result_through(running, session_id="s_1"))
        await running.wait_until(lambda: running.broker.dispatcher.tool_calls.running == 2)
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        running.broker.dispatcher.cancel(session)
        await waiting
        await running.broker.stop()
        assert running.broker.dispatcher.tool_calls.running == 1  # the thread is let go of, the task can't be
        let_go.set()
        release.set()


async def call_until_late(session: FakeSession, running: Fleet, name: str, began: asyncio.Event) -> dict[str, Any]:
    """Call a tool, let its time be over as soon as it has begun, and return the answer."""
    call_id = f"c_{name}"
    calls = running.broker.dispatcher.tool_calls
    await session.event("tool_call", {"callId": call_id, "toolName": name, "args": {}})
    await began.wait()
    (late,) = [each for each in calls._running[session.session_id] if each.call.call_id == call_id]
    calls._time_over(late, 5)
    return await session.results.get()


async def test_a_tool_that_ignores_its_time_limit_holds_up_no_other_call() -> None:
    release, let_go, one_began, other_began = threading.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stuck() -> None:
        loop.call_soon_threadsafe(one_began.set)
        release.wait()

    async def waits() -> None:
        other_began.set()
        await stubborn(let_go)

    async def calls_all(session: FakeSession) -> None:
        results = [
            await call_until_late(session, running, "stuck", one_began),
            await call_until_late(session, running, "waits", other_began),
            await session.call("seven", {}, call_id="c_3"),
        ]
        assert running.metric("enclave_tool_calls_given_up") == 2
        assert running.metric("enclave_tool_threads", state="abandoned") == 1
        release.set()
        let_go.set()
        await running.wait_until(lambda: running.metric("enclave_tool_calls_given_up") == 0)
        # Nothing more came for the first two: the next result is this call's.
        results.append(await session.call("seven", {}, call_id="c_4"))
        await session.final(results)

    # `seven` needs a thread, and the only one is stuck.
    async with fleet(FakeWorker(calls_all), tools=[stuck, waits, seven], tool_threads=1) as running:
        results: Any = await result_through(running)
    assert [each["callId"] for each in results] == ["c_stuck", "c_waits", "c_3", "c_4"]
    assert [each["error"]["code"] for each in results[:2]] == ["TOOL_TIMEOUT"] * 2
    assert results[0]["error"]["message"] == "stuck took over 5 ms"
    assert [each["value"] for each in results[2:]] == [7, 7]


def seven() -> int:
    return 7


async def test_a_tool_at_its_cap_makes_others_wait_and_their_time_runs() -> None:
    let_go, began, count = asyncio.Event(), asyncio.Event(), 0

    @tool(max_concurrency=1)
    async def one_at_a_time() -> None:
        nonlocal count
        count += 1
        began.set()
        await stubborn(let_go)

    async def calls_two(session: FakeSession) -> None:
        first = await call_until_late(session, running, "one_at_a_time", began)
        running.broker.dispatcher.directory.get(session.session_id).limits = Limits(tool_timeout_ms=5)  # type: ignore[union-attr]
        await session.final([first, await session.call("one_at_a_time", {}, call_id="c_2")])

    async with fleet(FakeWorker(calls_two), tools=[one_at_a_time]) as running:
        results: Any = await result_through(running)
        assert [each["error"]["code"] for each in results] == ["TOOL_TIMEOUT"] * 2
        assert count == 1  # the first still runs
        let_go.set()


async def test_an_approval_that_never_comes_is_given_up_with_the_call() -> None:
    asked = asyncio.Event()

    async def approve(_request: ApprovalRequest) -> bool:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError("never")

    @tool(needs_approval=True)
    def pay() -> None:
        raise AssertionError("never")

    async def calls(session: FakeSession) -> None:
        await session.final(await call_until_late(session, running, "pay", asked))

    async with fleet(FakeWorker(calls), tools=[pay], approve=approve) as running:
        assert (await result_through(running))["error"]["code"] == "TOOL_TIMEOUT"
        await running.wait_until(lambda: running.broker.dispatcher.tool_calls.running == 0)


async def test_the_smallest_time_limit_holds() -> None:
    @tool(timeout_ms=6)
    async def waits() -> None:
        await asyncio.Event().wait()

    for limits, over in (
        ({"toolTimeoutMs": 5}, "over 5 ms"),
        ({"perToolDeadlineMs": 7}, "over 6 ms"),
        ({}, "over 6 ms"),
    ):
        async with fleet(FakeWorker(calling("waits", {})), tools=[waits]) as running:
            assert (await result_through(running, limits=limits))["error"]["message"] == f"waits took {over}"


async def test_stored_results_are_gone_with_their_session() -> None:
    @tool(store_result=True)
    def rows() -> list[int]:
        return [1, 2, 3]

    async def stores_and_passes_on(session: FakeSession) -> None:
        stored = await session.call("rows", {})
        assert running.metric("enclave_tool_reference_bytes") == 7
        await session.final(await session.call("total", {"rows": stored["value"]}, call_id="c_2"))

    async with fleet(FakeWorker(stores_and_passes_on), tools=[rows]) as running:
        running.broker.tools.register("total", sum_of)
        assert (await result_through(running))["value"] == 6
        assert running.metric("enclave_tool_reference_bytes") == 0


def sum_of(rows: list[int]) -> int:
    return sum(rows)


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "enclave.audit"]


async def test_every_call_has_one_audit_line_without_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enclave.audit")
    never = asyncio.Event()

    @tool(timeout_ms=5)
    async def slow() -> None:
        await never.wait()

    async def open_call() -> None:
        await never.wait()

    async def calls_all(session: FakeSession) -> None:
        for i, (name, args) in enumerate([("add", {"b": 2, "a": 40}), ("add", {"a": "x"}), ("nope", {}), ("slow", {})]):
            await session.call(name, args, call_id=f"c_{i}")
        await session.event("tool_call", {"callId": "c_4", "toolName": "open_call", "args": {}})
        await session.final()

    async with fleet(FakeWorker(calls_all), tools=[add, slow, open_call]) as running:
        await result_through(running, session_id="s_1")
    lines = audited(caplog)
    assert [(line["callId"], line["outcome"]) for line in lines] == [
        ("c_0", "ok"),
        ("c_1", "VALIDATION_ERROR"),
        ("c_2", "UNKNOWN_TOOL"),
        ("c_3", "TOOL_TIMEOUT"),
        ("c_4", "SESSION_ENDED"),
    ]
    first = lines[0]
    assert first.pop("durationMs") > 0
    assert first.pop("at").endswith("Z")
    assert first == {
        "event": "tool_call",
        "sessionId": "s_1",
        "callId": "c_0",
        "tenant": "default",
        "tool": "add",
        "service": "python",
        "outcome": "ok",
        "attempts": 1,
        "argsBytes": 14,
        "argsSha256": hashlib.sha256(b'{"a":40,"b":2}').hexdigest(),
        "resultBytes": 2,
    }


async def test_an_audit_line_has_no_secret_and_says_what_was_approved_and_stored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "enclave.audit")

    class OwnError(Exception):
        code = "hunter2-hunter2"

    @tool(needs_approval=True, store_result=True)
    def pay(*, fails: bool) -> int:
        if fails:
            raise OwnError
        return 1

    async def approve(request: ApprovalRequest) -> bool:
        return request.call_id != "c_no"

    async def calls_all(session: FakeSession) -> None:
        for call_id, fails in (("c_1", True), ("c_2", False), ("c_no", False)):
            await session.call("pay", {"fails": fails}, call_id=call_id)
        await session.final()

    secrets = {"KEY": "hunter2-hunter2"}
    async with fleet(FakeWorker(calls_all), tools=[pay], approve=approve, secrets=secrets) as running:
        await result_through(running)
    failed, stored, refused = audited(caplog)
    assert failed["outcome"] == "[secret:KEY]"
    assert (stored["approved"], stored["reference"][:4]) == (True, "ref_")
    assert (refused["approved"], refused["outcome"], "attempts" in refused) == (False, "APPROVAL_REFUSED", False)


async def test_a_missing_secret_is_logged_when_the_broker_is_made(caplog: pytest.LogCaptureFixture) -> None:
    @tool(secrets=["SEARCH_KEY"])
    def search() -> None: ...

    create_broker(tools=[search])
    assert "tool search needs the secret SEARCH_KEY: set ENCLAVE_SECRET_SEARCH_KEY" in caplog.text
