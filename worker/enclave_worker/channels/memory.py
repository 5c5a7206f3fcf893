"""A channel inside one process: for tests, and for embedding a worker in another program."""

from __future__ import annotations

from .base import Buffer, Channel, ChannelState


class MemoryChannel(Channel):
    """One end of a pair made by `create_memory_channel_pair`. Connected from the start."""

    def __init__(self, outgoing: Buffer, incoming: Buffer) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    @property
    def state(self) -> ChannelState:
        """Connected, or disconnected once either end was closed."""
        return ChannelState.DISCONNECTED if self._outgoing.ended else ChannelState.CONNECTED

    async def send(self, text: str) -> None:
        """See `Channel.send`."""
        await self._outgoing.put(text)

    async def recv(self) -> str:
        """See `Channel.recv`."""
        return await self._incoming.get()

    async def close(self) -> None:
        """See `Channel.close`."""
        self._outgoing.end("the channel is closed")
        self._incoming.end("the channel is closed", drop=True)


def create_memory_channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Return the two ends of a channel inside this process: (client, server). What one sends the other receives."""
    one, other = Buffer(), Buffer()
    return MemoryChannel(one, other), MemoryChannel(other, one)
