"""How the broker reaches a worker: a text channel that carries one JSON value per message.

Over the network the channel is a WebSocket. A worker in this process (`mode="embedded"`) gets one end of a memory
pair instead; it can be anything that satisfies `Runtime`. The two ends meet only here, so broker and worker never
import each other.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, WebSocketException
from websockets.protocol import State

from enclave_protocol import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import ssl

    from websockets.asyncio.client import ClientConnection

MEMORY_QUEUE = 256
"""Messages that one direction of a memory pair holds,"""
MEMORY_QUEUE_CHARS = 2 * MAX_MESSAGE_BYTES
"""and their characters; `send` waits when it is full."""

CLOSE_TIMEOUT_S = 0.5
"""Longest wait for a worker to say goodbye."""


log = logging.getLogger("enclave.broker")
_wire_log = logging.getLogger("enclave.broker.websockets")
_wire_log.setLevel(logging.WARNING)  # below it the library logs the headers, and with them the token


class Channel(Protocol):
    """One end of an ordered, reliable text channel."""

    async def send(self, data: str, /) -> None:
        """Send one message; raises ConnectionError once the channel is closed."""

    async def recv(self) -> str:
        """Return the next message; raises ConnectionError or EOFError once the channel is closed."""

    async def close(self) -> None:
        """Close both ends. Safe to call again."""


class Runtime(Protocol):
    """A worker that runs inside the broker's process."""

    async def start(self) -> object:
        """Get ready to serve channels."""

    async def stop(self) -> object:
        """End everything that runs."""

    async def handle(self, channel: Channel, /) -> object:
        """Serve one broker's channel, hello first, until it is closed."""


class Transport(Protocol):
    """What a link needs of a connection: `Channel`, but in bytes, which nobody has to decode and encode again."""

    def send_now(self, data: bytes, /) -> bool:
        """Send one message if that takes no waiting; False says that nothing was sent and `send` is needed."""

    async def send(self, data: bytes, /) -> None:
        """Send one message; raises ConnectionError."""

    async def recv(self) -> bytes:
        """Return the next message; raises ConnectionError."""

    async def close(self) -> None:
        """Close it and let go of everything that belongs to it."""


class Dial(Protocol):
    """Opens a transport to one worker, again and again over the link's life."""

    async def __call__(self) -> Transport:
        """Return a fresh transport.

        Raises:
            ConnectionRefusedError: nothing listens there.
            ConnectionError: any other reason, for people.
        """


class _Queue:
    """One direction of a memory pair."""

    def __init__(self) -> None:
        self.messages: deque[str] = deque()
        self.size = 0
        self.closed = False
        self.changed = asyncio.Event()  # filled, emptied or closed

    def fits(self, data: str) -> bool:
        """Whether there is room; a message larger than all of it fits when it is alone."""
        return not self.messages or (len(self.messages) < MEMORY_QUEUE and self.size + len(data) <= MEMORY_QUEUE_CHARS)

    async def wait_changed(self) -> None:
        self.changed.clear()
        await self.changed.wait()


class MemoryChannel:
    """One end of a memory pair. One task at a time may receive from it."""

    def __init__(self, outgoing: _Queue, incoming: _Queue) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, data: str, /) -> None:
        """Put a message into the peer's queue, waiting while that is full."""
        queue = self._outgoing
        while not queue.closed and not queue.fits(data):
            await queue.wait_changed()
        if queue.closed:
            raise ConnectionResetError("the channel is closed")
        queue.messages.append(data)
        queue.size += len(data)
        queue.changed.set()

    async def recv(self) -> str:
        """Return the next message; what arrived before the close is still handed out."""
        queue = self._incoming
        while not queue.messages:
            if queue.closed:
                raise ConnectionResetError("the channel is closed")
            await queue.wait_changed()
        data = queue.messages.popleft()
        queue.size -= len(data)
        queue.changed.set()
        return data

    async def close(self) -> None:
        """Close both ends."""
        for queue in (self._outgoing, self._incoming):
            queue.closed = True
            queue.changed.set()


