"""A worker without sandboxes: its sessions print one line, and then wait to be cancelled.

What a client costs the broker is measured with it, since a thousand real sandboxes would fill the machine.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from enclave_protocol import (
    Cancel,
    Execute,
    Final,
    FinalError,
    FinalPayload,
    Hello,
    Ping,
    Pong,
    Stats,
    __version__,
    decode_client_message,
    encode,
)
from enclave_protocol.events import ChunkPayload, Stdout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def mute_worker(slots: int) -> AsyncIterator[str]:
    """Serve for the length of a `with` block; yields the worker's URL."""

    async def talk(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await _talk(connection, slots)

    async with serve(talk, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/ws"


async def _talk(connection: ServerConnection, slots: int) -> None:
    hello = Hello(
        worker_id="mute",
        version=__version__,
        level="NONE",
        languages=["python"],
        profiles=["python"],
        max_sessions=slots,
        active=0,
    )
    await connection.send(encode(hello), text=True)
    next_seq: dict[str, int] = {}
    async for data in connection:
        message = decode_client_message(data)
        if isinstance(message, Ping):
            pong = Pong(timestamp=message.timestamp, active=len(next_seq), max_sessions=slots)
            await connection.send(encode(pong), text=True)
        elif isinstance(message, Execute):
            session_id, first = message.session_id or "", message.first_seq or 1
            next_seq[session_id] = first + 1
            line = Stdout(session_id=session_id, seq=first, payload=ChunkPayload(chunk="running\n"))
            await connection.send(encode(line), text=True)
        elif isinstance(message, Cancel) and message.session_id in next_seq:
            await connection.send(encode(_cancelled(message.session_id, next_seq.pop(message.session_id))), text=True)


def _cancelled(session_id: str, seq: int) -> Final:
    error = FinalError(message="cancelled", code="SESSION_CANCELLED", retryable=False)
    return Final(session_id=session_id, seq=seq, payload=FinalPayload(ok=False, error=error, stats=Stats()))
