"""What a session tells its shell to do, in order."""

from __future__ import annotations

from typing import Any, NamedTuple


class Emit(NamedTuple):
    """Send this event to the session's client."""

    line: bytes


class ToGuest(NamedTuple):
    """Send this frame to the guest."""

    message: dict[str, Any]


class StartToolTimer(NamedTuple):
    """Call `tool_timeout(call_id)` after this long, unless told to stop."""

    call_id: str
    timeout_ms: int


class StopToolTimer(NamedTuple):
    """The call has its result."""

    call_id: str


class CheckUsage(NamedTuple):
    """Call `used` after this long."""

    delay_ms: float


class Kill(NamedTuple):
    """End the sandbox now."""


class Conclude(NamedTuple):
    """The guest has had its say: call `ended` with what it used so far, then kill it."""


class Ended(NamedTuple):
    """The `final` was emitted; forget the session."""

    code: str
    """`OK` or the error's code."""


Instruction = Emit | ToGuest | StartToolTimer | StopToolTimer | CheckUsage | Kill | Conclude | Ended
