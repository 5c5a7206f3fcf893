"""What a worker is told that it need not keep any more, in few messages.

An `ack` says what the store has kept, for every session of the link that had events since the last one. It goes out
100 ms after the first of them, or as soon as there are enough bytes that a worker could run into its bound.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclave_protocol import Ack, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from .sessions import BrokerSession

ACK_DELAY_S = 0.1
"""Longest wait of a kept event for its acknowledgement,"""
ACK_BYTES = 256 * 1024
"""and how many bytes of events, of all sessions of one link, may wait together."""


class Acks:
    """The acknowledgements of one link. Owns one timer, which `clear` stops.

    Args:
        send: sends a message to the worker.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._kept: dict[str, BrokerSession] = {}  # with events since the last ack
        self._dropped: dict[str, int] = {}  # the same for events that nobody wants: the last one's number
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether something is to be said and was not yet."""
        return self._timer is not None

    def kept(self, session: BrokerSession, size_bytes: int) -> None:
        """Note that a session's log took an event."""
        self._kept[session.session_id] = session
        self._note(size_bytes)

    def dropped(self, session_id: str, seq: int, size_bytes: int) -> None:
        """Note that an event was dropped, because its session has ended here, or is elsewhere."""
        self._dropped[session_id] = seq
        self._note(size_bytes)

    def flush(self, session_id: str) -> None:
        """Say at once what waits to be said of a session."""
        if self._timer is not None and (session_id in self._kept or session_id in self._dropped):
            self._timer.cancel()
            self._flush()

    def clear(self) -> None:
        """Forget everything: the link is down. What was not acknowledged is kept by the worker, and told of again."""
        self._kept.clear()
        self._dropped.clear()
        self._waiting_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_DELAY_S, self._flush)
        elif self._waiting_bytes >= ACK_BYTES:
            self._timer.cancel()
            self._flush()

    def _flush(self) -> None:
        kept, seqs = self._kept, self._dropped
        self._kept, self._dropped = {}, {}
        self._waiting_bytes, self._timer = 0, None
        for session_id, session in kept.items():
            if session.stored_seq:
                seqs[session_id] = session.stored_seq
            if not session.stored:
                self.kept(session, 0)  # the rest is told with the next ones
        if seqs:
            self._send(encode(Ack(seqs=seqs)))
