"""The tools as Python: a `TypedDict` for the arguments of each, and `call_tool` overloaded by the tool's name.

The text is a valid module. A type checker that is given it knows every tool's arguments; a model reads the same.
"""

from __future__ import annotations

import json
import keyword
import re
from typing import TYPE_CHECKING, Any

from .names import MAX_DEPTH, Definitions, TypeNames, lines_of, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_broker.tools.tool import Tool

HEAD = """\
# The tools that code may call, as `await call_tool(NAME, ARGUMENTS)`. A tool that fails raises ToolError, which has a
# `code`. Version {version} of the catalogue.
from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict, overload
"""
_RESERVED = frozenset(
    {"Any", "Literal", "TypeAlias", "NotRequired", "TypedDict", "ToolError", "None", "True", "False", "Union"}
)
_PLAIN = re.compile(r"[a-z][A-Za-z0-9_]*")
_NOT_FIELDS = frozenset({*keyword.kwlist, "str", "int", "float", "bool", "list", "dict"})
"""What in a class would hide the type of that name from the fields that follow."""
_SIMPLE = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "array": "list[Any]",
    "object": "dict[str, Any]",
}


def python_stubs(tools: Iterable[Tool], version: str) -> str:
    """Return the tools as a Python module."""
    names = TypeNames(_RESERVED)
    tools = list(tools)
    definitions = Definitions(tools, names)
    types: list[str] = []
    calls: list[tuple[str, str, str]] = []
    for tool in tools:
        writer = _Writer(tool, names, definitions)
        calls.append((tool.name, writer.arguments(), tool.description))
        types += writer.blocks
    blocks = [HEAD.format(version=one_line(version)), *types]
    if len(calls) == 1:
        name, arguments, description = calls[0]
        blocks.append(_call(name, arguments, description, body="raise NotImplementedError"))
    else:
        blocks += [f"@overload\n{_call(name, arguments, text, body='...')}" for name, arguments, text in calls]
        blocks.append("async def call_tool(name: str, args: Any = None) -> Any:\n    raise NotImplementedError\n")
    return "\n\n".join(blocks)


def _call(name: str, arguments: str, description: str, *, body: str) -> str:
    head = f"async def call_tool(name: Literal[{_text(name)}], args: {arguments}) -> Any:\n"
    return head + (_docstring(description, "    ") or "") + (f"    {body}\n")


class _Writer:
    """Writes the types of one tool's arguments."""

    def __init__(self, tool: Tool, names: TypeNames, shared: Definitions) -> None:
        self.blocks: list[str] = []
        self._tool = tool
        self._names = names
        self._shared = shared

    def arguments(self) -> str:
        """Return the type of the whole, having written it."""
        schema = self._tool.input_schema
        if not schema.get("properties"):
            return self._type({**schema, "type": "object"}, "", 0) + " | None = None"
        name = self._names.make(self._tool.name, "args")
        self._write_object(name, schema, 0)
        return name if schema.get("required") else f"{name} | None = None"

    def _type(self, schema: Any, hint: str, depth: int) -> str:
        """Return the annotation for a schema. `hint` names a type that has to be written for it."""
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return "Any"
        if "$ref" in schema:
            return self._defined(schema["$ref"], depth)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list):
            return _literal(values)
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return _union([self._type(each, f"{hint} {i}", depth + 1) for i, each in enumerate(schema[key], 1)])
        if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1 and "properties" not in schema:
            return self._type(schema["allOf"][0], hint, depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else None)
        kinds = kind if isinstance(kind, list) else [kind]
        return _union([self._simple(each, schema, hint, depth) for each in kinds])

    def _simple(self, kind: object, schema: dict[str, Any], hint: str, depth: int) -> str:
        if kind == "array" and isinstance(schema.get("items"), dict):
            return f"list[{self._type(schema['items'], f'{hint} item', depth + 1)}]"
        if kind == "object" and isinstance(schema.get("properties"), dict) and schema["properties"]:
            name = self._names.make(self._tool.name, hint)
            self._write_object(name, schema, depth)
            return name
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"dict[str, {self._type(schema['additionalProperties'], f'{hint} value', depth + 1)}]"
        return _SIMPLE.get(kind, "Any") if isinstance(kind, str) else "Any"

    def _defined(self, reference: object, depth: int) -> str:
        name, schema = self._shared.find(self._tool, reference)
        if not schema:
            return "Any"
        given, new = self._shared.name_of(self._tool, name)
        if new:
            properties = schema.get("properties") if isinstance(schema, dict) else None
            if isinstance(properties, dict) and properties and schema.get("type", "object") == "object":
                self._write_object(given, schema, depth)
            else:
                # As text: it may stand for itself somewhere inside.
                self.blocks.append(f"{given}: TypeAlias = {_text(self._type(schema, name, depth + 1))}\n")
        return given

    def _write_object(self, name: str, schema: dict[str, Any], depth: int) -> None:
        required = schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        fields = []
        for field, described in schema["properties"].items():
            kind = self._type(described, field, depth + 1)
            text = described.get("description", "") if isinstance(described, dict) else ""
            fields.append((field, kind if field in needed else f"NotRequired[{kind}]", _comment(text)))
        if all(_PLAIN.fullmatch(field) and field not in _NOT_FIELDS for field, *_ in fields):
            lines = [f"{comment}    {field}: {kind}\n" for field, kind, comment in fields]
            self.blocks.append(f"class {name}(TypedDict):\n{''.join(lines)}")
        else:
            # As text: these annotations are looked at when the module is loaded.
            lines = [f"{comment}    {_text(field)}: {_text(kind)},\n" for field, kind, comment in fields]
            self.blocks.append(f"{name} = TypedDict({_text(name)}, {{\n{''.join(lines)}}})\n")


def _literal(values: list[Any]) -> str:
    if not values or not all(value is None or isinstance(value, str | int) for value in values):
        return "Any"
    return f"Literal[{', '.join(_text(value) if isinstance(value, str) else repr(value) for value in values)}]"


def _union(kinds: list[str]) -> str:
    return "Any" if "Any" in kinds else " | ".join(dict.fromkeys(kinds))


def _text(text: str) -> str:
    # JSON's escapes are Python's, but for what needs a pair of them.
    return json.dumps(text) if text.isascii() else repr(text)


def _comment(text: object) -> str:
    line = one_line(text) if isinstance(text, str) else ""
    return f"    # {line}\n" if line else ""


def _docstring(text: str, indent: str) -> str:
    lines = [line.replace("\\", "\\\\").replace('"""', '\\"\\"\\"') for line in lines_of(text)]
    if not lines:
        return ""
    if lines[-1].endswith('"'):
        lines[-1] = lines[-1][:-1] + '\\"'
    end = '"""\n' if len(lines) == 1 else f'\n{indent}"""\n'
    return indent + '"""' + f"\n{indent}".join(lines).replace(f"\n{indent}\n", "\n\n") + end
