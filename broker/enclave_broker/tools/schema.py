"""Arguments checked by JSON Schema, compiled once.

The schema is the operator's, or comes from a source that the operator chose; the arguments are the guest's. So what a
check may cost is bounded: nothing is fetched, a pattern has a time limit, and `uniqueItems` does not compare all items
with all others.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import reprlib
import threading
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import jsonschema.validators
import msgspec
import regex
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from enclave_protocol.regexes import PatternError, compile_regex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PATTERN_TIMEOUT_S = 0.05
"""Longest that one pattern may take on one text; past it, the text counts as not matching."""
BUDGET_S = 0.1
BUDGET_S_PER_BYTE = 20e-6
"""Longest that one check may take, of CPU time: so much, and more for each byte of the arguments. A schema that refers
to itself in several alternatives can ask for a time that doubles with each level of nesting."""

_quote = reprlib.Repr()
_quote.maxstring = _quote.maxother = 100
_quote.maxlevel = 2


class ArgumentSchema:
    """The schema of one tool's arguments.

    Args:
        document: JSON Schema of an object. Its `$schema` chooses the dialect, 2020-12 without one.

    Attributes:
        document: the same, always with `"type": "object"`.

    Raises:
        ValueError: it is no valid schema, no object's, or refers to what it does not contain.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        kind = document.get("type", "object")
        if kind != "object":
            raise ValueError(f"its input schema is of type {kind!r}: arguments are an object")
        self.document: dict[str, Any] = {"type": "object", **document}
        dialect = jsonschema.validators.validator_for(self.document, default=jsonschema.Draft202012Validator)
        plain = _without_dialect(self.document)
        _require_sound(dialect, plain)
        _require_references(plain)
        _require_bounded(plain)
        bounded = jsonschema.validators.extend(dialect, _BOUNDED | _references_of(dialect))  # type: ignore[no-untyped-call]
        self._validator = bounded(plain, registry=Registry())
        properties, required = plain.get("properties", {}), plain.get("required", [])
        alone = list(required) if len(required) == 1 else list(properties)
        self._one: str | None = alone[0] if len(alone) == 1 else None
        self._needs_none = not required

    def accept(self, args: object) -> dict[str, Any]:
        """Return the arguments as an object; raises ValueError naming the first that does not fit."""
        given = self.as_object(args)
        try:
            size_bytes = len(msgspec.json.encode(given))
            _budget.until_s = time.thread_time() + BUDGET_S + BUDGET_S_PER_BYTE * size_bytes
            error = next(iter(self._validator.iter_errors(given)), None)
        except RecursionError:
            raise ValueError("the arguments, or their schema, are nested too deeply") from None
        if error is not None:
            raise ValueError(_words(error))
        return given

    def as_object(self, args: object) -> dict[str, Any]:
        """Return what stands for these arguments; raises ValueError if nothing does."""
        if isinstance(args, dict):
            return args
        if args is None and self._needs_none:
            return {}
        if self._one is not None:
            return {self._one: args}
        raise ValueError("takes an object with a name for each argument")


class _Budget(threading.local):
    until_s = math.inf
    """When the check that this thread makes has taken too long, on its own clock of CPU time."""

    def check(self) -> None:
        if time.thread_time() > self.until_s:
            raise ValueError("checking the arguments takes too long: they fit too many alternatives of the schema")


_budget = _Budget()


def _words(error: jsonschema.ValidationError) -> str:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    # Made here, for the library's own words quote all of what was given.
    got, wanted = _quote.repr(error.instance), error.validator_value
    words = {
        "type": f"expected {wanted}, got {got}",
        "enum": f"{got} is not one of {_quote.repr(wanted)}",
        "required": error.message,
        "additionalProperties": error.message,
        "pattern": f"{got} does not match {wanted!r}",
    }
    text = words.get(str(error.validator), f"{got} does not meet {error.validator} {_quote.repr(wanted)}")
    return f"{where[1:]}: {text[:500]}" if where else text[:500]


# Keywords whose usual meaning can cost more than the arguments are long


@functools.lru_cache(maxsize=1000)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """Compile a pattern as JavaScript means it, once; raises ValueError.

    RE2 takes time that is linear in the text, whatever the pattern; what it can't do, such as looking around, runs on
    an engine that backtracks, for a limited time.
    """
    try:
        return compile_regex(pattern, ignore_case=False).found_in
    except PatternError:
        pass
    try:
        backtracking = regex.compile(
            _DOLLAR.sub(lambda part: r"\Z" if part[0] == "$" else part[0], pattern), regex.ASCII
        )
    except regex.error as error:
        raise ValueError(f"its input schema has a pattern that is none: {_quote.repr(pattern)}: {error}") from error

    def found_in(text: str) -> bool:
        _budget.check()
        try:
            return backtracking.search(text, timeout=PATTERN_TIMEOUT_S) is not None
        except TimeoutError:
            return False

    return found_in