def memory_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Return two connected ends."""
    one, other = _Queue(), _Queue()
    return MemoryChannel(one, other), MemoryChannel(other, one)


class WebSocketTransport:
    """A worker over the network."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def send_now(self, data: bytes, /) -> bool:
        """Send one text frame unless some wait in the socket's buffer: what `send` does, less a turn of the loop."""
        connection = self._connection
        if connection.state is not State.OPEN or connection.transport.get_write_buffer_size():
            return False
        connection.protocol.send_text(data)
        connection.send_data()
        return True

    async def send(self, data: bytes, /) -> None:
        """Send one text frame."""
        try:
            await self._connection.send(data, text=True)
        except ConnectionClosed as error:
            raise ConnectionResetError(f"connection closed ({error})") from error

    async def recv(self) -> bytes:
        """Return the next frame's payload."""
        try:
            return await self._connection.recv(decode=False)
        except ConnectionClosed as error:
            raise ConnectionResetError(f"connection closed ({error})") from error

    async def close(self) -> None:
        """Say goodbye; a worker that does not answer in time is cut off."""
        await self._connection.close()


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception | str:
        """A worker sends nobody elsewhere, and its token is for nobody else."""
        return exc


_NO_ANSWER = "is it ws:// or wss://, and is our certificate of an authority that it knows?"


def _refused(error: InvalidStatus) -> str:
    status = error.response.status_code
    if status == http.HTTPStatus.UNAUTHORIZED:
        return (
            "it refused us (HTTP 401): --worker-token-file and --worker-tls-cert must be what it wants, "
            "and its log says what it misses"
        )
    return str(error)


class WebSocketDial:
    """Dials a worker's URL.

    Args:
        url: `ws://host:port/ws`.
        timeout_s: longest wait for the connection and its handshake.
        token: the secret that the worker wants; empty sends none.
        tls: how a `wss://` URL's certificate is checked, and what is shown to it; None for the system's authorities.
        certified_as: whose certificate is wanted; empty for that of the URL's host.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        certified_as: str = "",
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._tls: dict[str, Any] = {} if tls is None else {"ssl": tls}
        if certified_as:
            self._tls["server_hostname"] = certified_as

    async def __call__(self) -> Transport:
        """Connect."""
        try:
            connection = await _Connect(
                self.url,
                additional_headers=self._headers,
                logger=_wire_log,
                **self._tls,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                open_timeout=self.timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=None,  # the link has its own, which the worker answers with its load
                proxy=None,
            )
        except InvalidStatus as error:
            raise ConnectionAbortedError(_refused(error)) from error
        except InvalidMessage as error:
            # With TLS, also what is left of an alert: a certificate is checked after our own handshake is done.
            raise ConnectionAbortedError(f"{error}: {_NO_ANSWER}") from error
        except ConnectionRefusedError as error:  # of several addresses behind a name, every one: that is no such error
            raise ConnectionRefusedError(str(error)) from error
        except (OSError, WebSocketException, TimeoutError) as error:
            raise ConnectionAbortedError(str(error) or type(error).__name__) from error
        return WebSocketTransport(connection)


class _RuntimeTransport:
    """A worker in this process. Owns the task in which the runtime serves its end."""

    def __init__(self, runtime: Runtime) -> None:
        self._channel, served = memory_pair()
        self._task = asyncio.ensure_future(self._serve(runtime, served))

    def send_now(self, data: bytes, /) -> bool:
        return False

    async def send(self, data: bytes, /) -> None:
        await self._channel.send(data.decode())

    async def recv(self) -> bytes:
        return (await self._channel.recv()).encode()

    async def close(self) -> None:
        await self._channel.close()
        _, late = await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)
        if late:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _serve(self, runtime: Runtime, channel: MemoryChannel) -> None:
        try:
            await runtime.handle(channel)
        except (ConnectionError, EOFError):
            pass  # the link sees the channel's end, and dials again
        except Exception:
            log.exception("a runtime failed; its sessions end, and the broker tries it again")
        finally:
            await channel.close()


class RuntimeDial:
    """Opens channels to a worker in this process."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    async def __call__(self) -> Transport:
        """Open another channel."""
        return _RuntimeTransport(self.runtime)
