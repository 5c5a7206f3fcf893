"""What the engine makes of a frame: what its shell is to do, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclave_protocol import EnclaveError, Hello
    from enclave_protocol import events as ev


@dataclass(frozen=True, slots=True)
class Greeted:
    """The broker said hello: the connection is one to a broker."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Arrived:
    """The session's next event, byte for byte."""

    session_id: str
    kind: str
    line: bytes


@dataclass(frozen=True, slots=True)
class Called:
    """The code waits for a tool of the client's."""

    session_id: str
    call: ev.ToolCallPayload


@dataclass(frozen=True, slots=True)
class CallOver:
    """The code no longer waits for a call that still runs here: somebody else answered it, or its time was over."""

    session_id: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The session is over without a `final`."""

    session_id: str
    error: EnclaveError


Action = Greeted | Arrived | Called | CallOver | Lost
