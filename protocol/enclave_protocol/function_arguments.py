"""What a Python function takes as a tool: a schema for callers, and checked values for the function.

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
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from .tool_calls import signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

_Kind = inspect.Parameter


class FunctionArguments:
    """A function's parameters as one msgspec type, made once.

    Args:
        function: whose they are.
        context: if the first parameter is annotated with this type, it is the caller's to fill, not the guest's.
        typed: whether the annotations mean JSON values. If not, any value fits any parameter.

    Attributes:
        schema: JSON Schema of an object.
        wants_context: whether there is such a first parameter.

    Raises:
        ValueError: an annotation can't be read, or is no JSON value's.
    """

    def __init__(self, function: Callable[..., Any], *, context: type | None = None, typed: bool = True) -> None:
        parameters = list(signature_of(function).parameters.values())
        hints = _hints(function, parameters)
        self.wants_context = context is not None and bool(parameters) and hints.get(parameters[0].name) is context
        self._parameters = parameters[self.wants_context :]
        named = [p for p in self._parameters if p.kind is not _Kind.VAR_KEYWORD]
        others = [p for p in self._parameters if p.kind is _Kind.VAR_KEYWORD]
        self._names = [p.name for p in named]
        self._rest = next((p.name for p in named if p.kind is _Kind.VAR_POSITIONAL), None)
        self._defaults = {p.name: p.default for p in named if p.default is not _Kind.empty}
        types_ = hints if typed else {}
        fields = [_field(p, types_.get(p.name, Any)) for p in named]
        self._takes_others = bool(others)
        self._others = types_.get(others[0].name, Any) if others else Any
        try:
            self._type = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
            self.schema = self._make_schema()
        except (TypeError, ValueError) as error:
            raise ValueError(f"its annotations are no JSON values': {error}") from error

    def expects(self) -> str:
        """Return the parameters in words, as in `(query: str, limit: int = 10)`."""
        shown = [
            p.replace(annotation=_Bare(p.annotation)) if isinstance(p.annotation, str) else p for p in self._parameters
        ]
        return str(inspect.Signature(shown))

    def accept(self, args: object) -> dict[str, Any]:
        """Check and convert a guest's arguments.

        An object has a value for each name. Any other value stands for the first argument, as it does in a call; `null`
        for a function that needs none is none.

        Raises:
            ValueError: names the first argument that does not fit, and says what the function takes.
        """
        try:
            return self._convert(self._as_object(args))
        except (ValueError, RecursionError) as error:  # msgspec's ValidationError is one
            raise ValueError(f"{_plain(error)}; it takes {self.expects()}") from error

    def bound(self, args: dict[str, Any], *first: object) -> tuple[list[Any], dict[str, Any]]:
        """Return accepted arguments as those of the call, behind our own `first` ones: `function(*a, **b)`."""
        named = dict(args)
        rest = named.pop(self._rest, []) if self._rest is not None else []
        # What stands before `*rest` has to be passed by its place then, its default too.
        kinds = (_Kind.POSITIONAL_ONLY, _Kind.POSITIONAL_OR_KEYWORD) if rest else (_Kind.POSITIONAL_ONLY,)
        placed = [p for p in self._parameters if p.kind in kinds and (rest or p.name in named)]
        return [*first, *(named.pop(p.name, p.default) for p in placed), *rest], named

    def _as_object(self, args: object) -> dict[str, Any]:
        if isinstance(args, dict):
            return args
        places = [p for p in self._parameters if p.kind not in {_Kind.VAR_KEYWORD, _Kind.KEYWORD_ONLY}]
        if args is None and all(p.default is not _Kind.empty or p.kind is _Kind.VAR_POSITIONAL for p in places):
            return {}
        if places:
            return {places[0].name: [args] if places[0].kind is _Kind.VAR_POSITIONAL else args}
        if len(self._names) != 1:
            raise ValueError("arguments are an object with a name for each")
        return {self._names[0]: args}

    def _convert(self, given: dict[str, Any]) -> dict[str, Any]:
        others: dict[str, Any] = {}
        if self._takes_others:
            others = {
                name: self._convert_other(name, value) for name, value in given.items() if name not in self._names
            }
            given = {name: value for name, value in given.items() if name in self._names}
        found = msgspec.convert(given, self._type)
        values = {name: value for name in self._names if (value := getattr(found, name)) is not UNSET}
        return values | others

    def _convert_other(self, name: str, value: object) -> Any:
        try:
            return msgspec.convert(value, self._others)
        except msgspec.ValidationError as error:
            raise ValueError(_plain(error, name)) from error

    def _make_schema(self) -> dict[str, Any]:
        (top,), parts = msgspec.json.schema_components([self._type], ref_template="#/$defs/{name}")
        schema = parts.pop(top["$ref"].rpartition("/")[2])
        del schema["title"]
        for name, default in self._defaults.items():
            with contextlib.suppress(TypeError, ValueError):  # a default that is no JSON value is the function's own
                schema["properties"][name]["default"] = msgspec.to_builtins(default)
        if self._takes_others:
            (others,), more = msgspec.json.schema_components([self._others], ref_template="#/$defs/{name}")
            schema["additionalProperties"] = others or True
            parts |= more
        result: dict[str, Any] = schema | ({"$defs": parts} if parts else {})
        return result


class _Bare(str):
    """An annotation as it was written, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


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


def _plain(error: Exception, where: str = "") -> str:
    """Return msgspec's words with the argument's name first: `$.limit` is our `limit`, and `$` is `where`."""
    if isinstance(error, RecursionError):
        return "the arguments are nested too deeply"
    text, _, path = str(error).partition(" - at `")
    path = (where + path.rstrip("`").removeprefix("$")).removeprefix(".")
    return f"{path}: {text}" if path else text
