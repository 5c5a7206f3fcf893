"""Sessions over HTTP: make, list, look at, follow, cancel and delete them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from litestar import Request, delete, get, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, QueryParameter
from litestar.status_codes import HTTP_200_OK

from enclave_broker.api import (
    ApiError,
    Done,
    ErrorBody,
    SessionInfo,
    SessionList,
    decode_cancel,
    decode_create,
    invalid,
    not_found,
    session_info,
)
from enclave_broker.dispatcher import DuplicateSession
from enclave_broker.event_log import Trimmed
from enclave_protocol import NoCapacity, RemoteProtocolError

from .streams import NDJSON, EventStream, StreamResponse

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher, NewSession
    from enclave_broker.sessions import BrokerSession

ERRORS = {
    400: ResponseSpec(ErrorBody, description="A field is wrong; the body names it.", generate_examples=False),
}
NOT_FOUND = {404: ResponseSpec(ErrorBody, description="No such session.", generate_examples=False)}
CREATE_ERRORS = ERRORS | {
    409: ResponseSpec(ErrorBody, description="The session id is in use.", generate_examples=False),
    413: ResponseSpec(ErrorBody, description="The code is too large.", generate_examples=False),
    503: ResponseSpec(ErrorBody, description="No capacity; see Retry-After.", generate_examples=False),
}
STREAM_ERRORS = (
    ERRORS
    | NOT_FOUND
    | {410: ResponseSpec(ErrorBody, description="Those events are no longer kept.", generate_examples=False)}
)


def session_routes(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Return the routes below `/sessions`."""

    def find(session_id: str) -> BrokerSession:
        session = dispatcher.directory.get(session_id)
        if session is None:
            raise not_found(session_id)
        return session

    @post("/sessions", status_code=HTTP_200_OK, media_type=NDJSON, responses=CREATE_ERRORS)
    async def create_session(request: Request[Any, Any, Any]) -> StreamResponse:
        """Run code and stream its events.

        One JSON object per line, until the `final`. Leaving the stream cancels the session, unless
        `GET /sessions/{id}/stream` takes it over soon.
        """
        session = _submit(dispatcher, decode_create(await request.body(), dispatcher.default_limits))
        return StreamResponse(EventStream(session, dispatcher, 1))

    @get("/sessions", sync_to_thread=False)
    def list_sessions() -> SessionList:
        """List the sessions that have not ended, and those that are retained."""
        now = time.monotonic()
        sessions = [session_info(session, now) for session in dispatcher.directory.sessions()]
        return SessionList(sessions=sessions, total=len(sessions))

    @get("/sessions/{session_id:str}", sync_to_thread=False, responses=NOT_FOUND)
    def get_session(session_id: FromPath[str]) -> SessionInfo:
        """Describe one session."""
        return session_info(find(session_id), time.monotonic())

    @delete("/sessions/{session_id:str}", status_code=HTTP_200_OK, sync_to_thread=False, responses=NOT_FOUND)
    def delete_session(session_id: FromPath[str]) -> Done:
        """Cancel a session and forget it. Whoever reads its stream still gets the final."""
        dispatcher.delete(find(session_id))
        return Done(success=True, session_id=session_id)

    @post("/sessions/{session_id:str}/cancel", status_code=HTTP_200_OK, responses=ERRORS | NOT_FOUND)
    async def cancel_session(session_id: FromPath[str], request: Request[Any, Any, Any]) -> Done:
        """End a session. The body may say `{"reason": …}`, with any content type; an ended session stays as it is."""
        session = find(session_id)
        dispatcher.cancel(session, decode_cancel(await request.body()))
        return Done(success=True, session_id=session_id)

    @get("/sessions/{session_id:str}/stream", media_type=NDJSON, sync_to_thread=False, responses=STREAM_ERRORS)
    def stream_session(
        session_id: FromPath[str],
        from_seq: Annotated[str | None, QueryParameter(name="fromSeq", description="First event wanted.")] = None,
        from_: Annotated[str | None, QueryParameter(name="from", description="Another name of fromSeq.")] = None,
    ) -> StreamResponse:
        """Replay a session's events from a number on, and go on live until the final."""
        session = find(session_id)
        first = _seq(from_seq, "fromSeq") if from_seq is not None else _seq(from_ or "1", "from")
        try:
            stream = EventStream(session, dispatcher, first)
        except Trimmed as error:
            raise ApiError(410, ErrorBody("EVENTS_GONE", str(error), first_seq=error.first_seq)) from error
        dispatcher.metrics.resumes.inc()
        return StreamResponse(stream)

    return [create_session, list_sessions, get_session, delete_session, cancel_session, stream_session]


def _submit(dispatcher: Dispatcher, new: NewSession) -> BrokerSession:
    """Make a session; raises ApiError."""
    try:
        return dispatcher.submit(new)
    except DuplicateSession as error:
        raise ApiError(409, ErrorBody("DUPLICATE_SESSION", str(error), field="sessionId")) from error
    except RemoteProtocolError as error:
        raise invalid(error.reason, field=error.field, allowed=error.allowed) from error
    except NoCapacity as error:
        retry_after = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        raise ApiError(503, ErrorBody("NO_CAPACITY", str(error)), headers=retry_after) from error


def _seq(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise invalid(f"not a number: {text[:40]!r}", field=field, allowed="a whole number, 0 or more")
    return max(1, int(text))
