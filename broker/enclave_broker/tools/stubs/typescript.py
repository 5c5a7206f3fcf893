"""The tools as TypeScript: an interface for the arguments of each, and `callTool` overloaded by the tool's name."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from .names import MAX_DEPTH, Definitions, TypeNames, lines_of, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_broker.tools.tool import Tool

HEAD = """\
// The tools that code may call, as `await callTool(NAME, ARGUMENTS)`. A tool that fails throws an error, which has a
// `code`. Version {version} of the catalogue.
"""
_SIMPLE = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
    "array": "unknown[]",
    "object": "Record<string, unknown>",
}
_RESERVED = frozenset({"Record", "Promise", "Array", "Object", "String", "Number", "Boolean", "Function", "Symbol"})
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


def typescript_stubs(tools: Iterable[Tool], version: str) -> str:
    """Return the tools as a TypeScript declaration file."""
    names = TypeNames(_RESERVED)
    tools = list(tools)
    definitions = Definitions(tools, names)
    types: list[str] = []
    calls: list[str] = []
    for tool in tools:
        writer = _Writer(tool, names, definitions)
        arguments = writer.arguments()
        calls.append(
            f"{_comment(tool.description, '')}declare function callTool(name: {_text(tool.name)}, {arguments}):"
            " Promise<unknown>;\n"
        )
        types += writer.blocks
    if not calls:
        calls = ["declare function callTool(name: string, args?: unknown): Promise<unknown>;\n"]
    return "\n".join([HEAD.format(version=one_line(version)), *types, *calls])


class _Writer:
    """Writes the types of one tool's arguments."""

    def __init__(self, tool: Tool, names: TypeNames, shared: Definitions) -> None:
        self.blocks: list[str] = []
        self._tool = tool
        self._names = names
        self._shared = shared

    def arguments(self) -> str:
        """Return the parameter for the whole, having written its type."""
        schema = self._tool.input_schema
        if not schema.get("properties"):
            return f"args?: {self._type({**schema, 'type': 'object'}, 0)}"
        name = self._names.make(self._tool.name, "args")
        self.blocks.append(f"interface {name} {self._object(schema, 0)}\n")
        return f"args: {name}" if schema.get("required") else f"args?: {name}"

    def _type(self, schema: Any, depth: int) -> str:
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return "unknown"
        if "$ref" in schema:
            return self._defined(schema["$ref"], depth)
        if "const" in schema:
            return _literal([schema["const"]])
        if isinstance(schema.get("enum"), list):
            return _literal(schema["enum"])
        for key, joint in (("anyOf", " | "), ("oneOf", " | "), ("allOf", " & ")):
            if isinstance(schema.get(key), list) and schema[key]:
                kinds = dict.fromkeys(self._type(each, depth + 1) for each in schema[key])
                return kinds.popitem()[0] if len(kinds) == 1 else f"({joint.join(kinds)})"
        kind = schema.get("type", "object" if "properties" in schema else None)
        kinds = dict.fromkeys(
            self._simple(each, schema, depth) for each in (kind if isinstance(kind, list) else [kind])
        )
        return kinds.popitem()[0] if len(kinds) == 1 else f"({' | '.join(kinds)})"

    def _simple(self, kind: object, schema: dict[str, Any], depth: int) -> str:
        if kind == "array" and isinstance(schema.get("items"), dict):
            return f"{self._type(schema['items'], depth + 1)}[]"
        if kind == "object" and isinstance(schema.get("properties"), dict) and schema["properties"]:
            return self._object(schema, depth)
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"Record<string, {self._type(schema['additionalProperties'], depth + 1)}>"
        return _SIMPLE.get(kind, "unknown") if isinstance(kind, str) else "unknown"

    def _defined(self, reference: object, depth: int) -> str:
        name, schema = self._shared.find(self._tool, reference)
        if not schema:
            return "unknown"
        given, new = self._shared.name_of(self._tool, name)
        if new:
            if isinstance(schema, dict) and isinstance(schema.get("properties"), dict) and schema["properties"]:
                self.blocks.append(f"interface {given} {self._object(schema, 0)}\n")
            else:
                self.blocks.append(f"type {given} = {self._type(schema, depth + 1)};\n")
        return given

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        indent = "  " * (depth + 1)
        required = schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        lines = ["{\n"]
        for name, described in schema["properties"].items():
            text = described.get("description", "") if isinstance(described, dict) else ""
            shown = name if _PLAIN.fullmatch(name) else _text(name)
            mark = "" if name in needed else "?"
            lines.append(f"{_comment(text, indent)}{indent}{shown}{mark}: {self._type(described, depth + 1)};\n")
        return "".join([*lines, "  " * depth + "}"])


def _literal(values: list[Any]) -> str:
    if not values or not all(value is None or isinstance(value, str | int | float) for value in values):
        return "unknown"
    texts = dict.fromkeys(_text(value) for value in values)
    return texts.popitem()[0] if len(texts) == 1 else f"({' | '.join(texts)})"


def _text(value: object) -> str:
    return json.dumps(value)


def _comment(text: object, indent: str) -> str:
    lines = [line.replace("*/", "*\\/") for line in lines_of(text)] if isinstance(text, str) else []
    if not lines:
        return ""
    if len(lines) == 1:
        return f"{indent}/** {lines[0]} */\n"
    return f"{indent}/**\n" + "".join(f"{indent} * {line}".rstrip() + "\n" for line in lines) + f"{indent} */\n"
