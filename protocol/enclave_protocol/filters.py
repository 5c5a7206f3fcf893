"""Which events a reader wants: the `filter` of a request. Pure.

A filter takes events out of one reader's stream and never renumbers them. Its rules are those of EnclaveJS, with three
differences, each for the stream's sake: a pattern runs in bounded time or is refused (`regexes`); a glob pattern, as a
regular expression, matches no text of over 10,000 characters; and `final` is sent whatever the filter says, because a
stream without its end looks like a broken one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .errors import RemoteProtocolError
from .events import AnyEvent
from .globs import Glob
from .limits import split_path
from .regexes import MAX_PATTERN_CHARS, PatternError, compile_regex

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FILTER_BYTES = 64 * 1024
"""Longest filter in a URL."""
MAX_RULES = 32
MAX_PATTERNS = 32
"""Patterns of all rules together,"""
MAX_SIZE = 500
"""and the instructions of all those that are expressions or globs; an ordinary one takes 10 to 100. The slowest event
takes some 15 ms at that size."""
MAX_TEXT_CHARS = 10_000
"""Longer texts match no expression and no glob. As JavaScript counts: UTF-16 units."""

EVENT_TYPES = frozenset(event.__struct_config__.tag for event in get_args(AnyEvent))
DEFAULT_ALWAYS_ALLOW = ("session_init", "final")
FILTER_FORM = "an object {mode: include or exclude, rules: [{types?, content?}], alwaysAllow?}"

_Pattern = Annotated[str, Meta(max_length=MAX_PATTERN_CHARS)]
_Types = Annotated[list[str], Meta(max_length=64)]


class InvalidFilter(RemoteProtocolError):  # noqa: N818 - the wire's word
    """A filter that cannot be used."""


class ContentPattern(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What a text must be like."""

    type: Literal["exact", "prefix", "regex", "glob"]
    pattern: _Pattern
    field: Annotated[str, Meta(max_length=256)] = ""
    """Dotted path from the event's root, such as `payload.toolName`; left out, it is the payload as compact JSON."""
    case_insensitive: bool = False


