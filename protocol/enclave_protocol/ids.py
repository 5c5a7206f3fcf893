"""Identifiers: their forms, and how to make new ones.

The wire's own rule is a prefix and at least one more character. Ours is narrower (they travel in URLs, logs and file
names): the prefix, then 1 to 128 of `A-Z a-z 0-9 . _ ~ -`.
"""

from __future__ import annotations

import os
import re
from typing import NewType

from .errors import RemoteProtocolError

SessionId = NewType("SessionId", str)
CallId = NewType("CallId", str)

SESSION_ID_FORM = "'s_' and 1 to 128 of A-Z a-z 0-9 . _ ~ -"
CALL_ID_FORM = "'c_' and 1 to 128 of A-Z a-z 0-9 . _ ~ -"

_SESSION_ID = re.compile(r"s_[A-Za-z0-9._~-]{1,128}")
_CALL_ID = re.compile(r"c_[A-Za-z0-9._~-]{1,128}")


def new_session_id() -> SessionId:
    """Return a fresh `s_<uuid4>`."""
    return SessionId(f"s_{_uuid4()}")


def new_call_id() -> CallId:
    """Return a fresh `c_<uuid4>`."""
    return CallId(f"c_{_uuid4()}")


def _uuid4() -> str:
    """Return what `str(uuid.uuid4())` does, in half the time."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def parse_session_id(text: str) -> SessionId:
    """Check a session id that a peer sent; raises RemoteProtocolError naming `sessionId`."""
    if not _SESSION_ID.fullmatch(text):
        raise RemoteProtocolError(f"not a session id: {text[:80]!r}", field="sessionId", allowed=SESSION_ID_FORM)
    return SessionId(text)


def parse_call_id(text: str) -> CallId:
    """Check a call id that a peer sent; raises RemoteProtocolError naming `callId`."""
    if not _CALL_ID.fullmatch(text):
        raise RemoteProtocolError(f"not a call id: {text[:80]!r}", field="callId", allowed=CALL_ID_FORM)
    return CallId(text)
