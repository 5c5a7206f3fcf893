"""A broker on a free port in front of fake workers, and the check that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from enclave_broker import Broker, create_broker
from tests.plain_http import NO_AUTHORITIES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.fakes import FakeWorker

FAST: dict[str, Any] = {
    "port": 0,
    "ping_interval_s": 0.05,
    "reconnect_min_s": 0.01,
    "reconnect_max_s": 0.05,
    "dead_after_s": 60.0,
    "hello_timeout_s": 60.0,
    "resume_s": 60.0,
    "stop_grace_s": 60.0,
}
"""Intervals that a test can sit through, and patience that no machine is too slow for: a test that is about the end of
somebody's patience gives its own."""


class Fleet:
    """A broker, its workers and a client."""

    def __init__(self, broker: Broker, workers: list[FakeWorker], http: httpx.AsyncClient) -> None:
        self.broker = broker
        self.workers = workers
        self.http = http

    async def wait_workers(self, count: int) -> None:
        """Wait until exactly so many workers are connected."""
        await self.wait_until(lambda: self.broker.dispatcher.placer.statistics().workers == count)

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Let the loop run until something holds; it is looked at after every few steps of the loop."""
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.002)

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric's value, 0 if it was never counted."""
        return self.broker.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def fleet(*workers: FakeWorker, strangers: Sequence[FakeWorker] = (), **settings_: Any) -> AsyncIterator[Fleet]:
    """Run a broker in front of these workers, and check everything it must keep true when it has stopped.

    Strangers are dialled like workers, and not waited for: they are none.
    """
    tasks = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        for worker in (*workers, *strangers):
            await stack.enter_async_context(worker)
        broker = create_broker(runtimes=[worker.url for worker in (*workers, *strangers)], **(FAST | settings_))
        await stack.enter_async_context(broker)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=broker.url, timeout=60, verify=NO_AUTHORITIES)
        )
        running = Fleet(broker, list(workers), http)
        await running.wait_workers(len(workers))
        yield running
        broker.dispatcher.validate()
    assert asyncio.all_tasks() <= tasks, "the broker left tasks behind"
    assert not broker.dispatcher.directory.live, "the broker left sessions without an end"


def parse(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def start(running: Fleet, session_id: str, **body: Any) -> asyncio.Task[str]:
    """Post a session in the background, and return once its worker has it."""

    async def post() -> str:
        response = await running.http.post("/sessions", json={"code": "1", "sessionId": session_id, **body})
        return response.text

    before = sum(message["type"] == "execute" for message in running.workers[0].received)
    task = asyncio.create_task(post())
    await running.workers[0].wait_received("execute", before + 1)
    return task


def open_fds() -> int:
    """Return how many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
async def _no_fd_is_left() -> AsyncIterator[None]:
    before = open_fds()
    yield
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while open_fds() > before:  # noqa: ASYNC110 - transports close theirs in later turns of the loop
                await asyncio.sleep(0)
    assert open_fds() <= before, "file descriptors were left open"
