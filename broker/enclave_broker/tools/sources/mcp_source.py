"""Tools of an MCP server.

Theory of operation. `run` is the one task that connects, and everything of a connection lives in it: it starts the
process or dials, lists the tools, and then waits for word that the list changed, for the end of the connection, or for
the time to look again. When the connection is over it waits a little, longer each time, and begins anew. Calls come
from other tasks and use the connection as it is; without one they fail at once, with a code that says so. The tools of
a server that is gone stay in the catalogue: it comes back, and code that was written for them should not have to
change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio
from mcp import Client, MCPError, types
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from pydantic import ValidationError

from enclave_broker.tools.tool import Tool, ToolFailure
from enclave_protocol import __version__

from .health import backoff_s
from .mcp_results import read_result
from .mcp_transports import StderrTail, http_transport, process_transport, watched
from .naming import safe_name
from .selection import is_chosen
from .watched import WatchedSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from enclave_broker.tools.registry import ToolRegistry
    from enclave_broker.tools.secrets import Secrets
    from enclave_broker.tools.tool import ToolContext, ToolPolicy

    from .mcp_transports import Streams
    from .policies import Policies
    from .templates import Template

log = logging.getLogger("enclave.broker.tools")

MAX_TOOLS = 2000
MAX_PAGES = 100
MAX_STDERR_CHARS = 500
"""Of a process's last words, what goes into the log."""
CONNECTION_CLOSED = types.CONNECTION_CLOSED
_LOST = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class McpSettings:
    """What an operator says about one server."""

    name: str
    policies: Policies
    command: str = ""
    """What to start; or else,"""
    url: str = ""
    """where to dial."""
    args: Sequence[str] = ()
    env: Mapping[str, Template]
    headers: Mapping[str, Template]
    cwd: str | None = None
    include: Sequence[str] = ()
    """Which tools: patterns of the server's own names; empty: all."""
    exclude: Sequence[str] = ()
    """The same; wins over `include`."""
    connect_timeout_s: float = 30.0
    """Longest wait until the server has introduced itself (some are downloaded at their first start), and for its list
    of tools later on."""
    poll_interval_s: float = 60.0
    """Time between looks at the list of tools, which also show whether the server is still there."""
    retry_first_s: float = 0.5
    """Wait before the first new connection; it doubles,"""
    retry_most_s: float = 30.0
    """up to this."""


class McpTool(Tool):
    """One tool of a server."""

    def __init__(self, source: McpSource, described: types.Tool, policy: ToolPolicy) -> None:
        super().__init__(
            name=safe_name(f"{source.name}_{described.name}"),
            description=described.description or described.title or "",
            input_schema=described.input_schema,
            service=source.name,
            policy=policy,
        )
        self._source = source
        self._own_name = described.name

    async def invoke(self, args: dict[str, Any], context: ToolContext) -> object:
        """Call it."""
        return await self._source.call(
            self._own_name, args, deadline=context.deadline, trace_headers=context.trace_headers
        )


