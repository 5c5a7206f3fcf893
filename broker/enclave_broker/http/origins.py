"""Which web pages may use the broker.

A browser sends `Origin` with what a page asks of another host. A page that may not is refused at the door, not only
kept from reading the answer (which is all that CORS by itself does): whoever can reach a broker on somebody's loopback
by that person's browser could otherwise run code there and call its tools. What comes without `Origin` comes from
programs.

Without any origin given, a broker on loopback trusts pages that loopback serves: whatever serves them can connect by
itself. One that others reach trusts none, except its own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from litestar.enums import HttpMethod, ScopeType

from enclave_broker.api import error_body
from enclave_broker.config import ANY_ORIGIN, LOOPBACK_ORIGINS, check_origin
from enclave_protocol.credentials import is_loopback

from .views import header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from litestar.types import ASGIApp, Message, Receive, Scope, Send

MAX_AGE_S = 86_400
_MAX_AUTHORITY_CHARS = 300
"""Names of the DNS end at 253."""
METHODS = "GET, POST, DELETE, OPTIONS"
REQUEST_HEADERS = "Content-Type, Accept, Authorization, Last-Event-ID, X-Enclave-Language, traceparent, tracestate"
RESPONSE_HEADERS = "X-Session-ID, Retry-After, X-Enclave-Server-Hello, X-Enclave-Replayed"

Headers = list[tuple[bytes, bytes]]


class Origins:
    """The decision, for one broker.

    Args:
        allowed: origins, `loopback` or `*`. Empty: `loopback` if the broker listens there, else none.
        host: the address that the broker listens on.
        closed: whether callers show a key or a token, which a page that was led here has not.

    Raises:
        ValueError: one of them is no origin.
    """

    def __init__(self, allowed: Iterable[str], host: str, *, closed: bool = False) -> None:
        given = [check_origin(origin) for origin in allowed]
        self._on_loopback = is_loopback(host)
        self._closed = closed
        self._any = ANY_ORIGIN in given
        self._loopback = LOOPBACK_ORIGINS in given or (not given and self._on_loopback)
        self._named = frozenset(given) - {ANY_ORIGIN, LOOPBACK_ORIGINS}
        self._hosts = frozenset(origin.partition("://")[2] for origin in self._named)

    def allows(self, origin: str, host: str) -> bool:
        """Say whether a page from `origin` may ask something of the broker that it calls `host`."""
        if self._any or origin.lower() in self._named:
            return True
        authority = origin.partition("://")[2]
        if self._loopback and _is_of_loopback(authority):
            return True
        return bool(authority) and authority == host and self.is_called(host)  # a page of its own

    def is_called(self, host: str) -> bool:
        """Say whether the broker may have pages of its own under this name.

        Not on loopback under any but loopback's names, and those that were allowed: whoever owns another name can make
        it lead to loopback, and a page that came under that name would then be the broker's own to a browser.
        """
        if self._any or not self._on_loopback:
            return True
        return _is_of_loopback(host) or host.lower() in self._hosts

    def lets_in(self, host: str, site: str | None) -> bool:
        """Say whether to answer what came without `Origin`: from a program, or by GET from a page of our own name.

        Such a page's browser says `Sec-Fetch-Site: same-origin`, but only where the address is https or loopback's: of
        a page by http under a name that was made to lead to loopback it says nothing, and only the name tells.
        """
        if not host or self.is_called(host):
            return True
        return self._closed and site != "same-origin"

    def response_headers(self, origin: str) -> Headers:
        """Return what an answer to a page that may says to its browser."""
        shown = ANY_ORIGIN if self._any else origin
        return [
            (b"access-control-allow-origin", shown.encode("latin-1")),
            (b"access-control-expose-headers", RESPONSE_HEADERS.encode()),
            (b"vary", b"Origin"),
        ]

    def preflight_headers(self, origin: str) -> Headers:
        """Return what a browser wants to know before it asks."""
        return [
            *self.response_headers(origin),
            (b"access-control-allow-methods", METHODS.encode()),
            (b"access-control-allow-headers", REQUEST_HEADERS.encode()),
            (b"access-control-max-age", str(MAX_AGE_S).encode()),
            (b"access-control-allow-private-network", b"true"),  # a page of the internet asks something on loopback
            (b"content-length", b"0"),
        ]


class OriginGate:
    """Lets requests through to the application if their page may; answers browsers that ask first."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        origin, host = header(scope, b"origin"), header(scope, b"host") or ""
        if origin is None:
            # For a WebSocket a browser always says the origin.
            named = scope["type"] == ScopeType.WEBSOCKET or self._origins.lets_in(
                host, header(scope, b"sec-fetch-site")
            )
            if not named:
                await _refuse(f"http://{host}", scope, send)
            else:
                await self._app(scope, receive, send)
        elif not self._origins.allows(origin, host):
            await _refuse(origin, scope, send)
        elif _asks_first(scope):
            await _answer(send, 204, self._origins.preflight_headers(origin), b"")
        else:
            await self._app(scope, receive, self._telling(origin, send))

    def _telling(self, origin: str, send: Send) -> Send:
        headers = self._origins.response_headers(origin)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        return tell


def _asks_first(scope: Scope) -> bool:
    preflight = scope["type"] == ScopeType.HTTP and scope["method"] == HttpMethod.OPTIONS
    return preflight and header(scope, b"access-control-request-method") is not None


def _is_of_loopback(authority: str) -> bool:
    # Not one of any length: what reads it keeps it.
    return len(authority) <= _MAX_AUTHORITY_CHARS and _reads_as_loopback(authority)


@functools.lru_cache(maxsize=16)  # most requests call us the same, and to read that takes longer than all else here
def _reads_as_loopback(authority: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{authority}").hostname or "")
    except ValueError:
        return False


async def _refuse(origin: str, scope: Scope, send: Send) -> None:
    message = (
        f"pages of {origin[:200]} may not use this broker: start it with --cors-origin {origin[:200]}"
        " (or ENCLAVE_CORS_ORIGIN) if they should"
    )
    body = msgspec.json.encode(error_body("ORIGIN_NOT_ALLOWED", message, field="Origin"))
    headers = [
        (b"content-type", b"application/json"),
        (b"vary", b"Origin"),
        (b"content-length", str(len(body)).encode()),
    ]
    if scope["type"] == ScopeType.WEBSOCKET:
        # As an answer to the request for a WebSocket, which uvicorn can give.
        await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
    else:
        await _answer(send, 403, headers, body)


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
