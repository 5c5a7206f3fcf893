"""Counts what is answered, by route: whatever answers it, be it a route's handler or a gate before all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar.enums import ScopeType

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Message, Receive, Scope, Send

    from enclave_broker.metrics import Metrics


class RequestCounter:
    """Passes requests on, and counts their answers. WebSockets are counted elsewhere, while they are open."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's own path, with its parameters' names: what is in their place anybody can choose.
                self._metrics.answered(scope["method"], scope.get("path_template", ""), message["status"])
            await send(message)

        await self._app(scope, receive, counting)
