"""OpenAPI's schemas as JSON Schema."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from enclave_broker.tools.sources.document import DocumentError, References
from enclave_broker.tools.sources.schemas import SchemaCopier


def copied(schema: Any, **schemas: Any) -> dict[str, Any]:
    """Return the schema with its definitions."""
    copier, used = SchemaCopier(References({"components": {"schemas": schemas}})), dict[str, None]()
    result = copier.copy(schema, used)
    definitions = copier.definitions(used)
    full = {**result, "$defs": definitions} if definitions else result
    Draft202012Validator.check_schema(full)
    return full


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def test_a_reference_points_to_a_copy_that_the_schema_carries() -> None:
    schema = copied({"type": "array", "items": ref("Pet")}, Pet={"type": "string"})
    assert schema == {"type": "array", "items": {"$ref": "#/$defs/Pet"}, "$defs": {"Pet": {"type": "string"}}}


def test_a_recursive_schema_still_accepts_and_refuses_what_it_did() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": ref("Tree")}}, "required": ["kids"]}
    valid = Draft202012Validator(copied(ref("Tree"), Tree=tree)).is_valid
    assert valid({"kids": [{"kids": []}]})
    assert not valid({"kids": [{"kids": [{}]}]})


def test_schemas_that_refer_to_each_other_cost_no_more_than_they_are_long() -> None:
    layers = {f"L{i}": {"anyOf": [ref(f"L{i + 1}"), ref(f"L{i + 1}")]} for i in range(40)}
    schema = copied(ref("L0"), **layers, L40={"type": "null"})
    assert len(schema["$defs"]) == 41


def test_a_long_chain_of_references_is_followed_to_its_end() -> None:
    chain = {f"L{i}": {"properties": {"next": ref(f"L{i + 1}")}} for i in range(90)}
    assert len(copied(ref("L0"), **chain, L90={"type": "null"})["$defs"]) == 91


def test_of_a_document_in_which_everything_hangs_together_a_tool_has_what_is_near_and_the_rest_is_anything() -> None:
    web = {f"L{i}": {"properties": {f"p{j}": ref(f"L{(i * 7 + j) % 200}") for j in range(9)}} for i in range(200)}
    schema = copied(ref("L3"), **web)
    full = [name for name, definition in schema["$defs"].items() if definition]
    assert len(full) == 100
    assert full[0] == "L3"
    assert set(schema["$defs"]["L3"]["properties"]) == {f"p{j}" for j in range(9)}


def test_two_schemas_of_one_last_name_stay_two() -> None:
    document = {"a": {"X": {"type": "string"}}, "b": {"X": {"type": "integer"}}}
    copier, used = SchemaCopier(References(document)), dict[str, None]()
    assert copier.copy({"anyOf": [{"$ref": "#/a/X"}, {"$ref": "#/b/X"}]}, used) == {
        "anyOf": [{"$ref": "#/$defs/X"}, {"$ref": "#/$defs/X_2"}]
    }
    assert copier.definitions(used) == {"X": {"type": "string"}, "X_2": {"type": "integer"}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "string", "nullable": True, "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        (
            {"allOf": [{"type": "string"}], "nullable": True},
            {"anyOf": [{"allOf": [{"type": "string"}]}, {"type": "null"}]},
        ),
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
        ({"exclusiveMinimum": 3}, {"exclusiveMinimum": 3}),
        ({"type": "string", "example": "x", "xml": {}, "x-own": 1, "$id": "http://elsewhere"}, {"type": "string"}),
        ({"type": "object", "required": True}, {"type": "object"}),
        ({"properties": {"example": {"type": "string"}}}, {"properties": {"example": {"type": "string"}}}),
        ({"enum": [{"$ref": "#/nowhere", "nullable": True}]}, {"enum": [{"$ref": "#/nowhere", "nullable": True}]}),
    ],
)
def test_openapis_own_words_are_translated_and_what_looks_like_them_is_not(schema: Any, expected: Any) -> None:
    assert copied(schema) == expected


def test_properties_that_only_answers_have_are_not_asked_for() -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"type": "integer", "readOnly": True}, "name": {}, "made": ref("Stamp")},
        "required": ["id", "name", "made"],
    }
    found = copied(schema, Stamp={"type": "string", "readOnly": True})
    assert found["properties"] == {"name": {}}
    assert found["required"] == ["name"]


@pytest.mark.parametrize("schema", [5, {"anyOf": [7]}, {"$ref": "other.yaml#/X"}])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(DocumentError):
        SchemaCopier(References({})).copy(schema, {})


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    with pytest.raises(DocumentError, match="nests more than"):
        SchemaCopier(References({})).copy(schema, {})
