"""Sessions over HTTP: make, list, look at, cancel and delete them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from litestar import Request, delete, get, post
from litestar.params import FromPath  # noqa: TC002 - Litestar reads the annotations at run time
from litestar.status_codes import HTTP_200_OK

from enclave_broker.access import Scope
from enclave_broker.api import Done, SessionInfo, SessionList, decode_cancel, session_info

from .access import caller_of, needs
from .common import CREATE_ERRORS, ERRORS, NOT_FOUND, create_stream, find_session
from .streams import StreamResponse
from .views import NDJSON

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher


def session_routes(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Return the routes that make sessions and end them."""

    @post("/sessions", status_code=HTTP_200_OK, media_type=NDJSON, responses=CREATE_ERRORS, opt=needs(Scope.CREATE))
    async def create_session(request: Request[Any, Any, Any]) -> StreamResponse:
        """Run code and stream its events.

        One JSON object per line, until the `final`; as Server-Sent Events if `Accept` asks for `text/event-stream`.
        Leaving the stream cancels the session, unless `GET /sessions/{id}/stream` takes it over soon. The same request
        with the same `sessionId`, made again when the session has ended, is answered from its events.
        """
        # Mostly answered by `creation.CreateDoor`, which does the same; what it lets pass comes here.
        body = await request.body()
        return StreamResponse(create_stream(dispatcher, request.scope, caller_of(request), body))

    @get("/sessions", opt=needs(Scope.READ))
    async def list_sessions(request: Request[Any, Any, Any]) -> SessionList:
        """List the sessions that have not ended, and those that are retained."""
        now = time.monotonic()
        sessions = [session_info(session, now) for session in dispatcher.visible(caller_of(request))]
        await dispatcher.store.settle()
        return SessionList(sessions=sessions, total=len(sessions))

    @get("/sessions/{session_id:str}", responses=NOT_FOUND, opt=needs(Scope.READ))
    async def get_session(session_id: FromPath[str], request: Request[Any, Any, Any]) -> SessionInfo:
        """Describe one session."""
        info = session_info(find_session(dispatcher, session_id, request), time.monotonic())
        await dispatcher.store.settle()
        return info

    @delete(
        "/sessions/{session_id:str}",
        status_code=HTTP_200_OK,
        responses=NOT_FOUND,
        opt=needs(Scope.CONTROL),
    )
    async def delete_session(session_id: FromPath[str], request: Request[Any, Any, Any]) -> Done:
        """Cancel a session and forget it. Whoever reads its stream still gets the final."""
        dispatcher.delete(find_session(dispatcher, session_id, request))
        await dispatcher.store.settle()
        return Done(success=True, session_id=session_id)

    @post(
        "/sessions/{session_id:str}/cancel",
        status_code=HTTP_200_OK,
        responses=ERRORS | NOT_FOUND,
        opt=needs(Scope.CONTROL),
    )
    async def cancel_session(session_id: FromPath[str], request: Request[Any, Any, Any]) -> Done:
        """End a session. The body may say `{"reason": …}`, with any content type; an ended session stays as it is."""
        session = find_session(dispatcher, session_id, request)
        dispatcher.cancel(session, decode_cancel(await request.body()))
        await dispatcher.store.settle()
        return Done(success=True, session_id=session_id)

    return [create_session, list_sessions, get_session, delete_session, cancel_session]
