"""One line for each call of a tool: who, which, how it ended, how long, how large. Never a value.

The line is one JSON object, logged at level INFO by the logger `enclave.audit`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from enclave_protocol.logs import about

if TYPE_CHECKING:
    from .secrets import Scrubber

log = logging.getLogger("enclave.audit")

FLUSH_S = 0.05
"""How long a line may wait: what a broker that is killed can have failed to log."""
MAX_UNWRITTEN = 1000
"""Lines that may wait."""
SESSION_ENDED = "SESSION_ENDED"
"""The outcome of a call whose session ended before it did."""


class AuditLine(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is logged of one call."""

    event: str = msgspec.field(default_factory=lambda: "tool_call")  # by a factory, so that it is not left out
    """Always `tool_call`."""
    at: str
    """When it ended, UTC."""
    session_id: str
    """Whose guest called,"""
    call_id: str
    """by which call,"""
    tenant: str
    """for which tenant,"""
    tool: str
    """which tool: the name as the guest wrote it."""
    service: str | UnsetType = UNSET
    """What kind of tool, or its source; absent for an unknown one."""
    outcome: str
    """`ok`, the code of its error, or `SESSION_ENDED`."""
    duration_ms: float
    """From the guest's asking to the answer, waits and retries included."""
    attempts: int | UnsetType = UNSET
    """How often the tool was run; absent if it was not."""
    approved: bool | UnsetType = UNSET
    """What the approval hook said; absent if it was not asked."""
    args_bytes: int | UnsetType = UNSET
    """The arguments' size as JSON text,"""
    args_sha256: str | UnsetType = UNSET
    """and the hash of that text: the guest's arguments, names sorted, without spaces, in UTF-8."""
    result_bytes: int | UnsetType = UNSET
    """The result's size as JSON text, as given to the guest or stored."""
    reference: str | UnsetType = UNSET
    """The id under which the result is stored."""


class AuditLog:
    """Logs lines: not each at once, for that would hold up the next call, but all of a moment together.

    Args:
        scrubber: what takes secrets out of a line.
    """

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._lines: list[AuditLine] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, line: AuditLine) -> None:
        """Log a line, within `FLUSH_S`."""
        self._lines.append(line)
        if len(self._lines) >= MAX_UNWRITTEN:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Log what is still to be logged."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        for line in lines:
            extra = about(session_id=line.session_id, tenant=line.tenant, call_id=line.call_id, tool=line.tool)
            log.info("%s", self._scrubber.clean_json(msgspec.json.encode(line)).decode(), extra=extra)


def canonical(args: object) -> bytes:
    """Return the JSON text of arguments that is hashed."""
    return msgspec.json.encode(args, order="deterministic")


def fingerprint(text: bytes) -> str:
    """Return the hash of such a text."""
    return hashlib.sha256(text).hexdigest()
