"""JavaScript's regular expressions, on an engine whose time is bounded.

Whoever may write a pattern may write one that a backtracking engine takes years for, so patterns run on RE2: its time
grows with the text and with the size of the compiled pattern, and with nothing else. RE2 reads another dialect, so
`translate` parses a pattern as `new RegExp(pattern)` would, without flags, and writes it anew. What no linear engine
can do (looking around, back references) is refused.

Where JavaScript counts UTF-16 units, this counts characters: one `.` takes a whole emoji.
"""

from __future__ import annotations

import re

from .errors import RemoteProtocolError

MAX_PATTERN_CHARS = 1000
MAX_PATTERN_BYTES = 64 * 1024
"""Memory of one compiled pattern and of its automaton."""

Ranges = tuple[tuple[int, int], ...]
_Item = int | Ranges | None
"""In a class: a character's number, what an escape stands for, or a `-` that was written as such."""
LAST = 0x10FFFF
_SPACES: Ranges = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
    *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
_QUANTIFIER = re.compile(r"\{[0-9]+(?:,[0-9]*)?\}")
_GROUP_NAME = re.compile(r"\(\?<[A-Za-z_$][\w$]*>")
_SURROGATES = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class PatternError(RemoteProtocolError):
    """A pattern that is malformed, or that cannot be matched in bounded time."""


class Regex:
    """A compiled pattern.

    Args:
        pattern: in RE2's dialect.
        ignore_case: whether `a` is also `A`.

    Raises:
        PatternError: RE2 refuses it.
    """

    __slots__ = ("_compiled", "size")

    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        import re2  # noqa: PLC0415 - 3 MB, for those who have patterns

        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        options.case_sensitive = not ignore_case
        options.max_mem = MAX_PATTERN_BYTES
        try:
            self._compiled = re2.compile(pattern, options)
        except re2.error as error:
            reason = error.args[0]
            text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise PatternError(
                text, allowed="a JavaScript regular expression that repeats nothing more than 1000 times"
            ) from error
        self.size: int = self._compiled.programsize
        """Instructions. The time of a match is at most some nanoseconds for each of them and each byte of the text."""

    def found_in(self, text: str) -> bool:
        """Say whether some part of the text matches."""
        return self._compiled.search(text) is not None


def compile_regex(pattern: str, *, ignore_case: bool) -> Regex:
    """Compile a pattern of JavaScript's; raises PatternError."""
    return Regex(translate(pattern), ignore_case=ignore_case)


def translate(pattern: str) -> str:
    """Return what RE2 must be given for a pattern of JavaScript's; raises PatternError for what it cannot do."""
    return "".join(_Translation(pattern).parts())


def in_class(ranges: Ranges) -> str:
    """Return the ranges as they stand between the brackets of a class."""
    return "".join(f"\\x{{{low:x}}}" if low == high else f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges)


def quoted(char: str) -> str:
    """Return a character as RE2 reads it literally."""
    return char if char.isalnum() and char.isascii() else f"\\x{{{ord(char):x}}}"


def _others(ranges: Ranges) -> Ranges:
    found, start = [], 0
    for low, high in ranges:
        if start < low:
            found.append((start, low - 1))
        start = high + 1
    return (*found, (start, LAST))


_CLASSES = {
    "d": _DIGITS,
    "D": _others(_DIGITS),
    "w": _WORD,
    "W": _others(_WORD),
    "s": _SPACES,
    "S": _others(_SPACES),
}
_ANY_BUT_LINE_ENDS = f"[{in_class(_others(_LINE_ENDS))}]"


