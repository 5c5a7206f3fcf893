"""The one shape of every refusal, whoever refuses: a route, or a door before all of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from enclave_broker.access import Denied, QuotaExceeded
from enclave_broker.api import ApiError, error_body, refusal
from enclave_protocol import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from litestar.types import Send

    from enclave_broker.metrics import Metrics

log = logging.getLogger("enclave.broker.http")

MAX_BODY_BYTES = MAX_MESSAGE_BYTES * 4 // 3 + 64 * 1024
"""Largest request: the largest tool result, sealed. The largest code, environment and files with every byte escaped are
less, and leave room for the rest."""

_LEFT = "client disconnected prematurely"
"""Litestar's word for a client that left in the middle of its body, which it takes for a fault of ours."""


def too_large() -> ApiError:
    """Return the refusal of a request of more than MAX_BODY_BYTES."""
    message = f"the request is larger than {MAX_BODY_BYTES} bytes"
    return ApiError(413, error_body("REQUEST_TOO_LARGE", message, limit=MAX_BODY_BYTES))


def as_api_error(error: Exception) -> ApiError:
    """Return what is answered to a request that raised this."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Denied | QuotaExceeded):
        return refusal(error)
    if isinstance(error, HTTPException) and error.detail == _LEFT:
        return ApiError(400, error_body("INVALID_REQUEST", "the client left before its request was complete"))
    if not isinstance(error, HTTPException) or error.status_code >= HTTP_500_INTERNAL_SERVER_ERROR:
        log.error("a request failed", exc_info=error)
        return ApiError(HTTP_500_INTERNAL_SERVER_ERROR, error_body("INTERNAL_ERROR", "the broker failed; see its log"))
    if error.status_code == 413:
        return too_large()
    codes = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}
    code = codes.get(error.status_code, "INVALID_REQUEST")
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return ApiError(error.status_code, error_body(code, error.detail or code), headers=headers)


async def refuse(told: ApiError, metrics: Metrics, send: Send) -> None:
    """Answer with a refusal, and count it."""
    metrics.rejections.labels(told.body.code).inc()
    body = msgspec.json.encode(told.body)
    headers = [(name.lower().encode(), value.encode()) for name, value in told.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": told.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
