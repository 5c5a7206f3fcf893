"""The registry: names, sources, versions, and who is told."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_broker import Tool, ToolContext, ToolRegistry
from enclave_broker.tools import CatalogChange
from tests.broker import sample_tools


class Remote(Tool):
    """A tool of some source."""

    def __init__(self, name: str, description: str = "", **schema: Any) -> None:
        super().__init__(name=name, description=description, input_schema=schema, service="far")

    async def invoke(self, args: dict[str, Any], context: ToolContext) -> object:
        return [args, context.session_id]


def add(a: int, b: int = 1) -> int:
    return a + b


def test_a_module_offers_what_is_marked() -> None:
    registry = ToolRegistry()
    assert registry.load(sample_tools.__name__) == 2
    assert registry.names() == ["add", "greet"]
    found = registry.get("add")
    assert found is not None
    assert found.description == "Add two numbers."


@pytest.mark.parametrize("module", ["no.such.module", "json"])
def test_a_module_without_tools_is_an_error(module: str) -> None:
    with pytest.raises(ValueError, match=module):
        ToolRegistry().load(module)


def test_two_tools_can_not_have_one_name() -> None:
    with pytest.raises(ValueError, match="'add'"):
        ToolRegistry([add, add])


@pytest.mark.parametrize("name", ["", "n" * 129])
def test_a_name_that_is_empty_or_too_long_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="128"):
        ToolRegistry().register(name, add)


def test_a_source_is_replaced_as_a_whole_and_what_changed_is_told() -> None:
    registry, told = ToolRegistry([add]), list[CatalogChange]()
    registry.subscribe(told.append)
    first = registry.replace_source("far", [Remote("b"), Remote("a"), Remote("c")], spec_url="http://spec")
    assert (first.added, first.removed, first.updated) == (("a", "b", "c"), (), ())
    second = registry.replace_source("far", [Remote("a", "other words"), Remote("c"), Remote("d")])
    assert (second.added, second.removed, second.updated) == (("d",), ("b",), ("a",))
    assert registry.names() == ["a", "add", "c", "d"]
    assert told == [first, second]
    assert [(source.name, source.tools) for source in registry.sources()] == [
        ("far", ("a", "c", "d")),
        ("python", ("add",)),
    ]


def test_a_version_is_the_same_for_the_same_tools_only() -> None:
    assert ToolRegistry().version == "empty"
    one, other, told = ToolRegistry(), ToolRegistry(), list[CatalogChange]()
    one.replace_source("far", [Remote("a"), Remote("b")])
    other.replace_source("far", [Remote("b"), Remote("a")])
    assert one.version == other.version
    other.subscribe(told.append)
    other.replace_source("far", [Remote("a"), Remote("b")])
    assert told == []
    other.replace_source("far", [Remote("a"), Remote("b", required=["x"])])
    assert one.version != other.version


def test_a_source_can_not_take_anothers_name_and_then_changes_nothing() -> None:
    registry = ToolRegistry([add])
    registry.replace_source("far", [Remote("a")])
    version = registry.version
    for tools in ([Remote("b"), Remote("add")], [Remote("b"), Remote("b")]):
        with pytest.raises(ValueError, match="is taken"):
            registry.replace_source("far", tools)
    assert registry.names() == ["a", "add"]
    assert registry.version == version


def test_who_unsubscribed_is_told_nothing_more() -> None:
    registry, told = ToolRegistry(), list[CatalogChange]()
    registry.subscribe(told.append)()
    registry.add(add)
    assert told == []
