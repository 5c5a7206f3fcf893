"""The plain HTTP endpoints of a broker, as one source that never changes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .http_caller import HttpCaller
from .http_tool import HttpTool
from .watched import WatchedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enclave_broker.tools.registry import ToolRegistry
    from enclave_broker.tools.tool import Tool

    from .credentials import Credentials
    from .operation import Operation
    from .policies import Policies

SERVICE = "http"


class EndpointSource(WatchedSource):
    """All endpoints together: each is a tool of its own name. Owns their connections.

    Args:
        endpoints: each with what is added to its requests, and how its calls are run.

    Raises:
        ValueError: an endpoint's schema is not acceptable.
    """

    def __init__(self, endpoints: Sequence[tuple[Operation, Credentials, Policies]]) -> None:
        super().__init__(SERVICE)
        self._caller = HttpCaller()
        self._tools: list[Tool] = [
            HttpTool(
                operation,
                self._caller,
                credentials,
                service=SERVICE,
                policy=policies.of(operation, credentials.secrets),
            )
            for operation, credentials, policies in endpoints
        ]

    async def load(self) -> list[Tool]:
        """Return the tools."""
        return self._tools

    async def run(self, registry: ToolRegistry) -> None:
        """Offer the tools."""
        registry.replace_source(self.name, self._tools)
        self.looked.set()
        await asyncio.Event().wait()  # for its cancellation

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()
