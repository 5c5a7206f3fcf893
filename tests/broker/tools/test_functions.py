"""Python functions as tools: how arguments fit, and what the catalogue says of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt  # noqa: TC003 - an annotation that is read
import functools
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker import ToolContext, tool
from enclave_broker.tools import ArgumentsRefused, FunctionTool
from tests.broker.tools.calling import call
from tests.protocol.strategies import json_values


def add(a: int, b: int = 1) -> int:
    return a + b


async def add_async(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


@pytest.mark.parametrize("function", [add, add_async])
async def test_an_object_of_arguments_becomes_keyword_arguments(function: Any) -> None:
    assert await call(function, {"a": 1, "b": 2}) == 3
    assert await call(function, {"a": 1}) == 2


async def test_any_other_value_is_the_one_argument() -> None:
    assert await call(lambda value: value, [1, 2]) == [1, 2]
    assert await call(lambda: "nothing given") == "nothing given"
    assert await call(lambda value: value, None) is None


@pytest.mark.parametrize("function", [add, add_async])
@pytest.mark.parametrize("args", [{}, {"a": 1, "c": 2}, None])
async def test_wrong_arguments_are_told_what_is_expected(function: Any, args: Any) -> None:
    if args is None:
        function = lambda: 1  # noqa: E731 - a function without parameters
        args = [5]
    code, message = await call(function, args)
    assert code == "VALIDATION_ERROR"
    assert "it takes (" in message


async def test_builtins_and_objects_may_be_tools() -> None:
    class Double:
        async def __call__(self, n: int) -> int:
            return 2 * n

    assert await call(max, [3, 1, 2]) == 3
    assert await call(Double(), {"n": 4}) == 8
    assert await call(functools.partial(add, b=5), {"a": 1}) == 6


async def test_a_tool_may_ask_who_calls() -> None:
    def who(context: ToolContext, extra: int) -> list[Any]:
        return [context.session_id, context.call_id, extra]

    assert await call(who, {"extra": 1}) == ["s_1", "c_1", 1]
    assert "(extra: " in (await call(who, {}))[1]


def test_the_mark_leaves_the_function_as_it_is() -> None:
    assert tool(add) is add


@dataclasses.dataclass
class Place:
    city: str
    zip: int | None = None


def book(
    where: Place,
    when: dt.datetime,
    seats: Annotated[int, msgspec.Meta(ge=1, le=9, description="how many")] = 1,
    kind: Literal["inside", "outside"] = "inside",
    note: str = None,  # type: ignore[assignment]  # noqa: RUF013 - as people write it
) -> str:
    """Book a table.

    Not part of the summary.
    """
    return f"{type(where).__name__} {where.city} {when:%Y} {seats} {kind} {note}"


async def test_arguments_are_converted_to_what_the_annotations_say() -> None:
    args = {"where": {"city": "Rome"}, "when": "2030-01-01T12:00:00Z", "note": None}
    assert await call(book, args) == "Place Rome 2030 1 inside None"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seats": 0}, "seats: "),
        ({"seats": "2"}, "seats: "),
        ({"kind": "roof"}, "kind: "),
        ({"where": {"city": 1}}, "where.city: "),
        ({"where": {}}, "where: "),
        ({"when": "tomorrow"}, "when: "),
        ({"wehn": 1}, "`wehn`"),
    ],
)
async def test_an_argument_that_does_not_fit_is_named(change: dict[str, Any], names: str) -> None:
    code, message = await call(book, {"where": {"city": "Rome"}, "when": "2030-01-01T12:00:00Z"} | change)
    assert code == "VALIDATION_ERROR"
    assert names in message
    assert "it takes (where: Place, when: dt.datetime, seats:" in message


async def test_a_missing_argument_is_named() -> None:
    assert "`when`" in (await call(book, {"where": {"city": "Rome"}}))[1]


def test_the_schema_says_what_the_annotations_say() -> None:
    found = FunctionTool(book, name="book")
    schema = found.input_schema
    assert found.description == "Book a table."
    assert schema["type"] == "object"
    assert schema["required"] == ["where", "when"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["seats"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 9,
        "description": "how many",
        "default": 1,
    }
    assert schema["properties"]["where"] == {"$ref": "#/$defs/Place"}
    assert schema["$defs"]["Place"]["required"] == ["city"]


async def test_further_arguments_are_taken_by_those_who_can() -> None:
    def every(first: int, *rest: int, **named: float) -> list[Any]:
        return [first, rest, named]

    assert await call(every, {"first": 1, "rest": [2, 3], "x": 4}) == [1, [2, 3], {"x": 4.0}]
    assert await call(every, 1) == [1, [], {}]
    assert "x: " in (await call(every, {"first": 1, "x": "no"}))[1]
    assert FunctionTool(every, name="t").input_schema["additionalProperties"] == {"type": "number"}


async def test_a_function_may_be_given_a_schema_of_its_own() -> None:
    def takes(**given: Any) -> Any:
        return given

    schema = {"properties": {"n": {"type": "integer", "maximum": 5}}, "required": ["n"], "additionalProperties": False}
    takes_5 = FunctionTool(takes, name="t", input_schema=schema)
    assert await call(takes_5, {"n": 5}) == {"n": 5}
    assert await call(takes_5, {"n": 6}) == ("VALIDATION_ERROR", "t: n: 6 does not meet maximum 5")


def test_an_annotation_that_no_json_can_meet_is_an_error_at_once() -> None:
    def waits(event: asyncio.Event) -> None: ...

    def unknown(event: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point

    for function in (waits, unknown):
        with pytest.raises(ValueError, match="tool 't'"):
            FunctionTool(function, name="t")


def test_a_policy_that_makes_no_sense_is_an_error_at_once() -> None:
    for wrong in ({"timeout_ms": 0}, {"max_retries": -1}, {"secrets": ["a-b"]}, {"max_concurrency": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tool("t", **wrong)


@given(json_values | st.dictionaries(st.sampled_from(["where", "when", "seats", "kind", "note"]), json_values))
def test_whatever_a_guest_sends_is_accepted_or_refused(args: Any) -> None:
    by_annotations = FunctionTool(book, name="t")
    by_schema = FunctionTool(book, name="t", input_schema=by_annotations.input_schema)
    for each in (by_annotations, by_schema):
        with contextlib.suppress(ArgumentsRefused):  # and nothing else
            assert isinstance(each.accept(args), dict)


def test_arguments_nested_too_deeply_are_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]

    def takes(value: Any) -> None: ...

    with pytest.raises(ArgumentsRefused):
        FunctionTool(
            takes,
            name="t",
            input_schema={
                "properties": {"value": {"$ref": "#/$defs/v"}},
                "$defs": {"v": {"items": {"$ref": "#/$defs/v"}}},
            },
        ).accept({"value": deep})