class _Translation:
    """One pass over a pattern."""

    def __init__(self, pattern: str) -> None:
        # A character outside the first plane is one here, also when it was spelled as JavaScript's two halves.
        self._pattern = _SURROGATES.sub(_joined, pattern)
        self._at = 0

    def parts(self) -> list[str]:
        found = []
        while self._at < len(self._pattern):
            char = self._pattern[self._at]
            if char == "\\":
                found.append(self._escape())
            elif char == "[":
                found.append(self._class())
            elif char == "(":
                found.append(self._group())
            elif char == "{":
                found.append(self._brace())
            elif char in "*+?|)^$":  # the same in both dialects
                found.append(self._take(1))
            else:
                found.append(_ANY_BUT_LINE_ENDS if char == "." else quoted(char))
                self._at += 1
        return found

    def _take(self, count: int) -> str:
        taken = self._pattern[self._at : self._at + count]
        self._at += count
        return taken

    def _group(self) -> str:
        rest = self._pattern[self._at : self._at + 4]
        if rest.startswith(("(?=", "(?!", "(?<=", "(?<!")):
            raise PatternError("looks ahead or behind", allowed="a regular expression without (?=, (?!, (?<= and (?<!")
        named = _GROUP_NAME.match(self._pattern, self._at)
        if named:
            self._at = named.end()
        elif rest.startswith("(?:"):
            self._at += 3
        elif rest.startswith("(?"):
            raise PatternError(f"no such group: {rest!r}", allowed="(…), (?:…) and (?<name>…)")
        else:
            self._at += 1
        return "(?:"

    def _brace(self) -> str:
        quantifier = _QUANTIFIER.match(self._pattern, self._at)
        if quantifier:
            return self._take(len(quantifier[0]))
        self._at += 1
        return r"\{"

    def _escape(self) -> str:
        follows = self._pattern[self._at + 1 : self._at + 2]
        if follows in {"b", "B"}:
            return self._take(2)
        if follows in _CLASSES:
            self._at += 2
            return f"[{in_class(_CLASSES[follows])}]"
        return quoted(self._escaped_char())

    def _escaped_char(self) -> str:
        """Take an escape that stands for one character, in or out of a class."""
        self._at += 1
        char = self._take(1)
        if not char:
            raise PatternError("ends in a backslash", allowed="a JavaScript regular expression")
        if char in "123456789kpP":
            what = "\\p needs a flag" if char in "pP" else "refers back to a group, or is octal"
            raise PatternError(f"\\{char}: {what}", allowed="a regular expression without \\1 to \\9, \\k and \\p")
        if char == "0":
            return "\0"
        if char in _CONTROLS:
            return chr(_CONTROLS[char])
        if char == "c" and re.match(r"[A-Za-z]", self._pattern[self._at : self._at + 1]):
            return chr(ord(self._take(1)) % 32)
        digits = {"x": 2, "u": 4}.get(char, 0)
        code = self._pattern[self._at : self._at + digits]
        if digits and re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", code):
            self._at += digits
            return _character(int(code, 16))
        return char

    def _class(self) -> str:
        self._at += 1
        negated = self._pattern.startswith("^", self._at)
        self._at += negated
        items: list[_Item] = []
        while not self._pattern.startswith("]", self._at):
            if self._at >= len(self._pattern):
                raise PatternError("a class without its end", allowed="a ] for each [")
            items.append(self._class_item())
        self._at += 1
        ranges = _class_ranges(items)
        if not ranges:  # `[]` matches nothing and `[^]` everything
            ranges, negated = ((0, LAST),), not negated
        return f"[{'^' if negated else ''}{in_class(ranges)}]"

    def _class_item(self) -> _Item:
        if self._pattern[self._at] != "\\":
            char = self._take(1)
            return None if char == "-" else ord(char)
        follows = self._pattern[self._at + 1 : self._at + 2]
        if follows in _CLASSES:
            self._at += 2
            return _CLASSES[follows]
        if follows == "b":
            self._at += 2
            return 8  # a backspace
        return ord(self._escaped_char())


def _class_ranges(items: list[_Item]) -> Ranges:
    """Return what a class has in it; a `-` between two characters, and only there, makes a range of them."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(items):
        between = at + 2 < len(items) and items[at + 1] is None
        low = _code(items[at])
        high = _code(items[at + 2]) if between else low
        if isinstance(low, tuple):
            found += low
            at += 1
        elif isinstance(high, tuple):
            found.append((low, low))
            at += 1
        elif low <= high:
            found.append((low, high))
            at += 3 if between else 1
        else:
            raise PatternError(f"range {chr(low)}-{chr(high)} is out of order", allowed="ranges from low to high")
    return tuple(found)


def _code(item: _Item) -> int | Ranges:
    return ord("-") if item is None else item


def _joined(pair: re.Match[str]) -> str:
    high, low = int(pair[1], 16), int(pair[2], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def _character(code: int) -> str:
    if 0xD800 <= code <= 0xDFFF:
        raise PatternError(f"\\u{code:04x} is half a character", allowed="both halves, one behind the other")
    return chr(code)
