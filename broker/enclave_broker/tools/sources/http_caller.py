"""Sends one HTTP request and reads its answer, within bounds.

What a server sends is read up to a limit, compressed or not; redirects are followed only within an origin and only for
requests that read; cookies are not kept, since one call's must not be the next one's, which may be another tenant's.
"""

from __future__ import annotations

import logging
import zlib
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urljoin

import httpx

from enclave_broker.tools.tool import ToolFailure
from enclave_protocol import Code, __version__

from .addresses import origin
from .answers import HttpAnswer

if TYPE_CHECKING:
    from types import TracebackType

    from .requests import HttpRequest

logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines have the whole address, and keys may stand in it

MAX_REDIRECTS = 5
MAX_ERROR_BYTES = 64 * 1024
"""Of an answer that is no success, what is read; the rest is left."""
CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 100
"""To all servers of one source."""
logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines have the whole address, and keys may stand in it

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_READS = frozenset({"GET", "HEAD"})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class HttpCaller:
    """A pool of connections, for one source. Use it as an async context manager."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            # How long an answer may take is decided around the call.
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=20),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": f"enclave-broker/{__version__}", "Accept-Encoding": "gzip, deflate"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def call(self, request: HttpRequest, *, max_bytes: int, idempotent: bool = False) -> HttpAnswer:
        """Send a request and read the answer.

        Args:
            request: with its credentials.
            max_bytes: largest body that is read.
            idempotent: whether the request may be sent twice.

        Raises:
            ToolFailure: `UPSTREAM_UNREACHABLE`, `REDIRECT_REFUSED` or `RESULT_TOO_LARGE`. None of them quotes the
                request, which has secrets in it.
        """
        first = self._build(request)
        sent = first
        try:
            for _ in range(MAX_REDIRECTS + 1):
                response = await self._client.send(sent, stream=True)
                try:
                    target = _redirect_target(response)
                    if target is None:
                        return await _read(response, max_bytes)
                finally:
                    await response.aclose()
                if first.method not in _READS or origin(target) != origin(str(first.url)):
                    raise ToolFailure(
                        "REDIRECT_REFUSED",
                        f"HTTP {response.status_code}: the server redirects to {origin(target)}; only requests that "
                        "read are redirected, and only within an origin",
                    )
                sent = httpx.Request(first.method, target, headers=first.headers)
        except httpx.InvalidURL:
            raise ToolFailure("UPSTREAM_ERROR", "the request's address is not one") from None
        except httpx.HTTPError as error:
            retryable = isinstance(error, _NOT_SENT) or idempotent
            message = f"the server can't be reached or broke off: {type(error).__name__}"
            raise ToolFailure("UPSTREAM_UNREACHABLE", message, retryable=retryable) from None
        raise ToolFailure("REDIRECT_REFUSED", f"the server redirects more than {MAX_REDIRECTS} times")

    def _build(self, request: HttpRequest) -> httpx.Request:
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in request.query)
        url = request.url
        if query:
            url += ("&" if "?" in url else "?") + query
        headers = list(request.headers)
        if request.cookies:
            headers.append(("Cookie", "; ".join(f"{name}={value}" for name, value in request.cookies)))
        body: dict[str, Any] = {}
        if request.parts:
            body["files"] = [(p.name, (p.filename or None, p.data, p.content_type or None)) for p in request.parts]
        elif request.content is not None:
            body["content"] = request.content
        return self._client.build_request(request.method, url, headers=headers, **body)


def _redirect_target(response: httpx.Response) -> str | None:
    location = response.headers.get("location")
    if response.status_code not in _REDIRECTS or not location:
        return None
    return urljoin(str(response.request.url), str(location))


async def _read(response: httpx.Response, max_bytes: int) -> HttpAnswer:
    success = response.is_success
    unpack = _Unpacker(response.headers.get("content-encoding", ""), max_bytes if success else MAX_ERROR_BYTES)
    async for chunk in response.aiter_raw():
        unpack.feed(chunk)
        if unpack.full and success:
            raise ToolFailure(Code.RESULT_TOO_LARGE, f"the server's answer is larger than {max_bytes} bytes")
        if unpack.full:
            break
    return HttpAnswer(
        status=response.status_code,
        reason=response.reason_phrase,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=bytes(unpack.data),
    )


class _Unpacker:
    """Collects a body, decompressing as it comes and never beyond the limit: a kilobyte can unpack to a gigabyte."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self.data = bytearray()
        self._max_bytes = max_bytes
        encoding = encoding.strip().lower()
        if encoding in {"gzip", "deflate", "x-gzip"}:
            self._inflate: Any = zlib.decompressobj(wbits=47)  # either header
        elif encoding in {"", "identity"}:
            self._inflate = None
        else:
            raise ToolFailure("UPSTREAM_ERROR", f"the server's answer is packed as {encoding[:40]!r}, unasked")

    def feed(self, chunk: bytes) -> None:
        try:
            self.data += (
                chunk
                if self._inflate is None
                else self._inflate.decompress(chunk, self._max_bytes - len(self.data) + 1)
            )
        except zlib.error as error:
            raise ToolFailure("UPSTREAM_ERROR", "the server's answer can't be unpacked") from error

    @property
    def full(self) -> bool:
        """Whether there is more than the limit."""
        return len(self.data) > self._max_bytes
