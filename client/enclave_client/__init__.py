"""Enclave's client side: the client library, a whole fleet on one machine, and the `enclave` command.

    from enclave_client import AsyncClient, Client

The names are imported when they are first asked for: the command, and the programs that it starts, need few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enclave_protocol import AnyEvent, EnclaveError, Stats, events

    from .async_client import AsyncClient
    from .errors import BrokerUnavailable, RequestRefused, SessionFailed, SessionLost, SessionTimeout
    from .limits import Limits
    from .local_tools import Tool, ToolError
    from .mapping import MapItem
    from .results import Failure, Result
    from .session import AsyncSession
    from .sync_client import Client, Session

_MODULES = {
    "AnyEvent": "enclave_protocol",
    "AsyncClient": "enclave_client.async_client",
    "AsyncSession": "enclave_client.session",
    "BrokerUnavailable": "enclave_client.errors",
    "Client": "enclave_client.sync_client",
    "EnclaveError": "enclave_protocol",
    "Failure": "enclave_client.results",
    "Limits": "enclave_client.limits",
    "MapItem": "enclave_client.mapping",
    "RequestRefused": "enclave_client.errors",
    "Result": "enclave_client.results",
    "Session": "enclave_client.sync_client",
    "SessionFailed": "enclave_client.errors",
    "SessionLost": "enclave_client.errors",
    "SessionTimeout": "enclave_client.errors",
    "Stats": "enclave_protocol",
    "Tool": "enclave_client.local_tools",
    "ToolError": "enclave_client.local_tools",
    "events": "enclave_protocol",
}

__all__ = [
    "AnyEvent",
    "AsyncClient",
    "AsyncSession",
    "BrokerUnavailable",
    "Client",
    "EnclaveError",
    "Failure",
    "Limits",
    "MapItem",
    "RequestRefused",
    "Result",
    "Session",
    "SessionFailed",
    "SessionLost",
    "SessionTimeout",
    "Stats",
    "Tool",
    "ToolError",
    "events",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value
