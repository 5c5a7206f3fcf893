"""Who may open a WebSocket and what is spoken on it, decided from the request's headers. Pure.

A browser's page can set no headers on a WebSocket, only offer subprotocols. So it offers `enclave.v2`, which is what is
spoken, and beside it `enclave.bearer.<token>`, which is who it is. The token is never chosen, echoed or quoted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclave_protocol import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SUBPROTOCOL = "enclave.v2"
BEARER = "enclave.bearer."
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


def bearer_token(headers: Iterable[tuple[bytes, bytes]], offered: Iterable[str] = ()) -> str | None:
    """Return the token a caller shows, by `Authorization: Bearer …` or as an offered subprotocol; None if none.

    Args:
        headers: names (any case) and values, as ASGI has them.
        offered: subprotocols, of a WebSocket.
    """
    for name, value in headers:
        if name.lower() == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
    return next((name.removeprefix(BEARER) for name in offered if name.startswith(BEARER)), None)
