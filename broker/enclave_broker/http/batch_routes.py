"""Many runs in one request, over HTTP."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from litestar import Request, post
from litestar.status_codes import HTTP_200_OK

from enclave_broker.access import Scope

from .access import caller_of, needs
from .batch import BatchStream, decode_batch
from .common import ERRORS, error_answers, submit, unsaid_language
from .streams import StreamResponse
from .views import NDJSON

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher

BATCH_ERRORS = ERRORS | error_answers(s413="The code is too large.")


def batch_routes(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Return the route of batches."""

    @post(
        "/sessions:batch", status_code=HTTP_200_OK, media_type=NDJSON, responses=BATCH_ERRORS, opt=needs(Scope.CREATE)
    )
    async def create_batch(request: Request[Any, Any, Any]) -> StreamResponse:
        """Run one code with many inputs, or many codes, some at a time.

        One JSON object per line: what became of each run, as they end, and a summary. Leaving cancels what runs.
        """
        batch = decode_batch(
            await request.body(), dispatcher.offers.limits_of, unsaid_language(dispatcher, request.scope)
        )
        make = functools.partial(submit, dispatcher, scope=request.scope, caller=caller_of(request))
        return StreamResponse(BatchStream(batch, dispatcher, make))

    return [create_batch]
