"""Which events a filter lets through, and which filters are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enclave_protocol.filters import EVENT_TYPES, InvalidFilter, parse_filter


def event(kind: str = "log", seq: int = 2, **payload: Any) -> bytes:
    body = {"protocolVersion": 2, "sessionId": "s_1", "seq": seq, "type": kind, "payload": payload}
    return json.dumps(body, separators=(",", ":")).encode()


def one(pattern: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"mode": "include", "rules": [{"content": {"patterns": [pattern], **more}}]}


def passes(pattern: dict[str, Any], line: bytes) -> bool:
    return parse_filter(one(pattern)).passes(line)


TYPES = {"rules": [{"types": {"types": ["stdout", "log"]}}]}


def test_include_sends_what_a_rule_fits_and_exclude_what_none_does() -> None:
    include, exclude = parse_filter({"mode": "include", **TYPES}), parse_filter({"mode": "exclude", **TYPES})
    assert [include.passes(event(kind)) for kind in ("stdout", "log", "stderr")] == [True, True, False]
    assert [exclude.passes(event(kind)) for kind in ("stdout", "log", "stderr")] == [False, False, True]


def test_the_first_and_the_last_event_are_sent_unless_another_list_was_given() -> None:
    quiet = parse_filter({"mode": "include", "rules": []})
    assert [quiet.passes(event(kind)) for kind in ("session_init", "final", "error")] == [True, True, False]
    errors = parse_filter({"mode": "include", "rules": [], "alwaysAllow": ["error"]})
    assert [errors.passes(event(kind)) for kind in ("session_init", "error")] == [False, True]


def test_the_final_is_sent_even_when_nothing_is_always_allowed() -> None:
    for mode, rules in (("include", "[]"), ("exclude", "[{}]")):
        nothing = parse_filter({"mode": mode, "rules": json.loads(rules), "alwaysAllow": []})
        assert nothing.passes(event("final", ok=True))
        assert not nothing.passes(event("session_init"))


def test_rules_are_alternatives_and_a_rule_wants_both_its_type_and_its_content() -> None:
    content = {"patterns": [{"type": "prefix", "pattern": "a", "field": "payload.chunk"}]}
    rules = [{"types": {"types": ["stdout"]}, "content": content}, {"types": {"types": ["log"]}}]
    chosen = parse_filter({"mode": "include", "rules": rules})
    assert chosen.passes(event("stdout", chunk="abc"))
    assert not chosen.passes(event("stdout", chunk="xyz"))
    assert not chosen.passes(event("stderr", chunk="abc"))
    assert chosen.passes(event("log"))


def test_an_empty_rule_fits_everything() -> None:
    assert parse_filter({"mode": "include", "rules": [{}]}).passes(event("stderr"))


@pytest.mark.parametrize(("match", "expected"), [({}, True), ({"match": "any"}, True), ({"match": "all"}, False)])
def test_any_pattern_or_all_of_them_must_fit(match: dict[str, str], expected: bool) -> None:  # noqa: FBT001
    patterns = [{"type": "regex", "pattern": "one"}, {"type": "regex", "pattern": "two"}]
    config = {"mode": "include", "rules": [{"content": {"patterns": patterns, **match}}]}
    assert parse_filter(config).passes(event(message="one")) is expected
    assert parse_filter(config).passes(event(message="one two"))


def test_no_patterns_are_never_any_and_always_all() -> None:
    for match, expected in (("any", False), ("all", True)):
        config = {"mode": "include", "rules": [{"content": {"patterns": [], "match": match}}]}
        assert parse_filter(config).passes(event()) is expected


@pytest.mark.parametrize(
    ("field", "pattern", "expected"),
    [
        ("payload.toolName", "search", True),
        ("payload.args.list.1.x", "7", True),
        ("payload.args.list.9.x", "7", False),
        ("payload.args.list.01.x", "7", False),
        ("payload.args.list.x", "7", False),
        ("payload.toolName.length", "6", False),
        ("payload.absent", "", False),
        ("payload.args.nothing", "", True),
        ("payload.args.nothing.deeper", "", False),
        ("payload.args.number", "12", True),
        ("payload.args.fraction", "0.5", True),
        ("payload.args.yes", "true", True),
        ("payload.args.list", '[{},{"x":7}]', True),
        ("type", "tool_call", True),
        ("seq", "2", True),
        ("sessionId", "s_1", True),
        ("", '{"toolName":"search","args":{"a":"é"}}', False),
    ],
)
def test_a_field_is_a_path_from_the_root_and_its_value_as_text(field: str, pattern: str, expected: bool) -> None:  # noqa: FBT001
    args = {"list": [{}, {"x": 7}], "nothing": None, "number": 12.0, "fraction": 0.5, "yes": True}
    line = event("tool_call", toolName="search", args=args)
    assert passes({"type": "exact", "pattern": pattern, "field": field}, line) is expected


def test_without_a_field_the_payload_as_compact_json_is_compared() -> None:
    line = event("log", message="grüße ✓", data={"n": 1})
    for pattern in ({}, {"field": ""}):
        text = '{"message":"grüße ✓","data":{"n":1}}'
        assert passes({"type": "exact", "pattern": text, **pattern}, line)


def test_case_counts_unless_it_is_said_not_to() -> None:
    line = event(message="Hello World")
    for kind, pattern in (("exact", "HELLO WORLD"), ("prefix", "HELLO"), ("regex", "O w"), ("glob", "HELLO*")):
        config = {"type": kind, "pattern": pattern, "field": "payload.message"}
        assert not passes(config, line)
        assert passes({**config, "caseInsensitive": True}, line)


def test_longer_texts_than_ten_thousand_units_match_no_expression_and_no_glob() -> None:
    for text, expected in (("a" * 10_000, True), ("a" * 10_001, False), ("😀" * 5_000, True), ("😀" * 5_001, False)):
        for kind, pattern in (("regex", "."), ("glob", "*")):
            config = {"type": kind, "pattern": pattern, "field": "payload.message"}
            assert passes(config, event(message=text)) is expected
        assert passes({"type": "prefix", "pattern": text[:1], "field": "payload.message"}, event(message=text))


def test_a_payload_that_cannot_be_read_matches_nothing() -> None:
    assert not passes({"type": "regex", "pattern": ""}, event("log", message="x").replace(b"x", b"\xff"))


@pytest.mark.parametrize(
    ("config", "field", "said"),
    [
        ([], "filter", "object"),
        ({"rules": []}, "filter.mode", "missing"),
        ({"mode": "only", "rules": []}, "filter.mode", "only"),
        ({"mode": "include"}, "filter.rules", "missing"),
        ({"mode": "include", "rules": [{}], "blockedTypes": []}, "filter", "blockedTypes"),
        ({"mode": "include", "rules": [{}, {"types": ["log"]}]}, "filter.rules[1].types", "array"),
        ({"mode": "include", "rules": [{"types": {"types": ["lgo"]}}]}, "filter.rules[0].types.types[0]", "lgo"),
        ({"mode": "include", "rules": [], "alwaysAllow": ["final", "x"]}, "filter.alwaysAllow[1]", "x"),
        ({"mode": "include", "rules": [{}] * 33}, "filter.rules", "length"),
        ({"mode": "include", "rules": [], "regexTimeoutMs": 0}, "filter.regexTimeoutMs", "> 0"),
        (one({"type": "like", "pattern": ""}), "filter.rules[0].content.patterns[0].type", "like"),
        (one({"type": "exact"}), "filter.rules[0].content.patterns[0].pattern", "missing"),
        (one({"type": "regex", "pattern": "(a"}), "filter.rules[0].content.patterns[0].pattern", "missing )"),
        (one({"type": "regex", "pattern": "(?=a)"}), "filter.rules[0].content.patterns[0].pattern", "ahead"),
        (one({"type": "regex", "pattern": r"(a)\1"}), "filter.rules[0].content.patterns[0].pattern", "group"),
        (one({"type": "glob", "pattern": "a!(b)"}), "filter.rules[0].content.patterns[0].pattern", "bounded"),
        (one({"type": "regex", "pattern": "a" * 1001}), "filter.rules[0].content.patterns[0].pattern", "length"),
        (one({"type": "regex", "pattern": "(a|b){999}"}), "filter.rules", "instructions"),
        (one({"type": "exact", "pattern": ""}, match="most"), "filter.rules[0].content.match", "most"),
    ],
)
def test_a_malformed_filter_is_told_which_field_and_why(config: Any, field: str, said: str) -> None:
    for data in (config, json.dumps(config).encode()):
        with pytest.raises(InvalidFilter) as refused:
            parse_filter(data)
        assert refused.value.field == field
        assert said in refused.value.reason
        assert refused.value.allowed


def test_a_filter_that_is_not_json_is_refused_and_named_as_the_request_did() -> None:
    for data in (b"{", b"", b"\xff", b" " * 70_000):
        with pytest.raises(InvalidFilter) as refused:
            parse_filter(data, "query.filter")
        assert refused.value.field == "query.filter"


def test_patterns_of_all_rules_count_together() -> None:
    rule = {"content": {"patterns": [{"type": "exact", "pattern": ""}] * 17}}
    parse_filter({"mode": "include", "rules": [rule]})
    with pytest.raises(InvalidFilter, match="too many patterns"):
        parse_filter({"mode": "include", "rules": [rule, rule]})


def test_every_type_of_event_can_be_named() -> None:
    parse_filter({"mode": "include", "rules": [{"types": {"types": sorted(EVENT_TYPES)}}]})
