"""A lean HTTP/1.1 client: one keep-alive connection, one request at a time.

The load generator shares the processors with what it measures, so it must cost next to nothing. This one does not parse
events: it looks for the bytes that end a response, and for those that its caller waits for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType

ANSWER_TIMEOUT_S = 60.0
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Connection(asyncio.Protocol):
    """A connection to the broker. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._marker = b""
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

    async def post(self, path: str, body: bytes) -> bytes:
        """Send a request; return the whole response, headers, chunk marks and all.

        Raises:
            ConnectionError: the broker hung up.
            TimeoutError: it did not finish within ANSWER_TIMEOUT_S.
        """
        await self.post_until(path, body, b"")
        return await self.rest()

    async def post_until(self, path: str, body: bytes, marker: bytes) -> bytes:
        """Send a request; return what there is as soon as `marker` has come, or the end. Raises as `post` does."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._received.clear()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if marker:
            await self._wait(marker)
        return bytes(self._received)

    async def get(self, path: str) -> bytes:
        """Ask for something; return the whole response. Raises as `post` does."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._received.clear()
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        return await self.rest()

    async def rest(self) -> bytes:
        """Return the whole response to what `post_until` has sent. Raises as `post` does."""
        await self._wait(b"")
        return bytes(self._received)

    def data_received(self, data: bytes) -> None:
        """Wake who waits, if this is what they wait for."""
        self._received += data
        if self._waiter is not None and not self._waiter.done() and self._arrived():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail who waits: half a response is no response."""
        self._transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("the broker hung up"))

    async def _wait(self, marker: bytes) -> None:
        self._marker = marker
        if self._arrived():
            return
        if self._transport is None:
            raise ConnectionError("the broker hung up")
        self._waiter = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self._waiter

    def _arrived(self) -> bool:
        return (bool(self._marker) and self._marker in self._received) or self._complete()

    def _complete(self) -> bool:
        received = self._received
        # An event's JSON has no bare newline, so these bytes end a chunked body and nothing else.
        if received.endswith(_LAST_CHUNK):
            return True
        head, end, body = received.partition(b"\r\n\r\n")
        _, sized, rest = head.lower().partition(b"content-length:")
        return bool(end and sized) and len(body) >= int(rest.split(b"\r\n", 1)[0])
