"""Refuses new sessions at the door while none can be had, at a fraction of what reading the request would cost.

Theory of operation. With many times more requests than the fleet can serve, most of the broker's time would go into
refusing: routing, decoding and checking what is then turned away. So a request for a session is first held against what
its caller could have at most, which needs no more of it than its credentials. Whatever this door does not know for sure
to be refused goes on inside as if there were no door, and is decided there: a caller who may not, a request that may
have been made before (it has a `sessionId`, and is answered from that session's events), one whose body is not small.
What is refused here gets the status, the body and the headers that it would get inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enclave_broker.access import Denied, QuotaExceeded, Scope
from enclave_broker.api import full, refusal
from enclave_protocol import NoCapacity

from .creation import PATH, creates
from .refusals import refuse
from .views import header

if TYPE_CHECKING:
    from litestar.types import ASGIApp, HTTPScope, Receive, Send
    from litestar.types import Scope as AsgiScope

    from enclave_broker.access import Caller
    from enclave_broker.dispatcher import Dispatcher

MAX_BODY_BYTES = 64 * 1024
"""Larger requests are read inside."""
_NAMED = (b'"sessionId"', b"\\u")
"""What a body has in it that says which session it is about; the second can be an escaped part of the first."""


class EarlyDoor:
    """Stands before the application.

    Args:
        app: it.
        dispatcher: knows who could have a session.
    """

    def __init__(self, app: ASGIApp, dispatcher: Dispatcher) -> None:
        self._app = app
        self._dispatcher = dispatcher

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if creates(scope):
            scope["path_template"] = PATH  # what it is counted as, whoever answers it
            refused = self._refused(scope)
            if refused is not None:
                body = await _small_body(receive)
                if body is None:
                    return  # its client is gone
                if not any(mark in body for mark in _NAMED):
                    await self._refuse(*refused, send)
                    return
                receive = _again(body, receive)
        await self._app(scope, receive, send)

    def _refused(self, scope: HTTPScope) -> tuple[Caller, QuotaExceeded | NoCapacity] | None:
        """Return whose request it is and why it will be refused, if that is known and it is small."""
        dispatcher = self._dispatcher
        try:
            if not dispatcher.crowded or not _is_small(scope):
                return None
            caller = dispatcher.gate.caller(scope)
            if caller.session_id is None:
                caller.require(Scope.CREATE)
                dispatcher.turn_away(caller)
        except Denied:
            return None
        except (QuotaExceeded, NoCapacity) as error:
            return caller, error
        return None

    async def _refuse(self, caller: Caller, reason: QuotaExceeded | NoCapacity, send: Send) -> None:
        if isinstance(reason, QuotaExceeded):
            self._dispatcher.metrics.quota_refused(caller.tenant, reason.quota)
            told = refusal(reason)
        else:
            told = full(reason)
        await refuse(told, self._dispatcher.metrics, send)


def _is_small(scope: HTTPScope) -> bool:
    """Return whether the body is known to be small."""
    length = header(scope, b"content-length") or ""
    return length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MAX_BODY_BYTES


async def _small_body(receive: Receive) -> bytes | None:
    """Return the body; None if it does not come any more. What the server takes is no longer than was said."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands out the body once more."""
    first: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Any:
        return first.pop() if first else await receive()

    return receive_again
