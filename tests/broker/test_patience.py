"""A limit that sets no timer for what is done at once, and is a limit like any other for what is not."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from enclave_broker.patience import within

LONG_S = 60.0


async def test_what_is_done_at_once_sets_no_timer() -> None:
    done: list[int] = []

    async def step() -> None:
        done.append(1)

    # A limit that has passed already would cut off whatever waits.
    await within(-1, step())
    assert done == [1]


async def test_what_waits_goes_on_where_it_stopped() -> None:
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    heard: list[str] = []

    async def step() -> None:
        await asyncio.sleep(0)
        heard.append(await told)
        with contextlib.suppress(RuntimeError):
            await failing
        heard.append("went on")

    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(within(LONG_S, step()))
    await asyncio.sleep(0)
    told.set_result("yes")
    failing.set_exception(RuntimeError("no"))
    await waiting
    assert heard == ["yes", "went on"]


async def test_what_waits_for_too_long_is_cancelled_and_a_timeout() -> None:
    cleaned: list[int] = []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(1)

    with pytest.raises(TimeoutError):
        await within(0, step())
    assert cleaned == [1]


@pytest.mark.parametrize("waits", [False, True])
async def test_what_the_step_raises_is_raised(*, waits: bool) -> None:
    async def step() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        await within(LONG_S, step())


async def test_a_cancellation_reaches_the_step_and_is_no_timeout() -> None:
    cleaned: list[int] = []
    begun = asyncio.Event()

    async def step() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            cleaned.append(1)

    task = asyncio.ensure_future(within(LONG_S, step()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [1]


async def test_something_awaitable_that_is_no_coroutine_will_do() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    await within(LONG_S, future)
