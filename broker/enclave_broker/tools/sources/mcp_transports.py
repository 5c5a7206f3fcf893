"""How an MCP server is reached: a process of ours over its pipes, or somebody's address over HTTP.

Both are the official library's transports with what it leaves open: a bound on what a server may send at once, a
process that can't outlive the broker, and word of the connection's end, which the library tells only to calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx2
from mcp import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from enclave_broker.tracing import carried
from enclave_protocol.limits import MAX_VALUE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    Streams = tuple[Any, Any]

MAX_MESSAGE_BYTES = MAX_VALUE_BYTES + 1024 * 1024
"""Largest message of a server's: the largest value of a tool, and room for the rest."""
MAX_STDERR_CHARS = 2000
"""Of what a server's process writes to standard error, the end that is kept."""
# Its lines have the whole address.
logging.getLogger("httpx2").setLevel(logging.WARNING)
# Everything it logs it also raises; its lines quote what servers send, at length.
logging.getLogger("mcp").setLevel(logging.CRITICAL)

_SUPERVISOR = str(Path(__file__).with_name("bound_process.py"))


class StderrTail:
    """The last words of a process, for the log. Owns a pipe: `fileno` is the end that the process writes to."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._write_fd, True)
        self._text = b""

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._read_fd, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._read_fd)
        with contextlib.suppress(OSError):
            self._read()
        os.close(self._read_fd)
        os.close(self._write_fd)

    def fileno(self) -> int:
        """Return where the process writes."""
        return self._write_fd

    @property
    def text(self) -> str:
        """What was kept."""
        return self._text.decode("utf-8", "replace").strip()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._text = (self._text + os.read(self._read_fd, 65_536))[-MAX_STDERR_CHARS:]


def process_transport(
    command: str, args: Sequence[str], env: Mapping[str, str], cwd: str | None, stderr: StderrTail
) -> AbstractAsyncContextManager[Streams]:
    """Return the transport of a server that is started, and ended, with the connection.

    Its environment is `env` and a few variables such as PATH and HOME, none of the broker's others.
    """
    bounds = [str(os.getpid()), str(MAX_MESSAGE_BYTES)]
    supervised = ["-I", "-S", _SUPERVISOR, *bounds, command, *args]
    parameters = StdioServerParameters(command=sys.executable, args=supervised, env=dict(env), cwd=cwd)
    return stdio_client(parameters, errlog=stderr)  # type: ignore[arg-type]  # subprocess wants no more than fileno()


@contextlib.asynccontextmanager
async def http_transport(url: str, headers: Mapping[str, str], *, timeout_s: float) -> AsyncIterator[Streams]:
    """Connect to a server over streamable HTTP.

    Args:
        url: of its endpoint.
        headers: of every request; they have secrets in them.
        timeout_s: longest wait for a connection, and for anything to be sent. Answers may take longer: how long a call
            may take is decided around it.
    """
    transport = _BoundedTransport(httpx2.AsyncHTTPTransport())
    timeout = httpx2.Timeout(timeout_s, read=None)
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=timeout, transport=transport) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES) as streams,
    ):
        yield streams


@contextlib.asynccontextmanager
async def watched(transport: AbstractAsyncContextManager[Streams], ended: asyncio.Event) -> AsyncIterator[Streams]:
    """Connect, and set `ended` when the server's side of the connection is over."""
    async with transport as (read, write):
        yield _Watched(read, ended), write


class _Watched:
    """A stream of messages that says when it is over."""

    def __init__(self, stream: Any, ended: asyncio.Event) -> None:
        self._stream = stream
        self._ended = ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except BaseException:
            self._ended.set()
            raise

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except BaseException:
            self._ended.set()
            raise

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(*details)
        return ended


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """Cuts off a body that is not a stream of events, each of which has its bound, when it is too large."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        # Packed bodies could be of any size once unpacked; one that comes unasked is left packed, and makes no sense.
        request.headers["accept-encoding"] = "identity"
        # The library sends a request in the context of who asks for it: a call's own task.
        trace = carried.get()
        if trace is not None:
            request.headers.update(trace.headers)
        response = await self._inner.handle_async_request(request)
        response.headers.pop("content-encoding", None)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.stream = _BoundedStream(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    """Ends where it becomes too large: what is then no JSON fails that one call, where an error fails them all."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size_bytes = 0
        async for chunk in self._inner:
            size_bytes += len(chunk)
            if size_bytes > MAX_MESSAGE_BYTES:
                return
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
