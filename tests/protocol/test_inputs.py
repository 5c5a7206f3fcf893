"""What a session is given besides its code: bounded, checked, and refused by the field's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol import RemoteProtocolError, decode_client_message, parse_env, parse_files
from enclave_protocol.inputs import (
    MAX_ENV_BYTES,
    MAX_FILES,
    MAX_FILES_BYTES,
    MAX_VARIABLES,
    encode_file,
    size_bytes,
)


def test_variables_are_names_with_text() -> None:
    assert parse_env({"A": "1", "_b2": "", "HTTP_PROXY": "x=y\n"}) == {"A": "1", "_b2": "", "HTTP_PROXY": "x=y\n"}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ([], "env"),
        ({f"V{i}": "" for i in range(MAX_VARIABLES + 1)}, "env"),
        ({"A": "x" * MAX_ENV_BYTES}, "env"),
        ({"1A": ""}, "env.1A"),
        ({"": ""}, "env."),
        ({"A=B": ""}, "env.A=B"),
        ({"A\0": ""}, "env.A\0"),
        ({"A": 1}, "env.A"),
        ({"A": None}, "env.A"),
        ({"A": "x\0y"}, "env.A"),
        ({"A": "\ud800"}, "env.A"),
        ({"A" * 129: ""}, "env." + "A" * 129),
    ],
    ids=range(12),
)
def test_a_variable_that_can_not_be_one_is_refused_by_name(raw: object, field: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_env(raw)
    assert caught.value.field == field
    assert caught.value.allowed


def test_as_much_as_is_allowed_is_accepted() -> None:
    assert len(parse_env({f"V{i}": "" for i in range(MAX_VARIABLES)})) == MAX_VARIABLES
    assert parse_env({"A": "x" * (MAX_ENV_BYTES - 1)})
    assert len(parse_files({f"f{i}": "" for i in range(MAX_FILES)})) == MAX_FILES
    assert parse_files({"a": "x" * (MAX_FILES_BYTES - 1)})


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("text", "files"),
        ({f"f{i}": "" for i in range(MAX_FILES + 1)}, "files"),
        ({"a": "x" * MAX_FILES_BYTES}, "files"),
        ({"a": "é" * (MAX_FILES_BYTES // 2)}, "files"),
        ({"/etc/passwd": ""}, "files./etc/passwd"),
        ({"../up": ""}, "files.../up"),
        ({"a/../../up": ""}, "files.a/../../up"),
        ({"a/./b": ""}, "files.a/./b"),
        ({"a//b": ""}, "files.a//b"),
        ({"a/": ""}, "files.a/"),
        ({"": ""}, "files."),
        ({".": ""}, "files.."),
        ({"a\0b": ""}, "files"),
        ({"\ud800": ""}, "files"),
        ({"a" * 256: ""}, "files." + "a" * 256),
        ({"a/" * 600 + "b": ""}, ("files." + "a/" * 600)[:300]),
        ({"a": "", "a/b": ""}, "files.a/b"),
        ({"a/b/c": "", "a": ""}, "files.a/b/c"),
        ({"a": 1}, "files.a"),
        ({"a": {"base64": "AAAA", "more": ""}}, "files.a"),
        ({"a": {"base64": 1}}, "files.a"),
        ({"a": {"base64": "!"}}, "files.a.base64"),
        ({"a": {"base64": "AA"}}, "files.a.base64"),
        ({"a": "\ud800"}, "files.a"),
    ],
    ids=range(24),
)
def test_a_file_that_could_lie_elsewhere_or_is_none_is_refused_by_path(raw: object, field: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_files(raw)
    assert caught.value.field == field
    assert caught.value.allowed


@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=50), max_size=5))
def test_an_accepted_path_stays_below_its_directory(contents: dict[str, bytes]) -> None:
    try:
        files = parse_files({path: encode_file(data) for path, data in contents.items()})
    except RemoteProtocolError:
        return
    for path in files:
        assert not path.startswith("/")
        assert {"", ".", ".."}.isdisjoint(path.split("/"))


def test_bytes_that_are_no_text_travel_as_base64() -> None:
    assert encode_file(b"text") == "text"
    assert encode_file(b"\xff\0") == {"base64": "/wA="}


def test_what_waits_is_counted() -> None:
    assert size_bytes({"AB": "123"}, {"f": "1234", "g": {"base64": "AAAA"}}) == 5 + 5 + 5


@pytest.mark.parametrize("field", ["env", "files"])
def test_a_message_whose_input_is_no_object_names_it(field: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_client_message(f'{{"type":"execute","sessionId":"s_1","code":"","{field}":[]}}')
    assert (caught.value.field, caught.value.session_id) == (field, "s_1")
    assert "at most" in caught.value.allowed
