"""Serving channels inside this process: a worker without a port."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import msgspec

from .connection import Connection, PeerLeft, flush

if TYPE_CHECKING:
    from .connection import WorkerIdentity
    from .sessions import Sessions


class TextChannel(Protocol):
    """One end of an ordered text channel, such as `create_memory_channel_pair` makes."""

    async def send(self, text: str, /) -> None:
        """Send one message; raises ConnectionError once the channel is over."""

    async def recv(self) -> str:
        """Return the next message; raises ConnectionError or EOFError once the channel is over."""

    async def close(self) -> None:
        """End the channel. Safe to call again."""


class ChannelPeer:
    """A channel as `Connection` wants it. It can't break, only end."""

    def __init__(self, channel: TextChannel, name: str) -> None:
        self.name = name
        self._channel = channel

    def send_now(self, line: bytes) -> bool:
        """A channel may always have to wait."""
        return False

    async def send(self, line: bytes) -> None:
        """Send one line."""
        try:
            await self._channel.send(line.decode())
        except (ConnectionError, EOFError) as error:
            raise PeerLeft(str(error)) from error

    async def recv(self) -> str | bytes:
        """Wait for the next message."""
        try:
            return await self._channel.recv()
        except (ConnectionError, EOFError) as error:
            raise PeerLeft(str(error)) from error


class Embedding:
    """The channels that a worker serves. Each belongs to the task that called `serve`."""

    def __init__(self, sessions: Sessions, identity: WorkerIdentity) -> None:
        self._sessions = sessions
        # A channel inside a process can't be cut: sessions end with it, and nothing is kept to be sent again.
        self._identity = msgspec.structs.replace(identity, instance="")
        self._served: dict[Connection, TextChannel] = {}
        self._numbers = itertools.count(1)

    async def serve(self, channel: TextChannel) -> None:
        """Serve a channel until either end closes it; it is closed afterwards."""
        peer = ChannelPeer(channel, f"memory:{next(self._numbers)}")
        connection = Connection(peer, self._sessions, self._identity)
        self._served[connection] = channel
        try:
            await connection.serve()
        finally:
            del self._served[connection]
            await channel.close()

    async def stop(self) -> None:
        """Let what was said go out, then close every channel."""
        served = dict(self._served)
        await flush(served, self._sessions.holdings)
        for channel in served.values():
            await channel.close()
