"""A lean HTTP/1.1 client on one keep-alive connection."""

from __future__ import annotations

from .exchange import Exchange

_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Connection(Exchange):
    """A connection for requests over HTTP."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._received = bytearray()
        self._marker = b""

    async def post(self, path: str, body: bytes) -> bytes:
        """Send a request; return the whole response, headers, chunk marks and all."""
        await self.post_until(path, body, b"")
        return await self.rest()

    async def post_until(self, path: str, body: bytes, marker: bytes) -> bytes:
        """Send a request; return what there is as soon as `marker` has come, or the end. Raises as `post` does."""
        transport = self._connected()
        self._received.clear()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if marker:
            await self._wait(marker)
        return bytes(self._received)

    async def get(self, path: str) -> bytes:
        """Ask for something; return the whole response. Raises as `post` does."""
        transport = self._connected()
        self._received.clear()
        transport.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        return await self.rest()

    async def rest(self) -> bytes:
        """Return the whole response to what `post_until` has sent. Raises as `post` does."""
        await self._wait(b"")
        return bytes(self._received)

    def data_received(self, data: bytes) -> None:
        """Take in a piece of the response."""
        self._received += data
        self._look()

    async def _wait(self, marker: bytes) -> None:
        self._marker = marker
        if self._answered():
            return
        if self._transport is None:
            raise ConnectionError("the broker hung up")
        await self._until_answered()

    def _answered(self) -> bool:
        return (bool(self._marker) and self._marker in self._received) or self._complete()

    def _complete(self) -> bool:
        received = self._received
        # An event's JSON has no bare newline, so these bytes end a chunked body and nothing else.
        if received.endswith(_LAST_CHUNK):
            return True
        head, end, body = received.partition(b"\r\n\r\n")
        _, sized, rest = head.lower().partition(b"content-length:")
        return bool(end and sized) and len(body) >= int(rest.split(b"\r\n", 1)[0])
