"""A client's declared tools: read strictly, and refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from enclave_protocol import DeclaredTool, RemoteProtocolError, parse_declared_tools
from enclave_protocol.declared_tools import MAX_DECLARED_TOOLS, MAX_TOOLS_BYTES, refuse_taken
from tests.protocol import strategies


def test_a_name_and_an_object_may_stand_side_by_side() -> None:
    full = {"name": "ask", "description": "Asks.", "inputSchema": {"type": "object"}, "timeoutMs": 50}
    found = parse_declared_tools(["look", full])
    assert list(found) == ["look", "ask"]
    assert found["look"] == DeclaredTool(name="look")
    assert found["look"].timeout_ms is UNSET
    assert found["ask"] == DeclaredTool(name="ask", description="Asks.", input_schema={"type": "object"}, timeout_ms=50)


def test_no_tools_at_all_can_be_declared() -> None:
    assert parse_declared_tools([]) == {}


BAD: list[tuple[Any, str]] = [
    ("ask", "tools"),
    ({"ask": {}}, "tools"),
    (None, "tools"),
    ([f"t{i}" for i in range(MAX_DECLARED_TOOLS + 1)], "tools"),
    ([{"name": f"t{i}", "inputSchema": {"title": "x" * 3000}} for i in range(100)], "tools"),
    ([5], "tools[0]"),
    ([None], "tools[0]"),
    (["ask", ["look"]], "tools[1]"),
    ([{}], "tools[0].name"),
    ([""], "tools[0].name"),
    (["x" * 129], "tools[0].name"),
    ([{"name": 5}], "tools[0].name"),
    (["ask", {"name": "ask"}], "tools[1].name"),
    ([{"name": "ask", "description": None}], "tools[0].description"),
    ([{"name": "ask", "description": "x" * 4097}], "tools[0].description"),
    ([{"name": "ask", "inputSchema": True}], "tools[0].inputSchema"),
    ([{"name": "ask", "timeoutMs": 0}], "tools[0].timeoutMs"),
    ([{"name": "ask", "timeoutMs": 1.5}], "tools[0].timeoutMs"),
    ([{"name": "ask", "timeout": 5}], "tools[0]"),
]


@pytest.mark.parametrize(("raw", "field"), BAD)
def test_a_bad_declaration_is_told_which_field_and_what_is_allowed(raw: Any, field: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_declared_tools(raw)
    assert caught.value.field == field
    assert caught.value.allowed


def test_the_longest_declarations_that_are_allowed_are_read() -> None:
    room = MAX_TOOLS_BYTES - len('[{"name":"ask","inputSchema":{"title":""}}]')
    assert parse_declared_tools([{"name": "ask", "inputSchema": {"title": "x" * room}}])
    with pytest.raises(RemoteProtocolError, match="bytes"):
        parse_declared_tools([{"name": "ask", "inputSchema": {"title": "x" * (room + 1)}}])


def test_a_name_of_the_brokers_is_refused_by_its_place() -> None:
    declared = parse_declared_tools(["mine", "theirs"])
    refuse_taken(declared, {"other"})
    with pytest.raises(RemoteProtocolError, match="'theirs' already") as caught:
        refuse_taken(declared, {"theirs"})
    assert caught.value.field == "tools[1].name"


@given(st.lists(strategies.json_values, max_size=4) | strategies.json_values)
def test_any_json_gives_tools_or_a_refusal_and_nothing_else(raw: Any) -> None:
    try:
        found = parse_declared_tools(raw)
    except RemoteProtocolError as error:
        refused = error
    else:
        assert len(found) == len(raw)
        return
    assert refused.field.startswith("tools")
    assert refused.allowed
