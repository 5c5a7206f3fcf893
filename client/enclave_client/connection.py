"""The engine's socket: connects when there is something to say, connects again when it breaks, gives up in the end.

Theory of operation. One task (`_keep`) lives from the first session until `close`. While no session is wanted it waits;
then it connects and serves the socket: a child task writes what the engine has to say, the task itself reads and hands
the engine's actions on. A connection that ends while a broker may know one of the sessions is replaced: at once, and if
that brings no event, after pauses that grow until one arrives. When none can be had for `reconnect_s`, the sessions are
lost; if no broker ever heard of any, the first failure is told at once. A refusal (a wrong key, say) is never tried
again. A connection without sessions is kept as it is, and not replaced when it breaks.

asyncio and uvloop set TCP_NODELAY on every connection; a broker that vanishes without a word is noticed by the
WebSocket's own pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from enclave_protocol import MAX_MESSAGE_BYTES, PROTOCOL_VERSION, EnclaveError, RemoteProtocolError

from .actions import Arrived, Greeted
from .errors import BrokerUnavailable, RequestRefused

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable

    from websockets.http11 import Response

    from enclave_protocol.messages import Hello

    from .actions import Action
    from .engine import Engine

log = logging.getLogger("enclave.client")

SUBPROTOCOL = "enclave.v2"
MAX_OUTGOING_BYTES = 4 * 1024 * 1024
"""What may wait to be sent before new sessions and answers wait too."""
PING_INTERVAL_S = 5.0
"""A connection that nothing goes through any more, in either direction, is found out within this and the timeout."""
PING_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
FIRST_PAUSE_S = 0.025
LONGEST_PAUSE_S = 5.0
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of a handshake that another attempt may change."""
_CLOSED = "the client was closed"
_LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the broker is, and how much patience to have."""

    url: str
    """Its WebSocket."""
    api_key: str | None = field(default=None, repr=False)
    ssl: tls.SSLContext | None = None
    connect_timeout_s: float = 10.0
    """Longest wait for one connection and its hello."""
    reconnect_s: float = 60.0
    """How long a lost connection is tried to be replaced."""


def socket_url(base_url: str) -> str:
    """Return where a broker's WebSocket is, from its base address.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(base_url)
    schemes = {"http": "ws", "https": "wss"}
    try:
        well_formed = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"a broker's address is like http://127.0.0.1:3000 or https://host/path, not {base_url!r}")
    return f"{schemes[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}/ws"


def pause_s(attempts: int, jitter: float) -> float:
    """Return how long to wait after `attempts` that brought nothing; `jitter` is from 0 to 1."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempts, 20)) * (0.7 + 0.6 * jitter))


class _Dial(connect):
    """Follows no redirects: the key is for the address that was given, and for no other."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Take the answer as it is."""
        return exc


