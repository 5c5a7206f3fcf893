"""The worker as a library: every name that a program needs, in one place. `docs/library.md` has examples of all."""

from enclave_protocol import AnyEvent, Limits, ToolError

from .channels import (
    Channel,
    ChannelClosed,
    ChannelState,
    MemoryChannel,
    WebSocketChannel,
    create_memory_channel_pair,
    create_websocket_channel,
)
from .config import RuntimeConfig
from .executions import ExecutionResult
from .executor import SessionExecutor, create_session_executor
from .listeners import Unsubscribe
from .runtime import RuntimeState, RuntimeStats, RuntimeWorker, create_runtime_worker

__all__ = [
    "AnyEvent",
    "Channel",
    "ChannelClosed",
    "ChannelState",
    "ExecutionResult",
    "Limits",
    "MemoryChannel",
    "RuntimeConfig",
    "RuntimeState",
    "RuntimeStats",
    "RuntimeWorker",
    "SessionExecutor",
    "ToolError",
    "Unsubscribe",
    "WebSocketChannel",
    "create_memory_channel_pair",
    "create_runtime_worker",
    "create_session_executor",
    "create_websocket_channel",
]
