"""A session's events as an HTTP response: NDJSON, or Server-Sent Events.

A stream is a cursor in a session's log. Whatever piled up since the last write goes out as one chunk; a reader that
takes nothing for `write_timeout_s`, or that the log was trimmed past, is cut off, which its client sees as a broken
chunked body and never as an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from litestar import Response
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT

from enclave_broker.event_log import Interrupted, Trimmed
from enclave_broker.patience import within

from .views import View

if TYPE_CHECKING:
    from litestar.types import Receive, Scope, Send

    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.event_log import Cursor
    from enclave_broker.sessions import BrokerSession

    from .views import Numbered

log = logging.getLogger("enclave.broker.http")

SERVER_HELLO = "X-Enclave-Server-Hello"
WATCH_AFTER_S = 0.2
"""How long a stream lasts before anybody looks whether its reader is gone. Most have ended by then, and to look takes a
task of its own: a tenth of all that such a session costs the broker."""
FILTER_SLICE_S = 0.005
"""How long one stream may filter at a time (but always one event); then everybody else has as long."""

ALL = View()


class EventStream:
    """The ASGI response that writes a session's events.

    Args:
        session: whose events.
        dispatcher: is told of the reader.
        from_seq: number of the first event.
        view: which of them, and in what form.
        replayed: whether the request was made before, and is not run again.

    Raises:
        Trimmed: that event is no longer kept.
    """

    def __init__(
        self, session: BrokerSession, dispatcher: Dispatcher, from_seq: int, view: View = ALL, *, replayed: bool = False
    ) -> None:
        self.view = view
        self.started = False
        """Whether its answer has begun, so that it is too late for another one."""
        self._session = session
        self._dispatcher = dispatcher
        self._replayed = replayed
        self._more = asyncio.Event()
        self._gone = False
        self._watching: asyncio.Task[None] | None = None
        self._cursor: Cursor = session.log.subscribe(from_seq, self._more.set)
        dispatcher.readers.came(session)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the final, or until the reader is gone."""
        watch_later = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._watch, receive)
        try:
            await self._dispatcher.store.settle()  # the first bytes say that there is such a session
            await self._start(send)
            await self._write_all(send)
        finally:
            self._cursor.close()
            self._dispatcher.readers.left(self._session)
            watch_later.cancel()
            if self._watching is not None:
                self._watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._watching

    async def _start(self, send: Send) -> None:
        headers = stream_headers(self.view.media_type)
        headers.append((b"x-session-id", self._session.session_id.encode()))
        if self._session.channel is not None:
            headers.append((SERVER_HELLO.lower().encode(), self._session.channel.header.encode()))
        if self._replayed:
            headers.append((b"x-enclave-replayed", b"true"))
        self.started = True
        await send({"type": "http.response.start", "status": HTTP_200_OK, "headers": headers})
        if head := self.view.head:
            await self._write(send, head, finished=False)

    async def _write_all(self, send: Send) -> None:
        cursor, plain = self._cursor, not self.view.sse and self.view.filter is None
        try:
            while not self._gone:
                self._more.clear()
                first = cursor.next_seq
                lines = cursor.take()
                finished = cursor.finished
                if plain and (lines or finished):
                    lines.append(b"")  # so that the last line ends too
                    await self._write(send, b"\n".join(lines), finished=finished)
                elif lines or finished:
                    chunk = self.view.render(await self._chosen(first, lines), cursor.next_seq - 1)
                    if chunk or finished:
                        await self._write(send, chunk, finished=finished)
                if finished:
                    return
                if not cursor.behind:
                    await self._more.wait()
        except Interrupted:
            pass  # as below, and nobody's fault
        except (Trimmed, TimeoutError) as slow:
            self._dispatcher.metrics.readers_cut.inc()
            log.warning("reader cut off: %s", str(slow) or "it takes nothing", extra=self._session.about)
            # Returning without the last chunk makes the server drop the connection.

    async def _chosen(self, first: int, lines: list[bytes]) -> list[Numbered]:
        """Filter, and let others run in between: who wrote the filter chose how long it takes."""
        wanted = self.view.filter
        if wanted is None:
            return list(enumerate(lines, first))
        chosen: list[Numbered] = []
        began = time.monotonic()
        for seq, line in enumerate(lines, first):
            if wanted.passes(line):
                chosen.append((seq, line))
            took_s = time.monotonic() - began
            if took_s > FILTER_SLICE_S:
                await asyncio.sleep(took_s)
                began = time.monotonic()
        return chosen

    async def _write(self, send: Send, chunk: bytes, *, finished: bool) -> None:
        sending = send({"type": "http.response.body", "body": chunk, "more_body": not finished})
        await within(self._dispatcher.config.write_timeout_s, sending)

    def _watch(self, receive: Receive) -> None:
        self._watching = asyncio.ensure_future(wait_disconnected(receive))
        self._watching.add_done_callback(self._reader_gone)

    def _reader_gone(self, watching: asyncio.Future[Any]) -> None:
        if not watching.cancelled() and watching.exception() is None:
            self._gone = True
            self._more.set()


def stream_headers(media_type: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that is written as it comes."""
    return [
        (b"content-type", media_type.encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold events back
    ]


async def no_content(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer that there is nothing more; what is sent this way has no content type either."""
    await send({"type": "http.response.start", "status": HTTP_204_NO_CONTENT, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def wait_disconnected(receive: Receive) -> None:
    """Wait until the client has gone."""
    # The body of a request that nobody read comes first, even an empty one.
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamResponse(Response[None]):
    """Hands a stream, which is an ASGI response, to Litestar."""

    def __init__(self, stream: Any) -> None:
        super().__init__(None)
        self._stream = stream

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """Return the stream."""
        return self._stream