class McpSource(WatchedSource):
    """A server's tools.

    Args:
        settings: what the operator says.
        secrets: the broker's.
    """

    def __init__(self, settings: McpSettings, secrets: Secrets) -> None:
        super().__init__(settings.name)
        self._settings = settings
        self._secrets = secrets
        self._client: Client | None = None
        self._ended = asyncio.Event()
        self._stirred = asyncio.Event()
        """Set when the list of tools may be another, or the connection is over."""

    @property
    def connected(self) -> bool:
        """Whether calls can be made."""
        return self._client is not None

    async def load(self) -> list[Tool]:
        """Return the server's tools; raises OSError if it is not connected."""
        if self._client is None:
            raise ConnectionError(f"MCP server {self.name} is not connected")
        return await self._list(self._client)

    async def run(self, registry: ToolRegistry) -> None:
        """Be connected, as far as the server lets us, and keep the registry up to date."""
        settings, attempt = self._settings, 0
        while True:
            began = time.monotonic()
            try:
                await self._be_connected(registry)
            except Exception as error:  # noqa: BLE001 - the library lets anything through, in groups
                self.failed(self._words(error))
            self.looked.set()
            if time.monotonic() - began > settings.retry_most_s:
                attempt = 0  # it was there for a while: not one that ends as soon as it begins
            attempt += 1
            await asyncio.sleep(backoff_s(attempt, first_s=settings.retry_first_s, most_s=settings.retry_most_s))

    async def call(
        self, name: str, args: dict[str, Any], *, deadline: float, trace_headers: Mapping[str, str] | None = None
    ) -> object:
        """Call a tool and return its value.

        Args:
            name: the server's own.
            args: that fit its schema.
            deadline: when to give up, on the clock of `time.monotonic`.
            trace_headers: where in a trace the call belongs: said in the request's `_meta`, as MCP has it.

        Raises:
            ToolFailure: `TOOL_UNAVAILABLE`, the server is not there; `MCP_TOOL_ERROR`, the tool failed; `MCP_ERROR`,
                the server refused the call or made no sense.
        """
        client = self._client
        if client is None:
            why = f": {self.health.error}" if self.health.error else ""
            raise ToolFailure("TOOL_UNAVAILABLE", f"MCP server {self.name} is not connected{why}", retryable=True)
        timeout_s = None if deadline == float("inf") else max(0.001, deadline - time.monotonic())
        try:
            meta = cast("types.RequestParamsMeta", dict(trace_headers)) if trace_headers else None
            return read_result(await client.call_tool(name, args, read_timeout_seconds=timeout_s, meta=meta))
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                raise self._lost_in_call(client) from error
            raise ToolFailure("MCP_ERROR", f"MCP server {self.name}: {error.message}") from error
        except _LOST as error:
            raise self._lost_in_call(client) from error
        except (ValidationError, RuntimeError) as error:
            raise ToolFailure("MCP_ERROR", f"MCP server {self.name}: its result is not as it should be") from error

    def _lost_in_call(self, client: Client) -> ToolFailure:
        if self._client is client:
            self._client = None  # the next call need not find it out too
        self._stirred.set()
        return ToolFailure("TOOL_UNAVAILABLE", f"MCP server {self.name} went away during the call", retryable=True)

    async def _be_connected(self, registry: ToolRegistry) -> None:
        """Connect, and stay so; raises whatever ends it."""
        settings = self._settings
        self._ended, self._stirred = asyncio.Event(), asyncio.Event()
        async with AsyncExitStack() as stack:
            stderr = stack.enter_context(StderrTail())
            try:
                async with asyncio.timeout(settings.connect_timeout_s):
                    transport = watched(self._transport(stderr), self._ended)
                    client = await stack.enter_async_context(self._make_client(transport))
                    await self._take(client, registry)
                self.looked.set()
                await self._watch(client, registry)
            except TimeoutError as error:
                raise TimeoutError(f"no answer within {settings.connect_timeout_s:g} s") from error
            except Exception as error:
                if stderr.text:
                    error.add_note(self._secrets.scrubber.clean(" ".join(stderr.text.split()))[-MAX_STDERR_CHARS:])
                raise
            finally:
                self._client = None

    def _make_client(self, transport: Any) -> Client:
        return Client(
            transport,
            message_handler=self._on_message,
            client_info=types.Implementation(name="enclave-broker", version=__version__),
            cache=None,
        )

    def _transport(self, stderr: StderrTail) -> contextlib.AbstractAsyncContextManager[Streams]:
        settings = self._settings
        if settings.url:
            return http_transport(settings.url, self._filled(settings.headers), timeout_s=settings.connect_timeout_s)
        return process_transport(settings.command, settings.args, self._filled(settings.env), settings.cwd, stderr)

    async def _watch(self, client: Client, registry: ToolRegistry) -> None:
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(client))
            ending = group.create_task(self._ended.wait())
            ending.add_done_callback(lambda _: self._stirred.set())
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.poll_interval_s):
                        await self._stirred.wait()
                if not self._ended.is_set():
                    self._stirred.clear()
                    async with asyncio.timeout(self._settings.connect_timeout_s):  # one that hangs is as good as gone
                        await self._take(client, registry)
            listening.cancel()
        raise ConnectionError("the server ended the connection")

    async def _listen(self, client: Client) -> None:
        """Be told of changes by a server of the protocol's newer kind; an older one notifies unasked."""
        try:
            while True:
                async with client.listen(tools_list_changed=True) as events:
                    async for _ in events:
                        self._stirred.set()
                await asyncio.sleep(self._settings.retry_first_s)
        except (ListenNotSupportedError, SubscriptionLost, MCPError) as error:
            log.debug("tools of %s: no word of changes: %s", self.name, error)

    async def _on_message(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._stirred.set()

    async def _take(self, client: Client, registry: ToolRegistry) -> None:
        change = registry.replace_source(self.name, await self._list(client))
        if change.added or change.removed or change.updated:
            log.info("tools of %s: %d added, %d removed", self.name, len(change.added), len(change.removed))
        self._client = client
        self.succeeded()

    async def _list(self, client: Client) -> list[Tool]:
        tools: list[Tool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            for described in page.tools[: MAX_TOOLS - len(tools)]:
                if not is_chosen([described.name], self._settings.include, self._settings.exclude):
                    continue
                try:
                    tools.append(
                        McpTool(self, described, self._settings.policies.named(f"{self.name}_{described.name}"))
                    )
                except ValueError as error:
                    log.warning("tools of %s: left out %s: %s", self.name, described.name, error)
            cursor = page.next_cursor
            if cursor is None:
                break
        return tools

    def _words(self, error: Exception) -> str:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            inner = error.exceptions[0]
            for note in getattr(error, "__notes__", ()):
                inner.add_note(note)
            error = inner  # type: ignore[assignment]  # a group made by `except Exception` holds nothing else
        notes = "; ".join(getattr(error, "__notes__", ()))
        return self._secrets.scrubber.clean(f"{type(error).__name__}: {error}") + (
            f" (it wrote: {notes})" if notes else ""
        )

    def _filled(self, templates: Mapping[str, Template]) -> dict[str, str]:
        names = frozenset[str]().union(*(template.secrets for template in templates.values()))
        found = self._secrets.pick(f"MCP server {self.name}", sorted(names))
        return {name: template.fill(found) for name, template in templates.items()}
