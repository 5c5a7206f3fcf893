"""Plain HTTP endpoints: their address as a template."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_broker.tools.sources.endpoints import make_operation
from enclave_broker.tools.sources.requests import build_request

URL = "https://api.example:8443/v1/weather/{city}?units={u}&v=2&empty="


def made(url: str = URL, method: str = "get", schema: Any = None) -> Any:
    return make_operation("weather", method=method, url=url, input_schema=schema)


def test_arguments_stand_in_the_path_and_in_the_query() -> None:
    request = build_request(made(), {"city": "São Paulo", "u": "metric"})
    assert request.url == "https://api.example:8443/v1/weather/S%C3%A3o%20Paulo?v=2&empty="
    assert request.query == (("units", "metric"),)
    assert request.method == "GET"


def test_those_of_the_path_are_required_and_those_of_the_query_are_not() -> None:
    schema = made().input_schema
    assert set(schema["properties"]) == {"city", "u"}
    assert schema["required"] == ["city"]


def test_what_stands_nowhere_goes_into_the_query_or_into_a_json_body() -> None:
    arguments = {"city": "x", "days": 3}
    assert build_request(made(), arguments).query == (("days", "3"),)
    posted = build_request(made(method="POST"), arguments)
    assert (posted.query, posted.content) == ((), b'{"days":3}')


def test_a_schema_of_ones_own_is_the_tools() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "u": {"enum": ["metric"]}}}
    assert made(schema=schema).input_schema == schema


@pytest.mark.parametrize(
    ("url", "method", "schema", "says"),
    [
        ("ftp://x/y", "GET", None, "url: .* no http"),
        ("https://{host}/y", "GET", None, "never in its host"),
        ("https://me:pw@x/y", "GET", None, "has a password in it"),
        ("https://x/{}", "GET", None, "no name of an argument"),
        ("https://x/{a b}", "GET", None, "no name of an argument"),
        ("https://x/y?q=a{b}", "GET", None, "a whole value"),
        ("https://x/y", "STEAL", None, "method: 'STEAL' is none of"),
        ("https://x/{a}", "GET", {"properties": {}}, "input: describes no a"),
    ],
)
def test_what_makes_no_sense_is_told_with_the_field(url: str, method: str, schema: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        made(url, method, schema)


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="its name"):
        make_operation("no name", method="GET", url="https://x")
