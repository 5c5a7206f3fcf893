"""Stored results: whose they are, how much there may be, and when they are gone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enclave_broker import ToolFailure
from enclave_broker.tools.references import References, token


def stored() -> References:
    return References(session_bytes=100, total_bytes=150)


def ref(identifier: str) -> Any:
    return json.loads(token(identifier))


def test_a_token_is_the_wires() -> None:
    assert token("ref_1") == b'{"$ref":{"id":"ref_1"}}'


def test_tokens_anywhere_in_the_arguments_become_values() -> None:
    refs = stored()
    one, two = refs.put("s_1", "t", b"[1]"), refs.put("s_1", "t", b"null")
    args = {"a": ref(one), "b": [{"c": ref(two)}, ref(one)], "d": {"$ref": "text"}, "e": {"$ref": {"id": 1}}}
    assert refs.resolve("s_1", "t", args) == {"a": [1], "b": [{"c": None}, [1]], "d": args["d"], "e": args["e"]}
    assert refs.resolve("s_1", "t", ref(one)) == [1]


def test_every_use_has_a_copy_of_its_own() -> None:
    refs = stored()
    one = refs.put("s_1", "t", b"[1]")
    first: Any = refs.resolve("s_1", "t", ref(one))
    first.append(2)
    assert refs.resolve("s_1", "t", ref(one)) == [1]


def test_a_reference_means_nothing_in_another_session_or_after_the_end() -> None:
    refs = stored()
    one = refs.put("s_1", "t", b"[1]")
    with pytest.raises(ToolFailure, match="has no stored result"):
        refs.resolve("s_2", "t", ref(one))
    refs.drop("s_1")
    assert refs.used_bytes == 0
    with pytest.raises(ToolFailure, match="x: this session has no stored result"):
        refs.resolve("s_1", "t", {"x": ref(one)})


def test_a_session_and_all_sessions_have_only_so_much_room() -> None:
    refs = stored()
    refs.put("s_1", "t", b"1" * 60)
    with pytest.raises(ToolFailure, match="this session may have 100, and has 60") as full:
        refs.put("s_1", "t", b"1" * 41)
    assert full.value.code == "RESULT_TOO_LARGE"
    refs.put("s_2", "t", b"1" * 60)
    with pytest.raises(ToolFailure, match="all sessions may have 150, and has 120"):
        refs.put("s_3", "t", b"1" * 31)
    refs.drop("s_2")
    refs.put("s_3", "t", b"1" * 31)
    assert refs.used_bytes == 91


def test_one_reference_many_times_is_no_way_around_the_limit() -> None:
    refs = stored()
    one = refs.put("s_1", "t", b"1" * 40)
    with pytest.raises(ToolFailure, match=r"a\.2: .* more than 100 bytes"):
        refs.resolve("s_1", "t", {"a": [ref(one)] * 1000})
