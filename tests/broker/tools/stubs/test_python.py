"""Stubs in Python: what a type checker and an interpreter make of them."""

from __future__ import annotations

import ast
import copy
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.tools.stubs import python_stubs
from tests.broker.tools.stubs.schemas import DEFINITIONS, HOSTILE, NASTY, TOOLS, fake

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from enclave_broker.tools import Tool


def run(tools: Sequence[Tool]) -> dict[str, Any]:
    """Run the stubs as a module, and return what is in it."""
    found: dict[str, Any] = {"__name__": "stubs"}
    exec(compile(python_stubs(tools, "v1"), "stubs.py", "exec"), found)
    return found


def fields(kind: Any) -> dict[str, Any]:
    return dict(kind.__annotations__)


@pytest.mark.parametrize("tools", [[], TOOLS[:1], TOOLS, HOSTILE, [*TOOLS, *HOSTILE]])
def test_stubs_are_a_module_that_can_be_run(tools: list[Tool]) -> None:
    assert callable(run(tools)["call_tool"])


def test_a_type_checker_holds_calls_to_the_schemas(tmp_path: Path) -> None:
    good = """
async def main() -> None:
    await call_tool("ping")
    await call_tool("pets_setPet", {"id": 1, "body": {"name": "Rex", "kids": [{"name": "Bo", "kind": "cat"}]}})
    await call_tool("pets_setPet", {"id": 1, "body": {"name": "x"}, "user-agent": None, "where": {"lat": 1.5}})
    await call_tool("pets_setPet", {"id": 1, "body": {"name": "x"}, "tree": ["a", ["b"]], "map": {"a": 1}})
    await call_tool("lists", {"ids": [1, 2]})
"""
    bad = """
async def bad() -> None:
    await call_tool("no_such_tool")
    await call_tool("pets_setPet")
    await call_tool("pets_setPet", {"id": "1", "body": {"name": "x"}})
    await call_tool("pets_setPet", {"id": 1, "body": {}})
    await call_tool("pets_setPet", {"id": 1, "body": {"name": "x", "kind": "cow"}})
    await call_tool("lists", {"ids": ["1"]})
    await call_tool("lists", {"other": 1})
"""
    stubs = python_stubs([*TOOLS, *HOSTILE], "v1")
    (tmp_path / "good.py").write_text(stubs + good)
    (tmp_path / "bad.py").write_text(stubs + bad)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", "good.py", "bad.py"]
    pytest.importorskip("mypy", reason="the type checker belongs to the tools of `make lint`")
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    first = stubs.count("\n") + 1
    lines = {
        line.split(":")[0] + ":" + line.split(":")[1] for line in checked.stdout.splitlines() if ": error:" in line
    }
    assert lines == {f"bad.py:{first + number}" for number in range(2, 9)}, checked.stdout


def test_an_argument_that_may_be_left_out_is_marked_so() -> None:
    arguments = fields(run(TOOLS)["PetsSetPetArgs"])
    # With a name that no field of a class can have, the whole is written as a table.
    assert arguments["id"].__forward_arg__ == "int"
    assert arguments["user-agent"].__forward_arg__ == "NotRequired[str | None]"
    assert arguments["class"].__forward_arg__ == "NotRequired[Literal[5]]"
    assert arguments["any"].__forward_arg__ == "NotRequired[Any]"


def test_what_several_tools_refer_to_is_written_once() -> None:
    text = python_stubs(TOOLS, "v1")
    assert text.count("class PetsPet(TypedDict)") == 1
    refers = {"type": "object", "properties": {"p": {"$ref": "#/$defs/Pet"}}}
    same = fake("a", {**refers, "$defs": copy.deepcopy(DEFINITIONS)})
    elsewhere = fake("b", {**refers, "$defs": DEFINITIONS}, service="zoo")
    contradicts = fake("c", {**refers, "$defs": {**DEFINITIONS, "Kind": {"enum": ["cow"]}}})
    text = python_stubs([*TOOLS, same, elsewhere, contradicts], "v1")
    assert re.findall(r"class (\w*Pet\d*)\(TypedDict\)", text) == ["PetsPet", "ZooPet", "PetsPet2"]
    assert re.findall(r"PetsKind\d*: TypeAlias = (.*)", text)[-1] == '"Literal[\\"cow\\"]"'


def test_of_a_type_that_a_schema_leaves_out_nothing_is_said() -> None:
    schema = {"type": "object", "properties": {"far": {"$ref": "#/$defs/Far"}}, "$defs": {"Far": {}}}
    text = python_stubs([fake("t", schema)], "v1")
    assert "    far: NotRequired[Any]\n" in text
    assert "Far" not in text


def test_types_that_tools_of_one_document_share_are_written_once_however_much_of_the_rest_each_has() -> None:
    near = {"type": "object", "properties": {"far": {"$ref": "#/$defs/Far"}}}
    far = {"type": "object", "properties": {"x": {"type": "integer"}}}
    refers = {"near": {"$ref": "#/$defs/Near"}}
    tools = [
        fake(f"t{i}", {"type": "object", "properties": refers, "$defs": {"Near": near, "Far": known}})
        for i, known in enumerate((far, {}))
    ]
    text = python_stubs(tools, "v1")
    assert text.count("class PetsNear(TypedDict)") == 1
    assert text.count("near: NotRequired[PetsNear]") == 2


def test_what_a_document_says_stays_text() -> None:
    tree = ast.parse(python_stubs(HOSTILE, 'v1"\nimport os'))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    functions = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    assert [node.name for node in functions] == ["call_tool"] * 3
    said = ast.get_docstring(functions[0])
    assert said is not None
    assert "import os; os.abort()" in said
    assert NASTY.partition("\n")[0] in said
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert {ast.unparse(call.func) for call in calls} == {"TypedDict"}


def test_types_nested_without_end_end_in_anything() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"x": schema}}
    text = python_stubs([fake("t", schema)], "v1")
    compile(text, "stubs.py", "exec")
    assert "NotRequired[Any]" in text
    assert len(text) < 5000


def test_one_description_stands_where_a_model_looks_for_it() -> None:
    text = python_stubs(TOOLS, "v1")
    assert '    """Set a pet.\n\n    It is there afterwards.\n    """\n' in text
    assert "    # What it is called\n    name: str\n" in text
