"""uvicorn's HTTP, made fit for clients that nobody vouches for.

Theory of operation. uvicorn and its parser, httptools, do what they can for whoever is connected, before anybody could
ask who that is. What is added here:

- Size: httptools keeps what it is sent until a line is complete. The head of a request, and the trailers behind its
  body, may have `MAX_HEAD_BYTES`.
- Time: a request that is begun has `request_s` to be complete, and longer if much of its body has come. Nearly every
  request comes whole, and sets no timer. While an answer is being written, what comes behind its request has time. A
  connection on which nothing was ever asked is closed like one on which nothing is asked any more.
- Number: `MAX_AHEAD` requests may wait behind the one that is being answered; each takes many times its size.
- Turns: a refusal from here, in the middle of another answer, would be taken for a part of that. Then the connection is
  closed without one, and so it is if a WebSocket is wanted there.
- Upgrades: a WebSocket is the only one. httptools takes all that follows the head for the other protocol, also where
  that is one that we do not speak, such as HTTP/2, which some clients always ask for: their requests would lose their
  bodies. So they are parsed once more, without the wish.
- Answers: one that is not taken does not wait for ever (see `unread`).
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from enclave_broker.api import error_body

from .unread import Unread

if TYPE_CHECKING:
    import asyncio

    from enclave_broker.api import ErrorBody
    from enclave_broker.metrics import Metrics

log = logging.getLogger("enclave.broker.http")

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's first line and headers, or of the trailers behind its body; seen whenever something was received."""
MAX_AHEAD = 64
"""Requests that may wait for their turn."""
BODY_BYTES_PER_S = 16 * 1024
"""A body may take a second longer for each that came of it."""
STOPPED_S = 1.0
"""If a timer is so late, this program was stopped itself, and what clients sent meanwhile is still to be read."""
MAX_REASON_CHARS = 200


class ClientConnection(HttpToolsProtocol):
    """One connection; owned by uvicorn, as its parent class."""

    metrics: ClassVar[Metrics]
    request_s: ClassVar[float]
    unread_s: ClassVar[float]

    _unread: Unread
    _head_bytes = 0
    _body_bytes = 0
    _got_on = False
    """Whether what was received last had the end of a head, or some of a body, or the end of a request."""
    _whole = True
    """Whether no request has come in part, but for its head."""
    _upgrading = False
    _unfinished: asyncio.TimerHandle | None = None
    _begun_s = 0.0
    _due_s = 0.0

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._unread = Unread(transport, self.loop, self.unread_s, self.metrics)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._forget_timers()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing is asked."""
        super().timeout_keep_alive_handler()
        self._unread.look()

    def on_response_complete(self) -> None:
        """Go on with the next request, if the connection is not closed."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._unread.look()

    def pause_writing(self) -> None:
        """Have who writes wait."""
        super().pause_writing()
        self._unread.look()

    def resume_writing(self) -> None:
        """Have who writes go on."""
        super().resume_writing()
        self._unread.taken()

    def _forget_timers(self) -> None:
        self._unset_keepalive_if_required()
        self._unread.stop()
        self._disarm()

    # Reading

    def data_received(self, data: bytes) -> None:
        """Take what was received."""
        self._unset_keepalive_if_required()
        self._got_on = False
        received_bytes = len(data)
        while data:
            data = self._feed(data)
        self._head_bytes = 0 if self._got_on else self._head_bytes + received_bytes
        if self._got_on and self._whole:
            self._disarm()
        elif self.transport.is_closing():
            pass
        elif self._head_bytes > MAX_HEAD_BYTES:
            message = f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes"
            told = error_body("HEADERS_TOO_LARGE", message, limit=MAX_HEAD_BYTES)
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, told)
        elif self._unfinished is None:
            self._arm(self.request_s, anew=True)

    def _feed(self, data: bytes) -> bytes:
        """Parse what was received; returns what is to be parsed after that."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            reason = str(error.__context__ or error)  # what one of our callbacks raised is behind the parser's own
            message = f"this is no HTTP request: {reason[:MAX_REASON_CHARS]}"
            self._refuse(HTTPStatus.BAD_REQUEST, error_body("INVALID_REQUEST", message))
        return b""

    def _upgraded(self, rest: bytes) -> bytes:
        """Go on behind a head that asks for another protocol; returns what is to be parsed once more."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(HTTPStatus.BAD_REQUEST, error_body("INVALID_REQUEST", "this is no proxy"))
        elif method != b"GET" or self._get_upgrade() != b"websocket":
            head = [b"%s %s HTTP/%s\r\n" % (method, self.url, self.parser.get_http_version().encode())]
            head += [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)  # the old one may have taken it for the last request
            return b"".join([*head, b"\r\n", rest])
        elif self._answers:
            self.transport.close()
        else:
            self._forget_timers()
            self.scope["method"] = method.decode()
            self.handle_websocket_upgrade()
        return b""

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._got_on = True
        self._upgrading = self.parser.should_upgrade()
        if self._upgrading:
            return  # see `_upgraded`
        if len(self.pipeline) >= MAX_AHEAD:
            raise ValueError(f"{MAX_AHEAD} requests wait for their turn")
        super().on_headers_complete()
        self._whole = False
        self._body_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Some of the body is there."""
        self._got_on = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._got_on = self._whole = True
        if not self._upgrading:
            super().on_message_complete()

    # What does not get as far as the application

    @property
    def _answers(self) -> bool:
        """Whether an answer is being written, or will be next."""
        if self._whole:
            return self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline) or (self.cycle.response_started and not self.cycle.response_complete)

    def _arm(self, in_s: float, *, anew: bool = False) -> None:
        now = self.loop.time()
        self._begun_s = now if anew else self._begun_s
        self._due_s = now + in_s
        self._unfinished = self.loop.call_later(in_s, self._overdue)

    def _disarm(self) -> None:
        if self._unfinished is not None:
            self._unfinished.cancel()
            self._unfinished = None

    def _overdue(self) -> None:
        self._unfinished = None
        now = self.loop.time()
        more_s = self._begun_s + self.request_s + self._body_bytes / BODY_BYTES_PER_S - now
        if self.transport.is_closing():
            return
        if self._answers or now > self._due_s + STOPPED_S:
            self._arm(self.request_s, anew=True)
        elif not self._whole and more_s > 0:
            self._arm(more_s)
        else:
            message = f"the request was not complete after {now - self._begun_s:.0f} s"
            log.info("client %s: %s", ":".join(map(str, self.client or "?")), message)
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, error_body("REQUEST_TIMEOUT", message))

    def _refuse(self, status: HTTPStatus, told: ErrorBody) -> None:
        """Answer what is begun, if it is its turn and it was not answered yet, and close the connection."""
        self.metrics.rejections.labels(told.code).inc()
        if not self._answers and (self._whole or not self.cycle.response_complete):
            self.metrics.answered("", "", status)
            body = msgspec.json.encode(told)
            head = b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
        self._unread.look()


def client_connection(metrics: Metrics, *, request_s: float, unread_s: float) -> type[ClientConnection]:
    """Return the protocol for uvicorn, which makes its instances itself.

    Args:
        metrics: where to count.
        request_s: longest time for a request to be complete; see `BODY_BYTES_PER_S`.
        unread_s: how long a client may take nothing of what waits for it.
    """
    return type(
        "ClientConnection", (ClientConnection,), {"metrics": metrics, "request_s": request_s, "unread_s": unread_s}
    )
