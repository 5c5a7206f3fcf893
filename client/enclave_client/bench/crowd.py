"""What a client with an open stream costs the broker: a thousand of them, over `/ws` and over HTTP.

Each client has a session of its own, on a worker without sandboxes: broker, sockets, sessions and their logs are real.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from enclave_client.fleet import FleetSpec, running_fleet

from . import footprint
from .alive import raise_descriptors
from .figures import Figure, at_most
from .load import create_body
from .mute_worker import mute_worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enclave_client.fleet import Fleet

    _Hold = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]

CLIENTS = 1000
CLIENTS_A_ROUND = 100
"""Of a run of fewer rounds than usual, so that a quick one stays quick."""
MAX_CLIENT_KB = 60.0
OPEN_AT_ONCE = 50
READ_TIMEOUT_S = 60.0
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


async def crowd(clients: int) -> list[Figure]:
    """Measure the broker's growth for each client that holds a stream open."""
    raise_descriptors(clients)
    figures = []
    for name, title, hold in (
        ("ws_client_memory", "a client on /ws with a session", _hold_socket),
        ("http_client_memory", "a client on an HTTP stream", _hold_stream),
    ):
        async with mute_worker(clients + 1) as url:
            spec = FleetSpec(workers=0, broker_options=("--worker", url))
            async with running_fleet(spec, lambda *_: None) as fleet:
                each_kb = await _each_kb(fleet, clients, hold)
        said = f"{clients} of them, a session each without a sandbox; RSS of the broker"
        figures.append(at_most(name, title, each_kb, "KB", MAX_CLIENT_KB, compared_with=said))
    return figures


async def _each_kb(fleet: Fleet, clients: int, hold: _Hold) -> float:
    broker = fleet.broker.pid
    assert broker, "a started fleet has a broker"
    where = urlsplit(fleet.url)
    host, port = where.hostname or "127.0.0.1", where.port or 80
    writers: list[asyncio.StreamWriter] = []
    at_once = asyncio.Semaphore(OPEN_AT_ONCE)

    async def one(number: int) -> None:
        async with at_once, asyncio.timeout(READ_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writers.append(writer)
            await hold(reader, writer, f"s_{number}")

    try:
        await one(clients)  # one beforehand, so that nothing is loaded while it is measured
        before_mb = footprint.resident_mb(broker)
        await asyncio.gather(*(one(number) for number in range(clients)))
        return (footprint.resident_mb(broker) - before_mb) * 1024 / clients
    finally:
        for writer in writers:
            writer.transport.abort()


async def _hold_socket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session_id: str) -> None:
    """Run a session over a WebSocket, until its first output."""
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    message = msgspec.json.encode({"type": "execute", "sessionId": session_id, "code": "1"})
    assert len(message) < 126, "a frame of the shortest form"
    writer.write(bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message)
    await reader.readuntil(b'"stdout"')


async def _hold_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session_id: str) -> None:
    """Run a session over HTTP, until its first output."""
    body = create_body("1", session_id=session_id)
    writer.write(f"POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readuntil(b'"stdout"')
