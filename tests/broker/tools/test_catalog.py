"""The catalogue as clients are told of it."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.tools import ToolRegistry
from enclave_broker.tools.catalog import describe, merged
from enclave_protocol.events import CatalogChangedPayload
from tests.broker.tools.stubs.schemas import fake

SCHEMA = {"type": "object", "properties": {"id": {"type": "integer"}}}


def test_every_tool_is_described_with_its_schema_and_every_service_with_its_state() -> None:
    registry = ToolRegistry([])
    registry.replace_source("pets", [fake("pets_get", SCHEMA, "Get one")], spec_url="http://x/openapi.json")
    registry.register("add", lambda: 1)
    found = msgspec.to_builtins(describe(registry, unwell={"pets"}))
    assert found["version"] == registry.version
    assert [action["name"] for action in found["actions"]] == ["add", "pets_get"]
    assert found["actions"][1] == {
        "name": "pets_get",
        "service": "pets",
        "inputSchema": SCHEMA,
        "description": "Get one",
    }
    pets = found["services"][0]
    assert pets.pop("lastUpdated") > 1_700_000_000_000
    assert pets == {"name": "pets", "specUrl": "http://x/openapi.json", "actionCount": 1, "healthy": False}
    assert found["services"][1]["healthy"] is True


def test_a_catalogue_of_one_service_has_no_others() -> None:
    registry = ToolRegistry([])
    registry.replace_source("pets", [fake("pets_get")])
    registry.replace_source("cars", [fake("cars_get", service="cars")])
    found = describe(registry, service="cars")
    assert [action.name for action in found.actions] == ["cars_get"]
    assert [service.name for service in found.services] == ["cars"]


def test_without_tools_it_is_empty() -> None:
    assert msgspec.to_builtins(describe(ToolRegistry())) == {"actions": [], "services": [], "version": "empty"}


@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=3, max_size=3))
def test_two_changes_as_one_lead_from_the_first_set_of_tools_to_the_last(steps: list[set[str]]) -> None:
    def change(before: set[str], after: set[str]) -> CatalogChangedPayload:
        return CatalogChangedPayload(
            version="v", added_actions=sorted(after - before), removed_actions=sorted(before - after)
        )

    first, middle, last = steps
    assert merged(change(first, middle), change(middle, last)) == change(first, last)
    assert merged(None, change(first, last)) == change(first, last)
