"""Answers `POST /sessions` before any route is found.

Most requests are this one, and to find a route, its guard and its arguments costs as much as all that the broker does
with the session. The route is there all the same: it describes itself in `/docs`, and serves what this door lets pass,
such as another spelling of the path. Both do the same, by `common.create_stream`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from litestar.enums import HttpMethod, ScopeType

from enclave_broker.access import Scope

from .common import create_stream
from .refusals import MAX_BODY_BYTES, as_api_error, refuse, too_large
from .views import header

if TYPE_CHECKING:
    from litestar.types import ASGIApp, HTTPScope, Receive, Send
    from litestar.types import Scope as AsgiScope

    from enclave_broker.dispatcher import Dispatcher

    from .streams import EventStream

PATH = "/sessions"


def creates(scope: AsgiScope) -> TypeGuard[HTTPScope]:
    """Return whether a request is for a new session."""
    return scope["type"] == ScopeType.HTTP and scope["path"] == PATH and scope["method"] == HttpMethod.POST


class CreateDoor:
    """Stands before the application.

    Args:
        app: it.
        dispatcher: makes the sessions.
    """

    def __init__(self, app: ASGIApp, dispatcher: Dispatcher) -> None:
        self._app = app
        self._dispatcher = dispatcher

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not creates(scope):
            await self._app(scope, receive, send)
            return
        stream: EventStream | None = None
        try:
            caller = self._dispatcher.gate.caller(scope)
            caller.require(Scope.CREATE)
            body = await _body(scope, receive)
            if body is None:
                return  # its client is gone
            stream = create_stream(self._dispatcher, scope, caller, body)
            await stream(scope, receive, send)
        except Exception as error:
            if stream is not None and stream.started:
                raise
            await refuse(as_api_error(error), self._dispatcher.metrics, send)


async def _body(scope: HTTPScope, receive: Receive) -> bytes | None:
    """Return the body; None if it does not come any more. Raises ApiError."""
    # Of digits, and no more than 64 bits: the server has seen to that, but not to zeros in front, and Python refuses to
    # read thousands of digits.
    length = (header(scope, b"content-length") or "").lstrip("0")
    if length and int(length) > MAX_BODY_BYTES:
        raise too_large()
    parts: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message["body"])
        size_bytes += len(message["body"])
        if size_bytes > MAX_BODY_BYTES:
            raise too_large()
        if not message["more_body"]:
            return b"".join(parts)
