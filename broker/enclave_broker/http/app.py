"""The HTTP door: the ASGI application, and the one shape of every refusal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from litestar import Litestar, Request, Response
from litestar.enums import MediaType
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from enclave_broker.access import Denied, QuotaExceeded
from enclave_broker.api import ApiError, ErrorBody, error_body, refusal
from enclave_broker.ws import create_workers_route, create_ws_route
from enclave_protocol import MAX_MESSAGE_BYTES, __version__

from .access import guard
from .access_routes import access_routes
from .batch_routes import batch_routes
from .catalog_routes import catalog_routes
from .counting import RequestCounter
from .docs import JsonPage, RoutesPage
from .drain_routes import drain_routes
from .early import EarlyDoor
from .fleet_routes import fleet_routes
from .origins import OriginGate, Origins
from .session_routes import session_routes
from .status_routes import status_routes
from .stream_routes import stream_routes

if TYPE_CHECKING:
    from litestar.types import ASGIApp

    from enclave_broker.broker import Broker

log = logging.getLogger("enclave.broker.http")

MAX_BODY_BYTES = MAX_MESSAGE_BYTES * 4 // 3 + 64 * 1024
"""Largest request: the largest tool result, sealed. The largest code, environment and files with every byte escaped are
less, and leave room for the rest."""


def create_app(broker: Broker) -> ASGIApp:
    """Return the ASGI application of a broker."""
    # Around everything: what refuses a request before any route is found must tell a page's browser about it, too.
    origins = Origins(broker.config.cors_origins, broker.config.host, closed=broker.dispatcher.gate.closed)
    inside = EarlyDoor(_routes(broker), broker.dispatcher)
    return RequestCounter(OriginGate(inside, origins), broker.metrics)


def _routes(broker: Broker) -> Litestar:
    dispatcher, metrics = broker.dispatcher, broker.metrics

    def refuse(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
        told = _as_api_error(error)
        metrics.rejections.labels(told.body.code).inc()
        return Response(told.body, status_code=told.status, headers=told.headers, media_type=MediaType.JSON)

    return Litestar(
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


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Denied | QuotaExceeded):
        return refusal(error)
    if not isinstance(error, HTTPException):
        log.error("a request failed", exc_info=error)
        return ApiError(HTTP_500_INTERNAL_SERVER_ERROR, error_body("INTERNAL_ERROR", "the broker failed; see its log"))
    if error.status_code == 413:
        message = f"the request is larger than {MAX_BODY_BYTES} bytes"
        return ApiError(413, error_body("REQUEST_TOO_LARGE", message, limit=MAX_BODY_BYTES))
    codes = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 500: "INTERNAL_ERROR"}
    code = codes.get(error.status_code, "INVALID_REQUEST")
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return ApiError(error.status_code, error_body(code, error.detail or code), headers=headers)
