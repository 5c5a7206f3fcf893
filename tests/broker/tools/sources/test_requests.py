"""What is sent for a guest's arguments, and what no argument can make of a request."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.tools.sources.operation import Body, Operation, Parameter
from enclave_broker.tools.sources.requests import BadArgument, HttpRequest, Part, build_request


def operation(*parameters: Parameter, body: Body | None = None, path: str = "/x", rest_as: Any = "") -> Operation:
    return Operation(
        name="t",
        description="",
        method="POST",
        base_url="http://api/v1",
        path=path,
        parameters=parameters,
        body=body,
        rest_as=rest_as,
    )


def parameter(where: Any, style: str = "", **fields: Any) -> Parameter:
    style = style or ("form" if where in {"query", "cookie"} else "simple")
    return Parameter(argument="a", name="a", where=where, style=style, **({"explode": style == "form"} | fields))


def sent(where: Any, value: Any, style: str = "", *, path: str = "/x", **fields: Any) -> HttpRequest:
    return build_request(operation(parameter(where, style, **fields), path=path), {"a": value})


@pytest.mark.parametrize(
    ("value", "style", "fields", "expected"),
    [
        ("a b&c", "form", {}, [("a", "a b&c")]),
        (True, "form", {}, [("a", "true")]),
        (1.5, "form", {}, [("a", "1.5")]),
        (None, "form", {}, []),
        ([1, "x"], "form", {}, [("a", "1"), ("a", "x")]),
        ([1, "x"], "form", {"explode": False}, [("a", "1,x")]),
        ([1, 2], "pipeDelimited", {}, [("a", "1|2")]),
        ([1, 2], "spaceDelimited", {}, [("a", "1 2")]),
        ([], "form", {"explode": False}, []),
        ({"k": 1, "l": [2]}, "form", {}, [("k", "1"), ("l", "[2]")]),
        ({"k": 1, "l": 2}, "form", {"explode": False}, [("a", "k,1,l,2")]),
        ({"k": 1}, "deepObject", {}, [("a[k]", "1")]),
        ({"k": [1]}, "form", {"as_json": True}, [("a", '{"k":[1]}')]),
    ],
)
def test_a_query_says_a_value_in_the_style_that_the_document_wants(
    value: Any, style: str, fields: Any, expected: Any
) -> None:
    assert list(sent("query", value, style, **fields).query) == expected


@pytest.mark.parametrize(
    ("value", "fields", "expected"),
    [
        ("a b/c?d#e", {}, "/p/a%20b%2Fc%3Fd%23e"),
        (5, {}, "/p/5"),
        (["x,y", 1], {}, "/p/x%2Cy,1"),
        ({"k": 1, "l": 2}, {}, "/p/k,1,l,2"),
        ({"k": 1, "l": "="}, {"explode": True}, "/p/k=1,l=%3D"),
        ("{a}", {}, "/p/%7Ba%7D"),
    ],
)
def test_a_path_has_a_value_encoded(value: Any, fields: Any, expected: str) -> None:
    assert sent("path", value, path="/p/{a}", **fields).url == "http://api/v1" + expected


@pytest.mark.parametrize("value", ["", ".", "..", "../admin", "x/../../admin", "..\\admin", "a//b", "/", []])
def test_no_value_climbs_out_of_its_place_in_a_path(value: Any) -> None:
    with pytest.raises(BadArgument, match="can't be a part of a path"):
        sent("path", value, path="/p/{a}")


@given(st.text() | st.integers() | st.lists(st.text()))
def test_whatever_a_path_is_given_the_request_goes_to_the_operations_own_path(value: Any) -> None:
    try:
        url = sent("path", value, path="/p/{a}/end").url
    except BadArgument:
        return
    before, middle, after = url.removeprefix("http://api/v1").split("/p/")[0], url.split("/")[5], url.split("/")[6:]
    assert (before, after) == ("", ["end"])
    assert not set(middle) & set("?#/\\ \r\n")
    assert middle not in {"", ".", ".."}


def test_headers_and_cookies_are_said() -> None:
    assert ("a", "x,1") in sent("header", ["x", 1]).headers
    assert sent("cookie", "a b;c").cookies == (("a", "a%20b%3Bc"),)


@pytest.mark.parametrize("value", ["a\r\nX-Other: 1", "a\n", "\x00", "ä"])
def test_no_value_of_a_header_starts_another(value: str) -> None:
    with pytest.raises(BadArgument, match="printable ASCII"):
        sent("header", value)


def test_a_required_argument_that_is_missing_or_null_is_told() -> None:
    for arguments in ({}, {"a": None}):
        with pytest.raises(BadArgument, match="a: missing"):
            build_request(operation(parameter("query", required=True)), arguments)


def body(kind: Any, value: Any, media_type: str = "x/y") -> HttpRequest:
    shape = Body(argument="body", media_type=media_type, kind=kind, required=True)
    return build_request(operation(body=shape), {"body": value})


def test_a_body_is_sent_in_its_form() -> None:
    assert json.loads(body("json", {"a": [1, None]}).content or b"") == {"a": [1, None]}
    assert body("form", {"a": [1, "b&c"], "d": None, "e": {"f": 1}}).content == b"a=1&a=b%26c&e=%7B%22f%22%3A1%7D"
    assert body("text", "hällo").content == "hällo".encode()
    assert body("binary", {"base64": base64.b64encode(b"\x00\xff").decode()}).content == b"\x00\xff"
    assert ("Content-Type", "x/y") in body("json", 1).headers


def test_a_multipart_body_has_texts_values_and_files() -> None:
    file = {"base64": "AAE=", "filename": "a.bin", "contentType": "x/z"}
    assert body("multipart", {"name": "Rex", "age": 3, "tags": ["a"], "photo": file, "gone": None}).parts == (
        Part(name="name", data=b"Rex"),
        Part(name="age", data=b"3"),
        Part(name="tags", data=b'["a"]', content_type="application/json"),
        Part(name="photo", data=b"\x00\x01", filename="a.bin", content_type="x/z"),
    )


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("form", "text", "an object of fields"),
        ("multipart", {}, "at least one field"),
        ("multipart", {"a": {"base64": "%%"}}, r"body\.a: not base64"),
        ("multipart", {"a": {"base64": "AA==", "filename": 'x\r\nX: "'}}, "control character"),
        ("multipart", {"a\r\nb": "x"}, "control character"),
        ("multipart", {"a": {"base64": "AA==", "filename": 5}}, "are text"),
        ("binary", {"base64": "%"}, "not base64"),
    ],
)
def test_a_body_that_cannot_be_sent_is_told(kind: Any, value: Any, says: str) -> None:
    with pytest.raises(BadArgument, match=says):
        body(kind, value)


def test_a_body_that_is_not_given_is_not_sent_and_told_if_it_is_needed() -> None:
    optional = Body(argument="body", media_type="x/y", kind="json")
    assert build_request(operation(body=optional), {}).content is None
    required = Body(argument="body", media_type="x/y", kind="json", required=True)
    with pytest.raises(BadArgument, match="body: missing"):
        build_request(operation(body=required), {})


def test_arguments_beyond_the_parameters_go_where_an_endpoint_wants_them() -> None:
    assert build_request(operation(rest_as="query"), {"a": 1, "b": None}).query == (("a", "1"),)
    assert build_request(operation(rest_as="json"), {"a": 1, "b": None}).content == b'{"a":1,"b":null}'
    assert build_request(operation(), {"a": 1}).query == ()


def test_a_cookie_has_no_room_for_another_in_its_name() -> None:
    prefs = Parameter(argument="prefs", name="prefs", where="cookie", style="form", explode=True)
    operation = Operation(name="t", description="", method="GET", base_url="http://x", path="/", parameters=(prefs,))
    assert build_request(operation, {"prefs": {"a=1; sid": "evil"}}).cookies == (("a%3D1%3B%20sid", "evil"),)
