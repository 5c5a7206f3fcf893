"""Python functions that guest code may call: their registry, and how one call is run.

A tool is a plain function (run in one of a bounded number of threads) or an async one (awaited on the loop). A first
parameter annotated `ToolContext` is given the ids of the session and the call; how the guest's arguments fit the others
is said in `enclave_protocol.tool_calls`.

What a tool does wrong is a value here: an error the guest can catch. Nothing a tool raises reaches the broker.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
import typing
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from enclave_protocol import Code, tool_calls
from enclave_protocol.limits import MAX_VALUE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_protocol import ToolResult

TOOL_MARK = "__enclave_tool__"
MAX_QUEUED_CALLS = 1000
"""Calls that may wait for a thread."""

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Who is calling."""

    session_id: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A registered function."""

    name: str
    description: str
    function: Callable[..., Any]
    is_async: bool
    wants_context: bool
    signature: inspect.Signature

    def bind(self, args: object, context: ToolContext) -> inspect.BoundArguments:
        """Fit the guest's arguments to the function; raises TypeError."""
        first = (context,) if self.wants_context else ()
        return tool_calls.bind(self.signature, args, *first)

    def expects(self) -> str:
        """Return the parameters in words, as in `(query: str, limit: int = 10)`."""
        parameters = list(self.signature.parameters.values())[1 if self.wants_context else 0 :]
        return str(self.signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@overload
def tool(name: F, /) -> F: ...
@overload
def tool(name: str | None = None, *, description: str = "") -> Callable[[F], F]: ...
def tool(name: F | str | None = None, *, description: str = "") -> F | Callable[[F], F]:
    """Mark a function as a tool: `@tool`, `@tool("search")` or `@tool(description="...")`.

    Args:
        name: what guests call it; the function's own name if not given.
        description: what it does; the first line of its docstring if not given.
    """

    def mark(function: F) -> F:
        own = getattr(function, "__name__", "")
        setattr(function, TOOL_MARK, (name if isinstance(name, str) else own, description))
        return function

    return mark(name) if callable(name) else mark


class ToolRegistry:
    """The tools of one broker."""

    def __init__(self, tools: Iterable[Callable[..., Any]] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for function in tools:
            self.add(function)

    def register(self, name: str, function: Callable[..., Any], *, description: str = "") -> None:
        """Make `function` callable as `name`.

        Raises:
            ValueError: the name is empty, too long or taken.
        """
        if not name or len(name) > 128 or name in self._tools:
            raise ValueError(f"tool name {name!r}: needs 1 to 128 characters, and a name not taken by another tool")
        signature = tool_calls.signature_of(function)
        summary = description or (inspect.getdoc(function) or "").partition("\n")[0]
        is_async = inspect.iscoroutinefunction(function)
        self._tools[name] = Tool(name, summary, function, is_async, _wants_context(function, signature), signature)

    def add(self, function: Callable[..., Any]) -> None:
        """Register a function under the name that `@tool` gave it, or else its own."""
        name, description = getattr(function, TOOL_MARK, (getattr(function, "__name__", ""), ""))
        self.register(name, function, description=description)

    def load(self, module: str) -> int:
        """Register every `@tool` function defined or imported in a module; returns how many.

        Raises:
            ValueError: the module can't be imported, or has no tools.
        """
        try:
            found = importlib.import_module(module)
        except Exception as error:
            raise ValueError(f"tools module {module!r}: {type(error).__name__}: {error}") from error
        functions = {
            id(value): value for value in vars(found).values() if callable(value) and hasattr(value, TOOL_MARK)
        }
        if not functions:
            raise ValueError(f"tools module {module!r}: has no function marked with @enclave_broker.tool")
        for function in functions.values():
            self.add(function)
        return len(functions)

    def get(self, name: str) -> Tool | None:
        """Return a tool."""
        return self._tools.get(name)

    def names(self) -> list[str]:
        """Return what is registered."""
        return sorted(self._tools)

    def __len__(self) -> int:
        return len(self._tools)


class ToolRunner:
    """Runs calls. Owns the threads for plain functions.

    Args:
        registry: the tools.
        threads: most plain functions that run at once.
    """

    def __init__(self, registry: ToolRegistry, *, threads: int) -> None:
        self.registry = registry
        self._threads = _Threads(threads)

    async def run(self, name: str, args: object, context: ToolContext, *, max_bytes: int) -> ToolResult:
        """Run one call to its end and return what to tell the guest. Raises only CancelledError."""
        found = self.registry.get(name)
        if found is None:
            known = ", ".join(self.registry.names()) or "none"
            return failed(context, Code.UNKNOWN_TOOL, f"no tool {name!r} (tools: {known})")
        try:
            bound = found.bind(args, context)
        except TypeError as error:
            return failed(context, Code.VALIDATION_ERROR, f"{name}: {error}; it takes {found.expects()}")
        try:
            if found.is_async:
                value = await found.function(*bound.args, **bound.kwargs)
            else:
                value = await self._threads.run(lambda: found.function(*bound.args, **bound.kwargs))
                if inspect.isawaitable(value):  # an async function in disguise, such as an object's __call__
                    value = await value
        except ThreadsBusy as busy:
            return failed(context, Code.NO_CAPACITY, str(busy))
        except asyncio.CancelledError:
            # Either the session ended, and this task was cancelled; or the tool let a cancellation of its own escape.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return failed(context, Code.EXECUTION_ERROR, "CancelledError")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool may raise anything, and the guest is told
            return tool_calls.raised(context.session_id, context.call_id, error)
        most = min(max_bytes, MAX_VALUE_BYTES)  # configured limits, unlike requested ones, may be larger than a frame
        return tool_calls.succeeded(context.session_id, context.call_id, name, value, max_bytes=most)

    def close(self) -> None:
        """Let the threads go. One that is stuck in a tool is left behind; it keeps no program from ending."""
        self._threads.close()


def failed(context: ToolContext, code: str, message: str) -> ToolResult:
    """Return the failure of a call."""
    return tool_calls.failed(context.session_id, context.call_id, code, message)


def _wants_context(function: Callable[..., Any], signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters.values()), None)
    if first is None:
        return False
    try:
        return typing.get_type_hints(function).get(first.name) is ToolContext
    except (NameError, TypeError):  # an annotation that does not resolve is somebody else's type
        return first.annotation in {ToolContext, "ToolContext"}


class ThreadsBusy(Exception):  # noqa: N818 - the load, not a fault
    """Too many calls wait for a thread."""


class _Threads:
    """At most `limit` daemon threads, made when needed.

    Not concurrent.futures: its threads are joined when the interpreter ends, so one tool that never returns would keep
    the whole program from ending.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._idle = 0
        self._count = 0
        self._closed = False

    async def run(self, function: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._lock:
            if len(self._jobs) >= MAX_QUEUED_CALLS:
                raise ThreadsBusy(f"{MAX_QUEUED_CALLS} tool calls wait for a thread already")
            self._jobs.append((function, future))
            if self._idle >= len(self._jobs):
                self._lock.notify()
            elif self._count < self._limit:
                self._count += 1
                threading.Thread(target=self._work, name="enclave-tool", daemon=True).start()
        return await future

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._jobs.clear()
            self._lock.notify_all()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._jobs and not self._closed:
                    self._lock.wait()
                self._idle -= 1
                if self._closed:
                    self._count -= 1
                    return
                function, future = self._jobs.popleft()
            if not future.cancelled():
                _run_into(function, future)


def _run_into(function: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    value, error = tool_calls.attempt(function)

    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    try:
        future.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more
