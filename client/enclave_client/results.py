"""How a session ended, as a value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec
from msgspec import UNSET

from enclave_protocol import Code, Stats, is_retryable
from enclave_protocol import events as ev

from .errors import SessionFailed

if TYPE_CHECKING:
    from enclave_protocol import AnyEvent

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a session failed."""

    code: str
    """One of the protocol's outcomes, such as `EXECUTION_ERROR`, or the own code of a tool's error."""
    message: str
    name: str | None = None
    """The exception's type, such as `ValueError`."""
    line: int | None = None
    """The line of the code, counted from 1."""
    stack: str | None = None
    """The traceback of the code's own lines."""
    retryable: bool = False
    """Whether the same request can succeed later."""
    retry_after_s: float | None = None
    """When to make it again, as the broker says of a fleet that is full and of a quota that is used up."""

    def __str__(self) -> str:
        where = f" (line {self.line})" if self.line else ""
        return f"{self.code}: {self.message}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a session ended."""

    session_id: str
    ok: bool
    """Whether the code returned."""
    value: Any = None
    """What it returned, as decoded JSON; None if it failed."""
    error: Failure | None = None
    """Why it failed; None if it did not."""
    stdout: str = ""
    """What was written, up to `max_stdout_bytes`; `stats.truncated` says whether there was more."""
    stderr: str = ""
    stats: Stats

    @overload
    def unwrap(self) -> Any: ...
    @overload
    def unwrap(self, returns: type[T]) -> T: ...
    def unwrap(self, returns: Any = Any) -> Any:
        """Return the value.

        Args:
            returns: its type, such as `list[int]` or a dataclass of yours; the value is checked and converted.

        Raises:
            SessionFailed: there is none, or it is of another type (code `RESULT_NOT_EXPECTED`).
        """
        if self.error is not None:
            raise SessionFailed(self)
        try:
            return msgspec.convert(self.value, returns)
        except msgspec.ValidationError as error:
            failure = Failure(code="RESULT_NOT_EXPECTED", message=str(error))
            raise SessionFailed(dataclasses.replace(self, ok=False, error=failure)) from error


class ResultBuilder:
    """Collects a session's events into its result."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._stdout: list[str] = []
        self._stderr: list[str] = []
        self.result: Result | None = None
        """Set by the `final`."""

    def add(self, event: AnyEvent) -> None:
        """Take in the next event."""
        if isinstance(event, ev.Stdout):
            self._stdout.append(event.payload.chunk)
        elif isinstance(event, ev.Stderr):
            self._stderr.append(event.payload.chunk)
        elif isinstance(event, ev.Final):
            self.result = self._result(event.payload)

    def _result(self, final: ev.FinalPayload) -> Result:
        return Result(
            session_id=self._session_id,
            ok=final.ok,
            value=None if final.result is UNSET or not final.ok else final.result,
            error=None if final.ok else _failure(final.error or ev.FinalError(message="it failed without a reason")),
            stdout="".join(self._stdout),
            stderr="".join(self._stderr),
            stats=final.stats or Stats(),
        )


def _failure(error: ev.FinalError) -> Failure:
    code = error.code or Code.EXECUTION_ERROR.value
    return Failure(
        code=code,
        message=error.message,
        name=error.name or None,
        line=error.line or None,
        stack=error.stack or None,
        retryable=is_retryable(code) if error.retryable is UNSET else error.retryable,
        retry_after_s=None if error.retry_after_ms is UNSET else error.retry_after_ms / 1000,
    )
