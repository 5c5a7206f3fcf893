"""Sessions over `/ws`, asked for by a client that costs as little as `http` does: no tasks, and nothing is decoded."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from .http import ANSWER_TIMEOUT_S
from .load import Load

_LAST = b'"type":"final"'


class SocketConnection(asyncio.Protocol):
    """A socket of its own, one session at a time; otherwise as `http.Connection`."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80
        self._protocol = ClientProtocol(parse_uri(f"ws://{where.netloc}/ws"))
        self._transport: asyncio.Transport | None = None
        self._received: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a session can be asked for."""
        return self._transport is not None

    async def open(self) -> None:
        """Connect, and wait for the broker's hello; raises OSError."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, self._host, self._port)
        self._protocol.send_request(self._protocol.connect())
        await self._answer()

    def close(self) -> None:
        """Hang up, if connected."""
        if self._transport is not None:
            self._transport.close()

    async def post(self, _path: str, body: bytes) -> bytes:
        """Run the session that this body asks for over HTTP; return its events. Raises as `Connection.post` does."""
        self._protocol.send_text(b'{"type":"execute",' + body[1:])
        return await self._answer()

    def data_received(self, data: bytes) -> None:
        """Wake who waits, if this is the last that they wait for: the hello, or a `final`."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._received.append(bytes(event.data))
        if self._received and self._waiter is not None and not self._waiter.done():
            newest = self._received[-1]
            if _LAST in newest or b'"type":"hello"' in newest:
                self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail who waits."""
        self._transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("the broker hung up"))

    async def _answer(self) -> bytes:
        if self._transport is None:
            raise ConnectionError("not connected")
        self._received.clear()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(b"".join(self._protocol.data_to_send()))
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self._waiter
        return b"\n".join(self._received)


class SocketLoad(Load):
    """Asks for sessions over `/ws`."""

    def connection(self) -> SocketConnection:  # type: ignore[override]
        """Return a new socket, not open yet."""
        return SocketConnection(self.url)
