"""What decides how a session ends, and what it says then. Pure.

A verdict is reached once and stands; only where the guest reached it may the kernel know better (`revised`): a guest
sees a failed fork or a lost process and can not tell that this was its limit.
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import UNSET, UnsetType

from enclave_protocol import Code, FinalError, Trigger, is_retryable

if TYPE_CHECKING:
    from collections.abc import Collection

    from .guest_frames import GuestError
    from .usage import Exit, Usage

_ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_GUEST_CODES = frozenset(
    {
        Code.SYNTAX_ERROR,
        Code.EXECUTION_ERROR,
        Code.RESULT_NOT_SERIALIZABLE,
        Code.RESULT_TOO_LARGE,
        Code.MEMORY_LIMIT_EXCEEDED,
        Code.DISK_LIMIT_EXCEEDED,
    }
)
"""The codes a guest may claim without having been sent them by a tool."""
_RAISED = frozenset({Code.EXECUTION_ERROR, Code.MEMORY_LIMIT_EXCEEDED, Code.DISK_LIMIT_EXCEEDED})
"""Those that stand for an exception, whose name belongs in the message."""
_FAILED_FORKS = frozenset({"BlockingIOError", "RuntimeError", "OSError"})
"""How a guest can see that it got no process: fork's EAGAIN, or what `threading` makes of it."""


class Verdict(msgspec.Struct, frozen=True):
    """How a session ends."""

    trigger: Trigger
    by_guest: bool = False
    """Whether the guest had its say, by a result or an exception."""
    result: Any | UnsetType = UNSET
    error: FinalError | UnsetType = UNSET

    @property
    def code(self) -> str:
        """`OK` or the error's code."""
        return "OK" if self.error is UNSET or self.error.code is UNSET else self.error.code

    @classmethod
    def returned(cls, value: bytes | UnsetType) -> Self:
        """The code returned this, as JSON, or nothing at all."""
        return cls(Trigger.COMPLETE, by_guest=True, result=UNSET if value is UNSET else msgspec.Raw(value))

    @classmethod
    def raised(cls, error: GuestError, tool_codes: Collection[str]) -> Self:
        """The code failed, and says how.

        Args:
            error: what the guest claims.
            tool_codes: what failed tools told it: codes that it may end with, too.
        """
        code = error.code
        if code not in _GUEST_CODES and not (code in tool_codes and _ERROR_CODE.fullmatch(code)):
            code = Code.EXECUTION_ERROR
        named = code in _RAISED or code not in _GUEST_CODES
        said = [error.name, error.message] if named else [error.message]
        final = FinalError(
            message=": ".join(part for part in said if part),
            code=str(code),
            stack=UNSET if error.stack is None else error.stack,
            name=UNSET if error.name is None else error.name,
            line=UNSET if error.line is None else error.line,
            retryable=is_retryable(code),
        )
        return cls(Trigger.FAIL, by_guest=True, error=final)

    @classmethod
    def failed(cls, code: Code, message: str) -> Self:
        """It ends for a reason that the guest did not give."""
        return cls(Trigger.FAIL, error=_final_error(code, message))

    @classmethod
    def cancelled(cls, reason: str) -> Self:
        """Somebody wants it to end."""
        return cls(Trigger.CANCEL, error=_final_error(Code.SESSION_CANCELLED, reason))

    @classmethod
    def out_of_memory(cls, memory_bytes: int) -> Self:
        """The sandbox has used up its memory, which was so much."""
        message = f"the sandbox used up its memory: memoryLimitBytes={memory_bytes}"
        return cls.failed(Code.MEMORY_LIMIT_EXCEEDED, message)

    @classmethod
    def died(cls, exit_: Exit | None, memory_bytes: int) -> Self:
        """The sandbox ended before anything was decided. None: there never was one."""
        if exit_ is not None and exit_.lost:
            return cls.failed(Code.INTERNAL_ERROR, f"the sandbox was lost: {exit_.lost}")
        if exit_ is not None and exit_.usage.oom_kills:
            return cls.out_of_memory(memory_bytes)
        return cls.failed(Code.GUEST_CRASHED, _describe_exit(exit_))

    def revised(self, usage: Usage, memory_bytes: int) -> Self:
        """Return it as it is now that it is known what the kernel has to say."""
        if not self.by_guest:
            return self
        if usage.oom_kills:
            # Whatever the guest made of the loss of a process: the limit has struck.
            return self.out_of_memory(memory_bytes)
        error = self.error
        if usage.refused_processes and error is not UNSET and _is_failed_fork(error):
            error = msgspec.structs.replace(error, code=Code.PROCESS_LIMIT_EXCEEDED.value)
            return msgspec.structs.replace(self, error=error)
        return self


def _final_error(code: Code, message: str) -> FinalError:
    return FinalError(message=message, code=str(code), retryable=code.retryable)


def _is_failed_fork(error: FinalError) -> bool:
    return error.code == Code.EXECUTION_ERROR and error.name in _FAILED_FORKS


def _describe_exit(exit_: Exit | None) -> str:
    if exit_ is None:
        return "the sandbox never came up"
    if exit_.status is None:
        return "the guest ended before it returned a result"
    if os.WIFSIGNALED(exit_.status):
        number = os.WTERMSIG(exit_.status)
        return f"the guest died of {signal.Signals(number).name if number in set(signal.Signals) else number}"
    return f"the guest exited with status {os.waitstatus_to_exitcode(exit_.status)} before it returned a result"
