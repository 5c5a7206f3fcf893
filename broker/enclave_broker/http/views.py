"""What a reader asked to see of a session, and in what form. Pure.

NDJSON is the log's own bytes. Server-Sent Events put each line in a frame with its number and type, so that a browser's
`EventSource` can say where it was when it comes back; where a filter took events out, a frame of nothing but a number
moves that place on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from enclave_broker.api import invalid
from enclave_protocol import peek

if TYPE_CHECKING:
    from collections.abc import Sequence

    from litestar.types import Scope

    from enclave_protocol.filters import EventFilter

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"

RETRY_MS = 1000
"""When an `EventSource` is to come back."""
_SSE_HEAD = b"retry: %d\n\n" % RETRY_MS

Numbered = tuple[int, bytes]


class View(msgspec.Struct, frozen=True):
    """How one reader sees a session."""

    sse: bool = False
    """As Server-Sent Events; else NDJSON."""
    filter: EventFilter | None = None
    """Which events; all without one."""

    @property
    def media_type(self) -> str:
        """The content type of the answer."""
        return SSE if self.sse else NDJSON

    @property
    def head(self) -> bytes:
        """What comes before the first event."""
        return _SSE_HEAD if self.sse else b""

    def render(self, events: Sequence[Numbered], last_seq: int) -> bytes:
        """Return events in their form.

        Args:
            events: those that the filter let through.
            last_seq: number of the newest event that was looked at.
        """
        if not self.sse:
            return b"".join(line + b"\n" for _, line in events)
        frames = [b"id: %d\nevent: %s\ndata: %s\n\n" % (seq, _type(line), line) for seq, line in events]
        if not events or events[-1][0] < last_seq:
            frames.append(b"id: %d\n\n" % last_seq)
        return b"".join(frames)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request's header by its name in lower case; the first, if there are several."""
    for found, value in scope["headers"]:
        if found == name:
            return value.decode("latin-1")
    return None


def wants_sse(accept: str | None) -> bool:
    """Say whether an `Accept` header names Server-Sent Events, and does not prefer NDJSON."""
    if accept is None or SSE not in accept.lower():
        return False
    weights = dict(map(_weighed, accept.lower().split(",")))
    return weights.get(SSE, 0.0) > 0 and weights.get(SSE, 0.0) >= weights.get(NDJSON, 0.0)


def next_after(last_event_id: str) -> int:
    """Return the number of the first event wanted by who has seen `last_event_id`; raises ApiError."""
    return parse_seq(last_event_id, "Last-Event-ID", least=0) + 1


def parse_seq(text: str, field: str, *, least: int = 1) -> int:
    """Read an event's number; raises ApiError. Smaller ones than `least` are taken for it."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise invalid(f"not a number: {text[:40]!r}", field=field, allowed="a whole number, 0 or more")
    return max(least, int(text))


def _weighed(entry: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in entry.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, float(parameter[2:])
            except ValueError:
                return name, 0.0
    return name, 1.0


def _type(line: bytes) -> bytes:
    kind = peek(line).type
    # A worker's word. A line break in it would begin another field of the frame.
    return kind.encode() if kind.isidentifier() else b"message"
