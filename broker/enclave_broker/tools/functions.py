"""Python functions as tools: the `@tool` mark, and arguments fitted to the function's annotations.

A function's parameters are its arguments' names. Their annotations are read once, into a msgspec type that checks and
converts what a guest sends (a string for a `datetime`, an object for a dataclass) and gives the catalogue its schema.
`typing.Annotated[int, msgspec.Meta(ge=1, description="...")]` adds bounds and words. A parameter without annotation
takes any JSON value; `*args` is an array, and `**kwargs` whatever else the object has.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import typing
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec
from msgspec import UNSET, UnsetType

from enclave_protocol import tool_calls

from .tool import ArgumentsRefused, Tool, ToolContext, ToolPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MARK = "__enclave_tool__"
_Kind = inspect.Parameter

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
        parameters = list(tool_calls.signature_of(function).parameters.values())
        try:
            hints = _hints(function, parameters)
            self._wants_context = bool(parameters) and hints.get(parameters[0].name) is ToolContext
            self._parameters = parameters[self._wants_context :]
            self._arguments = None if input_schema else _Arguments(self._parameters, hints)
        except ValueError as error:
            raise ValueError(f"tool {name!r}: {error}") from error
        self._rest = next((p.name for p in self._parameters if p.kind is _Kind.VAR_POSITIONAL), None)
        # What comes before `*rest` can only be passed by its place.
        by_place = (
            {_Kind.POSITIONAL_ONLY} if self._rest is None else {_Kind.POSITIONAL_ONLY, _Kind.POSITIONAL_OR_KEYWORD}
        )
        self._by_place = [p for p in self._parameters if p.kind in by_place]
        super().__init__(
            name=name,
            description=description or (inspect.getdoc(function) or "").partition("\n")[0],
            input_schema=input_schema or (None if self._arguments is None else self._arguments.schema),
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
        if self._arguments is None:
            return super().accept(args)
        try:
            return self._arguments.convert(self._as_object(args))
        except (ValueError, RecursionError) as error:  # msgspec's ValidationError is one
            raise ArgumentsRefused(f"{self.name}: {_plain(error)}; it takes {self.expects()}") from error

    async def invoke(self, args: dict[str, Any], context: ToolContext) -> object:
        """Call the function."""
        call = self._bound(args, context)
        value = await (call() if self._is_async else context.run_blocking(call))
        # An async function in disguise, such as an object's __call__, only now becomes something to wait for.
        return await value if inspect.isawaitable(value) else value

    def expects(self) -> str:
        """Return the parameters in words, as in `(query: str, limit: int = 10)`."""
        shown = [
            p.replace(annotation=_Written(p.annotation)) if isinstance(p.annotation, str) else p
            for p in self._parameters
        ]
        return str(inspect.Signature(shown))

    def _as_object(self, args: object) -> dict[str, Any]:
        """Let a value that is no object stand for the first parameter, as it does in a call."""
        named = [p for p in self._parameters if p.kind not in {_Kind.VAR_KEYWORD, _Kind.KEYWORD_ONLY}]
        if isinstance(args, dict) or not named:
            return self._schema.as_object(args)
        if args is None and all(p.default is not _Kind.empty or p.kind is _Kind.VAR_POSITIONAL for p in named):
            return {}
        return {named[0].name: [args] if named[0].kind is _Kind.VAR_POSITIONAL else args}

    def _bound(self, args: dict[str, Any], context: ToolContext) -> Callable[[], Any]:
        named = dict(args)
        first: list[Any] = [context] if self._wants_context else []
        first += [named.pop(p.name, p.default) for p in self._by_place]
        if self._rest is not None:
            first += named.pop(self._rest, [])
        return functools.partial(self.function, *first, **named)


class _Written(str):
    """An annotation as it was written, shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _Arguments:
    """A function's parameters as one msgspec type, made once.

    Raises:
        ValueError: an annotation is no JSON value's.
    """

    def __init__(self, parameters: list[inspect.Parameter], hints: dict[str, Any]) -> None:
        named = [p for p in parameters if p.kind is not _Kind.VAR_KEYWORD]
        others = [p for p in parameters if p.kind is _Kind.VAR_KEYWORD]
        self._names = [p.name for p in named]
        self._defaults = {p.name: p.default for p in named if p.default is not _Kind.empty}
        fields = [_field(p, hints.get(p.name, Any)) for p in named]
        self._others = dict[str, hints.get(others[0].name, Any)] if others else None  # type: ignore[misc]
        try:
            self._type = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
            self.schema = self._make_schema()
        except (TypeError, ValueError) as error:
            raise ValueError(f"its annotations are no JSON values': {error}") from error

    def convert(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as the function takes them; raises ValueError, which msgspec's own error is."""
        others: dict[str, Any] = {}
        if self._others is not None:
            others = {k: self._convert_other(k, v) for k, v in given.items() if k not in self._names}
            given = {k: v for k, v in given.items() if k in self._names}
        found = msgspec.convert(given, self._type)
        values = {name: value for name in self._names if (value := getattr(found, name)) is not UNSET}
        return values | others

    def _convert_other(self, name: str, value: Any) -> Any:
        try:
            return msgspec.convert({name: value}, self._others)[name]
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {str(error).partition(' - at ')[0]}") from error

    def _make_schema(self) -> dict[str, Any]:
        (top,), parts = msgspec.json.schema_components([self._type], ref_template="#/$defs/{name}")
        schema = parts.pop(top["$ref"].rpartition("/")[2])
        del schema["title"]
        for name, default in self._defaults.items():
            with contextlib.suppress(TypeError, ValueError):  # a default that is no JSON value is the function's own
                schema["properties"][name]["default"] = msgspec.to_builtins(default)
        if self._others is not None:
            (others,), more = msgspec.json.schema_components([self._others], ref_template="#/$defs/{name}")
            schema["additionalProperties"] = others.get("additionalProperties", True)
            parts |= more
        result: dict[str, Any] = schema | ({"$defs": parts} if parts else {})
        return result


def _field(parameter: inspect.Parameter, hint: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    if parameter.kind is _Kind.VAR_POSITIONAL:
        return parameter.name, list[hint] | UnsetType, UNSET
    if parameter.default is _Kind.empty:
        return parameter.name, hint
    if parameter.default is None:
        hint = typing.Optional[hint]  # noqa: UP045 - `|` does not take every kind of hint
    return parameter.name, typing.Union[hint, UnsetType], UNSET  # noqa: UP007 - the same


def _hints(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """Return the parameters' annotations, the written ones evaluated; raises ValueError."""
    inner = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    if not hasattr(inner, "__globals__"):
        inner = getattr(inner, "__func__", None) or getattr(type(inner), "__call__", inner)  # noqa: B004
    written = {p.name: p.annotation for p in parameters if p.annotation is not _Kind.empty}
    holder = types.SimpleNamespace(__annotations__=written)
    try:
        return typing.get_type_hints(holder, getattr(inner, "__globals__", {}), include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise ValueError(f"an annotation can't be read: {error} (it has to be importable at run time)") from error


def _plain(error: Exception) -> str:
    """Return msgspec's words with the argument's name first: `$.limit` is our `limit`."""
    if isinstance(error, RecursionError):
        return "the arguments are nested too deeply"
    text, _, path = str(error).partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    return f"{path}: {text}" if path else text
