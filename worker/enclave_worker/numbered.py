"""A session's events, each with the number that is its turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enclave_protocol import encode

from .instructions import Emit

if TYPE_CHECKING:
    from enclave_protocol import Event, SessionId
    from enclave_protocol import events as ev


class NumberedEvents:
    """Makes events of one session, in order."""

    def __init__(self, session_id: SessionId, first_seq: int) -> None:
        self.session_id = session_id
        self.next_seq = first_seq

    def emit(self, kind: Any, payload: ev.Payload) -> Emit:
        """Return the next event, of this type and with this payload, as what is to be sent."""
        event: Event = kind(session_id=self.session_id, seq=self.next_seq, payload=payload)
        line = encode(event)
        self.next_seq += 1  # not before: one that there is no memory for leaves no gap
        return Emit(line)
