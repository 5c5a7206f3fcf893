"""What the routes about sessions share: finding them, making them, reading them, and what can go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar.openapi import ResponseSpec

from enclave_broker.access import Denied, QuotaExceeded
from enclave_broker.api import REFUSALS, ApiError, ErrorBody, decode_create, error_body, full, not_found, refusal
from enclave_broker.event_log import Trimmed
from enclave_broker.languages import HEADER
from enclave_broker.new_session import DuplicateSession
from enclave_protocol import NoCapacity
from enclave_protocol.trace_context import parse_trace

from .access import caller_of
from .streams import EventStream
from .views import View, header, wants_sse

if TYPE_CHECKING:
    from litestar import Request
    from litestar.types import Scope

    from enclave_broker.access import Caller
    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.languages import Unsaid
    from enclave_broker.new_session import NewSession
    from enclave_broker.sessions import BrokerSession
    from enclave_protocol.trace_context import TraceContext

    AnyRequest = Request[Any, Any, Any]


_LANGUAGE_HEADER = HEADER.lower().encode()


def error_answers(**descriptions: str) -> dict[int, ResponseSpec]:
    """Return what a route's refusals look like, by `s404="No such session."`."""
    return {
        int(status[1:]): ResponseSpec(ErrorBody, description=text, generate_examples=False)
        for status, text in descriptions.items()
    }


ERRORS = error_answers(s400="A field is wrong; the body names it.")
NOT_FOUND = error_answers(s404="No such session.")
CREATE_ERRORS = ERRORS | error_answers(
    s403="The token is for another session.",
    s409="The session id is in use.",
    s410="The request was made before, and its events are no longer kept.",
    s413="The code is too large.",
    s429="A quota is used up; see Retry-After.",
    s503="No capacity; see Retry-After.",
)


def find_session(dispatcher: Dispatcher, session_id: str, request: AnyRequest) -> BrokerSession:
    """Return a session that the request's sender may know of; raises ApiError."""
    session = dispatcher.find(session_id, caller_of(request))
    if session is None:
        raise not_found(session_id)
    return session


def same_request(dispatcher: Dispatcher, new: NewSession, caller: Caller) -> BrokerSession | None:
    """Return the ended session that the same request has made before, if it has run: if not, it can run now."""
    if not new.fingerprint or new.session_id is None:
        return None
    session = dispatcher.find(new.session_id, caller)
    if session is None or session.live or session.started is None:
        return None
    return session if session.fingerprint == new.fingerprint else None


def trace_of(scope: Scope) -> TraceContext | None:
    """Return the trace that a request belongs to, if its headers name one."""
    parents = [value for name, value in scope["headers"] if name == b"traceparent"]
    if len(parents) != 1:  # several are none
        return None
    states = [value.decode("latin-1") for name, value in scope["headers"] if name == b"tracestate"]
    return parse_trace(parents[0].decode("latin-1"), states)


def submit(dispatcher: Dispatcher, new: NewSession, scope: Scope, caller: Caller) -> BrokerSession:
    """Make a session; raises ApiError."""
    trace = trace_of(scope)
    if trace is not None:
        new = msgspec.structs.replace(new, trace=trace)
    try:
        with REFUSALS:
            return dispatcher.submit(new, caller)
    except DuplicateSession as error:
        message = f"{error}; its events are at /sessions/{new.session_id}/stream"
        raise ApiError(409, error_body("DUPLICATE_SESSION", message, field="sessionId")) from error
    except (Denied, QuotaExceeded) as error:
        raise refusal(error) from error
    except NoCapacity as error:
        raise full(error) from error


def unsaid_language(dispatcher: Dispatcher, scope: Scope) -> Unsaid:
    """Return what decides the language of a request whose body does not say it."""
    return dispatcher.offers.unsaid_language(header(scope, _LANGUAGE_HEADER))


def create_stream(dispatcher: Dispatcher, scope: Scope, caller: Caller, body: bytes) -> EventStream:
    """Make the session that a request asks for, or find the one that it has made before; raises ApiError."""
    new, wanted = decode_create(body, dispatcher.offers.limits_of, unsaid_language(dispatcher, scope))
    view = View(sse=wants_sse(header(scope, b"accept")), filter=wanted)
    before = same_request(dispatcher, new, caller)
    if before is not None:
        return follow(dispatcher, before, 1, view, replayed=True)
    return EventStream(submit(dispatcher, new, scope, caller), dispatcher, 1, view)


def follow(
    dispatcher: Dispatcher, session: BrokerSession, first: int, view: View, *, replayed: bool = False
) -> EventStream:
    """Return a stream of a session that was there before; raises ApiError."""
    try:
        stream = EventStream(session, dispatcher, first, view, replayed=replayed)
    except Trimmed as error:
        raise ApiError(410, error_body("EVENTS_GONE", str(error), first_seq=error.first_seq)) from error
    dispatcher.metrics.resumes.inc()
    return stream
