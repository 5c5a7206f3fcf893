"""What the client library raises, by blame.

EnclaveError                     (enclave_protocol)
 ├── RequestRefused              yours: the request, or the key, is not acceptable; nothing was run
 ├── BrokerUnavailable           the network's or the broker's: nobody answers; nothing was run
 │    └── SessionLost            ... in the middle of a session: what became of it is unknown
 ├── SessionTimeout              the time that you would wait is over; the session was told to end
 └── SessionFailed               the code's; raised only where you ask for it: `check=True`, `Result.unwrap`

A session that the broker took and ended is always a `Result`, however it ended: the code's exception, a limit that
struck, a lost worker and a full fleet are in its `error`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from enclave_protocol import EnclaveError, ProtocolError

if TYPE_CHECKING:
    from .results import Result


LossReason = Literal["unreachable", "forgotten", "trimmed", "given up"]
"""Why the end of a session cannot be learned."""


class RequestRefused(EnclaveError):  # noqa: N818 - a fact about the request
    """The request was refused, here or by the broker, and changed nothing.

    Attributes:
        code: `VALIDATION_ERROR`, or what the broker said, such as `UNAUTHORIZED`.
        field: dotted path of the offending field (`limits.maxToolCalls`), empty if it was none.
        allowed: what would have been accepted, in words; may be empty.
    """

    def __init__(self, message: str, *, code: str = "VALIDATION_ERROR", field: str = "", allowed: str = "") -> None:
        self.code = code
        self.field = field
        self.allowed = allowed
        super().__init__(message)

    @classmethod
    def of(cls, error: ProtocolError) -> RequestRefused:
        """Return what a check of ours found, as it is told to callers."""
        return cls(str(error), field=error.field, allowed=error.allowed)


class BrokerUnavailable(EnclaveError):  # noqa: N818 - a fact about the network
    """Nobody answers at the broker's address, or not as a broker does."""


class SessionLost(BrokerUnavailable):
    """A session was under way, and its end cannot be learned any more.

    Attributes:
        session_id: which one.
        last_seq: number of the last event that arrived, 0 if none did.
        reason: `unreachable`, no connection could be had for as long as the client is patient; `forgotten`, the broker
            does not know the session any more; `trimmed`, it no longer keeps the event after `last_seq`; `given up`,
            this side no longer wanted it, or could not make sense of it.
    """

    def __init__(self, message: str, *, session_id: str, last_seq: int, reason: LossReason = "given up") -> None:
        self.session_id = session_id
        self.last_seq = last_seq
        self.reason: LossReason = reason
        super().__init__(f"session {session_id}: {message}")


class SessionTimeout(EnclaveError, TimeoutError):  # noqa: N818 - the wire's style
    """The session had not ended after `wait_s`. It was told to end, and nobody waits for it.

    Attributes:
        session_id: which one.
    """

    def __init__(self, wait_s: float, *, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(f"session {session_id} has not ended within wait_s={wait_s:g}")


class SessionFailed(EnclaveError):  # noqa: N818 - a fact about the code
    """The session ended without a result, and the caller wanted one.

    Attributes:
        result: how it ended; `result.error` is never None.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__(f"session {result.session_id}: {result.error}")
