"""Why the broker closes a WebSocket, as close codes. `docs/protocol.md` has them for clients."""

from __future__ import annotations

import enum

MAX_REASON_BYTES = 123
"""Of a close frame's reason: the protocol's own limit."""


class CloseCode(enum.IntEnum):
    """The codes that the broker itself sends, each with its reason as text."""

    BROKEN_FRAME = 1002
    NOT_UTF8 = 1007
    TOO_LARGE = 1009
    BROKER_FAILED = 1011
    """Also a client that answers no pings: from outside, it can't be told which of the two it was."""
    BROKER_STOPS = 1012
    TOO_SLOW = 4008
    """Of the range for applications, so that a client need not guess whether it may come back: it may."""


HOW_TO_RESUME = "connect again and attach each session from the seq you have, plus 1"
TOO_SLOW = f"the client reads too slowly: {HOW_TO_RESUME}"
BROKER_FAILED = f"the broker failed: {HOW_TO_RESUME}"
BROKER_STOPS = f"the broker is stopping: {HOW_TO_RESUME}"
SILENT = f"no sign of life: {HOW_TO_RESUME}"
NOT_UTF8 = "a text frame that is not UTF-8"
