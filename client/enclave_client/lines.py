"""Bytes in, lines out. `str.splitlines` and its relatives also cut at U+2028 and form feeds, which JSON may contain."""

from __future__ import annotations


class LineSplitter:
    """Collects chunks and hands out whole lines, without their newline.

    The caller bounds `pending_bytes`, since only it knows what an endless line means.
    """

    def __init__(self) -> None:
        self._pending: list[bytes] = []
        self.pending_bytes = 0
        """Bytes of the line that has not ended yet."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that `chunk` completes, in order."""
        head, *rest = chunk.split(b"\n")
        self._pending.append(head)
        self.pending_bytes += len(head)
        if not rest:
            return []
        lines = [b"".join(self._pending), *rest[:-1]]
        self._pending = [rest[-1]]
        self.pending_bytes = len(rest[-1])
        return lines

    def flush(self) -> bytes:
        """Return what came after the last newline, and forget it."""
        last = b"".join(self._pending)
        self._pending = []
        self.pending_bytes = 0
        return last
