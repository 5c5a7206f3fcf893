"""How an execution can end: one closed list of codes, each saying whether trying again can help."""

from __future__ import annotations

import enum


class Code(enum.StrEnum):
    """The `code` of `final.error`. A tool's own error code, uncaught by the guest, may stand in its place."""

    SYNTAX_ERROR = "SYNTAX_ERROR"
    EXECUTION_ERROR = "EXECUTION_ERROR"
    RESULT_NOT_SERIALIZABLE = "RESULT_NOT_SERIALIZABLE"
    RESULT_TOO_LARGE = "RESULT_TOO_LARGE"
    MAX_TOOL_CALLS_EXCEEDED = "MAX_TOOL_CALLS_EXCEEDED"
    UNKNOWN_TOOL = "UNKNOWN_TOOL"
    VALIDATION_ERROR = "VALIDATION_ERROR"
    SECRET_ERROR = "SECRET_ERROR"  # noqa: S105 - a code, not a secret
    TOOL_TIMEOUT = "TOOL_TIMEOUT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CPU_LIMIT_EXCEEDED = "CPU_LIMIT_EXCEEDED"
    MEMORY_LIMIT_EXCEEDED = "MEMORY_LIMIT_EXCEEDED"
    PROCESS_LIMIT_EXCEEDED = "PROCESS_LIMIT_EXCEEDED"
    DISK_LIMIT_EXCEEDED = "DISK_LIMIT_EXCEEDED"
    GUEST_CRASHED = "GUEST_CRASHED"
    SESSION_CANCELLED = "SESSION_CANCELLED"
    WORKER_LOST = "WORKER_LOST"
    NO_CAPACITY = "NO_CAPACITY"
    INTERNAL_ERROR = "INTERNAL_ERROR"

    @property
    def retryable(self) -> bool:
        """Whether the same request, unchanged, can succeed later."""
        return self in _RETRYABLE


# The first two lost their place through no fault of the code; a timed-out tool may answer next time.
_RETRYABLE = frozenset({Code.WORKER_LOST, Code.NO_CAPACITY, Code.TOOL_TIMEOUT, Code.INTERNAL_ERROR})


def is_retryable(code: str) -> bool:
    """Like `Code.retryable`, for any code: a tool's own code is never known to be retryable."""
    return code in _RETRYABLE
