"""What a worker's event asks of the broker. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclave_protocol import Code

if TYPE_CHECKING:
    from enclave_protocol.events import ToolCall


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker had no slot; nothing was told to the client."""


@dataclass(frozen=True, slots=True)
class LetGo:
    """The worker ended it unfinished, because it goes away; nothing was told to the client, and it may run again."""


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The guest waits for this call."""

    call: ToolCall
    size_bytes: int
    """Of the event as it came."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker's `final` arrived."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The session cannot go on, mostly because the worker's stream made no sense: end it and tell the worker to."""

    reason: str
    code: Code = Code.INTERNAL_ERROR


@dataclass(frozen=True, slots=True)
class Replayed:
    """The event is in the log already."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Events before this one did not come."""

    reason: str


Step = Refused | LetGo | ToolCalled | Ended | Broken | Replayed | Missing | None
"""What a worker's event asks of the broker; None: it is in the log, and that is all."""
