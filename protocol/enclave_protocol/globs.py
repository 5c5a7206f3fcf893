"""Glob patterns as minimatch matches them, on the engine of `regexes`.

Slashes part a pattern and a text. In a part, `*`, `?` and `[…]` take characters, and `@(a|b)`, `?(…)`, `*(…)` and
`+(…)` alternatives; `**` as a whole part takes any number of parts; `{a,b}` and `{1..3}` are written out before all
that; a leading `!` turns the answer round, and a leading `#` makes a pattern that matches nothing.

No wildcard takes a dot that begins a part, nor a whole part of nothing. Without looking ahead that takes a second form
of what a part can begin with: `_guarded` writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .regexes import PatternError, Ranges, Regex, in_class, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_GLOB_CHARS = 256
MAX_ALTERNATIVES = 32
"""Patterns that the braces of one may be written out to."""

_RANGE = re.compile(r"(-?[0-9]{1,4})\.\.(-?[0-9]{1,4})|([A-Za-z])\.\.([A-Za-z])")
_CLASS_RANGE = re.compile(r"\\x\{(\w+)\}(?:-\\x\{(\w+)\})?")
_CLASS = re.compile(r"\[([!^]?)(\]?[^\]]*)\]")
_SEGMENT = "(?:[^./][^/]*)?"
"""What `**` takes between two slashes."""
_NOTHING = r"[^\x00-\x{10FFFF}]"


@dataclass(frozen=True, slots=True)
class _Text:
    char: str


@dataclass(frozen=True, slots=True)
class _One:
    """`?`, or a class."""

    inside: str
    """What stands between the brackets, a leading `^` aside."""
    negated: bool


@dataclass(frozen=True, slots=True)
class _Star:
    pass


@dataclass(frozen=True, slots=True)
class _Group:
    kind: str
    choices: tuple[tuple[_Node, ...], ...]


_Node = _Text | _One | _Star | _Group


class Glob:
    """A compiled glob pattern.

    Args:
        pattern: as minimatch reads it, without options.
        ignore_case: minimatch's `nocase`.

    Raises:
        PatternError: it has something that cannot be matched in bounded time, or stands for too many patterns.
    """

    __slots__ = ("_alternatives", "_empty", "_negated", "size")

    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        if len(pattern) > MAX_GLOB_CHARS:  # looking for the ends of its brackets takes the square of its length
            raise PatternError(f"{len(pattern)} characters", allowed=f"at most {MAX_GLOB_CHARS} characters")
        self._empty = not pattern
        positive = pattern.lstrip("!")
        self._negated = (len(pattern) - len(positive)) % 2 == 1
        written_out = [] if pattern.startswith("#") or self._empty else _expand(positive)
        self._alternatives = [Regex(_whole(alternative), ignore_case=ignore_case) for alternative in written_out]
        self.size = sum(regex.size for regex in self._alternatives)
        """As `Regex.size`."""

    def matches(self, text: str) -> bool:
        """Say whether the whole text matches."""
        if self._empty:
            return not text
        return any(regex.found_in(text) for regex in self._alternatives) is not self._negated


def _whole(pattern: str) -> str:
    parts = re.split("/+", pattern)
    found = [r"\A"]
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            found.append(f"{_SEGMENT}(?:/+{_SEGMENT})*" if last else f"(?:{_SEGMENT}/+)*")
        else:
            nodes, _ = _parse(part, 0, in_group=False)
            found += [_begun(nodes), "/*" if last else "/+"]
    return "".join([*found, r"\z"])


def _begun(nodes: Sequence[_Node]) -> str:
    """Write the nodes that a part or a choice begins with."""
    if not nodes or isinstance(nodes[0], _Text):
        return _written(nodes)
    return _guarded(nodes) or _NOTHING


def _guarded(nodes: Sequence[_Node]) -> str:
    """Write nodes that a wildcard came before: they take something, and no leading dot. Empty: they never can."""
    if not nodes:
        return ""
    head, rest = nodes[0], nodes[1:]
    if isinstance(head, _Text):
        return "" if head.char == "." else _written(nodes)
    if isinstance(head, _One):
        return f"{_without_dot(head)}{_written(rest)}"
    if isinstance(head, _Group):
        return f"(?:{'|'.join(_begun(choice) for choice in head.choices)}){_repeated(head)}{_written(rest)}"
    taken, skipped = f"[^./][^/]*{_written(rest)}", _guarded(rest)
    return f"(?:{taken}|{skipped})" if skipped else taken


def _written(nodes: Sequence[_Node]) -> str:
    return "".join(_write(node) for node in nodes)


def _write(node: _Node) -> str:
    if isinstance(node, _Text):
        return quoted(node.char)
    if isinstance(node, _One):
        return f"[{'^/' if node.negated else ''}{node.inside}]"
    if isinstance(node, _Star):
        return "[^/]*"
    return f"(?:{'|'.join(_written(choice) for choice in node.choices)}){_repeated(node)}"


def _repeated(group: _Group) -> str:
    return "" if group.kind == "@" else group.kind


def _without_dot(one: _One) -> str:
    if one.negated:
        return f"[^./{one.inside}]"
    below, above = _inverse_of_dot(one.inside)
    return f"[{below}{above}]" if below or above else _NOTHING


def _inverse_of_dot(inside: str) -> tuple[str, str]:
    """Split the ranges of a class at the dot."""
    found = [(int(low, 16), int(high or low, 16)) for low, high in _CLASS_RANGE.findall(inside)]
    dot = ord(".")
    below = tuple((low, min(high, dot - 1)) for low, high in found if low < dot)
    above = tuple((max(low, dot + 1), high) for low, high in found if high > dot)
    return in_class(below), in_class(above)


def _parse(part: str, at: int, *, in_group: bool) -> tuple[tuple[_Node, ...], int]:
    """Read one part from `at` on, up to its end or to what ends a choice; return it and where it ended."""
    found: list[_Node] = []
    while at < len(part) and not (in_group and part[at] in "|)"):
        if part[at] in "@?*+!" and part[at + 1 : at + 2] == "(" and _closes(part, at + 1):
            if part[at] == "!":
                raise PatternError("!(…) cannot be matched in bounded time", allowed="@(…), ?(…), *(…), +(…)")
            group, at = _parse_group(part, at)
            found.append(group)
        else:
            node, at = _parse_one(part, at)
            if not (isinstance(node, _Star) and found and found[-1] == node):
                found.append(node)
    return tuple(found), at


def _parse_group(part: str, at: int) -> tuple[_Group, int]:
    kind, choices = part[at], []
    at += 1
    while part[at] != ")":
        choice, at = _parse(part, at + 1, in_group=True)
        choices.append(choice)
    return _Group(kind, tuple(choices)), at + 1


def _parse_one(part: str, at: int) -> tuple[_Node, int]:
    char = part[at]
    if char == "*":
        return _Star(), at + 1
    if char == "?":
        return _One("", negated=True), at + 1
    if char == "[":
        found = _CLASS.match(part, at)
        if found and found[2]:
            return _One(in_class(_ranges(found[2])), negated=bool(found[1])), found.end()
    if char == "\\" and at + 1 < len(part):
        return _Text(part[at + 1]), at + 2
    return _Text(char), at + 1


def _closes(part: str, at: int) -> bool:
    depth = 0
    for char in part[at:]:
        depth += (char == "(") - (char == ")")
        if not depth:
            return True
    return False


def _ranges(content: str) -> Ranges:
    if "[:" in content:
        raise PatternError("[:…:] is not supported", allowed="classes of characters and ranges, such as [a-z0-9_]")
    pairs = re.findall(r"\\?(.)(?:-\\?(.))?", content, re.DOTALL)
    ranges = tuple((ord(low), ord(high or low)) for low, high in pairs if ord(low) <= ord(high or low))
    return ranges or ((0, 0),)  # a class of ranges that are out of order takes nothing


def _expand(pattern: str) -> list[str]:
    """Write the braces out; raises PatternError for too many."""
    found = [""]
    at = 0
    while at < len(pattern):
        choices, after = [pattern[at]], at + 1
        if pattern[at] == "\\":
            choices, after = [pattern[at : at + 2]], at + 2
        elif pattern[at] == "{" and (end := _brace_end(pattern, at)):
            inner = _alternatives(pattern[at + 1 : end])
            if inner:
                choices, after = inner, end + 1
        if len(found) * len(choices) > MAX_ALTERNATIVES:
            raise _too_many()
        found = [start + choice for start in found for choice in choices]
        at = after
    return found


def _brace_end(pattern: str, at: int) -> int:
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        else:
            depth += (pattern[at] == "{") - (pattern[at] == "}")
            if not depth:
                return at
        at += 1
    return 0


def _alternatives(inner: str) -> list[str]:
    """Return what one pair of braces stands for; nothing if it stands for itself."""
    between = _RANGE.fullmatch(inner)
    if between:
        letters = between[3] is not None
        first, last = (ord(between[3]), ord(between[4])) if letters else (int(between[1]), int(between[2]))
        if abs(last - first) >= MAX_ALTERNATIVES:
            raise _too_many()
        step = 1 if first <= last else -1
        return [chr(n) if letters else str(n) for n in range(first, last + step, step)]
    pieces, depth, start = [], 0, 0
    for i, char in enumerate(inner):
        depth += (char == "{") - (char == "}")
        if char == "," and not depth:
            pieces.append(inner[start:i])
            start = i + 1
    if not pieces:
        return []
    found = [alternative for piece in (*pieces, inner[start:]) for alternative in _expand(piece)]
    if len(found) > MAX_ALTERNATIVES:
        raise _too_many()
    return found


def _too_many() -> PatternError:
    return PatternError("its braces make too many patterns", allowed=f"at most {MAX_ALTERNATIVES} of them")
