"""What is spoken on a WebSocket, decided from the request's headers. Pure.

A browser's page can set no headers on a WebSocket, only offer subprotocols. So it offers `enclave.v2`, which is what is
spoken, and beside it `enclave.bearer.<token>`, which is who it is, and for the gate. The token is never chosen, echoed
or quoted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclave_broker.access import BEARER
from enclave_protocol import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBPROTOCOL = "enclave.v2"
HEADER = "Sec-WebSocket-Protocol"
_MAX_QUOTED = 3


def choose_subprotocol(offered: Sequence[str]) -> str | None:
    """Return the subprotocol to select, None if none was offered.

    Raises:
        RemoteProtocolError: only others were offered. The message names them, but no token.
    """
    if not any(offered):
        return None
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    named = [name[:40] for name in offered if not name.startswith(BEARER)][:_MAX_QUOTED]
    reason = f"no such subprotocol: {', '.join(named)}" if named else "a token alone is no subprotocol"
    raise RemoteProtocolError(reason, field=HEADER, allowed=f"{SUBPROTOCOL}, or none at all")
