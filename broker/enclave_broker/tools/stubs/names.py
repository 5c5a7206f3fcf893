"""Names of types, and text that stays text. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_broker.tools.tool import Tool

MAX_DEPTH = 12
"""Deepest nesting of types that is written down; what is deeper is anything."""

_WORDS = re.compile(r"[A-Za-z0-9]+")


class TypeNames:
    """Gives every type a name of its own."""

    def __init__(self, taken: frozenset[str]) -> None:
        self._taken = set(taken)

    def make(self, *parts: str) -> str:
        """Return a free name made of the words in these parts, such as `PetsGetPetArgs`."""
        words = [word for part in parts for word in _WORDS.findall(part)]
        name = base = "".join(word[0].upper() + word[1:] for word in words)
        if not name or name[0].isdigit():
            name = base = f"T{name}"
        number = 1
        while name in self._taken:
            number += 1
            name = f"{base}{number}"
        self._taken.add(name)
        return name


class Definitions:
    """The `$defs` of all tools, so that what is the same in several tools of a service is written down once.

    Tools of one service whose definitions do not contradict each other share all of them: what one leaves open (`{}`),
    another may say. One that contradicts those before it has its own.

    Args:
        tools: all that are written.
        names: where the types' names come from.
    """

    def __init__(self, tools: Iterable[Tool], names: TypeNames) -> None:
        self._names = names
        self._shared: dict[str, dict[str, Any]] = {}
        self._views: dict[str, dict[str, Any]] = {}
        self._known: dict[str, str] = {}
        for tool in tools:
            given = tool.input_schema.get("$defs")
            own: dict[str, Any] = given if isinstance(given, dict) else {}
            shared = self._shared.setdefault(tool.service, {})
            fits = all(not shared.get(name) or not schema or shared[name] == schema for name, schema in own.items())
            if fits:
                shared |= {name: schema for name, schema in own.items() if schema or name not in shared}
            self._views[tool.name] = shared if fits else own

    def find(self, tool: Tool, reference: object) -> tuple[str, Any]:
        """Return the name and the schema that a tool's reference leads to; a schema of anything if it leads nowhere."""
        name = definition_name(reference)
        schema = None if name is None else self._views[tool.name].get(name)
        return ("", {}) if name is None or not isinstance(schema, dict) else (name, schema)

    def name_of(self, tool: Tool, name: str) -> tuple[str, bool]:
        """Return what a definition is called, and whether it has to be written because nobody has asked before."""
        view = self._views[tool.name]
        own = "" if view is self._shared[tool.service] else json.dumps(_reachable(view, name), sort_keys=True)
        meant = json.dumps([tool.service, name, own])
        new = meant not in self._known
        if new:
            self._known[meant] = self._names.make(tool.service, name)
        return self._known[meant], new


def _reachable(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a definition and all that it refers to."""
    found: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each not in found and each in definitions:
            found[each] = definitions[each]
            waiting += _references(definitions[each])
    return found


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for each in schema for name in _references(each)]
    if not isinstance(schema, dict):
        return []
    own = definition_name(schema.get("$ref"))
    return ([own] if own else []) + [name for each in schema.values() for name in _references(each)]


def one_line(text: str) -> str:
    """Return text without line breaks or anything else that is not printed."""
    return "".join(each if each.isprintable() else " " for each in " ".join(text.split()))


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, each without what is not printed, and no empty ones at either end."""
    lines = [one_line(line) if line.strip() else "" for line in text.splitlines()]
    while lines and not lines[0]:
        del lines[0]
    while lines and not lines[-1]:
        del lines[-1]
    return lines


def definition_name(reference: object) -> str | None:
    """Return `Pet` for `#/$defs/Pet`, None for any other reference."""
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        name = reference.removeprefix("#/$defs/")
        return None if "/" in name else name.replace("~1", "/").replace("~0", "~")
    return None
