"""Sessions as iterators of events, on real sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from enclave_protocol import Final, LocalProtocolError, RemoteProtocolError
from enclave_protocol.events import SessionInit, Stdout, ToolCall, ToolResultApplied
from enclave_worker.api import (
    RuntimeConfig,
    RuntimeState,
    SessionExecutor,
    ToolError,
    create_runtime_worker,
    create_session_executor,
)
from tests.worker.leaks import nothing_leaks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enclave_protocol import AnyEvent

CONFIG = RuntimeConfig(pool_size=2, max_sessions=3)
ENDLESS = "print('up', flush=True)\nwhile True: pass"


@pytest.fixture
async def executor() -> AsyncIterator[SessionExecutor]:
    async with create_session_executor(CONFIG) as executor:
        yield executor


async def read_to_end(events: AsyncIterator[AnyEvent]) -> tuple[list[AnyEvent], Final]:
    seen = [event async for event in events]
    final = seen[-1]
    assert isinstance(final, Final)
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert sum(isinstance(event, Final) for event in seen) == 1
    return seen, final


def written(events: list[AnyEvent]) -> str:
    return "".join(event.payload.chunk for event in events if isinstance(event, Stdout))


def code_of(final: Final) -> object:
    return final.payload.ok or getattr(final.payload.error, "code", None)


async def test_the_stream_begins_with_session_init_and_ends_with_the_one_final(executor: SessionExecutor) -> None:
    seen, final = await read_to_end(executor.execute("s_1", "print('hello')\nreturn 42"))
    assert isinstance(seen[0], SessionInit)
    assert written(seen) == "hello\n"
    assert final.payload.result == 42
    assert {event.session_id for event in seen} == {"s_1"}


async def test_output_arrives_while_the_code_still_runs(executor: SessionExecutor) -> None:
    async with contextlib.aclosing(executor.execute(None, ENDLESS)) as events:
        async for event in events:
            if isinstance(event, Stdout):
                assert event.payload.chunk.startswith("up")
                break
        else:
            pytest.fail("the endless session ended")


async def test_tool_calls_are_answered_by_result_or_error(executor: SessionExecutor) -> None:
    code = (
        "good = await call_tool('search', {'q': 'x'})\n"
        "try:\n    await call_tool('search', {'q': 'y'})\n"
        "except Exception as error:\n    return [good, error.code, str(error)]"
    )
    answered = []
    async for event in executor.execute("s_1", code):
        if isinstance(event, ToolCall):
            assert event.payload.tool_name == "search"
            if event.payload.args == {"q": "x"}:
                executor.tool_result("s_1", event.payload.call_id, {"hits": [1]})
            else:
                executor.tool_result("s_1", event.payload.call_id, error=ToolError(message="down", code="E_DOWN"))
            with pytest.raises(RemoteProtocolError, match="has its result already"):
                executor.tool_result("s_1", event.payload.call_id, "again")
        elif isinstance(event, ToolResultApplied):
            answered.append(event.payload.call_id)
        elif isinstance(event, Final):
            assert event.payload.result == [{"hits": [1]}, "E_DOWN", "down"]
    assert len(answered) == 2


async def test_cancelling_gives_a_final_that_says_so(executor: SessionExecutor) -> None:
    last = None
    async for event in executor.execute("s_1", ENDLESS):
        last = event
        if isinstance(event, Stdout):
            executor.cancel("s_1", "changed my mind")
    assert isinstance(last, Final)
    assert code_of(last) == "SESSION_CANCELLED"
    with pytest.raises(RemoteProtocolError, match="no such session"):
        executor.cancel("s_1")


async def test_cancelling_what_ended_ahead_of_its_reader_leaves_it_its_final(executor: SessionExecutor) -> None:
    completed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    executor.worker.on_complete(completed.set_result)
    last = None
    async for event in executor.execute("s_1", "print('one'); return 2"):
        last = event
        if isinstance(event, Stdout):
            await completed
            executor.cancel("s_1")
    assert isinstance(last, Final)
    assert last.payload.result == 2


async def test_after_leaving_early_through_aclosing_nothing_of_the_session_is_left(executor: SessionExecutor) -> None:
    async with contextlib.aclosing(executor.execute(None, ENDLESS)) as events:
        await anext(events)
        assert executor.worker.get_stats().active_sessions == 1
    stats = executor.worker.get_stats()
    assert (stats.active_sessions, stats.cancelled_executions) == (0, 1)


async def test_an_iterator_dropped_by_a_break_cancels_its_session(executor: SessionExecutor) -> None:
    ended = asyncio.get_running_loop().create_future()
    executor.worker.on_cancel(lambda session_id, _: ended.set_result(session_id))
    async for _ in executor.execute("s_dropped", ENDLESS):
        break
    assert await ended == "s_dropped"


async def test_cancelling_the_reading_task_ends_the_session(executor: SessionExecutor) -> None:
    up = asyncio.Event()

    async def read() -> None:
        async for event in executor.execute(None, ENDLESS):
            if isinstance(event, Stdout):
                up.set()

    reader = asyncio.create_task(read())
    await up.wait()
    reader.cancel()
    await asyncio.wait([reader])
    assert executor.worker.get_stats().active_sessions == 0


async def test_leaving_when_the_final_waits_unread_is_no_error(executor: SessionExecutor) -> None:
    ended = asyncio.Event()
    executor.worker.on_complete(lambda _: ended.set())
    async with contextlib.aclosing(executor.execute(None, "return 1")) as events:
        await anext(events)
        await ended.wait()
    assert executor.worker.get_stats().successful_executions == 1


async def test_an_iterator_never_begun_starts_nothing(executor: SessionExecutor) -> None:
    events = executor.execute(None, "return 1")
    await events.aclose()
    assert executor.worker.get_stats().active_sessions == 0


async def test_a_slow_reader_pauses_the_code_and_loses_nothing() -> None:
    total = 2_000_000
    code = f"import os\nfor i in range({total} // 1000):\n    os.write(1, b'%04d' % i + b'x' * 996)\nreturn 'done'"
    async with create_session_executor(CONFIG, buffer_bytes=10_000) as executor:
        finished: list[str] = []
        executor.worker.on_complete(finished.append)
        events = executor.execute("s_slow", code, {"maxStdoutBytes": total})
        seen = [await anext(events)]
        for number in range(20):  # far longer than the writer needs when nothing holds it
            await read_to_end(executor.execute(f"s_{number}", "return 1"))
        assert "s_slow" not in finished
        seen += [event async for event in events]
    assert written(seen) == "".join(f"{i:04d}" + "x" * 996 for i in range(total // 1000))
    assert isinstance(seen[-1], Final)
    assert seen[-1].payload.result == "done"


async def test_without_a_slot_the_only_event_is_a_final(executor: SessionExecutor) -> None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(3):
            await anext(await held.enter_async_context(contextlib.aclosing(executor.execute(None, ENDLESS))))
        seen, final = await read_to_end(executor.execute(None, "return 1"))
    assert len(seen) == 1
    assert code_of(final) == "NO_CAPACITY"


async def test_many_sessions_run_at_once(executor: SessionExecutor) -> None:
    ends = await asyncio.gather(*(read_to_end(executor.execute(None, f"return {n}")) for n in range(3)))
    assert [final.payload.result for _, final in ends] == [0, 1, 2]


async def test_bad_requests_name_their_field(executor: SessionExecutor) -> None:
    with pytest.raises(RemoteProtocolError) as bad_id:
        executor.execute("nope", "return 1")
    assert bad_id.value.field == "sessionId"
    with pytest.raises(RemoteProtocolError) as bad_limit:
        await anext(executor.execute(None, "return 1", {"timeout": -1}))
    assert bad_limit.value.field == "limits.timeout"
    async with contextlib.aclosing(executor.execute("s_twice", ENDLESS)) as events:
        await anext(events)
        with pytest.raises(RemoteProtocolError, match="a live session has this id"):
            await anext(executor.execute("s_twice", "return 1"))
    with pytest.raises(ValueError, match="buffer_bytes=0"):
        create_session_executor(CONFIG, buffer_bytes=0)


async def test_a_worker_of_another_event_loop_is_refused(executor: SessionExecutor) -> None:
    def elsewhere() -> None:
        async def use() -> None:
            with pytest.raises(LocalProtocolError, match="another event loop"):
                await anext(executor.execute(None, "return 1"))

        asyncio.run(use())

    await asyncio.to_thread(elsewhere)


async def test_a_worker_that_was_given_stays_its_owners() -> None:
    async with create_runtime_worker(RuntimeConfig(listen=False, pool_size=1)) as worker:
        async with create_session_executor(worker) as executor:
            await read_to_end(executor.execute(None, "return 1"))
        assert worker.get_state() is RuntimeState.RUNNING


async def test_an_executor_of_its_own_worker_runs_only_inside_its_context() -> None:
    executor = create_session_executor(CONFIG)
    with pytest.raises(LocalProtocolError, match="worker is stopped"):
        executor.execute(None, "return 1")
    async with executor:
        assert executor.worker.port == 0
    assert executor.worker.get_state() is RuntimeState.STOPPED


async def test_stopping_the_worker_ends_the_stream_with_its_final(executor: SessionExecutor) -> None:
    events = executor.execute(None, ENDLESS)
    await anext(events)
    await executor.worker.stop()
    *_, last = [event async for event in events]
    assert isinstance(last, Final)
    assert code_of(last) == "WORKER_LOST"


def test_streams_read_left_and_broken_off_leak_nothing() -> None:
    async def live() -> None:
        async with create_session_executor(CONFIG) as executor:
            for _ in range(5):
                await read_to_end(executor.execute(None, "print('x' * 100_000)\nreturn 1"))
                async with contextlib.aclosing(executor.execute(None, ENDLESS)) as events:
                    await anext(events)
            async for _ in executor.execute(None, ENDLESS):
                break

    asyncio.run(live())
    with nothing_leaks():
        asyncio.run(live())
