"""Enclave's broker: takes sessions, places them on workers, relays their events, runs tools."""

from .broker import Broker, create_broker
from .channels import Channel, MemoryChannel, Runtime, memory_pair
from .config import BrokerConfig
from .listening import PortInUse
from .new_session import DuplicateSession
from .tools import (
    ApprovalRequest,
    Refusal,
    ScrubbedFormatter,
    Secrets,
    Tool,
    ToolContext,
    ToolFailure,
    ToolPolicy,
    ToolRegistry,
    ToolSource,
    tool,
)

__all__ = [
    "ApprovalRequest",
    "Broker",
    "BrokerConfig",
    "Channel",
    "DuplicateSession",
    "MemoryChannel",
    "PortInUse",
    "Refusal",
    "Runtime",
    "ScrubbedFormatter",
    "Secrets",
    "Tool",
    "ToolContext",
    "ToolFailure",
    "ToolPolicy",
    "ToolRegistry",
    "ToolSource",
    "create_broker",
    "memory_pair",
    "tool",
]
