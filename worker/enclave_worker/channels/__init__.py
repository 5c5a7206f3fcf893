"""Channels: ordered text messages, one JSON value each, between a client or broker and a worker.

Theory of operation. A `Channel` is one end. There are two kinds, and both pass the same conformance suite: a memory
pair, for tests and for embedding a worker in another program, and a WebSocket client. Between the user and the other
end stand bounded buffers, one a direction: a full outgoing one makes `send` wait, a full incoming one makes the other
end wait, by TCP where there is a network. So nothing is dropped for want of room, and nothing grows without end.

A WebSocket channel owns one task, which connects, reads, and waits before it connects again, and while connected has
a second one beside it that writes. `close` ends both and waits for them. Each connection is a new one to the worker:
it does not know that the same channel asks again, and it has killed the sessions of the connection before.

What `send` took is delivered once and in order, with one exception: messages on their way when a connection breaks may
be lost, for nobody knows whether they arrived, and sending them again could run code twice. Those still in the buffer,
also those sent while reconnecting (as many as the buffer holds), go out over the next connection.
"""

from .base import (
    MAX_BUFFERED,
    MAX_BUFFERED_BYTES,
    Channel,
    ChannelClosed,
    ChannelState,
    ChannelTrigger,
)
from .memory import MemoryChannel, create_memory_channel_pair
from .websocket import WebSocketChannel, create_websocket_channel

__all__ = [
    "MAX_BUFFERED",
    "MAX_BUFFERED_BYTES",
    "Channel",
    "ChannelClosed",
    "ChannelState",
    "ChannelTrigger",
    "MemoryChannel",
    "WebSocketChannel",
    "create_memory_channel_pair",
    "create_websocket_channel",
]
