"""A running session over HTTP: follow its events, and answer its tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from litestar import Request, get, post
from litestar.params import FromPath, QueryParameter
from litestar.status_codes import HTTP_200_OK

from enclave_broker.access import Scope
from enclave_broker.api import REFUSALS, Done, unfilterable
from enclave_protocol.filters import EventFilter, parse_filter

from .access import needs
from .answers import accept_answer
from .common import ERRORS, NOT_FOUND, error_answers, find_session, follow
from .streams import StreamResponse, no_content
from .views import NDJSON, View, header, next_after, parse_seq, wants_sse

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.sessions import BrokerSession

STREAM_ERRORS = ERRORS | NOT_FOUND | error_answers(s410="Those events are no longer kept.")
ANSWER_ERRORS = ERRORS | NOT_FOUND | error_answers(s409="Nobody waits for that answer.")


def stream_routes(dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Return the routes of sessions that run, or have run."""

    @get(
        "/sessions/{session_id:str}/stream",
        media_type=NDJSON,
        sync_to_thread=False,
        responses=STREAM_ERRORS,
        opt=needs(Scope.READ),
    )
    def stream_session(
        session_id: FromPath[str],
        request: Request[Any, Any, Any],
        from_seq: Annotated[str | None, QueryParameter(name="fromSeq", description="First event wanted.")] = None,
        from_: Annotated[str | None, QueryParameter(name="from", description="Another name of fromSeq.")] = None,
        filter_: Annotated[str | None, QueryParameter(name="filter", description="A filter, as JSON.")] = None,
    ) -> StreamResponse:
        """Replay a session's events from a number on, and go on live until the final.

        A `Last-Event-ID` header, which browsers send, goes before both numbers: the event after it is the first. An
        `EventSource` that has seen the final is answered 204, which tells it not to come again.
        """
        session = find_session(dispatcher, session_id, request)
        view = View(sse=wants_sse(header(request.scope, b"accept")), filter=_filter(session, filter_))
        first = _first(header(request.scope, b"last-event-id"), from_seq, from_)
        if view.sse and session.log.ended and first >= session.log.end_seq:
            return StreamResponse(no_content)
        return StreamResponse(follow(dispatcher, session, first, view))

    @post(
        "/sessions/{session_id:str}/tool-result",
        status_code=HTTP_200_OK,
        responses=ANSWER_ERRORS,
        opt=needs(Scope.CONTROL),
    )
    async def answer_call(session_id: FromPath[str], request: Request[Any, Any, Any]) -> Done:
        """Answer a call that was left to the client: `{callId, result}`, or `{callId, error: {message, code?}}`."""
        session = find_session(dispatcher, session_id, request)
        accept_answer(dispatcher, session, await request.body())
        await dispatcher.store.settle()
        return Done(success=True, session_id=session_id)

    return [stream_session, answer_call]


def _first(last_event_id: str | None, from_seq: str | None, from_: str | None) -> int:
    # A browser that reconnects repeats its URL and adds the header: what it has seen by then is in the header.
    if last_event_id:
        return next_after(last_event_id)
    return parse_seq(from_ or "1", "from") if from_seq is None else parse_seq(from_seq, "fromSeq")


def _filter(session: BrokerSession, text: str | None) -> EventFilter | None:
    if text is None:
        return None
    with REFUSALS:
        if session.channel is not None:
            raise unfilterable()
        return parse_filter(text.encode("utf-8", "surrogatepass"))
