"""A broker that says exactly what a test wants: HTTP, `POST /sessions` and cancel, nothing behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Script = Callable[["FakeBroker", "Stream"], Awaitable[None]]


class Stream:
    """The answer to one `POST /sessions`."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.started = False

    async def answer(self, status: str, body: bytes, content_type: str = "application/json") -> None:
        """Answer with a whole body instead of a stream."""
        self.started = True
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()

    async def send(self, raw: bytes) -> None:
        """Send bytes of the stream."""
        if not self.started:
            self.started = True
            head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._writer.write(head.encode())
        self._writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        await self._writer.drain()

    async def event(self, seq: int, kind: str, **payload: Any) -> None:
        """Send one event."""
        await self.send(event(seq, kind, **payload))

    async def finish(self) -> None:
        """End the stream as HTTP wants it."""
        if self.started:
            self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()


def event(seq: int, kind: str, **payload: Any) -> bytes:
    """Return an event's line."""
    envelope = {"protocolVersion": 2, "sessionId": "s_test", "seq": seq, "type": kind, "payload": payload}
    return json.dumps(envelope).encode() + b"\n"


class FakeBroker:
    """Listens on loopback and plays a script for each session."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[dict[str, Any]] = []
        self.cancelled = asyncio.Event()
        self.cut = False
        """Set by a script that wants the connection broken instead of the stream ended."""
        self.url = ""
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeBroker]:
        """Listen for the length of a `with` block."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In a task of ours: asyncio keeps those of its servers to itself, and some tests leave one waiting.
        task = asyncio.create_task(self._answer(reader, writer))
        self._serving.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0
            )
            body = await reader.readexactly(length)
            stream = Stream(writer)
            if "/cancel" in head.splitlines()[0]:
                self.cancelled.set()
                await stream.answer("200 OK", b"{}")
            else:
                self.requests.append(json.loads(body))
                await self._script(self, stream)
                if not self.cut:
                    await stream.finish()
