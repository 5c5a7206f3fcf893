"""What can be wrong, by blame.

EnclaveError
 ├── ProtocolError              a message broke the protocol
 │    ├── LocalProtocolError    ... and we were about to send it: a bug of ours
 │    └── RemoteProtocolError   ... and the peer sent it: tell the peer, close nothing
 ├── SandboxError               a step of setting up a sandbox failed on this host
 └── NoCapacity                 nobody could take the session now; a retry can help

What a guest does (an exception, a timeout, a crash) is a value, never one of these: see `outcomes`.
"""

from __future__ import annotations

_LONGEST_QUOTE = 300


class EnclaveError(Exception):
    """Base of every error that Enclave raises."""


class ProtocolError(EnclaveError):
    """A message that the protocol does not allow.

    Attributes:
        field: dotted path of the offending field (`limits.deadlineMs`), empty for the message as a whole.
        allowed: what would have been accepted, in words.
        session_id: the session the message named, when that much could be read.
    """

    def __init__(self, reason: str, *, field: str = "", allowed: str = "", session_id: str | None = None) -> None:
        # Both may quote what the peer sent, and travel back to it and into logs.
        self.reason = reason = reason[:_LONGEST_QUOTE]
        self.field = field = field[:_LONGEST_QUOTE]
        self.allowed = allowed
        self.session_id = session_id
        where = f"{field}: " if field else ""
        hint = f" (allowed: {allowed})" if allowed else ""
        super().__init__(f"{where}{reason}{hint}")


class LocalProtocolError(ProtocolError):
    """We tried something the protocol forbids, such as an illegal state transition. A bug."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol forbids. The peer is told; nothing else is touched."""


class SandboxError(EnclaveError):
    """A step of building a sandbox failed.

    Attributes:
        step: the step's name as listed in `docs/sandbox.md`, such as `mount /tmp`.
        errno: the kernel's error number, 0 if the failure had none.
        hint: what to change on this host, empty if unknown.
    """

    def __init__(self, step: str, errno: int, reason: str, *, hint: str = "") -> None:
        self.step = step
        self.errno = errno
        self.reason = reason
        self.hint = hint
        super().__init__(f"sandbox step {step!r} failed: {reason}" + (f"; {hint}" if hint else ""))


class NoCapacity(EnclaveError):  # noqa: N818 - the wire's word
    """Every slot is taken (or the queue's deadline passed). `retry_after_s` says when to try again."""

    def __init__(self, reason: str, *, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)
