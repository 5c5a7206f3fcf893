"""The HTTP door: routes on Litestar, and the NDJSON stream.

A stream is a cursor in a session's log. Whatever piled up since the last write goes out as one chunk; a reader that
takes nothing for `write_timeout_s`, or that the log was trimmed past, is cut off, which its client sees as a broken
chunked body and never as an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, delete, get, post
from litestar.enums import MediaType
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.params import FromPath, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_500_INTERNAL_SERVER_ERROR

from enclave_protocol import MAX_CODE_BYTES, NoCapacity, RemoteProtocolError, __version__
from enclave_protocol.inputs import MAX_ENV_BYTES, MAX_FILES_BYTES

from .api import (
    ApiError,
    Done,
    ErrorBody,
    Health,
    SessionInfo,
    SessionList,
    decode_cancel,
    decode_create,
    invalid,
    not_found,
    session_info,
)
from .dispatcher import DuplicateSession
from .docs import JsonPage, RoutesPage
from .event_log import Trimmed
from .ws import create_ws_route

if TYPE_CHECKING:
    from litestar.types import Receive, Scope, Send

    from .broker import Broker
    from .dispatcher import Dispatcher, NewSession
    from .event_log import Cursor
    from .sessions import BrokerSession

log = logging.getLogger("enclave.broker.http")

NDJSON = "application/x-ndjson"
MAX_BODY_BYTES = 6 * (MAX_CODE_BYTES + MAX_ENV_BYTES + MAX_FILES_BYTES) + 64 * 1024
"""Largest request: the largest code, environment and files with every byte escaped, and room for the rest."""

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


class EventStream:
    """The ASGI response that writes a session's events as NDJSON."""

    def __init__(self, session: BrokerSession, dispatcher: Dispatcher, from_seq: int) -> None:
        self._session = session
        self._dispatcher = dispatcher
        self._more = asyncio.Event()
        self._gone = False
        self._cursor: Cursor = session.log.subscribe(from_seq, self._more.set)
        dispatcher.reader_came(session)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the final, or until the reader is gone."""
        watching = asyncio.ensure_future(_wait_disconnected(receive))
        watching.add_done_callback(self._reader_gone)
        try:
            await self._start(send)
            await self._write_all(send)
        finally:
            self._cursor.close()
            self._dispatcher.reader_left(self._session)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _start(self, send: Send) -> None:
        headers = [
            (b"content-type", NDJSON.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would hold events back
            (b"x-session-id", self._session.session_id.encode()),
        ]
        await send({"type": "http.response.start", "status": HTTP_200_OK, "headers": headers})

    async def _write_all(self, send: Send) -> None:
        cursor = self._cursor
        try:
            while not self._gone:
                self._more.clear()
                lines = cursor.take()
                finished = cursor.finished
                if lines or finished:
                    lines.append(b"")  # so that the last line ends too
                    await self._write(send, b"\n".join(lines), finished=finished)
                if finished:
                    return
                if not lines:
                    await self._more.wait()
        except (Trimmed, TimeoutError) as slow:
            self._dispatcher.metrics.readers_cut.inc()
            log.warning("reader of %s cut off: %s", self._session.session_id, str(slow) or "it takes nothing")
            # Returning without the last chunk makes the server drop the connection.

    async def _write(self, send: Send, chunk: bytes, *, finished: bool) -> None:
        async with asyncio.timeout(self._dispatcher.config.write_timeout_s):
            await send({"type": "http.response.body", "body": chunk, "more_body": not finished})

    def _reader_gone(self, watching: asyncio.Future[Any]) -> None:
        if not watching.cancelled() and watching.exception() is None:
            self._gone = True
            self._more.set()


async def _wait_disconnected(receive: Receive) -> None:
    # The body of a request that nobody read comes first, even an empty one.
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamResponse(Response[None]):
    """Hands an `EventStream` to Litestar."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__(None, media_type=NDJSON)
        self._stream = stream

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """Return the stream: it is the ASGI response."""
        return self._stream


def create_app(broker: Broker) -> Litestar:  # noqa: C901 - one short function per route
    """Return the ASGI application of a broker."""
    dispatcher, metrics = broker.dispatcher, broker.metrics

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
        metrics.resumes.inc()
        return StreamResponse(stream)

    @get("/healthz", sync_to_thread=False)
    def healthz() -> Health:
        """Say that the broker runs."""
        return _health(dispatcher)

    @get("/readyz", sync_to_thread=False)
    def readyz() -> Response[Health]:
        """Say whether a session could run: whether a worker is connected that takes new ones."""
        health = _health(dispatcher)
        return Response(health, status_code=HTTP_200_OK if health.status == "ok" else 503)

    @get("/metrics", media_type="text/plain; version=0.0.4", sync_to_thread=False)
    def show_metrics() -> bytes:
        """Show the metrics in Prometheus' text format."""
        fleet = dispatcher.placer.statistics()
        return metrics.render(fleet, configured=len(dispatcher.links), active=dispatcher.directory.live)

    def refuse(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
        refusal = _as_api_error(error)
        metrics.rejections.labels(refusal.body.code).inc()
        return Response(refusal.body, status_code=refusal.status, headers=refusal.headers, media_type=MediaType.JSON)

    return Litestar(
        [
            create_session,
            list_sessions,
            get_session,
            delete_session,
            cancel_session,
            stream_session,
            healthz,
            readyz,
            show_metrics,
            create_ws_route(dispatcher),
        ],
        exception_handlers={ApiError: refuse, HTTPException: refuse, Exception: refuse},
        openapi_config=OpenAPIConfig(
            title="Enclave broker", version=__version__, path="/docs", render_plugins=[RoutesPage(), JsonPage()]
        ),
        request_max_body_size=MAX_BODY_BYTES,
        logging_config=None,
        debug=False,
    )


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


def _health(dispatcher: Dispatcher) -> Health:
    fleet = dispatcher.placer.statistics()
    status = "no workers" if not fleet.workers else "ok" if fleet.workers > fleet.draining else "draining"
    return msgspec.convert(
        {"status": status, "workers": fleet.workers, "freeSlots": fleet.free, "waiting": fleet.waiting}, Health
    )


def _seq(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise invalid(f"not a number: {text[:40]!r}", field=field, allowed="a whole number, 0 or more")
    return max(1, int(text))


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, HTTPException):
        log.error("a request failed", exc_info=error)
        return ApiError(HTTP_500_INTERNAL_SERVER_ERROR, ErrorBody("INTERNAL_ERROR", "the broker failed; see its log"))
    if error.status_code == 413:
        message = f"the request is larger than {MAX_BODY_BYTES} bytes"
        return ApiError(413, ErrorBody("REQUEST_TOO_LARGE", message, limit=MAX_BODY_BYTES))
    codes = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 500: "INTERNAL_ERROR"}
    code = codes.get(error.status_code, "INVALID_REQUEST")
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return ApiError(error.status_code, ErrorBody(code, error.detail or code), headers=headers)
