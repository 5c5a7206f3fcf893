"""Sessions over `/ws`, asked for by a client that costs as little as `http` does."""

from __future__ import annotations

from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from .exchange import Exchange
from .load import Load

_LAST = b'"type":"final"'
_HELLO = b'"type":"hello"'
"""The broker's answer to who connects."""


class SocketConnection(Exchange):
    """A socket of its own, one session at a time."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._protocol = ClientProtocol(parse_uri(f"ws://{urlsplit(url).netloc}/ws"))
        self._received: list[bytes] = []

    async def open(self) -> None:
        """Connect, and wait for the broker's hello; raises OSError."""
        await super().open()
        self._protocol.send_request(self._protocol.connect())
        await self._answer()

    async def post(self, _path: str, body: bytes) -> bytes:
        """Run the session that this body asks for over HTTP; return its events."""
        self._protocol.send_text(b'{"type":"execute",' + body[1:])
        return await self._answer()

    def data_received(self, data: bytes) -> None:
        """Take in messages, or parts of them."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._received.append(bytes(event.data))
        self._look()

    async def _answer(self) -> bytes:
        transport = self._connected()
        self._received.clear()
        transport.write(b"".join(self._protocol.data_to_send()))
        await self._until_answered()
        return b"\n".join(self._received)

    def _answered(self) -> bool:
        return bool(self._received) and (_LAST in self._received[-1] or _HELLO in self._received[-1])


class SocketLoad(Load):
    """Asks for sessions over `/ws`, where they are asked for many at once."""

    def exchange(self) -> Exchange:
        """Return a new socket, not open yet."""
        return SocketConnection(self.url)
