"""An HTTP client that reads streams as they come, and tells apart whatever way they end. Nothing is retried here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, TypeVar

from enclave_client.lines import LineSplitter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

T = TypeVar("T")

SILENCE_S = 5.0
"""After so long without a byte, heartbeats included, whoever should speak is taken for gone."""
_LONGEST_LINE_BYTES = 1 << 24


class BrokenAnswer(OSError):  # noqa: N818 - a fact about the network
    """The answer ended before its end, or was none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and its body to be read."""

    status: int
    headers: dict[str, str]
    """By names in lower case."""
    _reader: asyncio.StreamReader

    async def body(self) -> bytes:
        """Return the whole body."""
        return b"".join([piece async for piece in self.pieces()])

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the body's lines, without their ends; returns when the body ended as HTTP wants it.

        Raises:
            OSError: it broke; what came of the last line is not told.
        """
        splitter = LineSplitter()
        async for piece in self.pieces():
            for line in splitter.feed(piece):
                yield line

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield what comes of the body."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            length = int(self.headers.get("content-length", 0))
            if length:
                yield await _within(self._reader.readexactly(length))
            return
        while size := int(await _within(self._reader.readuntil(b"\r\n")), 16):
            yield (await _within(self._reader.readexactly(size + 2)))[:-2]
        await _within(self._reader.readuntil(b"\r\n"))


@contextlib.asynccontextmanager
async def asked(
    port: int, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Answer]:
    """Ask for something over a connection of its own.

    Raises:
        OSError: nobody answers, or what comes is no answer, or ends too early; a timeout is one.
    """
    async with asyncio.timeout(SILENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LONGEST_LINE_BYTES)
    try:
        said = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(body)), "Content-Type": "application/json"}
        head = "".join(f"{name}: {value}\r\n" for name, value in (said | dict(headers or {})).items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await _within(writer.drain())
        status, *lines = (await _within(reader.readuntil(b"\r\n\r\n"))).decode().split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        yield Answer(int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, reader)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
        raise BrokenAnswer(f"{type(error).__name__}: {error}") from error
    finally:
        writer.transport.abort()


async def _within(waits: Awaitable[T]) -> T:
    async with asyncio.timeout(SILENCE_S):
        return await waits
