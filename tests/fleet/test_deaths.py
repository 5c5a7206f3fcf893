"""Real workers die, fall silent and are cut off; their sessions go on, run elsewhere, or end honestly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from enclave_broker import Broker, create_broker
from enclave_protocol import Final
from enclave_protocol.events import Stdout
from tests.fleet.chaos.fleet import free_ports
from tests.fleet.chaos.proxy import Proxy
from tests.support import worker_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from enclave_protocol import AnyEvent

WAITS: dict[str, Any] = {
    "port": 0,
    "ping_interval_s": 0.1,
    "dead_after_s": 1.0,
    "hello_timeout_s": 10.0,
    "reconnect_min_s": 0.02,
    "reconnect_max_s": 0.1,
}


@contextlib.asynccontextmanager
async def broker_of(*urls: str, tools: Sequence[Callable[..., Any]], **settings: Any) -> AsyncIterator[Broker]:
    async with create_broker(runtimes=list(urls), tools=tools, **(WAITS | settings)) as broker:
        await wait_until(lambda: broker.dispatcher.placer.statistics().workers == len(urls))
        yield broker
        broker.dispatcher.validate()


async def wait_until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


async def run(broker: Broker, code: str, **options: Any) -> list[AnyEvent]:
    events = [event async for event in broker.execute(code, **options)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [isinstance(event, Final) for event in events].count(True) == 1
    return events


def ending(events: list[AnyEvent]) -> Any:
    final = events[-1]
    assert isinstance(final, Final)
    return final.payload.error.code if final.payload.error else "ok"


def text_of(events: list[AnyEvent]) -> str:
    return "".join(event.payload.chunk for event in events if isinstance(event, Stdout))


@contextlib.asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    parts = urlsplit(url)
    assert parts.port is not None
    proxy = Proxy(next(free_ports()), parts.port)
    await proxy.up()
    try:
        yield proxy, f"ws://127.0.0.1:{proxy.port}{parts.path}"
    finally:
        await proxy.close()


@pytest.fixture(scope="module")
def steady() -> Iterator[tuple[int, str]]:
    """A worker with one slot, which outlives every test: its process and its URL."""
    with worker_process("--pool-size", "1", "--max-sessions", "1", "--lease-s", "600") as (process, url):
        yield process.pid, url


async def test_a_link_that_is_cut_in_every_call_loses_neither_output_nor_an_answer(steady: tuple[int, str]) -> None:
    calls: list[int] = []

    async def cut(i: int) -> int:
        calls.append(i)
        for joined in list(proxy.joined):
            joined.reset()  # the answer finds no connection; what was printed since may be on its way
        return i

    code = "for i in range(8):\n    print(i)\n    assert await call_tool('cut', {'i': i}) == i\nprint('done')"
    async with proxy_to(steady[1]) as (proxy, near), broker_of(near, tools=[cut]) as broker:
        events = await run(broker, code)
        assert ending(events) == "ok"
        assert text_of(events) == "".join(f"{i}\n" for i in range(8)) + "done\n"
        assert calls == list(range(8))


async def test_a_worker_that_stands_still_for_a_while_goes_on_with_its_sessions(steady: tuple[int, str]) -> None:
    pid, url = steady

    async def stand_still() -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: broker.dispatcher.placer.statistics().away == 1)
        finally:
            os.kill(pid, signal.SIGCONT)

    code = "print('before')\nawait call_tool('stand_still')\nprint('after')"
    async with broker_of(url, tools=[stand_still], resume_s=60) as broker:
        events = await run(broker, code)
        assert (ending(events), text_of(events)) == ("ok", "before\nafter\n")


async def test_a_host_that_falls_silent_loses_its_sessions_and_ends_them_when_it_wakes_up(
    steady: tuple[int, str],
) -> None:
    pid, url = steady

    async def fall_silent() -> None:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.Event().wait()

    async with broker_of(url, tools=[fall_silent], resume_s=0.1) as broker:
        try:
            events = await run(broker, "await call_tool('fall_silent')")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert ending(events) == "WORKER_LOST"
        # Its one slot is free again long before the lease is over.
        await wait_until(lambda: broker.dispatcher.placer.statistics().free == 1)


async def test_a_killed_worker_loses_what_had_begun_and_what_had_not_runs_elsewhere_if_that_is_safe(
    steady: tuple[int, str],
) -> None:
    stopped = asyncio.Event()

    async def stop() -> None:
        os.kill(process.pid, signal.SIGSTOP)  # so that it says nothing of the sessions that it gets from now on
        stopped.set()
        await asyncio.Event().wait()

    with worker_process("--pool-size", "1", "--max-sessions", "9") as (process, url):
        async with broker_of(url, steady[1], tools=[stop], dead_after_s=60, resume_s=60) as broker:
            began = asyncio.create_task(run(broker, "await call_tool('stop')", retry="safe"))
            await stopped.wait()
            safe = asyncio.create_task(run(broker, "return 1", session_id="s_safe", retry="safe"))
            other = asyncio.create_task(run(broker, "return 1", session_id="s_other"))
            routes = broker.dispatcher.fleet.routes
            await wait_until(lambda: {"s_safe", "s_other"} <= routes.keys())
            assert {session.worker for session in routes.values()} == {url}
            os.kill(process.pid, signal.SIGKILL)
            assert [ending(await task) for task in (began, safe, other)] == ["WORKER_LOST", "ok", "WORKER_LOST"]
