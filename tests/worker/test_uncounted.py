"""A host without control groups: the worker itself looks at what sandboxes use, and does not lose sight of one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from enclave_worker.cgroups import ControlGroups, ControlGroupsMissing
from tests.support import PATIENCE_S, Client, client_of, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import pytest

    from enclave_worker.runtime import RuntimeWorker

HOARDERS = """
import os, time
await call_tool("wait")
for _ in range(3):
    if os.fork() == 0:
        kept = os.urandom(1 << 20) * 40
        time.sleep(600)
time.sleep(600)
"""


def _there_are_none() -> ControlGroups:
    raise ControlGroupsMissing("the test takes them away", "none")


@pytest_asyncio.fixture
async def uncounted(no_leaks: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RuntimeWorker]:  # noqa: ARG001
    """A worker without control groups that makes each sandbox when it is asked for, and now has none."""
    monkeypatch.setattr(ControlGroups, "open", _there_are_none)
    async with running(level="STANDARD", pool_size=0, memory_limit_bytes=64 << 20) as worker:
        assert worker._parts is not None
        pools = worker._parts.pools
        async with asyncio.timeout(PATIENCE_S):
            while pools.live:  # noqa: ASYNC110 - nothing tells when a sandbox has gone
                await asyncio.sleep(0)
        yield worker


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leave this process as many: those that are open may lie anywhere."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(count + 1)]
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


async def _waiting(client: Client, worker: RuntimeWorker) -> tuple[str, str, Any]:
    """Start hoarders that wait for a word; return the session, the call and what runs it."""
    session = await client.start(HOARDERS, heartbeatIntervalMs=50)
    call = await client.until(session, "tool_call")
    (run,) = worker.sessions._runs.values()
    return session, call["callId"], run


async def test_memory_is_limited_after_a_time_without_descriptors_to_look_with(uncounted: RuntimeWorker) -> None:
    async with client_of(uncounted.url) as client:
        session, call, run = await _waiting(client, uncounted)
        with descriptors_left(0):
            while not run._blind_looks:
                await client.until(session, "heartbeat")
        await client.answer(session, call, None)

        assert (await client.finish(session)).code == "MEMORY_LIMIT_EXCEEDED"


async def test_memory_of_a_sandbox_that_took_the_last_descriptors_is_limited(uncounted: RuntimeWorker) -> None:
    async with client_of(uncounted.url) as client:
        with descriptors_left(4):
            session, call, _ = await _waiting(client, uncounted)
        await client.answer(session, call, None)

        assert (await client.finish(session)).code == "MEMORY_LIMIT_EXCEEDED"


async def test_who_can_not_be_looked_at_for_long_is_ended(uncounted: RuntimeWorker) -> None:
    async with client_of(uncounted.url) as client:
        session, _, _ = await _waiting(client, uncounted)
        with descriptors_left(0):
            run = await client.finish(session)

    assert run.code == "INTERNAL_ERROR"
    assert "nobody can tell what it uses: [Errno 24]" in run.final["error"]["message"]
