"""What code may call: the catalogue of tools, and typed stubs of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from litestar import Response, get
from litestar.openapi import ResponseSpec
from litestar.params import QueryParameter

from enclave_broker.access import Scope
from enclave_broker.api import ErrorBody, invalid
from enclave_broker.tools.catalog import Catalog, describe
from enclave_broker.tools.stubs import python_stubs, typescript_stubs

from .access import needs

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.broker import Broker
    from enclave_broker.tools import ToolRegistry

_ERRORS = {
    400: ResponseSpec(ErrorBody, description="A parameter is wrong; the body names it.", generate_examples=False)
}
_WRITERS = {"python": python_stubs, "typescript": typescript_stubs}
_Service = Annotated[str | None, QueryParameter(name="service", description="Only the tools of this one.")]


def catalog_routes(broker: Broker) -> list[HTTPRouteHandler]:
    """Return the routes that describe the tools."""

    @get("/code/actions", sync_to_thread=False, responses=_ERRORS, opt=needs(Scope.READ))
    def list_actions(service: _Service = None) -> Catalog:
        """Describe every tool that code may call, with the JSON Schema of its arguments."""
        _require_service(broker.tools, service)
        return describe(broker.tools, unwell=broker.sources.unwell, service=service)

    @get("/code/stubs", media_type="text/plain", responses=_ERRORS, opt=needs(Scope.READ))
    async def write_stubs(
        language: Annotated[
            str, QueryParameter(name="language", description="Of the stubs: `python` or `typescript`.")
        ] = "python",
        service: _Service = None,
    ) -> Response[str]:
        """Return typed stubs of the tools, for an agent's prompt or a type checker."""
        if language not in _WRITERS:
            raise invalid(f"no stubs in {language[:40]!r}", field="language", allowed=", ".join(_WRITERS))
        _require_service(broker.tools, service)
        tools = [tool for tool in broker.tools.tools() if service in {None, tool.service}]
        # Of thousands of tools it takes a while.
        text = await asyncio.to_thread(_WRITERS[language], tools, broker.tools.version)
        return Response(text, media_type="text/plain")

    return [list_actions, write_stubs]


def _require_service(tools: ToolRegistry, service: str | None) -> None:
    known = [source.name for source in tools.sources()]
    if service is not None and service not in known:
        raise invalid(f"no service {service[:100]!r}", field="service", allowed=", ".join(known) or "none")
