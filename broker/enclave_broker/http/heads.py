"""The server's HTTP, with an end to how long the head of a request may be.

It has neither: httptools keeps what it is sent until a line is complete, and so would keep all that a stranger sends,
before anybody could ask who that is.
"""

from __future__ import annotations

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from enclave_broker.api import error_body

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's first line and headers, or of the trailers behind its body; seen whenever something was received."""


class BoundedHeads(HttpToolsProtocol):
    """Refuses with 431, and closes the connection, when what was received comes to no end and to no body."""

    _head_bytes = 0
    _got_on = False

    def data_received(self, data: bytes) -> None:
        """Take what was received."""
        self._got_on = False
        super().data_received(data)
        self._head_bytes = 0 if self._got_on else self._head_bytes + len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._got_on = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body is there."""
        self._got_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._got_on = True
        super().on_message_complete()

    def _refuse(self) -> None:
        message = f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes"
        body = msgspec.json.encode(error_body("HEADERS_TOO_LARGE", message, limit=MAX_HEAD_BYTES))
        head = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()
