"""uvicorn's WebSocket, made fit for clients that nobody vouches for.

Theory of operation. uvicorn parses frames, enforces the largest message while it arrives and stops reading while the
application has a message it did not take. What is added here:

- Memory: what one read brought is parsed a slice at a time, so that thousands of tiny messages never queue at once;
  empty fragments of a message are dropped and the others counted; a ping of a client that reads nothing is answered
  once it reads again, the last one for all.
- Endings: after a message that can't be accepted, reading goes on for a moment, into the void. A socket closed with
  unread data in it is reset by the kernel, and the reset would overtake the close frame that says why. Whoever does
  not read the end is aborted, so that no socket lives longer than its client cares for it.
- Life: every `ping_s` a ping goes out. A client whose machine acknowledged nothing since two pings ago is gone (half
  open); one that is there, but sends nothing for `silent_s`, hangs. Both are counted in pings, not seconds: a broker
  that was itself stopped for a minute must not take its clients for dead.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from enclave_broker.api import error_body

from .codes import BROKER_STOPS, NOT_UTF8, SILENT, CloseCode

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from websockets.frames import Frame

SLICE_BYTES = 16 * 1024
"""Parsed at once; as many bytes can be 2,700 messages."""
MAX_FRAGMENTS = 16_384
"""Of one message."""
LINGER_S = 2.0
"""How long a client may take to see why it is being cut off."""
_LOST_PINGS = 2
_CLOCK_SLACK_S = 0.05
"""The kernel counts in ticks of up to 10 ms."""
_LAST_ACK_OFFSET = 56
"""Of `tcpi_last_ack_recv` in Linux' `struct tcp_info`: 8 bytes, and 12 numbers before it."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection; owned by uvicorn, as its parent class."""

    ping_s: ClassVar[float] = 5.0
    silent_s: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.debug = False  # it would log every header, tokens too
        self.close_timeout = _LOST_PINGS * self.ping_s
        self._stash = memoryview(b"")
        self._late_pong = b""
        self._failed = False
        self._unanswered = 0
        self._first_unanswered_s = 0.0
        self._seen_closing = False
        self._ticking: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to look after it."""
        super().connection_made(transport)
        self._ticking = self.loop.call_later(self.ping_s, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._ticking is not None:
            self._ticking.cancel()
        self._stash = memoryview(b"")
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Say that the broker is stopping."""
        if self.transport.is_closing():
            return
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self.queue.put_nowait(
            {"type": "websocket.disconnect", "code": CloseCode.BROKER_STOPS.value, "reason": BROKER_STOPS}
        )
        self.conn.send_close(CloseCode.BROKER_STOPS, BROKER_STOPS)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()

    def _tick(self) -> None:
        self._ticking = self.loop.call_later(self.ping_s, self._tick)
        if self.transport.is_closing():
            if self._seen_closing:
                self.transport.abort()  # it does not read the rest
            self._seen_closing = True
        elif self.handshake_complete and not self.close_sent:
            now = self.loop.time()
            if is_gone(
                self._unanswered,
                most=max(_LOST_PINGS, round(self.silent_s / self.ping_s)),
                waited_s=now - self._first_unanswered_s,
                acknowledged_s=self._acknowledged_s(),
            ):
                self._fail(CloseCode.BROKER_FAILED, SILENT)
                return
            if not self._unanswered:
                self._first_unanswered_s = now
            self._unanswered += 1
            self.conn.send_ping(b"")
            self.transport.write(b"".join(self.conn.data_to_send()))

    def _acknowledged_s(self) -> float:
        """Return how long ago the client's machine acknowledged anything."""
        info = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
        return float(struct.unpack_from("I", info, _LAST_ACK_OFFSET)[0]) / 1000

    # Reading

    def data_received(self, data: bytes) -> None:
        """Parse what came, as far as the application takes it."""
        self._unanswered = 0
        if self._failed:
            return
        self._stash = memoryview(data)  # nothing is read before the last one is parsed
        self._parse()
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_handshake(self.conn.handshake_exc)
        if self._stash and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next message, and read on once it was the last one."""
        message = await self.queue.get()
        self._read_on()
        return message

    def _refuse_handshake(self, error: Exception) -> None:
        """Answer a request that HTTP's parser took for one, and that of WebSockets does not; uvicorn would not."""
        self._failed = self.handshake_complete = self.close_sent = True
        message = f"this is no WebSocket handshake: {error.__cause__ or error}"
        body = msgspec.json.encode(error_body("INVALID_REQUEST", message))
        head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.transport.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()

    def _read_on(self) -> None:
        if not self.read_paused or not self.queue.empty():
            return
        self.read_paused = False
        self._parse()
        if self._stash:
            self.read_paused = True
        elif not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _parse(self) -> None:
        # What a client sends before it was answered waits: the frames' parser has nothing to answer with until then.
        while self._stash and not self.read_paused and not self._failed and not self._unanswered_handshake:
            piece, self._stash = self._stash[:SLICE_BYTES], self._stash[SLICE_BYTES:]
            super().data_received(bytes(piece))

    @property
    def _unanswered_handshake(self) -> bool:
        return self.handshake_initiated and not self.handshake_complete

    def handle_cont(self, event: Frame) -> None:
        """Take a further fragment of a message."""
        if event.data and not self._failed:
            self.frames.append(bytes(event.data))
        if len(self.frames) > MAX_FRAGMENTS:
            self._fail(CloseCode.TOO_LARGE, f"a message of more than {MAX_FRAGMENTS} fragments")
        elif event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message over."""
        data, self.frames = b"".join(self.frames), []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "bytes":
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        else:
            try:
                self.queue.put_nowait({"type": "websocket.receive", "text": data.decode()})
            except UnicodeDecodeError:
                self._fail(CloseCode.NOT_UTF8, NOT_UTF8)
                return
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_parser_exception(self) -> None:
        """Tell the client why its message can't be accepted, and give it a moment to see that."""
        if self._failed:  # what came behind, in the same piece
            return
        self._failed = True
        self._stash = memoryview(b"")
        close = self.conn.close_sent
        if close is None:
            raise AssertionError("failed without a close frame: frames are parsed only on an open connection")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.frames = []
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    # Writing

    async def send(self, message: ASGISendEvent) -> None:
        """Send a message. A close waits for nobody: whom it is about may be the one that does not read."""
        kind = message["type"]
        if self.close_sent and kind in {"websocket.send", "websocket.close"}:
            return  # closed from this side meanwhile; who sends will be told by `receive`
        if kind == "websocket.close":
            self.writable.set()
        await super().send(message)
        if kind == "websocket.accept":
            self._read_on()
        elif kind == "websocket.close":
            self._parse()
        elif kind == "websocket.http.response.body":
            self.handshake_complete = True  # by a refusal; uvicorn would log that there was none

    def handle_ping(self) -> None:
        """Answer a ping, at once or when the client reads again."""
        pongs = self.conn.data_to_send()
        if self._failed:  # by what came before it, in the same piece
            return
        if self.writable.is_set():
            self.transport.write(b"".join(pongs))
        elif pongs:
            self._late_pong = pongs[-1]

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._late_pong and not self._failed:
            self.transport.write(self._late_pong)
        self._late_pong = b""


def is_gone(unanswered: int, *, most: int, waited_s: float, acknowledged_s: float) -> bool:
    """Return whether a client is gone.

    Args:
        unanswered: pings since it last sent anything.
        most: how many of them it may leave so.
        waited_s: since the first of them.
        acknowledged_s: since its machine last acknowledged anything.
    """
    if unanswered >= most:
        return True
    return unanswered >= _LOST_PINGS and acknowledged_s > waited_s + _CLOCK_SLACK_S


def socket_protocol(*, ping_s: float, silent_s: float) -> type[SocketProtocol]:
    """Return the protocol for uvicorn, which makes its instances itself, with these intervals in seconds."""
    return type("SocketProtocol", (SocketProtocol,), {"ping_s": ping_s, "silent_s": silent_s})
