"""Python functions as tools: the `@tool` mark, and functions behind the interface that every tool has.

What a function takes, and how that is checked, is `enclave_protocol.function_arguments`.
"""

from __future__ import annotations

import functools
import inspect
import typing
from typing import TYPE_CHECKING, Any, TypeVar, overload

from enclave_protocol.function_arguments import FunctionArguments

from .tool import ArgumentsRefused, Tool, ToolContext, ToolPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MARK = "__enclave_tool__"

F = TypeVar("F", bound="Callable[..., Any]")


class _Marked(typing.NamedTuple):
    name: str
    description: str
    input_schema: dict[str, Any] | None
    policy: ToolPolicy


@overload
def tool(name: F, /) -> F: ...
@overload
def tool(
    name: str | None = None,
    *,
    description: str = "",
    input_schema: dict[str, Any] | None = None,
    timeout_ms: int | None = None,
    retryable: bool = False,
    max_retries: int = 3,
    max_concurrency: int | None = None,
    max_result_bytes: int | None = None,
    store_result: bool = False,
    secrets: Sequence[str] = (),
    needs_approval: bool = False,
) -> Callable[[F], F]: ...
def tool(
    name: F | str | None = None,
    *,
    description: str = "",
    input_schema: dict[str, Any] | None = None,
    secrets: Sequence[str] = (),
    **policy: Any,
) -> F | Callable[[F], F]:
    """Mark a function as a tool: `@tool`, `@tool("search")` or `@tool(timeout_ms=500, secrets=["SEARCH_KEY"])`.

    Args:
        name: what guests call it; the function's own name if not given.
        description: what it does; the first line of its docstring if not given.
        input_schema: JSON Schema of the arguments, which then are checked by it instead of the annotations, and are
            passed as they came.
        secrets: and the rest, are `ToolPolicy`'s.
        **policy: see `ToolPolicy`.

    Raises:
        ValueError: the policy makes no sense.
    """
    full = ToolPolicy(secrets=tuple(secrets), **policy)

    def mark(function: F) -> F:
        own = name if isinstance(name, str) else getattr(function, "__name__", "")
        setattr(function, _MARK, _Marked(own, description, input_schema, full))
        return function

    return mark(name) if callable(name) else mark


def is_tool(value: object) -> bool:
    """Return whether something was marked by `@tool`."""
    return callable(value) and hasattr(value, _MARK)


class FunctionTool(Tool):
    """A Python function. A plain one runs in a thread, an async one is awaited on the loop.

    A first parameter annotated `ToolContext` is given the call's context.

    Args:
        function: what to call.
        name: what guests call it.
        description: the first line of the docstring if empty.
        input_schema: in place of the annotations.
        policy: how its calls are run.

    Raises:
        ValueError: the name is not acceptable, or an annotation can't be read or is no JSON value's.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        description: str = "",
        input_schema: dict[str, Any] | None = None,
        policy: ToolPolicy | None = None,
    ) -> None:
        self.function = function
        self._is_async = inspect.iscoroutinefunction(function)
        try:
            self._arguments = FunctionArguments(function, context=ToolContext, typed=not input_schema)
        except ValueError as error:
            raise ValueError(f"tool {name!r}: {error}") from error
        self._as_they_came = bool(input_schema)
        super().__init__(
            name=name,
            description=description or (inspect.getdoc(function) or "").partition("\n")[0],
            input_schema=input_schema or self._arguments.schema,
            policy=policy,
        )

    @classmethod
    def of(cls, function: Callable[..., Any]) -> FunctionTool:
        """Make a tool of a function as it was marked, or under its own name."""
        own = _Marked(getattr(function, "__name__", ""), "", None, ToolPolicy())
        marked: _Marked = getattr(function, _MARK, own)
        return cls(function, **marked._asdict())

    def accept(self, args: object) -> dict[str, Any]:
        """Check and convert; raises ArgumentsRefused saying what the function takes."""
        if self._as_they_came:
            return super().accept(args)
        try:
            return self._arguments.accept(args)
        except ValueError as error:
            raise ArgumentsRefused(f"{self.name}: {error}") from error

    async def invoke(self, args: dict[str, Any], context: ToolContext) -> object:
        """Call the function."""
        first = (context,) if self._arguments.wants_context else ()
        positional, named = self._arguments.bound(args, *first)
        call = functools.partial(self.function, *positional, **named)
        value = await (call() if self._is_async else context.run_blocking(call))
        # An async function in disguise, such as an object's __call__, only now becomes something to wait for.
        return await value if inspect.isawaitable(value) else value

    def expects(self) -> str:
        """Return the parameters in words, as in `(query: str, limit: int = 10)`."""
        return self._arguments.expects()
