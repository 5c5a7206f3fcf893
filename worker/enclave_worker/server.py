"""The one port of a worker: WebSocket on `/ws`; `/healthz`, `/readyz`, `/metrics`, `POST /drain` for who runs it."""

from __future__ import annotations

import http
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK
from websockets.http11 import Request, Response
from websockets.protocol import State

from enclave_protocol import MAX_MESSAGE_BYTES

from .connection import Connection, PeerLeft, flush

if TYPE_CHECKING:
    from collections.abc import Mapping

    from websockets.asyncio.client import ClientConnection
    from websockets.asyncio.server import Server

    from .connection import WorkerIdentity
    from .door import Door
    from .metrics import WorkerMetrics
    from .pools import Pools
    from .sessions import Sessions

log = logging.getLogger("enclave.worker")
_wire_log = logging.getLogger("enclave.worker.websockets")
_wire_log.setLevel(logging.WARNING)  # below it the library logs the headers, and with them the token

WEBSOCKET_PATH = "/ws"


class WebSocketPeer:
    """A WebSocket as `Connection` wants it."""

    def __init__(self, socket: ServerConnection | ClientConnection) -> None:
        self.name = f"{socket.remote_address[0]}:{socket.remote_address[1]}"
        self._socket = socket

    def send_now(self, line: bytes) -> bool:
        """Send one text frame unless some wait in the socket's buffer: what `send` does, less a turn of the loop."""
        socket = self._socket
        if socket.state is not State.OPEN or socket.transport.get_write_buffer_size():
            return False
        socket.protocol.send_text(line)
        socket.send_data()
        return True

    async def send(self, line: bytes) -> None:
        """Send one text frame."""
        try:
            await self._socket.send(line, text=True)
        except ConnectionClosed as error:
            raise _gone(error) from error

    async def recv(self) -> str | bytes:
        """Wait for the next frame."""
        try:
            return await self._socket.recv()
        except ConnectionClosed as error:
            raise _gone(error) from error


class WorkerServer:
    """Listens; one `Connection` per WebSocket."""

    def __init__(
        self, sessions: Sessions, pools: Pools, metrics: WorkerMetrics, identity: WorkerIdentity, door: Door
    ) -> None:
        self._door = door
        door.on_refused = metrics.connections_refused.inc
        self._sessions = sessions
        self._pools = pools
        self._metrics = metrics
        self._identity = identity
        self._server: Server | None = None
        self._connections: set[Connection] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError when the address can't be had."""
        self._server = await serve(
            self.serve_socket,
            host,
            port,
            process_request=self._serve_http,
            ssl=self._door.tls,
            logger=_wire_log,
            compression=None,  # events are small and the hop is short
            max_size=MAX_MESSAGE_BYTES,
            server_header=None,
            close_timeout=1,  # seconds for a client to say goodbye, when the worker stops or it is cut off
        )
        for socket in self._server.sockets:
            return int(socket.getsockname()[1])
        raise AssertionError("a server that started has a socket")

    async def stop(self) -> None:
        """Let what was said go out; close the port and every connection that it has accepted."""
        if self._server is not None or self._connections:
            await flush(self._connections, self._sessions.holdings)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def serve_socket(self, socket: ServerConnection | ClientConnection) -> None:
        """Serve a connection until it has ended, whoever has opened it."""
        peer = WebSocketPeer(socket)
        log.info("connection from %s opened", peer.name)
        with self._metrics.connections.track_inprogress():
            connection = Connection(peer, self._sessions, self._identity)
            self._connections.add(connection)
            try:
                await connection.serve()
            finally:
                self._connections.discard(connection)
        log.info("connection from %s closed", peer.name)

    def _serve_http(self, socket: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == WEBSOCKET_PATH:
            return self._admit(socket, request)
        if path == "/drain":
            return self._drain(socket, request)
        if path == "/healthz":
            return _respond(http.HTTPStatus.OK, b"ok\n")
        if path == "/readyz":
            return self._readiness()
        if path == "/metrics":
            return _respond(http.HTTPStatus.OK, self._metrics.render(), CONTENT_TYPE_LATEST)
        return _respond(http.HTTPStatus.NOT_FOUND, b"not here: try /ws, /healthz, /readyz, /metrics or /drain\n")

    def _drain(self, socket: ServerConnection, request: Request) -> Response:
        if request.method != "POST":
            return _respond(http.HTTPStatus.METHOD_NOT_ALLOWED, b"only with POST\n", headers={"Allow": "POST"})
        refused = self._admit(socket, request)
        if refused is not None:
            return refused
        self._sessions.drain("POST /drain")
        return _respond(http.HTTPStatus.ACCEPTED, f"draining: {self._sessions.active} sessions are live\n".encode())

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        if "Origin" in request.headers:
            # A page: any that the user of this machine looks at can ask loopback for a WebSocket. No program says it.
            return _respond(http.HTTPStatus.FORBIDDEN, b"not for web pages: connect to a broker\n")
        shown = request.headers.get_all("Authorization")
        missing = self._door.misses(shown, socket.transport.get_extra_info("peercert"))
        if missing is None:
            return None
        address = socket.remote_address
        self._door.tell(f"{address[0]}:{address[1]}", missing)
        return _respond(http.HTTPStatus.UNAUTHORIZED, b"not without the broker's token or certificate\n")

    def _readiness(self) -> Response:
        if self._sessions.draining:
            return _respond(http.HTTPStatus.SERVICE_UNAVAILABLE, b"draining\n")
        if not self._pools.ready and not self._sessions.active:
            return _respond(http.HTTPStatus.SERVICE_UNAVAILABLE, b"no warm sandbox\n")
        return _respond(http.HTTPStatus.OK, f"ready: {self._pools.warm} warm\n".encode())


def _gone(closed: ConnectionClosed) -> ConnectionError:
    kind = PeerLeft if isinstance(closed, ConnectionClosedOK) else ConnectionResetError
    return kind(str(closed))


def _respond(
    status: http.HTTPStatus,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    own = {"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"}
    return Response(status.value, status.phrase, Headers({**own, **headers}), body)
