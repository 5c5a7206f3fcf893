"""The HTTP door: the ASGI application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import Litestar, Request, Response
from litestar.enums import MediaType
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.plugins.core import MsgspecDIPlugin

from enclave_broker.api import ApiError, ErrorBody
from enclave_broker.ws import create_workers_route, create_ws_route
from enclave_protocol import __version__

from .access import guard
from .access_routes import access_routes
from .batch_routes import batch_routes
from .catalog_routes import catalog_routes
from .counting import RequestCounter
from .creation import CreateDoor
from .docs import JsonPage, RoutesPage
from .drain_routes import drain_routes
from .early import EarlyDoor
from .fleet_routes import fleet_routes
from .origins import OriginGate, Origins
from .refusals import MAX_BODY_BYTES, as_api_error
from .session_routes import session_routes
from .status_routes import status_routes
from .stream_routes import stream_routes

if TYPE_CHECKING:
    from litestar.plugins import PluginProtocol
    from litestar.types import ASGIApp

    from enclave_broker.broker import Broker


class _Routes(Litestar):
    """Litestar without its plugins for models of Pydantic's and attrs': we have none.

    It loads them where those are installed, which some tools' libraries bring along: 9 MB of memory.
    """

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


def create_app(broker: Broker) -> ASGIApp:
    """Return the ASGI application of a broker."""
    # Around everything: what refuses a request before any route is found must tell a page's browser about it, too.
    origins = Origins(broker.config.cors_origins, broker.config.host, closed=broker.dispatcher.gate.closed)
    inside = EarlyDoor(CreateDoor(_routes(broker), broker.dispatcher), broker.dispatcher)
    return RequestCounter(OriginGate(inside, origins), broker.metrics)


def _routes(broker: Broker) -> Litestar:
    dispatcher, metrics = broker.dispatcher, broker.metrics

    def refuse(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
        told = as_api_error(error)
        metrics.rejections.labels(told.body.code).inc()
        return Response(told.body, status_code=told.status, headers=told.headers, media_type=MediaType.JSON)

    return _Routes(
        [
            *session_routes(dispatcher),
            *stream_routes(dispatcher),
            *batch_routes(dispatcher),
            *access_routes(dispatcher),
            *status_routes(dispatcher, public_metrics=broker.config.public_metrics),
            *fleet_routes(dispatcher),
            *catalog_routes(broker),
            *drain_routes(broker),
            create_ws_route(dispatcher),
            create_workers_route(
                broker.dial_in, broker.workers_door, metrics, hello_timeout_s=broker.config.hello_timeout_s
            ),
        ],
        guards=[guard(dispatcher.gate)],
        exception_handlers={ApiError: refuse, HTTPException: refuse, Exception: refuse},
        openapi_config=OpenAPIConfig(
            title="Enclave broker", version=__version__, path="/docs", render_plugins=[RoutesPage(), JsonPage()]
        ),
        request_max_body_size=MAX_BODY_BYTES,
        logging_config=None,
        debug=False,
    )
