"""How an execution can end: one closed list of codes, each saying whether trying again can help."""

from __future__ import annotations

import enum


class Code(enum.StrEnum):
    """The `code` of `final.error`. A tool's own error code, uncaught by the guest, may stand in its place."""

    SYNTAX_ERROR = "SYNTAX_ERROR"
    """The code does not compile; the message names the line."""
    EXECUTION_ERROR = "EXECUTION_ERROR"
    """The code raised an exception and did not catch it."""
    RESULT_NOT_SERIALIZABLE = "RESULT_NOT_SERIALIZABLE"
    """The code returned something that is no JSON value."""
    RESULT_TOO_LARGE = "RESULT_TOO_LARGE"
    """The result, as JSON text, is larger than `maxResultBytes`."""
    MAX_TOOL_CALLS_EXCEEDED = "MAX_TOOL_CALLS_EXCEEDED"
    """The code made more than `maxToolCalls` tool calls."""
    UNKNOWN_TOOL = "UNKNOWN_TOOL"
    """The code called a tool that nobody answers for."""
    VALIDATION_ERROR = "VALIDATION_ERROR"
    """A request, or the arguments of a tool call, were refused."""
    SECRET_ERROR = "SECRET_ERROR"  # noqa: S105 - a code, not a secret
    """A tool needs a secret that is not configured."""
    APPROVAL_REFUSED = "APPROVAL_REFUSED"
    """A call of a tool that needs approval did not get it."""
    TOOL_TIMEOUT = "TOOL_TIMEOUT"
    """A tool did not answer within `toolTimeoutMs`."""
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """The wall deadline struck: `sessionTtlMs` or `deadlineMs`."""
    CPU_LIMIT_EXCEEDED = "CPU_LIMIT_EXCEEDED"
    """The sandbox used up its CPU time, `cpuTimeMs`."""
    MEMORY_LIMIT_EXCEEDED = "MEMORY_LIMIT_EXCEEDED"
    """The sandbox used up its memory, `memoryLimitBytes`."""
    PROCESS_LIMIT_EXCEEDED = "PROCESS_LIMIT_EXCEEDED"
    """The code failed because the sandbox may not have more processes and threads."""
    DISK_LIMIT_EXCEEDED = "DISK_LIMIT_EXCEEDED"
    """The code failed because a file or a directory of the sandbox was full."""
    GUEST_CRASHED = "GUEST_CRASHED"
    """The guest's process died of a signal, or ended without a result."""
    SESSION_CANCELLED = "SESSION_CANCELLED"
    """Somebody cancelled the session, or its client or broker went away."""
    WORKER_LOST = "WORKER_LOST"
    """The worker went away with the session on it."""
    NO_CAPACITY = "NO_CAPACITY"
    """No slot was free, and none became free in time."""
    ENCRYPTION_KEY_EXPIRED = "ENCRYPTION_KEY_EXPIRED"
    """The session's key has sealed as many events as one key may, 2^30."""
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    """The tenant has used up a quota: of sessions, processor time or tool calls."""
    INTERNAL_ERROR = "INTERNAL_ERROR"
    """A fault of Enclave's own; the worker's log says more."""

    @property
    def retryable(self) -> bool:
        """Whether the same request, unchanged, can succeed later."""
        return self in _RETRYABLE


# The first two lost their place through no fault of the code; a timed-out tool may answer next time; quotas come back.
_RETRYABLE = frozenset(
    {Code.WORKER_LOST, Code.NO_CAPACITY, Code.TOOL_TIMEOUT, Code.INTERNAL_ERROR, Code.QUOTA_EXCEEDED}
)


def is_retryable(code: str) -> bool:
    """Like `Code.retryable`, for any code: a tool's own code is never known to be retryable."""
    return code in _RETRYABLE
