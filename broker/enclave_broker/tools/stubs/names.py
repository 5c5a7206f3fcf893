"""Names of types, and text that stays text. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

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
    """The `$defs` of all tools. What is the same in two tools of one service is written down once.

    Args:
        names: where the types' names come from.
    """

    def __init__(self, names: TypeNames) -> None:
        self._names = names
        self._known: dict[str, str] = {}

    def name_of(self, service: str, definitions: dict[str, Any], name: str) -> tuple[str, bool]:
        """Return what a definition is called, and whether it has to be written because nobody has asked before."""
        meant = json.dumps([service, name, _reachable(definitions, name)], sort_keys=True)
        new = meant not in self._known
        if new:
            self._known[meant] = self._names.make(service, name)
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
