"""What a function takes as a tool. How calls are checked is also tested with the tools of broker and client."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from typing import Annotated, Any

import msgspec
import pytest

from enclave_protocol.function_arguments import FunctionArguments


@dataclasses.dataclass
class Place:
    city: str


class Context:
    pass


def book(where: Place, when: dt.datetime, seats: Annotated[int, msgspec.Meta(ge=1)] = 1) -> None: ...


def call(function: Any, args: object, *first: object) -> Any:
    arguments = FunctionArguments(function)
    positional, named = arguments.bound(arguments.accept(args), *first)
    return function(*positional, **named)


def test_values_are_what_the_annotations_say() -> None:
    taken = FunctionArguments(book).accept({"where": {"city": "Rome"}, "when": "2030-01-01T12:00:00Z"})
    assert taken == {"where": Place("Rome"), "when": dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"where": {"city": 5}}, "where.city: Expected `str`, got `int`"),
        ({"seats": 0}, "seats: Expected `int` >= 1"),
        ({"seat": 1}, "unknown field `seat`"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"it takes \(where: Place, when: dt\.datetime, seats:") as refused:
        FunctionArguments(book).accept({"where": {"city": "Rome"}, "when": "2030-01-01T12:00:00Z"} | change)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("function", "args", "result"),
    [
        (lambda value: value, [1], [1]),
        (lambda value: value, None, None),
        (lambda: "none", None, "none"),
        (lambda a, b=2: (a, b), 1, (1, 2)),
        (lambda a=1: a, None, 1),
        (lambda a, /, b: (a, b), {"a": 1, "b": 2}, (1, 2)),
        (lambda *rest: rest, 5, (5,)),
        (lambda *rest: rest, None, ()),
        (lambda a, b=2, *rest, **more: (a, b, rest, more), {"a": 1, "rest": [3], "x": 4}, (1, 2, (3,), {"x": 4})),
        (max, [3, 1, 2], 3),
        (functools.partial(pow, 2), 3, 8),
    ],
)
def test_any_json_value_may_be_the_arguments(function: Any, args: object, result: object) -> None:
    assert call(function, args) == result


@pytest.mark.parametrize("args", [{}, 5, None, {"a": 1}, {"a": 1, "b": 2, "c": 3}])
def test_too_few_and_too_many_are_refused(args: object) -> None:
    with pytest.raises(ValueError, match="it takes"):
        FunctionArguments(lambda a, b: None).accept(args)  # noqa: ARG005 - only its signature counts


def test_values_beside_the_named_ones_are_checked_and_named_too() -> None:
    def takes(**more: float) -> object:
        return more

    assert call(takes, {"x": 4}) == {"x": 4.0}
    with pytest.raises(ValueError, match=r"^x: Expected `float`"):
        call(takes, {"x": "no"})
    assert FunctionArguments(takes).schema["additionalProperties"] == {"type": "number"}


def test_the_schema_is_an_objects_with_all_that_it_refers_to() -> None:
    schema = FunctionArguments(book).schema
    assert (schema["type"], schema["required"]) == ("object", ["where", "when"])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["where"] == {"$ref": "#/$defs/Place"}
    assert schema["properties"]["seats"] == {"type": "integer", "minimum": 1, "default": 1}
    assert schema["$defs"]["Place"]["required"] == ["city"]


def test_a_context_is_filled_by_us_and_no_argument() -> None:
    def takes(context: Context, a: int) -> object:
        return context, a

    arguments = FunctionArguments(takes, context=Context)
    ours = Context()
    assert arguments.wants_context
    assert "context" not in arguments.schema["properties"]
    assert arguments.bound(arguments.accept(5), ours) == ([ours], {"a": 5})
    assert not FunctionArguments(book, context=Context).wants_context


def test_annotations_that_mean_no_json_are_an_error_unless_nobody_asks() -> None:
    def takes(a: Context) -> None: ...

    with pytest.raises(ValueError, match="no JSON"):
        FunctionArguments(takes)
    assert FunctionArguments(takes, typed=False).accept({"a": 1}) == {"a": 1}


def test_annotations_that_cannot_be_read_are_an_error() -> None:
    def takes(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point

    with pytest.raises(ValueError, match="Nowhere"):
        FunctionArguments(takes)


def test_arguments_nested_too_deeply_are_refused() -> None:
    def takes(a: list[list[int]]) -> None: ...

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="it takes"):
        FunctionArguments(takes).accept({"a": deep})
