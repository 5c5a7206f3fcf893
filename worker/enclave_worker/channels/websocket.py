"""The connecting end of a WebSocket, which connects again when it breaks. Theory: the docstring of the package."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from typing import TYPE_CHECKING, Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, WebSocketException
from websockets.protocol import State

from enclave_protocol import MAX_MESSAGE_BYTES

from .base import TRANSITIONS, Buffer, Channel, ChannelClosed, ChannelState, ChannelTrigger

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    Callback = Callable[..., Awaitable[object] | object]

CLOSE_TIMEOUT_S = 5.0
"""Longest wait of `close` for what was sent to leave, and then for the other end's goodbye."""

logger = logging.getLogger("enclave_worker.channels")
_wire_log = logging.getLogger("enclave_worker.channels.websockets")
_wire_log.setLevel(logging.WARNING)  # below it the library logs the headers, and with them the token


def backoff_s(attempt: int, *, first_s: float, longest_s: float, jitter: float) -> float:
    """Return the wait before an attempt: doubled each time up to `longest_s`, then cut by up to a half.

    Args:
        attempt: 1 for the first attempt after a failure.
        first_s: the wait before attempt 1, uncut.
        longest_s: what no wait exceeds.
        jitter: from 0 (cut to a half) to 1 (uncut); random, so that a fleet does not come back in one instant.
    """
    doublings = min(attempt - 1, 64)  # past that, the power alone would overflow a float some day
    return min(longest_s, first_s * 2.0**doublings) * (0.5 + jitter / 2)


class WebSocketChannel(Channel):
    """The connecting end of a WebSocket. Made by `create_websocket_channel`; `async with` or `connect` opens it."""

    def __init__(
        self,
        url: str,
        *,
        delays_s: tuple[float, float],
        max_attempts: int,
        connect_timeout_s: float,
        callbacks: Mapping[str, Callback | None],
        token: str,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._tls: dict[str, Any] = {} if tls is None else {"ssl": tls}
        self._delays_s = delays_s
        self._max_attempts = max_attempts
        self._connect_timeout_s = connect_timeout_s
        self._callbacks = callbacks
        self._state = ChannelState.CONNECTING
        self._outbox = Buffer()
        self._inbox = Buffer()
        self._opened = False
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> ChannelState:
        """See `ChannelState`."""
        return self._state

    async def connect(self) -> None:
        """Open the channel, trying as often as was allowed. Cancelled, the channel is closed.

        Raises:
            ChannelClosed: no attempt succeeded; it says why the last one failed.
        """
        if self._task is None and self._state is ChannelState.CONNECTING:
            self._task = asyncio.create_task(self._run(), name=f"channel {self._url}")
        try:
            await self._settled.wait()
        except asyncio.CancelledError:
            await self.close()
            raise
        if not self._opened:
            raise ChannelClosed(self._inbox.reason)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def send(self, text: str) -> None:
        """See `Channel.send`. While reconnecting, the buffer fills, and is sent when there is a connection again."""
        await self._outbox.put(text)

    async def recv(self) -> str:
        """See `Channel.recv`. With `on_message` given, messages go there, and this only waits for the end."""
        return await self._inbox.get()

    async def close(self) -> None:
        """See `Channel.close`; without a connection, what was sent is dropped.

        From inside a callback it only begins the end, which cannot be waited for there.
        """
        self._outbox.end("the channel is closed")
        self._inbox.end("the channel is closed", drop=True)
        task = self._task
        if task is None:
            self._ended()
        elif asyncio.current_task() is not task:
            await self._stop(task)

    async def _stop(self, task: asyncio.Task[None]) -> None:
        try:
            if self._state is ChannelState.CONNECTED:
                await asyncio.wait({task}, timeout=CLOSE_TIMEOUT_S)
        finally:
            task.cancel()
            await asyncio.wait({task})
            self._ended()  # a task cancelled before its first step did nothing at all
        if not task.cancelled():
            task.result()

    def _ended(self) -> None:
        if self._state is not ChannelState.DISCONNECTED:
            self._move(ChannelTrigger.END)

    def _move(self, trigger: ChannelTrigger) -> None:
        self._state = TRANSITIONS[self._state][trigger]
        self._opened = self._opened or trigger is ChannelTrigger.OPEN
        if self._state in {ChannelState.CONNECTED, ChannelState.DISCONNECTED}:
            self._settled.set()

    async def _run(self) -> None:
        reason = "the channel broke"
        try:
            attempt = 0
            while not self._outbox.ended:
                reason, served = await self._attempt()
                attempt = 1 if served else attempt + 1
                again = attempt <= self._max_attempts and not self._outbox.ended
                self._move(ChannelTrigger.RETRY if again else ChannelTrigger.END)
                if served is not None:
                    await self._call("close", served.close_code, served.close_reason)
                if not again:
                    break
                first_s, longest_s = self._delays_s
                jitter = random.random()  # noqa: S311 - spreads load, guards nothing
                await asyncio.sleep(backoff_s(attempt, first_s=first_s, longest_s=longest_s, jitter=jitter))
        finally:
            self._outbox.end(reason, drop=True)
            self._inbox.end(reason)
            self._ended()

    async def _attempt(self) -> tuple[str, ClientConnection | None]:
        """Connect once and serve the connection to its end. Returns why it ended, and the connection if it was one."""
        try:
            connection = await connect(
                self._url,
                compression=None,
                proxy=None,  # a fleet's own links; a proxy set for the world outside would break them
                open_timeout=self._connect_timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=MAX_MESSAGE_BYTES,
                additional_headers=self._headers,
                logger=_wire_log,
                **self._tls,
            )
        except (OSError, WebSocketException) as error:
            await self._call("error", error)
            return f"could not connect to {self._url}: {error}", None
        async with connection:
            self._move(ChannelTrigger.OPEN)
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(connection), name=f"channel {self._url} writer")
                await self._call("open")
                end = await self._read(connection)
                writer.cancel()
        if isinstance(end, ConnectionClosedError):
            await self._call("error", end)
        return f"the connection to {self._url} ended: {end}", connection

    async def _read(self, connection: ClientConnection) -> ConnectionClosed:
        while True:
            try:
                message = await connection.recv()
            except ConnectionClosed as end:
                return end
            if not isinstance(message, str):
                await self._call("error", ValueError("a binary frame, which is not a message, was skipped"))
            elif self._callbacks["message"] is not None:
                await self._call("message", message)
            elif not self._inbox.ended:
                await self._deliver(message)

    async def _deliver(self, message: str) -> None:
        try:
            await self._inbox.put(message)
        except ChannelClosed:  # closed meanwhile: go on reading, up to the other end's goodbye
            logger.debug("dropped a message that came while the channel was closed", extra={"url": self._url})

    async def _write(self, connection: ClientConnection) -> None:
        """Send what is in the outbox until the connection or the channel ends, and in the latter case say goodbye."""
        while True:
            await self._outbox.wait_news()
            if connection.state is not State.OPEN:
                return  # the message stays for the next connection
            try:
                await connection.send(self._outbox.get_nowait())
            except ConnectionClosed:
                return
            except ChannelClosed:
                await connection.close()
                return

    async def _call(self, name: str, *args: object) -> None:
        callback = self._callbacks[name]
        if callback is None:
            return
        try:
            result = callback(*args)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("the callback on_%s of a channel failed", name, extra={"url": self._url})


