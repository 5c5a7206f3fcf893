"""Stubs in TypeScript. Checked as text here: the compiler is not needed to work on this project."""

from __future__ import annotations

from typing import Any

from enclave_broker.tools.stubs import typescript_stubs
from tests.broker.tools.stubs.schemas import HOSTILE, NASTY, TOOLS, fake


def test_every_tool_is_an_overload_with_its_arguments() -> None:
    text = typescript_stubs(TOOLS, "v1")
    assert 'declare function callTool(name: "ping", args?: Record<string, unknown>): Promise<unknown>;\n' in text
    assert 'declare function callTool(name: "pets_setPet", args: PetsSetPetArgs): Promise<unknown>;\n' in text
    assert 'declare function callTool(name: "lists", args?: ListsArgs): Promise<unknown>;\n' in text
    assert "/**\n * Set a pet.\n *\n * It is there afterwards.\n */\ndeclare function" in text


def test_arguments_have_the_types_of_their_schemas() -> None:
    text = typescript_stubs(TOOLS, "v1")
    start = text.index("interface PetsSetPetArgs {")
    arguments = text[start : text.index("\n}\n", start)]
    for line in (
        "  id: number;",
        "  body: PetsPet;",
        '  /**\n   * Who asks\n   * and why\n   */\n  "user-agent"?: (string | null);',
        "  class?: 5;",
        "  where?: {\n    lat: number;\n  };",
        "  any?: unknown;",
        "  map?: Record<string, number>;",
        "  mixed?: (string | {\n      x?: null;\n    });",
        "  tree?: PetsJson;",
    ):
        assert line in arguments, line
    assert (
        "interface PetsPet {\n  /** What it is called */\n  name: string;\n  kids?: PetsPet[];\n  kind?: PetsKind;\n}\n"
        in text
    )
    assert 'type PetsKind = ("cat" | "dog" | null);\n' in text
    assert "type PetsJson = (PetsJson[] | string);\n" in text
    assert text.count("interface PetsPet {") == 1


def test_without_tools_there_is_the_function_alone() -> None:
    text = typescript_stubs([], "empty")
    assert text.endswith("declare function callTool(name: string, args?: unknown): Promise<unknown>;\n")


def test_what_a_document_says_stays_text() -> None:
    text = typescript_stubs(HOSTILE, "v1\nevil();")
    outside, inside = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("/**"):
            inside = True
        if not inside and not line.startswith("//"):
            outside.append(line)
        if line.endswith("*/"):
            inside = False
    code = "\n".join(outside)
    assert "os.abort" in text
    assert "evil()" not in code
    strings = [part for line in outside for part in line.split('"')[1::2]]
    assert "\n" not in "".join(strings)
    assert NASTY not in text, "a line break in a name would end the string"
    assert "*\\/ an end" in text


def test_types_nested_without_end_end_in_anything() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"x": schema}}
    text = typescript_stubs([fake("t", schema)], "v1")
    assert "x?: unknown;" in text
    assert len(text) < 5000
