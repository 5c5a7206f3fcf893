"""Functions of the caller's program as tools of a session, run in this process.

An async function is awaited on the client's loop, a plain one runs in one of a bounded number of daemon threads. What
the guest passes is checked and converted as the broker does it for its own tools (`enclave_protocol`); what a function
raises reaches the guest as an error with the exception's `code`, if it has one. Nothing that a tool does ends a
session.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from enclave_protocol import Code, RemoteProtocolError, parse_declared_tools, tool_calls
from enclave_protocol.declared_tools import MAX_DESCRIPTION_CHARS
from enclave_protocol.function_arguments import FunctionArguments
from enclave_protocol.limits import MAX_VALUE_BYTES

if TYPE_CHECKING:
    from contextvars import Context

    from enclave_protocol import ToolResult
    from enclave_protocol.events import ToolCallPayload

log = logging.getLogger("enclave.client")

Function = Callable[..., Any]


class ToolError(Exception):
    """What a tool raises to fail with a code of its own: the code finds it as `error.code`.

    Args:
        message: for people and models.
        code: for programs, such as `NOT_FOUND`.
    """

    def __init__(self, message: str, code: str = "TOOL_ERROR") -> None:
        self.code = code
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with what is to be said about it, where its name and its docstring do not say it."""

    function: Function
    _: KW_ONLY
    name: str = ""
    """What the code calls it; the function's own name if empty."""
    description: str = ""
    """What it does; its docstring's first paragraph if empty."""
    timeout_s: float | None = None
    """Longest wait for an answer. The session's `tool_timeout_s` holds too."""


Tools = Sequence[Function | Tool] | Mapping[str, Function | Tool]


@dataclass(frozen=True, slots=True)
class LocalTool:
    """A tool that is ready to be declared and called."""

    function: Function
    is_async: bool
    arguments: FunctionArguments
    declaration: dict[str, Any]


def make_tools(tools: Tools | None) -> dict[str, LocalTool]:
    """Return the tools by name.

    Raises:
        RemoteProtocolError: something is not callable, two have one name, an annotation is no JSON value's, or a
            declaration is not acceptable; names the field.
    """
    made: dict[str, LocalTool] = {}
    if tools is not None and (callable(tools) or not isinstance(tools, Iterable)):
        allowed = "a list of functions, or a mapping of names to functions"
        raise RemoteProtocolError(f"a {type(tools).__name__}", field="tools", allowed=allowed)
    pairs = tools.items() if isinstance(tools, Mapping) else (("", tool) for tool in tools or ())
    for i, (given, tool) in enumerate(pairs):
        name, local = _make(given, tool if isinstance(tool, Tool) else Tool(function=tool), f"tools[{i}]")
        if name in made:
            raise RemoteProtocolError(
                f"two tools are called {name!r}", field=f"tools[{i}]", allowed="a name of its own"
            )
        made[name] = local
    parse_declared_tools([tool.declaration for tool in made.values()])
    return made


def _make(given: str, tool: Tool, field: str) -> tuple[str, LocalTool]:
    function = tool.function
    if not callable(function):
        raise RemoteProtocolError(f"a {type(function).__name__}", field=field, allowed="a function")
    name = given or tool.name or getattr(function, "__name__", "")
    try:
        arguments = FunctionArguments(function)
    except ValueError as error:
        allowed = "annotations of JSON values, dataclasses and the like"
        raise RemoteProtocolError(f"{name}: {error}", field=field, allowed=allowed) from error
    declaration: dict[str, Any] = {"name": name, "inputSchema": arguments.schema}
    description = tool.description or (inspect.getdoc(function) or "").partition("\n\n")[0]
    if description:
        declaration["description"] = description[:MAX_DESCRIPTION_CHARS]
    if tool.timeout_s is not None:
        declaration["timeoutMs"] = round(tool.timeout_s * 1000)
    return name, LocalTool(function, inspect.iscoroutinefunction(function), arguments, declaration)


class ToolRunner:
    """Runs calls.

    Args:
        threads: plain functions that run at once; the next ones wait.
    """

    def __init__(self, threads: int) -> None:
        self._free = asyncio.Semaphore(threads)

    async def run(
        self, tool: LocalTool, session_id: str, call: ToolCallPayload, context: Context, *, max_bytes: int
    ) -> ToolResult:
        """Run one call to its end and return what to tell the guest. Raises only CancelledError.

        Args:
            tool: what was called.
            session_id: whose call it is.
            call: its id and arguments.
            context: the context variables that it sees.
            max_bytes: largest value, as JSON text.
        """
        name, call_id = call.tool_name, call.call_id
        try:
            args, kwargs = tool.arguments.bound(tool.arguments.accept(call.args))
        except ValueError as error:
            return tool_calls.failed(session_id, call_id, Code.VALIDATION_ERROR, f"{name}: {error}")
        try:
            value = await self._call(tool, functools.partial(tool.function, *args, **kwargs), context)
        except asyncio.CancelledError:
            # Either the call is over, and this task was cancelled; or the tool let a cancellation of its own escape.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return tool_calls.failed(session_id, call_id, Code.EXECUTION_ERROR, "CancelledError")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool may raise anything, and the guest is told
            return _raised(session_id, call_id, error)
        return tool_calls.succeeded(session_id, call_id, name, value, max_bytes=min(max_bytes, MAX_VALUE_BYTES))

    async def _call(self, tool: LocalTool, function: Callable[[], Any], context: Context) -> Any:
        if tool.is_async:
            return await function()
        value = await self._in_thread(functools.partial(context.run, function))
        return await value if inspect.isawaitable(value) else value  # an object's async __call__, a lambda

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Run a plain function in a daemon thread of its own.

        Not the loop's executor: that is joined when the program ends, so one tool that never returns would keep it from
        ending. Cancelled, this leaves the thread behind, and its place is free when the function returns.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:
            self._free.release()
            if future.cancelled():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        def work() -> None:
            value, error = tool_calls.attempt(function)
            try:
                loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:
                log.debug("a tool returned after the client's loop was closed")

        try:
            threading.Thread(target=work, name="enclave-tool", daemon=True).start()
        except RuntimeError:  # the process may have no more of them
            self._free.release()
            raise
        return await future


def _raised(session_id: str, call_id: str, error: BaseException) -> ToolResult:
    if isinstance(error, ToolError):  # its message is all of it: the guest has an error type of its own
        return tool_calls.failed(session_id, call_id, error.code, str(error))
    return tool_calls.raised(session_id, call_id, error)
