"""What every channel is: its interface, its states, and the bounded buffer that both kinds are made of."""

from __future__ import annotations

import abc
import asyncio
import enum
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from enclave_protocol import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

MAX_BUFFERED = 256
"""Messages that one direction of a channel holds before its sender waits."""

MAX_BUFFERED_BYTES = 2 * MAX_MESSAGE_BYTES
"""Bytes that one direction holds before its sender waits."""


class ChannelClosed(ConnectionError):  # noqa: N818 - a state of affairs, not always an error
    """The channel has ended: no more can be sent, and all that came has been received."""


class ChannelState(enum.StrEnum):
    """What a channel is doing."""

    CONNECTING = "connecting"
    """Never been connected yet."""
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    """Between two connections, or between two attempts to get the first one."""
    DISCONNECTED = "disconnected"
    """Over: closed by either end, or the attempts are used up."""


class ChannelTrigger(enum.StrEnum):
    """What moves a channel from one state to another."""

    OPEN = "open"
    """A connection was made."""
    RETRY = "retry"
    """The connection, or the attempt to make one, failed, and there will be another."""
    END = "end"
    """Either end closed the channel, or there will be no other attempt."""


TRANSITIONS: Mapping[ChannelState, Mapping[ChannelTrigger, ChannelState]] = MappingProxyType(
    {
        ChannelState.CONNECTING: {
            ChannelTrigger.OPEN: ChannelState.CONNECTED,
            ChannelTrigger.RETRY: ChannelState.RECONNECTING,
            ChannelTrigger.END: ChannelState.DISCONNECTED,
        },
        ChannelState.CONNECTED: {
            ChannelTrigger.RETRY: ChannelState.RECONNECTING,
            ChannelTrigger.END: ChannelState.DISCONNECTED,
        },
        ChannelState.RECONNECTING: {
            ChannelTrigger.OPEN: ChannelState.CONNECTED,
            ChannelTrigger.RETRY: ChannelState.RECONNECTING,
            ChannelTrigger.END: ChannelState.DISCONNECTED,
        },
        ChannelState.DISCONNECTED: {},
    }
)


class Channel(abc.ABC):
    """One end of an ordered text channel. Iterate over it to receive until the end; leave `async with` to close it."""

    @property
    @abc.abstractmethod
    def state(self) -> ChannelState:
        """What the channel is doing now."""

    @abc.abstractmethod
    async def send(self, text: str) -> None:
        """Put one message on its way; wait while the buffer is full. Cancelled, it has sent nothing.

        Raises:
            ChannelClosed: the channel is over.
            ValueError: the message is longer than MAX_MESSAGE_BYTES, or is not valid Unicode.
        """

    @abc.abstractmethod
    async def recv(self) -> str:
        """Return the next message. Cancelled, it has taken none.

        Raises:
            ChannelClosed: the channel is over, and everything that had come was received.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """End the channel; what was sent still goes out, what was not received is dropped. Safe to call again."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            return await self.recv()
        except ChannelClosed:
            raise StopAsyncIteration from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state}>"


class Buffer:
    """A bounded queue of messages that can be ended. Senders take turns; one reader at a time."""

    def __init__(self) -> None:
        self._items: deque[tuple[str, int]] = deque()
        self._bytes = 0
        self._end: str | None = None
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._news = asyncio.Event()

    async def put(self, text: str) -> None:
        """Append one message, when there is room; raises ChannelClosed after the end."""
        size = size_bytes(text)
        async with self._turn:
            while self._end is None and self._full_for(size):
                self._room.clear()
                await self._room.wait()
            if self._end is not None:
                raise ChannelClosed(self._end)
            self._items.append((text, size))
            self._bytes += size
            self._news.set()

    def _full_for(self, size: int) -> bool:
        return len(self._items) >= MAX_BUFFERED or (bool(self._items) and self._bytes + size > MAX_BUFFERED_BYTES)

    async def get(self) -> str:
        """Wait for the first message and take it; raises ChannelClosed when all are taken and no more can come."""
        await self.wait_news()
        return self.get_nowait()

    async def wait_news(self) -> None:
        """Wait until there is a message or the end."""
        while not self._items and self._end is None:
            self._news.clear()
            await self._news.wait()

    def get_nowait(self) -> str:
        """Take the first message; raises ChannelClosed when there is none."""
        if not self._items:
            raise ChannelClosed(self._end)
        text, size = self._items.popleft()
        self._bytes -= size
        self._room.set()
        return text

    def end(self, reason: str, *, drop: bool = False) -> None:
        """Take no more; the first reason stays. Messages already in stay too, unless they are to be dropped."""
        self._end = self._end or reason
        if drop:
            self._items.clear()
            self._bytes = 0
        self._room.set()
        self._news.set()

    @property
    def ended(self) -> bool:
        """Whether no more is taken."""
        return self._end is not None

    @property
    def reason(self) -> str:
        """Why no more is taken; empty while it is."""
        return self._end or ""


def size_bytes(text: str) -> int:
    """Return the size of a message in UTF-8; raises ValueError when no channel would take it."""
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {size} bytes; the largest is {MAX_MESSAGE_BYTES}")
    return size
