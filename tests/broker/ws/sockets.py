"""Clients of `/ws`: one that speaks JSON, and one that speaks bytes, for what no library would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.broker.conftest import Fleet

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Client:
    """A client that keeps what it was told, in order."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def next(self, *kinds: str) -> dict[str, Any]:
        """Return the next message of one of these types, any type if none is named."""
        async with asyncio.timeout(60):
            while True:
                message: dict[str, Any] = json.loads(await self.socket.recv())
                if not kinds or message["type"] in kinds:
                    return message


@contextlib.asynccontextmanager
async def client_of(running: Fleet, credential: str = "") -> AsyncIterator[Client]:
    url = f"ws://{running.broker.host}:{running.broker.port}/ws"
    headers = {"Authorization": f"Bearer {credential}"} if credential else None
    async with connect(url, max_size=None, proxy=None, additional_headers=headers) as socket:
        client = Client(socket)
        assert (await client.next())["type"] == "hello"
        yield client


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a client's frame, masked with zeros."""
    size = len(data)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        length = bytes([0x80 | 127]) + struct.pack("!Q", size)
    return bytes([(0x80 if fin else 0) | opcode]) + length + b"\0\0\0\0" + data


class RawClient:
    """The bytes of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = ""
        """The answer to the handshake."""

    async def answer(self) -> None:
        """Wait for the answer to the handshake."""
        async with asyncio.timeout(60):
            self.head = (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def send(self, *frames: bytes) -> None:
        """Send as much as is taken; the broker may have closed already."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(b"".join(frames))
            await self.writer.drain()

    async def next(self, *opcodes: int) -> tuple[int, bytes]:
        """Return opcode and data of the next frame of one of these, of any if none is named."""
        async with asyncio.timeout(60):
            while True:
                first, second = await self.reader.readexactly(2)
                size = second & 127
                if size >= 126:
                    size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
                data = await self.reader.readexactly(size)
                if not opcodes or first & 15 in opcodes:
                    return first & 15, data

    async def closed(self) -> tuple[int, str]:
        """Return code and reason of the close frame, once it has come."""
        _, data = await self.next(CLOSE)
        return int.from_bytes(data[:2]), data[2:].decode()

    async def ended(self) -> None:
        """Wait until the broker has closed the connection."""
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(1 << 20):
                    pass


def raw_client(running: Fleet, *headers: str) -> contextlib.AbstractAsyncContextManager[RawClient]:
    """Ask a fleet's broker for a WebSocket, with further headers; nothing of the answer is taken for granted."""
    return raw_client_of(running.broker.host, running.broker.port, *headers)


@contextlib.asynccontextmanager
async def raw_client_of(host: str, port: int, *headers: str, answered: bool = True) -> AsyncIterator[RawClient]:
    """Ask for a WebSocket; `answered`: wait for the answer's head."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    request = [
        "GET /ws HTTP/1.1",
        "Host: broker",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    writer.write("\r\n".join([*request, "", ""]).encode())
    client = RawClient(reader, writer)
    try:
        if answered:
            await client.answer()
        yield client
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
