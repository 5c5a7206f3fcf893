"""The events of one session, kept for replay and for readers of any speed. Pure.

The log is the stream: an append-only list of encoded lines, numbered from 1 without a hole. Readers are cursors into
it, so a slow one holds no buffer of its own and slows nobody; when the log is trimmed past a cursor, that reader is cut
off (`Trimmed`), never a worker.

Who writes a log and who reads it see different ends of it where lines have to be stored first (see `store`): `next_seq`
and `closed` are the writer's, `end_seq` and `ended` the readers'. In memory they are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH_BYTES = 256 * 1024
"""What a reader takes at once, at most (but always one line)."""


class Trimmed(Exception):  # noqa: N818 - a fact about the log, not a fault
    """The wanted events are no longer kept; `first_seq` is the oldest that is."""

    def __init__(self, first_seq: int) -> None:
        self.first_seq = first_seq
        super().__init__(f"events before {first_seq} are no longer kept")


class Interrupted(Exception):  # noqa: N818 - a fact about the broker, not a fault
    """The broker stops, and the next one goes on with the log."""


class EventLog:
    """The lines of one session, the newest `max_bytes` of them."""

    __slots__ = ("_cursors", "_lines", "closed", "first_seq", "interrupted", "max_bytes", "size_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.first_seq = 1
        """Number of the oldest line that is kept."""
        self.closed = False
        """Whether the last line was the `final`."""
        self.interrupted = False
        """Whether nobody can read on."""
        self._lines: list[bytes] = []
        self._cursors: list[Cursor] = []

    @property
    def next_seq(self) -> int:
        """Number of the next line."""
        return self.first_seq + len(self._lines)

    @property
    def end_seq(self) -> int:
        """Number of the first line that can't be read yet."""
        return self.first_seq + len(self._lines)

    @property
    def ended(self) -> bool:
        """Whether the `final` can be read."""
        return self.closed

    @property
    def readers(self) -> int:
        """Open cursors."""
        return len(self._cursors)

    def append(self, line: bytes, *, last: bool = False) -> None:
        """Add a line and wake the readers. The log takes nothing after the last."""
        self._add(line, last=last)
        for cursor in self._cursors:
            cursor.wake()

    def kept(self) -> list[bytes]:
        """Return all lines that it has, those included that nobody can read yet."""
        return self._lines.copy()

    def lines(self, from_seq: int, max_bytes: int) -> list[bytes]:
        """Return readable lines from `from_seq` on, up to `max_bytes` of them but at least one if there is any.

        Raises:
            Trimmed: that line was kept once, but is not any more.
        """
        if from_seq < self.first_seq:
            raise Trimmed(self.first_seq)
        found = self._lines[from_seq - self.first_seq :]
        total = 0
        for i, line in enumerate(found):
            total += len(line)
            if total > max_bytes and i:
                return found[:i]
        return found

    def refuses(self, from_seq: int) -> tuple[str, str] | None:
        """Say why nobody can read on from `from_seq`, and from where instead; None if one can.

        A reader that asks for a later event than the next one has mistaken the session, and would wait for nothing.
        """
        if from_seq < self.first_seq:
            return f"events before {self.first_seq} are no longer kept", f"{self.first_seq} or more"
        if self.ended and from_seq >= self.end_seq:
            return f"the session has ended: its final is event {self.end_seq - 1}", f"at most {self.end_seq - 1}"
        if from_seq > self.end_seq:
            return f"the newest event is {self.end_seq - 1}", f"at most {self.end_seq}"
        return None

    def subscribe(self, from_seq: int, wake: Callable[[], object]) -> Cursor:
        """Open a cursor at `from_seq`; `wake` is called, and must not block, whenever there is more to take.

        Raises:
            Trimmed: that line is not kept any more.
        """
        if from_seq < self.first_seq:
            raise Trimmed(self.first_seq)
        cursor = Cursor(self, from_seq, wake)
        self._cursors.append(cursor)
        return cursor

    def interrupt(self) -> None:
        """Send all readers away: what comes next, they can have from the next broker."""
        self.interrupted = True
        for cursor in self._cursors:
            cursor.wake()

    def unsubscribe(self, cursor: Cursor) -> None:
        """Forget a cursor."""
        if cursor in self._cursors:
            self._cursors.remove(cursor)

    def _add(self, line: bytes, *, last: bool) -> None:
        if self.closed:
            raise AssertionError("an event after the final: accept and end refuse that before")
        self._lines.append(line)
        self.size_bytes += len(line)
        self.closed = last
        if self.size_bytes > self.max_bytes:
            self._trim()

    def _trim(self) -> None:
        # A quarter at a time: moving the rest of a list costs its length. The newest line always stays.
        target = self.max_bytes * 3 // 4
        dropped = 0
        while self.size_bytes > target and dropped < len(self._lines) - 1:
            self.size_bytes -= len(self._lines[dropped])
            dropped += 1
        del self._lines[:dropped]
        self.first_seq += dropped


class Cursor:
    """One reader's place in a log."""

    __slots__ = ("_log", "next_seq", "wake")

    def __init__(self, log: EventLog, next_seq: int, wake: Callable[[], object]) -> None:
        self._log = log
        self.next_seq = next_seq
        self.wake = wake

    def take(self, max_bytes: int = BATCH_BYTES) -> list[bytes]:
        """Return the next lines, none if there are none yet.

        Raises:
            Trimmed: this reader was too slow.
            Interrupted: the broker stops.
        """
        if self._log.interrupted:
            raise Interrupted("the broker is stopping")
        lines = self._log.lines(self.next_seq, max_bytes)
        self.next_seq += len(lines)
        return lines

    @property
    def behind(self) -> bool:
        """Whether there is something to take."""
        return self.next_seq < self._log.end_seq

    @property
    def finished(self) -> bool:
        """Whether everything was taken, the `final` included."""
        return self._log.ended and self.next_seq >= self._log.end_seq

    def close(self) -> None:
        """Stop reading. Safe to call again."""
        self._log.unsubscribe(self)
