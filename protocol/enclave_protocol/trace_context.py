"""W3C trace context: where in a distributed trace a session belongs. Pure.

https://www.w3.org/TR/trace-context/. A context that is no context is as good as none: whoever sent it is not told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

SAMPLED = 0x01
_KNOWN_FLAGS = 0x03
"""Sampled, and: the trace's id is random. All other bits are to be set to zero."""

MAX_MEMBERS = 32
"""Of a `tracestate`: "there can be a maximum of 32 list-members in a list"."""
MAX_STATE_CHARS = 512
"""Of a `tracestate`: what is to be passed on at least, and here also at most."""
MAX_READ_CHARS = 32_768
"""Of a `tracestate`: more than the largest members that may be there. What is longer is not looked at."""
MAX_PARENT_CHARS = 512
"""Of a `traceparent`, whose later versions may be longer than ours."""
LONG_MEMBER_CHARS = 128
"""Members longer than this go first where there are too many characters."""

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_KEY = r"([a-z0-9][a-z0-9_\-*/@]{0,255})"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"{_KEY}={_VALUE}")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16: of the span that what is done next is a child of."""
    flags: int = 0
    state: str = ""
    """`tracestate`: what tracing systems told each other; empty for nothing."""

    @property
    def traceparent(self) -> str:
        """The header's value, of version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def headers(self) -> dict[str, str]:
        """What an HTTP request says that belongs here."""
        found = {TRACEPARENT: self.traceparent}
        if self.state:
            found[TRACESTATE] = self.state
        return found


def parse_trace(traceparent: object, tracestate: Iterable[str] | object = "") -> TraceContext | None:
    """Return the context that these say, None if they say none.

    Args:
        traceparent: the header, which must be there once.
        tracestate: the header; or several, in their order.
    """
    if not isinstance(traceparent, str) or len(traceparent) > MAX_PARENT_CHARS:
        return None
    found = _PARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    # A later version may say more, and is to be read as far as it is known.
    if version == "ff" or (version == "00" and more) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    values = [tracestate] if isinstance(tracestate, str) else tracestate if isinstance(tracestate, list) else []
    return TraceContext(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS, _state(values))


def _state(values: list[object]) -> str:
    """Return a `tracestate` fit to be passed on; one that is none is dropped whole, and the trace goes on without."""
    # Before anything is taken apart: a message of a client's can hold megabytes of it.
    if len(values) > MAX_MEMBERS:
        return ""
    texts = [value for value in values if isinstance(value, str)]
    if sum(map(len, texts)) > MAX_READ_CHARS:
        return ""
    members = [member for text in texts for member in (part.strip(" \t") for part in text.split(",")) if member]
    keys = {found[1] for member in members if (found := _MEMBER.fullmatch(member))}
    if len(keys) != len(members) or len(members) > MAX_MEMBERS:
        return ""
    if len(",".join(members)) > MAX_STATE_CHARS:
        members = [member for member in members if len(member) <= LONG_MEMBER_CHARS]
    while len(",".join(members)) > MAX_STATE_CHARS:
        members.pop()
    return ",".join(members)
