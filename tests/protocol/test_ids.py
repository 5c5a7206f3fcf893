"""Identifiers: the wire's prefixes, and nothing that could hurt in a URL, a log or a file name."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol import RemoteProtocolError, new_call_id, new_session_id, parse_call_id, parse_session_id
from tests.protocol.strategies import call_ids, session_ids


def test_new_ids_have_the_right_form_and_differ() -> None:
    assert parse_session_id(new_session_id()) != new_session_id()
    assert parse_call_id(new_call_id()) != new_call_id()


def test_new_ids_are_random_uuids_as_others_write_them() -> None:
    for text in [new_session_id() for _ in range(64)] + [new_call_id() for _ in range(64)]:
        found = uuid.UUID(text[2:])
        assert (str(found), found.version, found.variant) == (text[2:], 4, uuid.RFC_4122)


@given(session_ids, call_ids)
def test_the_documented_form_is_accepted(session_id: str, call_id: str) -> None:
    assert parse_session_id(session_id) == session_id
    assert parse_call_id(call_id) == call_id


BAD = ["", "{}", "{}a b", "{}a/b", "{}a\n", "{}\n", "{}a%2f", "{}é", "{}a\x00", "x{}a", "{}" + "x" * 129]


@pytest.mark.parametrize("form", BAD)
def test_any_other_form_is_refused_by_field(form: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_session_id(form.format("s_"))
    assert (caught.value.field, caught.value.allowed[:4]) == ("sessionId", "'s_'")
    with pytest.raises(RemoteProtocolError) as caught:
        parse_call_id(form.format("c_"))
    assert (caught.value.field, caught.value.allowed[:4]) == ("callId", "'c_'")


@given(st.text())
def test_any_text_is_an_id_that_is_safe_in_a_path_or_is_refused(text: str) -> None:
    try:
        found = parse_session_id(text)
    except RemoteProtocolError:
        return
    assert not set(found) & set("/\\ \n%?#&")
