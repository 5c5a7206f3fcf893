"""Who calls a route. Every route is closed unless it says otherwise.

A route says in its `opt` what it needs: `needs(scope)`, or `PUBLIC`. One that says nothing is for keys alone, so that
forgetting to say it opens nothing to the tokens that browsers have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from litestar.enums import ScopeType

from enclave_broker.access import Denied

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from litestar import Request
    from litestar.connection import ASGIConnection
    from litestar.handlers.base import BaseRouteHandler

    from enclave_broker.access import Caller, Gate, Scope

    Connection = ASGIConnection[Any, Any, Any, Any]

_NEEDS = "enclave.needs"
_EVERYBODY = "everybody"
PUBLIC: dict[str, Any] = {_NEEDS: _EVERYBODY}
"""`opt` of a route that asks nobody who they are."""


def needs(scope: Scope) -> dict[str, Any]:
    """Return the `opt` of a route for callers with a scope."""
    return {_NEEDS: scope}


def guard(gate: Gate) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """Return what Litestar calls before every handler: it puts the `Caller` into the request's state, or raises."""

    # Nothing waits in it, but Litestar would run a plain function in a thread, for four times what all of it costs.
    async def let_in(connection: Connection, handler: BaseRouteHandler) -> None:
        wanted = handler.opt.get(_NEEDS)
        if wanted == _EVERYBODY or connection.scope["type"] == ScopeType.WEBSOCKET:
            return  # a WebSocket's own handler asks, since it refuses in another way
        if getattr(handler, "http_methods", None) == {"OPTIONS"}:
            return  # a browser's question, which it sends without credentials
        caller = gate.caller(connection.scope)
        if wanted is not None:
            caller.require(wanted)
        elif caller.expires_at is not None:
            raise Denied(403, "INSUFFICIENT_SCOPE", "tokens can't do this: it needs a key")
        connection.scope["state"]["caller"] = caller

    return let_in


def caller_of(request: Request[Any, Any, Any]) -> Caller:
    """Return who makes a request, which the guard found out."""
    return cast("Caller", request.scope["state"]["caller"])
