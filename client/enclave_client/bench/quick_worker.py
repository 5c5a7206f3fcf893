"""A worker without sandboxes, whose sessions end as soon as they are asked for: `return 1 + 1`, at next to no cost.

What the broker alone costs is measured with it. To the broker it is a worker like any other: it resumes, so that its
events are acknowledged, and its events are as long as a real one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, cast

import msgspec
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from enclave_protocol import Final, FinalPayload, Hello, Pong, Stats, __version__, encode
from enclave_protocol.revisions import NEWEST_REVISION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RESULT = msgspec.Raw(b"2")
_STATS = Stats(duration_ms=1.234, cpu_ms=1.234, peak_memory_bytes=4_321_234, queue_ms=0.123, start_ms=0.123)


class _Asked(msgspec.Struct, rename="camel"):
    """As much of a broker's message as the answer depends on."""

    type: str
    session_id: str = ""
    first_seq: int = 1
    timestamp: float = 0.0


_decoder = msgspec.json.Decoder(_Asked)


@contextlib.asynccontextmanager
async def quick_workers(count: int, slots: int) -> AsyncIterator[list[str]]:
    """Serve as so many workers for the length of a `with` block; yields their URLs."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: _Talk(slots), "127.0.0.1", 0) for _ in range(count)]
    try:
        yield [f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws" for server in servers]
    finally:
        for server in servers:
            server.close()


class _Talk(asyncio.Protocol):
    """One broker's connection. The library's protocol without its tasks: they cost more than the answers."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._protocol = ServerProtocol()
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer all that has come with one write."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
                self._say(self._hello())
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._answer(_decoder.decode(event.data))
        self._transport.write(b"".join(self._protocol.data_to_send()))

    def _answer(self, asked: _Asked) -> None:
        if asked.type == "execute":
            payload = FinalPayload(ok=True, result=RESULT, stats=_STATS)
            self._say(Final(session_id=asked.session_id, seq=asked.first_seq, payload=payload))
        elif asked.type == "ping":
            self._say(Pong(timestamp=asked.timestamp, active=0, max_sessions=self._slots))

    def _say(self, message: Final | Hello | Pong) -> None:
        self._protocol.send_text(encode(message))

    def _hello(self) -> Hello:
        worker_id = f"quick-{uuid.uuid4()}"
        return Hello(
            worker_id=worker_id,
            instance=worker_id,
            version=__version__,
            max_revision=NEWEST_REVISION,
            level="NONE",
            languages=["python"],
            profiles=["python"],
            max_sessions=self._slots,
            active=0,
        )
