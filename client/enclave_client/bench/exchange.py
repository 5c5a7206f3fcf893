"""A lean connection to the broker, one request at a time: what `http` and `sockets` have in common.

The load generator shares the processors with what it measures, so it must cost next to nothing: there are no tasks, and
events are not parsed. A connection looks for the bytes that end an answer.
"""

from __future__ import annotations

import abc
import asyncio
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType

ANSWER_TIMEOUT_S = 60.0


class Exchange(asyncio.Protocol, abc.ABC):
    """A connection to the broker. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None

    async def open(self) -> None:
        """Connect; raises OSError."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, self._host, self._port)

    def close(self) -> None:
        """Hang up, if connected."""
        if self._transport is not None:
            self._transport.close()

    @abc.abstractmethod
    async def post(self, path: str, body: bytes) -> bytes:
        """Send a request; return all that is answered.

        Raises:
            ConnectionError: the broker hung up.
            TimeoutError: it did not finish within ANSWER_TIMEOUT_S.
        """

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail who waits: half an answer is no answer."""
        self._transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("the broker hung up"))

    def _connected(self) -> asyncio.Transport:
        if self._transport is None:
            raise ConnectionError("not connected")
        return self._transport

    async def _until_answered(self) -> None:
        """Wait until `_answered` says that there is what this waits for."""
        self._waiter = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self._waiter

    def _look(self) -> None:
        """Wake who waits, if this is what they wait for."""
        if self._waiter is not None and not self._waiter.done() and self._answered():
            self._waiter.set_result(None)

    @abc.abstractmethod
    def _answered(self) -> bool: ...
