"""What the broker itself has to say in a session's stream, and what it reads in it. Pure.

Lines are passed on as they came: only here are any looked into, and only as far as the broker counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from enclave_protocol import RemoteProtocolError, Stats, decode_event
from enclave_protocol.events import Encryption, SessionInit, SessionInitPayload, Stderr, Stdout, iso_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_protocol.encryption import Channel


class _FinalError(msgspec.Struct):
    code: str | UnsetType = UNSET


class FinalBody(msgspec.Struct):
    """What the broker counts of a `final`: the result, which can be large, is skipped over."""

    ok: bool
    error: _FinalError | UnsetType = UNSET
    stats: Stats | UnsetType = UNSET

    @property
    def code(self) -> str | UnsetType:
        """Why it failed, if it says so."""
        return self.error.code if self.error is not UNSET else UNSET


class _FinalLine(msgspec.Struct):
    payload: FinalBody


_final_decoder = msgspec.json.Decoder(_FinalLine)


def read_final(line: bytes) -> FinalBody:
    """Read a worker's `final`; raises MsgspecError or RecursionError."""
    return _final_decoder.decode(line).payload


def init_event(session_id: str, expires_at: float, channel: Channel | None) -> SessionInit:
    """Return the first event of a session that ends at `expires_at` (seconds since the epoch) at the latest."""
    where = f"/sessions/{session_id}"
    payload = SessionInitPayload(
        cancel_url=f"{where}/cancel",
        replay_url=f"{where}/stream",
        expires_at=iso_time(expires_at),
        encryption=_encryption(channel),
    )
    return SessionInit(session_id=session_id, seq=1, payload=payload)


def _encryption(channel: Channel | None) -> Encryption:
    if channel is None:
        return Encryption(enabled=False)
    return Encryption(enabled=True, key_id=channel.hello.key_id, server_hello=channel.hello)


def written_bytes(lines: Iterable[bytes], kind: type[Stdout | Stderr]) -> int:
    """Return how many bytes of a stream are in these events, which must not be sealed."""
    mark = b'"stdout"' if kind is Stdout else b'"stderr"'
    total = 0
    for line in lines:
        if mark not in line:
            continue
        try:
            event = decode_event(line)
        except RemoteProtocolError:  # it was passed on unread: nonsense, or an event that only newer programs know
            continue
        if isinstance(event, kind):
            total += len(event.payload.chunk.encode())
    return total
