"""OpenAPI's schemas become plain JSON Schema that stands on its own. Pure.

A schema that refers to others keeps referring: what it refers to is copied, with what that refers to, into its own
`$defs`. So recursion stays what it is, and a document whose schemas refer to each other a billion times over costs as
much as it is long. Of OpenAPI 3.0's own dialect, `nullable` and boolean exclusive bounds are translated; what only
documents or concerns XML is left out, as are properties that only answers have (`readOnly`).
"""

from __future__ import annotations

import re
from typing import Any

from .document import MAX_DEPTH, DocumentError, References, pointer_parts

_DROPPED = frozenset(
    {
        *("xml", "externalDocs", "example", "examples", "discriminator", "nullable", "readOnly", "writeOnly"),
        # References go by the path from the document's root, so other ways to be referred to have no use.
        *("$schema", "$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$comment", "$defs", "definitions"),
    }
)
MAX_DEFINITIONS = 100
"""Most schemas that one tool's schema refers to, directly or not, and that it has in full."""

Used = dict[str, None]
"""Names in `$defs`, in the order in which they are first referred to."""

_OF_ONE = frozenset({"not", "items", "additionalProperties", "contains", "propertyNames", "if", "then", "else"})
_OF_MANY = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_OF_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas"})
_SAFE = re.compile(r"[^A-Za-z0-9_]+")


class SchemaCopier:
    """Copies the schemas of one document. What several of them refer to is copied once, and shared.

    Args:
        references: of the document.
    """

    def __init__(self, references: References) -> None:
        self._references = references
        self._names: dict[str, str] = {}  # reference -> name in `$defs`
        self._wanted: dict[str, str] = {}  # and back
        self._definitions: dict[str, tuple[Any, Used]] = {}

    def copy(self, schema: Any, used: Used, depth: int = 0) -> Any:
        """Return the schema with its references pointing into `$defs`, and note in `used` which of them it needs.

        Raises:
            DocumentError: it is no schema, or refers to what is not in the document.
        """
        if depth > MAX_DEPTH:
            raise DocumentError(f"a schema nests more than {MAX_DEPTH} deep")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise DocumentError(f"a schema is {type(schema).__name__}, not an object")
        copied = {key: self._value(key, value, used, depth) for key, value in schema.items() if _kept(key)}
        if not isinstance(copied.get("required", []), list):
            del copied["required"]  # a parameter's word, often misplaced
        _drop_read_only(copied, schema, self._references)
        _translate_bounds(copied)
        return _nullable(copied) if schema.get("nullable") is True else copied

    def definitions(self, used: Used) -> dict[str, Any]:
        """Return the `$defs` of a schema: those it uses, and those that these use.

        The nearest `MAX_DEFINITIONS` are there in full; what lies beyond them is anything, so that a document in which
        everything hangs together does not become as many copies of itself as it has operations.

        Raises:
            DocumentError: one of them is no schema, or refers to what is not in the document.
        """
        found = dict(used)
        reached: dict[str, Any] = {}
        waiting = list(found)
        for name in waiting:  # grows while it is walked: breadth first
            if len(reached) >= MAX_DEFINITIONS:
                reached[name] = {}
                continue
            reached[name], further = self._define(name)
            new = [each for each in further if each not in found]
            found |= dict.fromkeys(new)
            waiting += new
        return reached

    def _value(self, key: str, value: Any, used: Used, depth: int) -> Any:
        if key == "$ref" and isinstance(value, str):
            name = self._name(value)
            used[name] = None
            return f"#/$defs/{name}"
        if key in _OF_ONE and isinstance(value, dict):
            return self.copy(value, used, depth + 1)
        if key in _OF_MANY and isinstance(value, list):
            return [self.copy(item, used, depth + 1) for item in value]
        if key in _OF_NAMED and isinstance(value, dict):
            return {name: self.copy(item, used, depth + 1) for name, item in value.items()}
        return value

    def _define(self, name: str) -> tuple[Any, Used]:
        if name not in self._definitions:
            used: Used = {}
            copied = self.copy(self._references.look_up(self._wanted[name]), used)
            self._definitions[name] = copied, used
        return self._definitions[name]

    def _name(self, reference: str) -> str:
        if reference not in self._names:
            self._references.look_up(reference)
            parts = pointer_parts(reference)
            name = base = _SAFE.sub("_", parts[-1] if parts else "root") or "schema"
            number = 1
            while name in self._wanted:
                number += 1
                name = f"{base}_{number}"
            self._names[reference] = name
            self._wanted[name] = reference
        return self._names[reference]


def _kept(key: str) -> bool:
    return key not in _DROPPED and not key.startswith("x-")


def _drop_read_only(copied: dict[str, Any], schema: dict[str, Any], references: References) -> None:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return
    hidden = {name for name, item in properties.items() if _is_read_only(item, references)}
    if not hidden:
        return
    copied["properties"] = {name: item for name, item in copied["properties"].items() if name not in hidden}
    if isinstance(copied.get("required"), list):
        copied["required"] = [name for name in copied["required"] if name not in hidden]


def _is_read_only(schema: Any, references: References) -> bool:
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and "readOnly" not in schema:
        schema = references.look_up(schema["$ref"])
    return isinstance(schema, dict) and schema.get("readOnly") is True


def _translate_bounds(schema: dict[str, Any]) -> None:
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        value = schema.get(exclusive)
        if isinstance(value, bool):
            del schema[exclusive]
            if value and bound in schema:
                schema[exclusive] = schema.pop(bound)


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if isinstance(kind, str):
        schema["type"] = [kind, "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
        return schema
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema
