"""One line for each call of a tool: who, which, how it ended, how long, how large. Never a value.

The line is one JSON object, logged at level INFO by the logger `enclave.audit`.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

if TYPE_CHECKING:
    from .secrets import Scrubber

log = logging.getLogger("enclave.audit")

SESSION_ENDED = "SESSION_ENDED"
"""The outcome of a call whose session ended before it did."""


class AuditLine(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is logged of one call."""

    event: str = msgspec.field(default_factory=lambda: "tool_call")  # by a factory, so that it is not left out
    at: str
    """When it ended, UTC."""
    session_id: str
    call_id: str
    tenant: str
    tool: str
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


def write(line: AuditLine, scrubber: Scrubber) -> None:
    """Log a line."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", scrubber.clean_json(msgspec.json.encode(line)).decode())


def canonical(args: object) -> bytes:
    """Return the JSON text of arguments that is hashed."""
    return msgspec.json.encode(args, order="deterministic")


def fingerprint(text: bytes) -> str:
    """Return the hash of such a text."""
    return hashlib.sha256(text).hexdigest()
