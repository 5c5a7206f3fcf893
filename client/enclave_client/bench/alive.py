"""Sessions that are alive all at once, each waiting for the answer of a tool: `hold_tool`'s."""

from __future__ import annotations

import asyncio
import resource
import time
from typing import TYPE_CHECKING, Self

import msgspec

from . import footprint
from .load import first

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .http import Connection
    from .load import Load

TOOLS = "enclave_client.bench.hold_tool"
"""The module that the broker needs."""
MAKE_AT_ONCE = 50
"""How many are asked for at a time: those alive wait, so this many are being made."""
HOLD = 'return await call_tool("bench_hold", {})'
HOLD_AND_IMPORT = f"import json\n{HOLD}"
"""The same from a zygote that has loaded what code imports."""
_RELEASE = 'return await call_tool("bench_release", {})'
_LIFE_MS = 600_000
_SETTLE_S = 30.0
"""How long the sandboxes may take to end, and what replaces warm ones to be there."""
_POLL_S = 0.05
_REST_POLLS = 5
"""After so many without a change the pools are as full as they get."""
_SPARE_DESCRIPTORS = 500


_WAITS = b'"tool_call"'
"""In the stream of a session that has called its tool."""


class NotAliveError(Exception):
    """A session ended that was to wait, so what the others cost is not what so many cost."""


class Alive:
    """Sessions that wait; leaving the context lets go of them, and counts those that did not end well.

    Args:
        load: counts the sessions and what failed.
        worker: the process id of the one worker they are on.
        profile: theirs; the default one if empty.
    """

    def __init__(self, load: Load, worker: int, profile: str = "") -> None:
        self._load = load
        self._worker = worker
        self._profile = profile
        self._connections: list[Connection] = []
        self._processes_before = 0

    async def __aenter__(self) -> Self:
        # With a sandbox missing that is just being replaced, more would seem to be left in the end, and be waited for.
        counts: list[int] = []

        def unchanged(processes: int) -> bool:
            counts.append(processes)
            return counts[-_REST_POLLS:] == [processes] * _REST_POLLS

        await self._wait(unchanged)
        self._processes_before = counts[-1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._release()
        finally:
            for connection in self._connections:
                connection.close()

    def __len__(self) -> int:
        return len(self._connections)

    async def make(self, count: int, code: str = HOLD) -> float:
        """Make `count` more that run `code`; return how long it took until the last of them had called a tool, in s.

        Raises:
            NotAliveError: one ended instead; it is counted as failed, and no further ones are made.
            OSError: a connection broke, or nothing came in time.
        """
        raise_descriptors(len(self) + count)
        body = self._body(code)
        at_once = asyncio.Semaphore(MAKE_AT_ONCE)

        async def one() -> None:
            async with at_once:
                connection = self._load.connection()
                await connection.open()
                self._connections.append(connection)
                self._load.sessions += 1
                answer = await connection.post_until("/sessions", body, _WAITS)
                if _WAITS not in answer:
                    self._load.fail(answer[-500:].decode(errors="replace"))
                    raise NotAliveError

        started = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(one())
        except BaseExceptionGroup as errors:
            raise first(errors) from None
        return time.perf_counter() - started

    async def wait_replaced(self) -> None:
        """Wait until there are as many warm sandboxes beside these sessions as there were before."""
        wanted = self._processes_before + len(self)
        await self._wait(lambda processes: processes >= wanted)

    async def _release(self) -> None:
        async with self._load.connection() as connection:
            await self._load.run(connection, self._body(_RELEASE))
        for connection in self._connections:
            self._load.check(await connection.rest())
        # The next measurement is not to pay for the end of these.
        await self._wait(lambda processes: processes <= self._processes_before)

    async def _wait(self, holds: Callable[[int], bool]) -> None:
        """Wait for a number of processes below the worker, but not for ever: it may have its reasons."""
        deadline = time.monotonic() + _SETTLE_S
        while (  # noqa: ASYNC110 - nothing tells a client when a worker has made or ended a process
            not holds(len(footprint.descendants(self._worker))) and time.monotonic() < deadline
        ):
            await asyncio.sleep(_POLL_S)

    def _body(self, code: str) -> bytes:
        limits = {"sessionTtlMs": _LIFE_MS, "toolTimeoutMs": _LIFE_MS, "perToolDeadlineMs": _LIFE_MS}
        body = {"code": code, "limits": limits}
        return msgspec.json.encode(body | ({"profile": self._profile} if self._profile else {}))


def raise_descriptors(clients: int) -> None:
    """Let this process, and what it starts, have a socket for each of so many clients, as far as the host allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _SPARE_DESCRIPTORS
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
