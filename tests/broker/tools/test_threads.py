"""Threads for blocking tools: bounded, and replaced when they are stuck in calls that were given up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from enclave_broker import ToolFailure
from enclave_broker.tools import threads as threads_module
from enclave_broker.tools.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def running(limit: int) -> Iterator[Threads]:
    threads = Threads(limit)
    try:
        yield threads
    finally:
        threads.close()


class Stuck:
    """A function that says when it runs, and returns when it is let go."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._go = threading.Event()

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self.began.set)
        self._go.wait()
        return "done"

    def let_go(self) -> None:
        self._go.set()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - threads have no event of the loop's
            await asyncio.sleep(0)


async def test_no_more_run_at_once_than_the_limit() -> None:
    with running(2) as threads:
        stuck = [Stuck() for _ in range(3)]
        calls = [asyncio.create_task(threads.run(each)) for each in stuck]
        for each in stuck[:2]:
            await each.began.wait()
        assert threads.statistics() == threads_module.ThreadStatistics(busy=2, idle=0, abandoned=0, queued=1)
        stuck[0].let_go()
        await stuck[2].began.wait()
        for each in stuck:
            each.let_go()
        assert await asyncio.gather(*calls) == ["done"] * 3


async def test_a_thread_that_is_stuck_is_replaced_and_one_too_many_ends() -> None:
    with running(1) as threads:
        stuck = Stuck()
        call = asyncio.create_task(threads.run(stuck))
        await stuck.began.wait()
        waiting = asyncio.create_task(threads.run(lambda: "at once"))
        await until(lambda: threads.statistics().queued == 1)
        call.cancel()
        assert await waiting == "at once"
        assert threads.statistics().abandoned == 1
        assert not call.done()  # its function still runs, and whoever counts running calls counts it
        stuck.let_go()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: threads.statistics() == threads_module.ThreadStatistics(0, 1, 0, 0))


async def test_so_many_stuck_threads_are_replaced_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "MAX_ABANDONED", 1)
    with running(1) as threads:
        stuck = [Stuck() for _ in range(3)]
        calls = [asyncio.create_task(threads.run(each)) for each in stuck]
        for i in range(2):
            await stuck[i].began.wait()
            calls[i].cancel()
            await asyncio.sleep(0)
        await until(lambda: threads.statistics().abandoned == 2)
        assert threads.statistics().queued == 1
        assert not stuck[2].began.is_set()
        stuck[0].let_go()
        await stuck[2].began.wait()
        for each in stuck:
            each.let_go()
        assert await calls[2] == "done"


async def test_a_call_that_is_cancelled_in_the_queue_is_never_run() -> None:
    with running(1) as threads:
        stuck, ran = Stuck(), []
        call = asyncio.create_task(threads.run(stuck))
        await stuck.began.wait()
        waiting = asyncio.create_task(threads.run(lambda: ran.append(1)))
        await until(lambda: threads.statistics().queued == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        stuck.let_go()
        await call
        assert await threads.run(lambda: "next") == "next"
        assert not ran


async def test_a_queue_that_is_full_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "MAX_QUEUED_CALLS", 1)
    with running(1) as threads:
        stuck = Stuck()
        calls = [asyncio.create_task(threads.run(stuck))]
        await stuck.began.wait()
        calls.append(asyncio.create_task(threads.run(lambda: "queued")))
        await until(lambda: threads.statistics().queued == 1)
        with pytest.raises(ToolFailure, match="wait for a thread already") as refused:
            await threads.run(lambda: None)
        assert refused.value.code == "NO_CAPACITY"
        stuck.let_go()
        assert await asyncio.gather(*calls) == ["done", "queued"]


async def test_closing_ends_every_wait_even_for_what_is_stuck() -> None:
    threads = Threads(1)
    stuck = Stuck()
    calls = [asyncio.create_task(threads.run(stuck)) for _ in range(3)]
    await stuck.began.wait()
    calls[0].cancel()
    await asyncio.sleep(0)
    threads.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3
    stuck.let_go()
