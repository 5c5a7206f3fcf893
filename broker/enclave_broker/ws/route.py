"""The handler of `/ws`: the handshake, one `SocketClient` per socket, and how the socket is closed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import WebSocket  # noqa: TC002 - Litestar reads the annotation at run time
from litestar.handlers import WebsocketRouteHandler

from enclave_broker.access import Denied
from enclave_broker.api import ApiError, error_body, invalid, refusal
from enclave_protocol import RemoteProtocolError

from .client import Closing, SocketClient
from .codes import BROKER_FAILED, CloseCode
from .handshake import choose_subprotocol

if TYPE_CHECKING:
    from enclave_broker.access import Caller
    from enclave_broker.dispatcher import Dispatcher

log = logging.getLogger("enclave.broker.ws")


def create_ws_route(dispatcher: Dispatcher) -> WebsocketRouteHandler:
    """Return the handler of `/ws`."""
    sockets = _Sockets(dispatcher)

    async def serve(socket: WebSocket[Any, Any, Any]) -> None:
        try:
            caller = dispatcher.gate.caller(socket.scope)
            subprotocol = sockets.admit(socket.scope["subprotocols"])
        except (Denied, ApiError) as error:
            told = refusal(error) if isinstance(error, Denied) else error
            dispatcher.metrics.rejections.labels(told.body.code).inc()
            await refuse(socket, told)
            return
        with sockets:
            await socket.accept(subprotocols=subprotocol)
            await _serve(socket, dispatcher, caller)

    return WebsocketRouteHandler("/ws")(serve)


class _Sockets:
    """How many sockets are open; a context manager around each."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._open = 0
        self._most = dispatcher.config.max_sockets
        self._gauge = dispatcher.metrics.sockets

    def admit(self, offered: list[str]) -> str | None:
        """Return the subprotocol to select; raises ApiError."""
        if self._open >= self._most:
            message = f"{self._most} WebSockets are open, and no more are taken"
            raise ApiError(503, error_body("NO_CAPACITY", message), headers={"Retry-After": "1"})
        try:
            return choose_subprotocol(offered)
        except RemoteProtocolError as error:
            raise invalid(str(error), field=error.field, allowed=error.allowed) from error

    def __enter__(self) -> None:
        self._open += 1
        self._gauge.set(self._open)

    def __exit__(self, *_: object) -> None:
        self._open -= 1
        self._gauge.set(self._open)


async def _serve(socket: WebSocket[Any, Any, Any], dispatcher: Dispatcher, caller: Caller) -> None:
    peer = f"{socket.client.host}:{socket.client.port}" if socket.client else "?"
    log.info("client %s connected", peer)
    closing = Closing(BROKER_FAILED, CloseCode.BROKER_FAILED)
    try:
        closing = await SocketClient(socket, dispatcher, caller).serve()
    except Exception:
        log.exception("client %s", peer)
    finally:
        log.info("client %s disconnected: %s", peer, closing.reason)
    if closing.code is not None:
        await socket.close(code=closing.code, reason=closing.reason)


async def refuse(socket: WebSocket[Any, Any, Any], told: ApiError) -> None:
    """Answer the handshake with an HTTP error, in the one shape that every refusal has."""
    body = msgspec.json.encode(told.body)
    headers = {"Content-Type": "application/json", **told.headers}
    await socket.receive()  # the request itself
    await socket.send(
        {
            "type": "websocket.http.response.start",
            "status": told.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await socket.send({"type": "websocket.http.response.body", "body": body, "more_body": False})
