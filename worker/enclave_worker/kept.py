"""Events that nobody has acknowledged yet, and how many bytes of them a worker keeps. Pure: no I/O, no clock.

Theory of operation. A session's events are numbered one after the other, so what is kept of them is a run of lines and
the number of the first. An acknowledgement cuts off the front; a broker that comes back gets the rest again, the same
bytes.

Two bounds, of a session's bytes and of all sessions' together, say when a guest must wait: nothing is ever dropped to
hold them. The second is shared: once half of it is used, only sessions with more than their part of the other half
wait, so that one whose broker is gone does not stop those of another.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget:
    """How much may be kept.

    Args:
        total_bytes: of all sessions. What is on its way when a guest is told to wait comes on top: less than a
            frame and a pipe of each.
        session_bytes: of each.
        sessions: how many share it.
    """

    __slots__ = ("session_bytes", "share_bytes", "total_bytes", "used_bytes")

    def __init__(self, total_bytes: int, session_bytes: int, sessions: int) -> None:
        self.total_bytes = total_bytes
        self.session_bytes = session_bytes
        self.share_bytes = total_bytes // 2 // sessions
        self.used_bytes = 0

    def __repr__(self) -> str:
        return f"<Budget {self.used_bytes} of {self.total_bytes} bytes>"

    def is_full(self, size_bytes: int) -> bool:
        """Whether a session that keeps this much must wait before it says more."""
        if size_bytes > self.session_bytes:
            return True
        return self.used_bytes > self.total_bytes // 2 and size_bytes > self.share_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether one that waits may go on: not at the first free byte, or it would stop and go all the time."""
        if size_bytes > self.session_bytes // 2:
            return False
        return self.used_bytes <= self.total_bytes // 4 or size_bytes <= self.share_bytes // 2


class KeptEvents:
    """One session's lines from the first that is not acknowledged on."""

    __slots__ = ("_budget", "_lines", "first_seq", "size_bytes")

    def __init__(self, budget: Budget, first_seq: int) -> None:
        self.first_seq = first_seq
        """Number of the oldest line that is kept, or of the next one if none is."""
        self.size_bytes = 0
        self._budget = budget
        self._lines: deque[bytes] = deque()

    def __repr__(self) -> str:
        return f"<KeptEvents {self.first_seq} to {self.last_seq}, {self.size_bytes} bytes>"

    @property
    def last_seq(self) -> int:
        """Number of the newest event, kept or not."""
        return self.first_seq + len(self._lines) - 1

    def append(self, line: bytes) -> None:
        """Keep the next event."""
        size = len(line)
        self._lines.append(line)
        self.size_bytes += size
        self._budget.used_bytes += size

    def ack(self, seq: int) -> None:
        """Let go of every line up to this number. An old acknowledgement means nothing.

        Raises:
            ValueError: there is no such event yet.
        """
        if seq > self.last_seq:
            raise ValueError(f"{seq} is above the newest event's number, {self.last_seq}")
        for _ in range(seq + 1 - self.first_seq):
            size = len(self._lines.popleft())
            self.size_bytes -= size
            self._budget.used_bytes -= size
            self.first_seq += 1

    def since(self, seq: int) -> Iterator[bytes]:
        """Return the lines from this number on: none, if it is the next one's.

        Raises:
            ValueError: some of them are not kept any more, or it is beyond the next one's.
        """
        if not self.first_seq <= seq <= self.last_seq + 1:
            raise ValueError(f"kept are {self.first_seq} to {self.last_seq}")
        # A copy: delivering a line may have the session say more, which its taker is then given by itself.
        return iter([line for number, line in enumerate(self._lines, self.first_seq) if number >= seq])

    def clear(self) -> None:
        """Let go of everything."""
        self.ack(self.last_seq)