def create_websocket_channel(
    url: str,
    *,
    reconnect: bool = True,
    reconnect_delay_s: float = 1.0,
    max_reconnect_delay_s: float = 30.0,
    max_attempts: int = 5,
    connect_timeout_s: float = 10.0,
    token: str = "",
    tls: ssl.SSLContext | None = None,
    on_open: Callback | None = None,
    on_close: Callback | None = None,
    on_error: Callback | None = None,
    on_message: Callback | None = None,
) -> WebSocketChannel:
    """Return a channel to the WebSocket at `url`, not opened yet: use `async with`, or `connect` and `close`.

    Callbacks may be plain functions or return an awaitable, which is awaited before the channel reads on. One that
    raises is logged, and the channel goes on.

    Args:
        url: `ws://` or `wss://`.
        reconnect: whether to try again when an attempt fails or a connection ends that we did not close.
        reconnect_delay_s: the wait before the first new attempt; it doubles each time, and a random part is cut off.
        max_reconnect_delay_s: what the wait never exceeds.
        max_attempts: new attempts in a row, counted from 0 again once one succeeds. After them: disconnected.
        connect_timeout_s: longest time for one attempt.
        token: the secret that a worker wants; empty sends none.
        tls: how a `wss://` URL's certificate is checked, and what is shown to it; the system's authorities if None.
        on_open: called without arguments at each connection, the first and every later one.
        on_close: called with the WebSocket's closing code (1006: broken) and reason when a connection has ended.
        on_error: called with the exception when an attempt failed or a connection broke.
        on_message: called with each message, which `recv` then does not return.

    Raises:
        ValueError: the URL is no WebSocket's, or a number is out of range.
    """
    if not url.startswith(("ws://", "wss://")):
        raise ValueError(f"not a WebSocket URL: {url!r} (allowed: ws://... or wss://...)")
    if min(reconnect_delay_s, max_reconnect_delay_s, max_attempts) < 0 or connect_timeout_s <= 0:
        raise ValueError("delays and max_attempts must be 0 or more, connect_timeout_s more than 0")
    return WebSocketChannel(
        url,
        delays_s=(reconnect_delay_s, max_reconnect_delay_s),
        max_attempts=max_attempts if reconnect else 0,
        connect_timeout_s=connect_timeout_s,
        token=token,
        tls=tls,
        callbacks={"open": on_open, "close": on_close, "error": on_error, "message": on_message},
    )