class TypeFilter(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """One of these types."""

    types: _Types


class ContentFilter(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Any, or all, of these patterns."""

    patterns: Annotated[list[ContentPattern], Meta(max_length=MAX_PATTERNS)]
    match: Literal["any", "all"] = "any"


class FilterRule(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A type and a content that an event has; without both, every event."""

    types: TypeFilter | UnsetType = UNSET
    content: ContentFilter | UnsetType = UNSET


class FilterConfig(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A filter as a request brings it: what any of its rules fits is all that is sent, or all that is not."""

    mode: Literal["include", "exclude"]
    rules: Annotated[list[FilterRule], Meta(max_length=MAX_RULES)]
    always_allow: _Types | UnsetType = UNSET
    """Types that no rule takes out; `session_init` and `final` if left out. `final` is among them in any case."""
    regex_timeout_ms: Annotated[float, Meta(gt=0)] | UnsetType = UNSET
    """Accepted, and of no effect: patterns take bounded time by themselves."""


class EventFilter:
    """A filter, ready for use.

    Args:
        config: what it is to do.
        at: where the config stood in the request, for errors.

    Raises:
        InvalidFilter: names the field and what is allowed.
    """

    def __init__(self, config: FilterConfig, at: str = "filter") -> None:
        _check_types(config, at)
        always = DEFAULT_ALWAYS_ALLOW if config.always_allow is UNSET else config.always_allow
        self._always = frozenset({*always, "final"})
        self._include = config.mode == "include"
        self._rules = [_compile_rule(rule, f"{at}.rules[{i}]") for i, rule in enumerate(config.rules)]
        contents = [content for _, content in self._rules if content is not None]
        if sum(len(content.tests) for content in contents) > MAX_PATTERNS:
            allowed = f"at most {MAX_PATTERNS} patterns in all"
            raise InvalidFilter("too many patterns", field=f"{at}.rules", allowed=allowed)
        size = sum(content.size for content in contents)
        if size > MAX_SIZE:
            allowed = f"expressions and globs of at most {MAX_SIZE} instructions in all"
            raise InvalidFilter(f"its patterns take {size} instructions", field=f"{at}.rules", allowed=allowed)

    def passes(self, line: bytes) -> bool:
        """Say whether an event, as it is in the log, is to be sent."""
        kind = _head.decode(line).type
        if kind in self._always:
            return True
        texts = _Texts(line)
        matches = any(
            (types is None or kind in types) and (content is None or content.matches(texts))
            for types, content in self._rules
        )
        return matches is self._include


def parse_filter(data: object, at: str = "filter") -> EventFilter:
    """Read a filter from decoded JSON, or from its bytes.

    Args:
        data: what the request had.
        at: what the request called it, for errors.

    Raises:
        InvalidFilter: names the field and what is allowed.
    """
    if isinstance(data, bytes) and len(data) > MAX_FILTER_BYTES:
        raise InvalidFilter(f"{len(data)} bytes", field=at, allowed=f"at most {MAX_FILTER_BYTES} bytes")
    try:
        config = _config_decoder.decode(data) if isinstance(data, bytes) else msgspec.convert(data, FilterConfig)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        if "unknown field" in reason:
            raise InvalidFilter(reason, field=f"{at}.{field}".rstrip("."), allowed=FILTER_FORM) from error
        raise InvalidFilter(reason, field=f"{at}.{field}".rstrip("."), allowed=_allowed(field)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidFilter(f"not JSON: {error}", field=at, allowed=FILTER_FORM) from error
    return EventFilter(config, at)


class _Head(msgspec.Struct):
    type: str


class _Content:
    """The compiled `content` of a rule."""

    def __init__(self, content: ContentFilter, at: str) -> None:
        self.every = content.match == "all"
        self.size = 0
        self.tests: list[tuple[tuple[str, ...], bool, Callable[[str], bool]]] = []
        for i, pattern in enumerate(content.patterns):
            test, size = _compile_pattern(pattern, f"{at}.patterns[{i}].pattern")
            self.size += size
            path = tuple(pattern.field.split(".")) if pattern.field else ()
            self.tests.append((path, pattern.case_insensitive, test))

    def matches(self, texts: _Texts) -> bool:
        found = (self._one(texts, *test) for test in self.tests)
        return all(found) if self.every else any(found)

    def _one(self, texts: _Texts, path: tuple[str, ...], lower: bool, test: Callable[[str], bool]) -> bool:  # noqa: FBT001
        text = texts.get(path)
        return text is not None and test(text.lower() if lower else text)


class _Texts:
    """The texts of one event's fields, made when they are first asked for."""

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._event: Any = None
        self._texts: dict[tuple[str, ...], str | None] = {}

    def get(self, path: tuple[str, ...]) -> str | None:
        """Return the text of a field, of the payload for no path; None if there is no such field."""
        if path not in self._texts:
            self._texts[path] = self._find(path or ("payload",))
        return self._texts[path]

    def _find(self, path: tuple[str, ...]) -> str | None:
        if self._event is None:
            self._event = _decoded(self._line)
        value = self._event
        for name in path:
            if isinstance(value, list) and name.isascii() and name.isdigit() and str(int(name[:9])) == name:
                value = value[int(name)] if int(name) < len(value) else _ABSENT
            else:
                value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
            if value is _ABSENT:
                return None
        if isinstance(value, str):
            return value
        return "" if value is None else msgspec.json.encode(value).decode()


def _decoded(line: bytes) -> object:
    try:
        return _event_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}  # a worker's payload that nobody has read before: it has no field that could match


_ABSENT = object()


def _compile_rule(rule: FilterRule, at: str) -> tuple[frozenset[str] | None, _Content | None]:
    types = None if rule.types is UNSET else frozenset(rule.types.types)
    return types, None if rule.content is UNSET else _Content(rule.content, f"{at}.content")


def _compile_pattern(pattern: ContentPattern, at: str) -> tuple[Callable[[str], bool], int]:
    wanted = pattern.pattern.lower() if pattern.case_insensitive else pattern.pattern
    if pattern.type == "exact":
        return wanted.__eq__, 0
    if pattern.type == "prefix":
        return lambda text: text.startswith(wanted), 0
    try:
        if pattern.type == "regex":
            regex = compile_regex(pattern.pattern, ignore_case=pattern.case_insensitive)
            return _short(regex.found_in), regex.size
        glob = Glob(wanted, ignore_case=pattern.case_insensitive)
        return _short(glob.matches), glob.size
    except PatternError as error:
        raise InvalidFilter(error.reason, field=at, allowed=error.allowed) from error


def _short(test: Callable[[str], bool]) -> Callable[[str], bool]:
    def tested(text: str) -> bool:
        units = len(text) if 2 * len(text) <= MAX_TEXT_CHARS else len(text.encode("utf-16-le")) // 2
        return units <= MAX_TEXT_CHARS and test(text)

    return tested


def _check_types(config: FilterConfig, at: str) -> None:
    named = [("alwaysAllow", config.always_allow or [])]
    named += [(f"rules[{i}].types.types", rule.types.types) for i, rule in enumerate(config.rules) if rule.types]
    for where, types in named:
        for i, kind in enumerate(types):
            if kind not in EVENT_TYPES:
                allowed = ", ".join(sorted(EVENT_TYPES))
                raise InvalidFilter(f"no such event type: {kind[:40]!r}", field=f"{at}.{where}[{i}]", allowed=allowed)


def _allowed(field: str) -> str:
    known = {
        "mode": "include, exclude",
        "match": "any, all",
        "type": "exact, prefix, regex, glob",
        "rules": f"at most {MAX_RULES} rules {{types?: {{types: […]}}, content?: {{patterns: […], match?}}}}",
        "types": "an object {types: [event types]}",
        "content": "an object {patterns: [{type, pattern, field?, caseInsensitive?}], match?: any or all}",
        "patterns": f"at most {MAX_PATTERNS} patterns {{type, pattern, field?, caseInsensitive?}}",
        "pattern": f"text of at most {MAX_PATTERN_CHARS} characters",
        "field": "a dotted path of at most 256 characters, such as payload.toolName",
        "caseInsensitive": "true, false",
        "alwaysAllow": "an array of event types",
        "regexTimeoutMs": "a number above 0",
    }
    return known.get(field.rpartition(".")[2].partition("[")[0], FILTER_FORM)


def _js_number(text: str) -> int | float:
    # JavaScript has one kind of number, and prints 12.0 as 12.
    number = float(text)
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number


_head = msgspec.json.Decoder(_Head)
_event_decoder = msgspec.json.Decoder(float_hook=_js_number)
_config_decoder = msgspec.json.Decoder(FilterConfig)
