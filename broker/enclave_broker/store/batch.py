"""What one commit stores. Pure.

A batch says what is to be there when it is stored, by the key that a session has for good, so its order does not
matter, it can be stored again without harm, and two of them make one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .logs import StoredLog


@dataclass(slots=True)
class Batch:
    """What was handed over since the last commit began, and what is to happen when it is stored."""

    records: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    """New sessions: their id and what never changes."""
    requests: dict[int, bytes] = field(default_factory=dict)
    places: dict[int, bytes] = field(default_factory=dict)
    lines: dict[int, tuple[int, list[bytes]]] = field(default_factory=dict)
    """The number of the first, and the lines."""
    answers: dict[tuple[int, str], bytes] = field(default_factory=dict)
    """Of calls; or the call itself, if it has none and its line is trimmed."""
    applied: set[tuple[int, str]] = field(default_factory=set)
    """Answers that are needed no more."""
    trimmed: dict[int, int] = field(default_factory=dict)
    """The oldest line that is still wanted."""
    endings: dict[int, bytes] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    forget_live: bool = False
    """Whether first of all every session that has not ended is removed: see `SqliteStore`."""
    size_bytes: int = 0

    logs: dict[StoredLog, int] = field(default_factory=dict)
    """Where the lines of each end that can be read then."""
    actions: list[Callable[[], object]] = field(default_factory=list)
    shelve: list[Callable[[], object]] = field(default_factory=list)
    """What may only be done when it really is stored."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to store."""
        return not (self.size_bytes or self.removed or self.forget_live)

    def add(self, key: int, session_id: str, record: bytes, request: bytes) -> None:
        """Store a new session."""
        self.records[key] = (session_id, record)
        self.requests[key] = request
        self.size_bytes += len(record) + len(request)

    def place(self, key: int, place: bytes) -> None:
        """Store where a session is."""
        self.places[key] = place
        self.size_bytes += len(place)

    def append(self, key: int, seq: int, line: bytes) -> None:
        """Store a session's next line."""
        found = self.lines.get(key)
        if found is None:
            self.lines[key] = (seq, [line])
        else:
            found[1].append(line)
        self.size_bytes += len(line)

    def answer(self, key: int, call_id: str, message: bytes) -> None:
        """Store the answer of a call, or the call."""
        self.answers[key, call_id] = message
        self.size_bytes += len(message)

    def apply(self, key: int, call_id: str) -> None:
        """Forget what `answer` stored of a call."""
        self.answers.pop((key, call_id), None)
        self.applied.add((key, call_id))  # in any case: what an earlier batch stored of it may be there
        self.size_bytes += len(call_id)

    def end(self, key: int, ending: bytes) -> None:
        """Store how a session ended; its request and its answers are of no more use."""
        self.requests.pop(key, None)
        self.endings[key] = ending
        self.size_bytes += len(ending)

    def remove(self, key: int) -> None:
        """Store nothing more of a session."""
        for kept in (self.records, self.requests, self.places, self.lines, self.trimmed, self.endings):
            kept.pop(key, None)
        self.removed.add(key)

    def merge(self, later: Batch) -> None:
        """Take in what came after this."""
        if later.forget_live:
            removed = self.removed | later.removed
            for kept in (self.records, self.requests, self.places, self.lines, self.answers, self.trimmed):
                kept.clear()
            self.endings.clear()
            self.applied.clear()
            self.shelve.clear()
            self.removed, self.size_bytes = removed, 0
        for key, (seq, lines) in later.lines.items():
            found = self.lines.get(key)
            if found is None:
                self.lines[key] = (seq, lines)
            else:
                found[1].extend(lines)
        self.records |= later.records
        self.requests |= later.requests
        self.places |= later.places
        self.trimmed |= later.trimmed
        self.answers |= later.answers
        self.endings |= later.endings
        self.applied |= later.applied
        self.forget_live |= later.forget_live
        self.size_bytes += later.size_bytes
        for key in later.removed:
            self.remove(key)
        self.shelve += later.shelve
