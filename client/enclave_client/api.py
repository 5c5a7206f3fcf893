"""A broker's HTTP interface, as far as the command line needs it: run code, read its events, cancel it, look at it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import httpx
import msgspec

from enclave_protocol import MAX_MESSAGE_BYTES

from .lines import LineSplitter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
MAX_ERROR_BODY_BYTES = 64 * 1024
LOOPBACK = ("http://127.", "http://localhost", "http://[::1]")


class BrokerError(Exception):
    """Base of what can go wrong between a client and its broker."""


class BrokerUnreachableError(BrokerError):
    """Nobody answers at the broker's address."""


class StreamBrokenError(BrokerError):
    """The stream of events stopped before its `final`: what became of the session is unknown."""


class BrokerRefusedError(BrokerError):
    """The broker answered with an error instead of a stream.

    Attributes:
        status: the HTTP status.
        code: the broker's error code, or `HTTP_<status>` if the answer was not one of Enclave's.
        message: the broker's explanation.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    field: str = ""
    allowed: str = ""

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field and not self.message.startswith(self.field) else ""
        return f"{where}{self.message}" + (f" (allowed: {self.allowed})" if self.allowed else "")


class BrokerClient:
    """One broker, by its base address such as `http://127.0.0.1:3000`. Use as an async context manager.

    Args:
        base_url: the broker's address, without a path.
        silence_s: longest time without a byte on a stream before it counts as broken.
    """

    def __init__(self, base_url: str, *, silence_s: float = 60.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            # A proxy from the environment cannot reach this machine's loopback.
            trust_env=not self.base_url.startswith(LOOPBACK),
            # Certificates take long to load, and plain HTTP (redirects are not followed) has no use for them.
            verify=not self.base_url.startswith("http://"),
        )
        self._stream_timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=silence_s)
        self._silence_s = silence_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    @contextlib.asynccontextmanager
    async def execute(self, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Start a session and yield its event lines, byte for byte and without their newlines.

        Args:
            request: the body of `POST /sessions`: `code`, and perhaps `sessionId`, `language`, `profile`, `limits`,
                `env`, `files`.

        Raises:
            BrokerUnreachableError, BrokerRefusedError: no session was made.
            StreamBrokenError: while iterating.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
        body = msgspec.json.encode(request)
        call = self._http.build_request(
            "POST", "/sessions", content=body, headers=headers, timeout=self._stream_timeout
        )
        response = await self._send(call, stream=True)
        try:
            await _raise_if_refused(response)
            yield self._lines(response)
        finally:
            await response.aclose()

    async def cancel(self, session_id: str, reason: str) -> None:
        """Ask for the session's end; its stream then ends with `SESSION_CANCELLED`."""
        call = self._http.build_request("POST", f"/sessions/{session_id}/cancel", json={"reason": reason})
        await _raise_if_refused(await self._send(call))

    async def session(self, session_id: str) -> dict[str, Any]:
        """Return what the broker knows of a session: its state, times, and the worker that ran it."""
        response = await self._send(self._http.build_request("GET", f"/sessions/{session_id}"))
        await _raise_if_refused(response)
        info: dict[str, Any] = msgspec.json.decode(response.content, type=dict[str, Any])
        return info

    async def _send(self, call: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            return await self._http.send(call, stream=stream)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise BrokerUnreachableError(f"{self.base_url}: {error}") from error
        except httpx.HTTPError as error:
            raise StreamBrokenError(f"no answer from {self.base_url}: {type(error).__name__} {error}") from error

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        splitter = LineSplitter()
        try:
            async for chunk in response.aiter_bytes():
                for line in splitter.feed(chunk):
                    yield line
                if splitter.pending_bytes > MAX_MESSAGE_BYTES:
                    raise StreamBrokenError(f"an event of more than {MAX_MESSAGE_BYTES} bytes")
        except httpx.ReadTimeout as error:
            raise StreamBrokenError(f"nothing came for {self._silence_s:g} s, not even a heartbeat") from error
        except httpx.HTTPError as error:
            raise StreamBrokenError(f"the connection broke: {type(error).__name__} {error}") from error
        if last := splitter.flush():
            yield last


async def _raise_if_refused(response: httpx.Response) -> None:
    if response.is_success:
        return
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ERROR_BODY_BYTES:
            break
    status = response.status_code
    try:
        said = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, UnicodeError):
        text = " ".join(body.decode(errors="replace").split())[:200]
        raise BrokerRefusedError(status, f"HTTP_{status}", text or response.reason_phrase) from None
    raise BrokerRefusedError(status, said.code, str(said))
