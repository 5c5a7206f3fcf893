"""The handler of `/workers`: where workers dial in.

Whoever is taken for a worker is sent code and may answer for it, so this door is stricter than the clients': it wants
the secret between brokers and workers, and does without one only where the clients' door on loopback is open anyway.
No page of a browser gets in, wherever it is from. A connection costs nothing before its secret was seen, which is in
the headers of the handshake; after that, only so many may owe their hello at a time, and for a bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from litestar import WebSocket  # noqa: TC002 - Litestar reads the annotation at run time
from litestar.handlers import WebsocketRouteHandler
from msgspec import UNSET

from enclave_broker.api import ApiError, error_body
from enclave_broker.finding.dial_in import StillHeardError, name_of
from enclave_protocol import Hello, RemoteProtocolError, decode_worker_message, new_session_id
from enclave_protocol.credentials import bearer, is_loopback, is_one_of

from .route import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from enclave_broker.config import BrokerConfig
    from enclave_broker.finding.dial_in import DialIn
    from enclave_broker.metrics import Metrics

log = logging.getLogger("enclave.broker.finding")

MAX_WORKERS = 1000
"""Dialled-in connections at a time,"""
MAX_GREETING = 64
"""of which so many may not have said hello yet."""
MAX_REASON_CHARS = 100
"""Of a close frame's reason, which holds 123 bytes."""
SAY_EVERY_S = 10.0
"""A refusal is logged at most so often: whoever knocks must not fill the log."""
NO_WORKER_CODE = 1008
TRY_AGAIN_LATER_CODE = 1013

_GONE = (OSError, RuntimeError)
"""What sending raises when the socket is no more: the second if uvicorn has closed it, as when the broker stops."""

OPEN_TO_STRANGERS = (
    "accept_workers would let everybody who reaches it be a worker and see what clients run: give the workers' secret "
    "with --worker-token-file or ENCLAVE_WORKER_TOKEN (`enclave keys secret` makes one)"
)


class WorkersDoor:
    """Decides who may dial in.

    Args:
        config: whether anybody may, and where the broker listens.
        secrets: any of them lets a worker in.
        closed: whether clients have to show keys.

    Raises:
        ValueError: strangers could be workers.
    """

    def __init__(self, config: BrokerConfig, secrets: Sequence[str], *, closed: bool) -> None:
        self._accepts = config.accept_workers
        self._secrets = tuple(secrets)
        self._open = 0
        self._greeting = 0
        if self._accepts and not secrets and (closed or not is_loopback(config.host)):
            raise ValueError(OPEN_TO_STRANGERS)

    def check(self, scope: Mapping[str, Any]) -> None:
        """Raise ApiError unless the sender of a handshake, by its ASGI scope, may dial in."""
        if not self._accepts:
            raise ApiError(
                403, error_body("FORBIDDEN", "no worker dials in here: start the broker with --accept-workers")
            )
        shown = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        if any(name == b"origin" for name, _ in scope["headers"]):
            # A page: any that the user of this machine looks at can ask loopback for a WebSocket. No program says it.
            raise ApiError(403, error_body("ORIGIN_NOT_ALLOWED", "not for web pages", field="Origin"))
        token = bearer(shown[0]) if len(shown) == 1 else None
        if self._secrets and (token is None or not is_one_of(token, self._secrets)):
            message = "not without the workers' token: the worker needs this broker's --worker-token-file"
            raise ApiError(401, error_body("UNAUTHENTICATED", message), headers={"WWW-Authenticate": "Bearer"})
        if self._open >= MAX_WORKERS or self._greeting >= MAX_GREETING:
            message = (
                f"{self._open} workers are connected, {self._greeting} of them without a hello, and no more are taken"
            )
            raise ApiError(503, error_body("NO_CAPACITY", message), headers={"Retry-After": "1"})

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Count a connection for the length of a `with` block."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextlib.contextmanager
    def greeting(self) -> Iterator[None]:
        """Count a connection that has not said hello yet."""
        self._greeting += 1
        try:
            yield
        finally:
            self._greeting -= 1


