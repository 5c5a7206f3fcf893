"""How an input gets into the code."""

from __future__ import annotations

import ast
import json
import shlex
from typing import Any

import pytest

from enclave_protocol import RemoteProtocolError
from enclave_protocol.items import with_item

ITEMS: list[Any] = [None, True, 1.5, "a\"'\n\\\u2028é", [1, {"x": None}], {"a": {"b": [False]}}, 10**18]


@pytest.mark.parametrize("item", ITEMS)
def test_python_finds_the_item_as_its_own_value(item: Any) -> None:
    namespace: dict[str, Any] = {}
    exec(with_item("result = item", item, "python"), namespace)
    assert namespace["result"] == item


@pytest.mark.parametrize("item", ITEMS)
def test_the_other_languages_find_it_as_json(item: Any) -> None:
    script = with_item("return item", item, "javascript")
    assert json.loads(script.removeprefix("const item = ").removesuffix("; return item")) == item
    command = with_item('echo "$item"', item, "shell")
    assert json.loads(shlex.split(command.removesuffix('; echo "$item"'))[0].removeprefix("item=")) == item


@pytest.mark.parametrize(
    "code", ["return 1", "x = 1\nraise X", "# nothing\nreturn 1", "\nreturn 1", "matching = 1", ""]
)
def test_line_numbers_stay_those_of_the_code(code: str) -> None:
    given = with_item(code, 5, "python")
    assert given.splitlines()[1:] == code.splitlines()[1:]
    assert given.startswith("item = 5; ")


COMPOUND = [
    *("for x in item: pass", "if item:\n  pass", "@f\ndef g(): pass", "async def f(): pass", "with item: pass"),
    *("class A: pass", "while False: pass", "try:\n  pass\nfinally:\n  pass", "match item:\n  case _: pass"),
]


@pytest.mark.parametrize("code", COMPOUND)
def test_before_a_compound_statement_the_item_gets_a_line_of_its_own(code: str) -> None:
    ast.parse(with_item(code, [1], "python"))


def test_a_language_nobody_knows_and_a_value_that_is_not_json_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="cobol"):
        with_item("", 1, "cobol")
    with pytest.raises(RemoteProtocolError, match="not JSON"):
        with_item("", {1, object()}, "python")
