"""A session's events as an HTTP response: NDJSON.

A stream is a cursor in a session's log. Whatever piled up since the last write goes out as one chunk; a reader that
takes nothing for `write_timeout_s`, or that the log was trimmed past, is cut off, which its client sees as a broken
chunked body and never as an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from litestar import Response
from litestar.status_codes import HTTP_200_OK

from enclave_broker.event_log import Trimmed

if TYPE_CHECKING:
    from litestar.types import Receive, Scope, Send

    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.event_log import Cursor
    from enclave_broker.sessions import BrokerSession

log = logging.getLogger("enclave.broker.http")

NDJSON = "application/x-ndjson"


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
