"""Logs whose lines are stored elsewhere: of a live session, which are in memory too, and of a finished one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from enclave_broker.event_log import BATCH_BYTES, Cursor, EventLog, Trimmed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Keeper(Protocol):
    """Who stores the lines of live sessions."""

    def appended(self, log: StoredLog, seq: int, line: bytes) -> None:
        """A line was added."""

    def trimmed(self, log: StoredLog, calls: dict[str, bytes]) -> None:
        """The lines before `first_seq` are not wanted any more, but for those of open `calls`, by the calls' ids."""


class StoredLog(EventLog):
    """The lines of a live session, which can be read as soon as they are stored.

    Without a keeper they can be read at once: before the session is known to the store, and when it is no more.
    """

    __slots__ = ("_end_seq", "calls", "keeper", "key", "open_calls")

    def __init__(self, max_bytes: int, *, first_seq: int = 1) -> None:
        super().__init__(max_bytes)
        self.first_seq = first_seq
        self.key = 0
        """What the store calls the session."""
        self.keeper: Keeper | None = None
        self.open_calls: Mapping[str, int] = {}
        """Calls that the next broker has to know of, and the numbers of their lines."""
        self.calls: set[str] = set()
        """Calls that the store has beside the lines: the answer, or the call itself if its line is trimmed."""
        self._end_seq = first_seq

    @property
    def end_seq(self) -> int:
        """Number of the first line that can't be read yet."""
        return self._end_seq if self.keeper is not None else self.next_seq

    @property
    def ended(self) -> bool:
        """Whether the `final` can be read."""
        return self.closed and self.end_seq == self.next_seq

    def append(self, line: bytes, *, last: bool = False) -> None:
        """Add a line. The readers are woken when it is stored."""
        seq = self.next_seq
        if self.keeper is None:
            super().append(line, last=last)
            return
        self._add(line, last=last)
        if self.keeper is not None:  # else it has just let go of the log, which was trimmed, and told the readers
            self.keeper.appended(self, seq, line)

    def lines(self, from_seq: int, max_bytes: int) -> list[bytes]:
        """Return readable lines, as `EventLog` does."""
        found = super().lines(from_seq, max_bytes)
        readable = max(0, self.end_seq - from_seq)
        return found if len(found) <= readable else found[:readable]

    def keep(self, keeper: Keeper, key: int, open_calls: Mapping[str, int]) -> None:
        """Have the lines stored from now on."""
        self.keeper, self.key, self.open_calls = keeper, key, open_calls

    def restore(self, lines: list[bytes]) -> None:
        """Take in what is stored already, also if it is more than fits by now: it is trimmed when more comes."""
        self._lines += lines
        self.size_bytes += sum(map(len, lines))
        self._end_seq = self.next_seq

    def stored(self, end_seq: int) -> None:
        """Note that the lines before `end_seq` are stored, and wake the readers."""
        self._end_seq = end_seq
        for cursor in self._cursors:
            cursor.wake()

    def shelved(self, shelf: Shelf) -> ShelvedLog:
        """Return what takes its place when everything is stored. Its readers read on here, and are counted there."""
        return ShelvedLog(
            shelf,
            self.key,
            first_seq=self.first_seq,
            end_seq=self.next_seq,
            size_bytes=self.size_bytes,
            cursors=self._cursors,
        )

    def _trim(self) -> None:
        lines, first_seq = self.kept(), self.first_seq
        super()._trim()
        if self.keeper is not None:
            trimmed = range(first_seq, self.first_seq)
            calls = {call_id: lines[seq - first_seq] for call_id, seq in self.open_calls.items() if seq in trimmed}
            self.keeper.trimmed(self, calls)

    def let_go(self) -> None:
        """Have nothing stored any more: readers see everything."""
        if self.keeper is not None:
            self.keeper = None
            for cursor in self._cursors:
                cursor.wake()


class Shelf(Protocol):
    """Where finished sessions' lines are."""

    def fetch(self, key: int, from_seq: int, max_bytes: int, done: Callable[[list[bytes] | None], object]) -> None:
        """Read some lines, and call `done` with them on this loop, some time later; with None if there are none."""


class ShelvedLog(EventLog):
    """The lines of a finished session, none of which are in memory.

    Args:
        shelf: where they are.
        key: what the store calls the session.
        first_seq: number of the oldest line.
        end_seq: one more than that of the final.
        size_bytes: of all of them.
        cursors: of those who read the same lines from memory, to their end.
    """

    __slots__ = ("_end", "_key", "_shelf")

    def __init__(
        self,
        shelf: Shelf,
        key: int,
        *,
        first_seq: int,
        end_seq: int,
        size_bytes: int,
        cursors: list[Cursor] | None = None,
    ) -> None:
        super().__init__(size_bytes)
        if cursors is not None:
            self._cursors = cursors  # the list itself: who closes one takes it out of there
        self.first_seq = first_seq
        self.size_bytes = size_bytes
        self.closed = True
        self._end = end_seq
        self._key = key
        self._shelf = shelf

    @property
    def key(self) -> int:
        """What the store calls the session."""
        return self._key

    @property
    def next_seq(self) -> int:
        """One more than the number of the final."""
        return self._end

    @property
    def end_seq(self) -> int:
        """One more than the number of the final."""
        return self._end

    def lines(self, from_seq: int, max_bytes: int) -> list[bytes]:
        """Return none: a cursor reads them.

        Raises:
            Trimmed: that line is not kept any more.
        """
        if from_seq < self.first_seq:
            raise Trimmed(self.first_seq)
        return []

    def subscribe(self, from_seq: int, wake: Callable[[], object]) -> Cursor:
        """Open a cursor, as `EventLog` does."""
        if from_seq < self.first_seq:
            raise Trimmed(self.first_seq)
        cursor = ShelfCursor(self, from_seq, wake)
        self._cursors.append(cursor)
        return cursor

    def fetch(self, from_seq: int, done: Callable[[list[bytes] | None], object]) -> None:
        """Read the next lines; see `Shelf`."""
        self._shelf.fetch(self._key, from_seq, BATCH_BYTES, done)


class ShelfCursor(Cursor):
    """One reader's place in a shelved log. It holds one batch, and has the next one read while that is written."""

    __slots__ = ("_closed", "_fetching", "_found", "_gone", "_shelved")

    def __init__(self, log: ShelvedLog, next_seq: int, wake: Callable[[], object]) -> None:
        super().__init__(log, next_seq, wake)
        self._shelved = log
        self._found: list[bytes] = []
        self._fetching = False
        self._gone = False
        self._closed = False

    def take(self, max_bytes: int = BATCH_BYTES) -> list[bytes]:
        """Return what was read; none if it is still being read. Raises Trimmed if the session was forgotten."""
        if self._gone:
            raise Trimmed(self._shelved.next_seq)
        lines, self._found = self._found, []
        self.next_seq += len(lines)
        if not (self._fetching or self.finished):
            self._fetching = True
            self._shelved.fetch(self.next_seq, self._fetched)
        return lines

    @property
    def behind(self) -> bool:
        """Whether there is something to take."""
        return bool(self._found) or self._gone

    def close(self) -> None:
        """Stop reading. Safe to call again."""
        self._closed = True
        super().close()

    def _fetched(self, lines: list[bytes] | None) -> None:
        self._fetching = False
        if self._closed:
            return
        self._gone = not lines
        self._found = lines or []
        self.wake()