class SocketTransport:
    """A WebSocket that was accepted, as a link wants it."""

    def __init__(self, socket: WebSocket[Any, Any, Any]) -> None:
        self._socket = socket
        self._closed = False

    def send_now(self, data: bytes, /) -> bool:
        """Nothing can be sent without waiting."""
        return False

    async def send(self, data: bytes, /) -> None:
        """Send one text frame; raises ConnectionError."""
        try:
            await self._socket.send({"type": "websocket.send", "bytes": None, "text": data.decode()})
        except _GONE as error:
            raise ConnectionResetError(f"connection closed ({error})") from error

    async def recv(self) -> bytes:
        """Return the next frame's payload; raises ConnectionError."""
        message = await self._socket.receive()
        if message["type"] != "websocket.receive":
            self._closed = True
            raise ConnectionResetError(
                f"connection closed ({message.get('code')} {message.get('reason') or ''})".rstrip()
            )
        text = message.get("text")
        return text.encode() if isinstance(text, str) else bytes(message.get("bytes") or b"")

    async def close(self) -> None:
        """Say goodbye, if the worker has not."""
        await self.refuse(1000, "")

    async def refuse(self, code: int, reason: str) -> None:
        """Say goodbye, and why."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(*_GONE):
                await self._socket.close(code=code, reason=reason[:MAX_REASON_CHARS])


class NoHelloError(Exception):
    """Who dialled in is no worker; the text says why."""


def create_workers_route(
    dial_in: DialIn, door: WorkersDoor, metrics: Metrics, *, hello_timeout_s: float
) -> WebsocketRouteHandler:
    """Return the handler of `/workers`."""
    refusals = _Refusals()

    async def serve(socket: WebSocket[Any, Any, Any]) -> None:
        peer = f"{socket.client.host}:{socket.client.port}" if socket.client else "?"
        try:
            door.check(socket.scope)
        except ApiError as error:
            metrics.rejections.labels(error.body.code).inc()
            refusals.tell(peer, str(error))
            await refuse(socket, error)
            return
        with door.connected():
            transport = SocketTransport(socket)
            try:
                with door.greeting():
                    await socket.accept()
                    name, line = await _greeted(transport, hello_timeout_s)
            except NoHelloError as error:
                refusals.tell(peer, str(error))
                await transport.refuse(NO_WORKER_CODE, str(error))
                return
            log.info("worker %s dialled in from %s", name, peer)
            try:
                await dial_in.arrive(name, transport, line)
            except StillHeardError as error:
                refusals.tell(peer, str(error))
                await transport.refuse(TRY_AGAIN_LATER_CODE, str(error))

    return WebsocketRouteHandler("/workers")(serve)


async def _greeted(transport: SocketTransport, timeout_s: float) -> tuple[str, bytes]:
    """Return the name of the worker that says hello, and its hello; raises NoHelloError."""
    try:
        async with asyncio.timeout(timeout_s):
            line = await transport.recv()
        hello = decode_worker_message(line)
    except TimeoutError:
        raise NoHelloError(f"it did not say hello within {timeout_s:g} s: is it an enclave-runtime?") from None
    except (ConnectionError, RemoteProtocolError) as error:
        raise NoHelloError(f"its first message is no hello ({error}): is it an enclave-runtime?") from error
    if not isinstance(hello, Hello):
        raise NoHelloError("its first message is no hello: is it an enclave-runtime?")
    # A worker that names no instance can't be known again: each connection of it is a worker of its own.
    return name_of(new_session_id() if hello.instance is UNSET else hello.instance), line


class _Refusals:
    """Logs refusals, but not each."""

    def __init__(self) -> None:
        self._said_s = -SAY_EVERY_S
        self._count = 0

    def tell(self, peer: str, why: str) -> None:
        self._count += 1
        now = time.monotonic()
        if now - self._said_s >= SAY_EVERY_S:
            self._said_s = now
            log.warning("refused a worker that dialled in from %s: %s (%d refused so far)", peer, why, self._count)
