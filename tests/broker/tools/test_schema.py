"""Arguments checked by JSON Schema: what is refused, and that no argument can make the check expensive."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_broker.tools import schema as schema_module
from enclave_broker.tools.schema import ArgumentSchema

SEARCH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "minLength": 1, "pattern": "^[a-z ]+$"},
        "limit": {"type": "integer", "default": 10},
        "where": {"type": "array", "items": {"$ref": "#/$defs/place"}, "uniqueItems": True},
    },
    "required": ["query"],
    "additionalProperties": False,
    "$defs": {"place": {"enum": ["web", "mail", {"id": 1}]}},
}


def test_what_fits_is_returned_as_it_came() -> None:
    args = {"query": "a b", "limit": 3, "where": ["web", "mail"]}
    assert ArgumentSchema(SEARCH).accept(args) is args


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "'query' is a required property"),
        ({"query": 5}, "query: expected string, got 5"),
        ({"query": "A"}, "query: 'A' does not match '^[a-z ]+$'"),
        ({"query": "a", "limit": "x" * 1000}, "limit: expected integer, got 'x"),
        ({"query": "a", "where": ["web", "web"]}, "where: ['web', 'web'] does not meet uniqueItems True"),
        ({"query": "a", "where": ["web", "roof"]}, "where[1]: 'roof' is not one of"),
        ({"query": "a", "lmit": 1}, "there is no argument 'lmit'"),
    ],
)
def test_the_argument_that_does_not_fit_is_named(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        ArgumentSchema(SEARCH).accept(args)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_value_that_is_no_object_stands_for_the_one_argument() -> None:
    assert ArgumentSchema(SEARCH).accept("a") == {"query": "a"}
    assert ArgumentSchema({"properties": {"n": {}}}).accept(5) == {"n": 5}
    assert ArgumentSchema({"properties": {"n": {}, "m": {}}}).accept(None) == {}
    with pytest.raises(ValueError, match="an object"):
        ArgumentSchema({"properties": {"n": {}, "m": {}}}).accept(5)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "array"}, "of type 'array'"),
        ({"properties": {"n": {"type": "nmber"}}}, "properties.n.type"),
        ({"properties": {"n": {"$ref": "#/$defs/n"}}}, "'#/\\$defs/n'"),
        ({"properties": {"n": {"$ref": "https://example.com/schema.json"}}}, "'https://example.com/schema.json'"),
        ({"properties": {"n": {"pattern": "("}}}, "pattern"),
        ({"patternProperties": {"(": {}}}, "pattern"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties, which is not supported"),
    ],
)
def test_a_schema_that_is_none_or_leads_elsewhere_is_an_error_at_once(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArgumentSchema(document)


def test_an_older_dialect_keeps_its_meaning() -> None:
    draft_4 = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "properties": {"n": {"type": "number", "minimum": 1, "exclusiveMinimum": True}},
    }
    assert ArgumentSchema(draft_4).accept({"n": 2}) == {"n": 2}
    with pytest.raises(ValueError, match="n: 1 does not meet minimum"):
        ArgumentSchema(draft_4).accept({"n": 1})


@pytest.mark.parametrize("inner", [{}, {"$schema": "https://json-schema.org/draft/2020-12/schema"}])
def test_a_pattern_that_takes_too_long_does_not_match(inner: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_module, "PATTERN_TIMEOUT_S", 0.001)
    # Looks ahead, which RE2 can't, and backtracks for ever; in a schema that asks for the library's own keywords.
    evil = ArgumentSchema({"properties": {"a": {**inner, "allOf": [{**inner, "pattern": "^(?=a)(a|aa)+$"}]}}})
    with pytest.raises(ValueError, match="a: "):
        evil.accept({"a": "a" * 5000 + "!"})
    by_name = ArgumentSchema({"patternProperties": {"^(?=a)(a|aa)+$": {}}, "additionalProperties": False})
    with pytest.raises(ValueError, match="there is no argument"):
        by_name.accept({"a" * 5000 + "!": 1})


def test_many_items_are_compared_without_comparing_all_with_all() -> None:
    # Lists of different types can't be sorted: the library would compare each with each, 2 000 million times.
    items = [item for number in range(30_000) for item in ([number], {"n": number})]
    unique = ArgumentSchema({"properties": {"items": {"uniqueItems": True}}})
    assert unique.accept({"items": items})
    with pytest.raises(ValueError, match="items: "):
        unique.accept({"items": [*items, {"n": 5.0}]})


def test_true_is_not_one_and_one_is_one_point_zero() -> None:
    unique = ArgumentSchema({"properties": {"items": {"uniqueItems": True}}})
    assert unique.accept({"items": [1, True, "1", [1], [True]]})
    with pytest.raises(ValueError, match="items"):
        unique.accept({"items": [[1], [1.0]]})


def test_a_schema_that_goes_round_in_circles_refuses() -> None:
    circle = ArgumentSchema({"properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"$ref": "#/$defs/n"}}})
    with pytest.raises(ValueError, match="nested too deeply"):
        circle.accept({"n": 1})


def test_names_that_match_a_pattern_have_its_schema_and_others_that_of_the_rest() -> None:
    named = ArgumentSchema(
        {"patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    )
    assert named.accept({"n_a": 1, "b": "x"})
    for wrong in ({"n_a": "x"}, {"b": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            named.accept(wrong)


@pytest.mark.parametrize("looking", ["", "(?=a)"])
def test_a_pattern_means_what_it_means_in_javascript(looking: str) -> None:
    def fits(pattern: str, text: str) -> bool:
        try:
            return bool(ArgumentSchema({"properties": {"a": {"pattern": looking + pattern}}}).accept({"a": text}))
        except ValueError:
            return False

    assert fits("a$", "a")
    assert not fits("a$", "a\n")  # to Python's own engine this is the same
    assert fits(r"a[$\]]\$", "a$$")
    assert fits(r"a\d", "a1")
    assert fits(r"(?<name>a)", "a")
    assert not fits(r"a\d", "a\u0663")  # a digit, but not to JavaScript


def test_a_definition_is_held_against_the_dialect_of_each_schema_that_has_it() -> None:
    sound = {"type": "integer", "exclusiveMinimum": 1}
    new = {"properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": sound}}
    for _ in range(2):
        assert ArgumentSchema(new).accept({"n": 2}) == {"n": 2}
        with pytest.raises(ValueError, match="its input schema is none: exclusiveMinimum"):
            ArgumentSchema({"$schema": "http://json-schema.org/draft-04/schema#", **new})
        with pytest.raises(ValueError, match="its input schema is none: type"):
            ArgumentSchema({**new, "$defs": {"n": sound, "other": {"type": "moon"}}})


def test_a_schema_that_refers_to_itself_in_alternatives_is_checked_in_bounded_time() -> None:
    either = [{"properties": {"not": {"$ref": "#/$defs/f"}}, "required": [name]} for name in ("a", "b", "c")]
    schema = ArgumentSchema({"properties": {"f": {"$ref": "#/$defs/f"}}, "$defs": {"f": {"anyOf": either}}})
    value: dict[str, object] = {}
    for _ in range(20):  # 3^20 looks
        value = {"not": value}
    with pytest.raises(ValueError, match="takes too long"):
        schema.accept({"f": value})


def test_many_slow_patterns_are_checked_in_bounded_time() -> None:
    schema = ArgumentSchema({"patternProperties": {r"^(?=.)(a|aa)+$": {}}})
    with pytest.raises(ValueError, match="takes too long"):
        schema.accept({f"{'a' * 50}!{i}": 1 for i in range(100)})