class Connection:
    """Keeps the engine connected.

    Args:
        settings: where to, and for how long.
        engine: what to say, and what to make of what is heard.
        act: told of every action, in order; must not block.
    """

    def __init__(self, settings: Settings, engine: Engine, act: Callable[[Action], None]) -> None:
        self._settings = settings
        self._engine = engine
        self._act = act
        self._wish = asyncio.Event()  # a session was added
        self._more = asyncio.Event()  # the engine has something to say
        self._room = asyncio.Event()  # and what waits to be said fits
        self._task: asyncio.Task[None] | None = None
        self._leaving = False
        self._attempts = 0
        """Connections tried since the last event."""

    def flush(self) -> None:
        """Have the engine's frames sent, connecting first if need be. Never blocks."""
        if self._task is None and not self._leaving:
            self._task = asyncio.create_task(self._keep(), name="enclave-connection")
        self._wish.set()
        self._more.set()

    async def wait_room(self) -> None:
        """Wait until not too much waits to be sent. What waits when a connection is lost does not count.

        Raises:
            BrokerUnavailable: nothing is sent any more.
        """
        while self._engine.outgoing_bytes > MAX_OUTGOING_BYTES and not self._leaving:
            self._room.clear()
            await self._room.wait()
        if self._leaving:
            raise BrokerUnavailable(_CLOSED)

    def leave(self) -> None:
        """Replace the connection no more: when it ends, every session ends with it."""
        self._leaving = True
        self._room.set()

    async def close(self) -> None:
        """Close the connection. What the engine still has to say is not sent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _keep(self) -> None:
        try:
            await self._keep_connected()
        except asyncio.CancelledError:
            self._fail(BrokerUnavailable(_CLOSED))
            raise
        except Exception as error:
            log.exception("the connection to the broker failed by a fault of the client's own")
            self._task = None  # the next session has another try
            self._fail(BrokerUnavailable(f"{type(error).__name__}: {error}"))

    async def _keep_connected(self) -> None:
        while True:
            while not self._engine.wanted:
                self._attempts = 0
                self._wish.clear()
                await self._wish.wait()
            socket = await self._connected()
            if socket is not None:
                await self._serve(socket)
            if self._leaving:
                self._fail(BrokerUnavailable(_CLOSED))
                return

    async def _connected(self) -> ClientConnection | None:
        """Connect; None if that failed for good, or nobody wants it any more."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._settings.reconnect_s
        while self._engine.wanted:
            delay_s = pause_s(self._attempts, random.random())  # noqa: S311 - spreads clients, hides nothing
            if self._attempts:
                await asyncio.sleep(delay_s)
            self._attempts += 1
            try:
                return await self._open()
            except RequestRefused as error:
                self._fail(error)
            except BrokerUnavailable as error:
                log.debug("attempt %d: %s", self._attempts, error)
                if not self._engine.resuming or loop.time() + delay_s > give_up:
                    self._fail(error)
        return None

    async def _open(self) -> ClientConnection:
        settings = self._settings
        host = urlsplit(settings.url).hostname or ""
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                socket = await _Dial(
                    settings.url,
                    ssl=(settings.ssl or True) if settings.url.startswith("wss:") else None,
                    additional_headers=headers,
                    subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    open_timeout=None,
                    close_timeout=CLOSE_TIMEOUT_S,
                    ping_interval=PING_INTERVAL_S,
                    ping_timeout=PING_TIMEOUT_S,
                    # A proxy from the environment cannot reach this machine's loopback.
                    proxy=None if host.startswith(_LOOPBACK) else True,
                )
                try:
                    await self._greeting(socket)
                except BaseException:
                    socket.transport.abort()
                    raise
        except TimeoutError as error:
            raise BrokerUnavailable(f"{settings.url}: no answer in {settings.connect_timeout_s:g} s") from error
        except InvalidStatus as error:
            raise _refused(error.response) from error
        except (OSError, EOFError, WebSocketException, RemoteProtocolError) as error:
            raise BrokerUnavailable(f"{settings.url}: {error or type(error).__name__}") from error
        return socket

    async def _greeting(self, socket: ClientConnection) -> Hello:
        for action in self._engine.receive(await socket.recv(decode=False)):
            if isinstance(action, Greeted):
                version = action.hello.protocol_version
                if version != PROTOCOL_VERSION:
                    raise RequestRefused(f"the broker speaks protocol version {version}, not {PROTOCOL_VERSION}")
                return action.hello
        raise BrokerUnavailable(f"{self._settings.url}: answers, but not as a broker")

    async def _serve(self, socket: ClientConnection) -> None:
        self._engine.connected()
        self._more.set()
        ended = "it was closed"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(socket))
                await self._read(socket)
        except* ConnectionClosed as closed:
            ended = str(closed.exceptions[0])
        except* RemoteProtocolError as wrong:
            ended = f"the broker made no sense: {wrong.exceptions[0]}"
        finally:
            self._engine.disconnected()
            self._room.set()
            await self._part(socket)
        log.debug("disconnected: %s", ended)

    async def _part(self, socket: ClientConnection) -> None:
        with contextlib.suppress(WebSocketException, OSError):
            await socket.close()

    async def _read(self, socket: ClientConnection) -> None:
        while True:
            for action in self._engine.receive(await socket.recv(decode=False)):
                if isinstance(action, Arrived):
                    self._attempts = 0
                self._act(action)
            if self._engine.outgoing:
                self._more.set()

    async def _write(self, socket: ClientConnection) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while (frame := self._engine.next_frame()) is not None:
                await socket.send(frame, text=True)
                if self._engine.outgoing_bytes <= MAX_OUTGOING_BYTES:
                    self._room.set()

    def _fail(self, error: EnclaveError) -> None:
        for action in self._engine.fail(error):
            self._act(action)


class _ErrorDetails(msgspec.Struct, frozen=True):
    field: str = ""
    allowed: str = ""


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: _ErrorDetails = _ErrorDetails()


def _refused(response: Response) -> EnclaveError:
    """Return what a handshake's answer means."""
    status, body = response.status_code, bytes(response.body or b"")
    try:
        said = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, UnicodeError):
        text = " ".join(body.decode(errors="replace").split())[:200]
        said = _ErrorBody(f"HTTP_{status}", text or response.reason_phrase)
    elsewhere = response.headers.get("Location")
    if elsewhere:
        said.message += f" (it is at {elsewhere[:200]})"
    if status in _TRY_AGAIN:
        return BrokerUnavailable(f"{said.code}: {said.message}")
    return RequestRefused(said.message, code=said.code, field=said.details.field, allowed=said.details.allowed)