# Python's `$` also matches before a line break at the end, which JavaScript's does not.
_DOLLAR = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\$", re.DOTALL)


def _matches(pattern: str, text: str) -> bool:
    return _matcher(pattern)(text)


def _pattern(validator: Any, pattern: str, instance: object, _schema: object) -> Iterator[jsonschema.ValidationError]:
    if validator.is_type(instance, "string") and not _matches(pattern, str(instance)):
        yield jsonschema.ValidationError("does not match")


def _unique(validator: Any, wanted: object, instance: Any, _schema: object) -> Iterator[jsonschema.ValidationError]:
    if wanted and validator.is_type(instance, "array"):
        seen = {msgspec.json.encode(_canonical(item), order="deterministic") for item in instance}
        if len(seen) < len(instance):
            yield jsonschema.ValidationError("has items that are equal")


def _canonical(value: Any) -> Any:
    """Return the value with numbers that are equal spelled alike: for JSON Schema, 1 is 1.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return value


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: object) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for name in [name for name in instance if _matches(pattern, name)]:
                yield from validator.descend(instance[name], subschema, path=name, schema_path=pattern)


def _additional(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    patterns = schema.get("patternProperties", {})
    others = [name for name in instance if name not in schema.get("properties", {})]
    for name in others:
        if any(_matches(pattern, name) for pattern in patterns):
            continue
        if validator.is_type(allowed, "object"):
            yield from validator.descend(instance[name], allowed, path=name)
        elif not allowed:
            yield jsonschema.ValidationError(f"there is no argument {_quote.repr(name)}")


def _references_of(dialect: Any) -> dict[str, Any]:
    """Return the dialect's keywords that follow a reference: only by them is a value looked at again and again."""
    return {name: _within_budget(dialect.VALIDATORS[name]) for name in _FOLLOWING if name in dialect.VALIDATORS}


def _within_budget(keyword: Callable[..., Iterable[Any] | None]) -> Callable[..., Iterator[Any]]:
    def follow(validator: Any, reference: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _budget.check()
        yield from keyword(validator, reference, instance, schema) or ()

    return follow


_FOLLOWING = ("$ref", "$dynamicRef", "$recursiveRef")
_BOUNDED: dict[str, Any] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "uniqueItems": _unique,
}
_UNBOUNDED = ("unevaluatedProperties", "unevaluatedItems")
"""Keywords that are refused, because the library matches patterns for them by itself."""


# The schema itself

_DATA = frozenset({"enum", "const", "default", "example", "examples"})
"""Keywords whose values are data, in which nothing is a keyword."""


_MAX_SOUND = 20_000
_sound: dict[tuple[Any, bytes], None] = {}


def _require_sound(dialect: Any, schema: dict[str, Any]) -> None:
    """Hold a schema against its dialect; raises ValueError.

    That takes 0.2 ms for each value in it, and the tools of one document share most of what they refer to: what was
    found to be sound is so again.
    """
    definitions = schema.get("$defs")
    parts = [schema]
    if isinstance(definitions, dict):
        parts = [{key: value for key, value in schema.items() if key != "$defs"}, *definitions.values()]
    for part in parts:
        known = dialect, hashlib.sha256(msgspec.json.encode(part)).digest()
        if known in _sound:
            continue
        # Not by `check_schema`, which also asks Python's engine about patterns.
        error = next(iter(dialect(dialect.META_SCHEMA).iter_errors(part)), None)
        if error is not None:
            raise ValueError(f"its input schema is none: {_words(error)}")
        if len(_sound) >= _MAX_SOUND:
            _sound.clear()
        _sound[known] = None


def _without_dialect(schema: Any) -> Any:
    """Return a schema without `$schema`: one inside of it would bring back that dialect's own keywords.

    A part without any is not copied: tools of one document share much of it.
    """
    if isinstance(schema, dict):
        kept = {key: _without_dialect(value) for key, value in schema.items() if key != "$schema"}
        same = len(kept) == len(schema) and all(kept[key] is value for key, value in schema.items())
        return schema if same else kept
    if isinstance(schema, list):
        items = [_without_dialect(value) for value in schema]
        return schema if all(new is old for new, old in zip(items, schema, strict=True)) else items
    return schema


def _require_references(schema: dict[str, Any]) -> None:
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"its input schema refers to {reference!r}, which it does not contain") from error


def _require_bounded(schema: object) -> None:
    """Refuse what can't be checked within bounds, and patterns that are none."""
    if isinstance(schema, list):
        for value in schema:
            _require_bounded(value)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _UNBOUNDED and value is not True:
            raise ValueError(f"its input schema uses {key}, which is not supported here")
        patterns = [value] if key == "pattern" else value if key == "patternProperties" else []
        for pattern in patterns:
            if isinstance(pattern, str):
                _matcher(pattern)
        if key not in _DATA:
            _require_bounded(value)


def _references(schema: object) -> Iterable[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in _DATA:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
