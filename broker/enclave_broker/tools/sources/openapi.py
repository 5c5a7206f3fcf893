"""Tools from an OpenAPI document, and the watch over it.

Theory of operation. The document is fetched when the broker starts and then every `poll_interval_s`. A server that says
by ETag or Last-Modified that nothing changed is believed; otherwise the hash of the text decides. One look makes a few
attempts with growing waits; a look that fails changes nothing about the tools, and after three the source counts as
unwell until one succeeds. Calls do not go through any of this: they use the operations as last read.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from enclave_broker.tools.tool import Tool, ToolFailure

from .document import MAX_DOCUMENT_BYTES, DocumentError, parse_document
from .health import backoff_s
from .http_caller import HttpCaller
from .http_tool import HttpTool
from .operations import find_operations
from .requests import HttpRequest
from .selection import RESERVED_HEADERS, Selection
from .watched import WatchedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enclave_broker.tools.registry import ToolRegistry

    from .credentials import Credentials
    from .operation import Operation
    from .policies import Policies

log = logging.getLogger("enclave.broker.tools")

FETCH_TIMEOUT_S = 10.0
ATTEMPTS = 3
"""Per look at the document."""
MAX_PROBLEMS_LOGGED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenApiSettings:
    """What an operator says about one document."""

    name: str
    document: str
    """Address or file."""
    credentials: Credentials
    policies: Policies
    base_url: str = ""
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    poll_interval_s: float = 60.0
    """Time between looks; 0: only at the start."""
    retry_first_s: float = 1.0
    """Wait after the first failed attempt; it doubles,"""
    retry_most_s: float = 10.0
    """up to this."""


class OpenApiSource(WatchedSource):
    """The operations of one document. Owns the connections of their calls."""

    def __init__(self, settings: OpenApiSettings) -> None:
        super().__init__(settings.name, spec_url=_shown(settings.document))
        self._settings = settings
        self._caller = HttpCaller()
        self._hash = ""
        self._known: dict[str, str] = {}
        """Headers that ask whether the document is still the one last read."""
        self._fetched: bytes | None = None

    async def changed(self) -> bool:
        """Look at the document; raises OSError or ValueError if it can't be read, after some attempts."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._fetched = await self._fetch()
                break
            except (OSError, ToolFailure) as error:
                if attempt == ATTEMPTS:
                    raise OSError(str(error)) from error
            await asyncio.sleep(
                backoff_s(attempt, first_s=self._settings.retry_first_s, most_s=self._settings.retry_most_s)
            )
        return self._fetched is not None

    async def load(self) -> list[Tool]:
        """Return the tools of the document as it was when `changed` last looked, which this does if need be."""
        if self._fetched is None:
            await self.changed()
        data, self._fetched = self._fetched, None
        if data is None:
            raise OSError("the server says that the document has not changed, but it was never read")
        # Reading YAML and checking thousands of schemas takes seconds; sessions go on meanwhile.
        tools = await asyncio.to_thread(self._tools_of, data)
        self._hash = hashlib.sha256(data).hexdigest()
        return tools

    async def run(self, registry: ToolRegistry) -> None:
        """Look at the document at once and every `poll_interval_s`, and keep the registry up to date."""
        interval_s = self._settings.poll_interval_s
        while True:
            await self.refresh(registry)
            self.looked.set()
            if not interval_s and not self.health.failures:
                await asyncio.Event().wait()  # for its cancellation
            await asyncio.sleep(interval_s or self._settings.retry_most_s)

    async def close(self) -> None:
        """Close its connections."""
        await self._caller.close()

    async def refresh(self, registry: ToolRegistry) -> None:
        """Look at the document once and take its tools over if it changed. What goes wrong is logged and counted."""
        try:
            if await self.changed():
                change = registry.replace_source(self.name, await self.load(), spec_url=self.spec_url)
                log.info("tools of %s: %d added, %d removed", self.name, len(change.added), len(change.removed))
        except (OSError, ValueError) as error:
            self._known = {}  # what was fetched was not taken: ask for it in full again
            self.failed(str(error))
        else:
            self.succeeded()

    async def _fetch(self) -> bytes | None:
        """Return the document's text, or None if it is the one last read."""
        document = self._settings.document
        if not _is_url(document):
            data = await asyncio.to_thread(_read_file, Path(document))
            return data if self._is_new(data) else None
        headers = (("Accept", "application/json, application/yaml, */*"), *self._known.items())
        request = HttpRequest(method="GET", url=document, headers=headers)
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                answer = await self._caller.call(request, max_bytes=MAX_DOCUMENT_BYTES, idempotent=True)
        except TimeoutError as error:
            raise TimeoutError(f"the document was not there within {FETCH_TIMEOUT_S:g} s") from error
        if answer.status == 304:
            return None
        if answer.status != 200:
            raise OSError(f"the document's server answered {answer.status} {answer.reason}".rstrip())
        validators = {"If-None-Match": "etag", "If-Modified-Since": "last-modified"}
        self._known = {ask: answer.headers[said] for ask, said in validators.items() if said in answer.headers}
        return answer.body if self._is_new(answer.body) else None

    def _is_new(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() != self._hash

    def _tools_of(self, data: bytes) -> list[Tool]:
        settings, credentials = self._settings, self._settings.credentials
        chosen = Selection(
            source=self.name,
            include=settings.include,
            exclude=settings.exclude,
            base_url=settings.base_url,
            document_url=settings.document if _is_url(settings.document) else "",
            reserved_headers=RESERVED_HEADERS | credentials.header_names,
            reserved_query=frozenset(credentials.query),
        )
        operations, problems = find_operations(parse_document(data), chosen)
        left_out = [f"{problem.what}: {problem.reason}" for problem in problems]
        tools: list[Tool] = []
        for operation in operations:
            try:
                tools.append(self._tool(operation))
            except ValueError as error:
                left_out.append(f"{operation.method} {operation.path}: {error}")
        if left_out and not tools:
            raise DocumentError(f"none of its operations can be offered: {left_out[0]}")
        for line in left_out[:MAX_PROBLEMS_LOGGED]:
            log.warning("tools of %s: left out %s", self.name, line)
        if len(left_out) > MAX_PROBLEMS_LOGGED:
            log.warning("tools of %s: left out %d more", self.name, len(left_out) - MAX_PROBLEMS_LOGGED)
        return tools

    def _tool(self, operation: Operation) -> Tool:
        credentials = self._settings.credentials
        policy = self._settings.policies.of(operation, credentials.secrets)
        return HttpTool(operation, self._caller, credentials, service=self.name, policy=policy)


def _is_url(document: str) -> bool:
    return urlsplit(document).scheme in {"http", "https"}


def _shown(document: str) -> str:
    """Return what everybody may know of where a document is: no path of ours, and no query, which may be a key."""
    return document.partition("#")[0].partition("?")[0] if _is_url(document) else ""


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise OSError(f"{path}: larger than {MAX_DOCUMENT_BYTES} bytes")
    return data
