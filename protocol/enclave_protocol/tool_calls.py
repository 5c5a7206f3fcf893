"""What everybody who runs Python functions as tools agrees on: how arguments fit, and what the guest is told.

The guest's argument object becomes keyword arguments; any other JSON value is the one positional argument; `null` for
a function without parameters is none. How a function is run, and in what thread, is its caller's affair.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from .messages import ToolError, ToolResult
from .outcomes import Code

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MESSAGE_CHARS = 10_000
"""Of what an exception says, this much is passed on,"""
MAX_CODE_CHARS = 128
"""and of a code of its own this much."""

_ANY_ARGUMENTS = inspect.signature(lambda *_args, **_kwargs: None)


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return what a tool takes."""
    try:
        return inspect.signature(function)
    except ValueError:  # some builtins have none: they say themselves what does not fit
        return _ANY_ARGUMENTS


def bind(signature: inspect.Signature, args: object, *first: object) -> inspect.BoundArguments:
    """Fit the guest's arguments behind our own `first` ones; raises TypeError."""
    if isinstance(args, dict):
        return signature.bind(*first, **args)
    if args is None and len(signature.parameters) == len(first):
        return signature.bind(*first)
    return signature.bind(*first, args)


def attempt(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Call a tool in a thread of its own: its value, or what it raised in a form that a future can carry.

    Neither StopIteration nor what is no Exception, such as SystemExit, can travel through a future as itself.
    """
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 - handed to whoever waits; SystemExit must not end the wait
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            return None, error
        return None, RuntimeError(describe(error))


def succeeded(session_id: str, call_id: str, name: str, value: object, *, max_bytes: int | None = None) -> ToolResult:
    """Return the result of a call; its failure, if the value is not JSON or larger than `max_bytes`."""
    try:
        text = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name} returned something that is not JSON: {error}"
        return failed(session_id, call_id, Code.RESULT_NOT_SERIALIZABLE, message)
    if max_bytes is not None and len(text) > max_bytes:
        message = f"{name} returned {len(text)} bytes of JSON; maxToolResultBytes is {max_bytes}"
        return failed(session_id, call_id, Code.RESULT_TOO_LARGE, message)
    return ToolResult(session_id=session_id, call_id=call_id, success=True, value=msgspec.Raw(text))


def raised(session_id: str, call_id: str, error: BaseException) -> ToolResult:
    """Return the failure of a call that raised; an exception with a `code` of its own keeps it."""
    return failed(session_id, call_id, code_of(error), describe(error))


def failed(session_id: str, call_id: str, code: str, message: str) -> ToolResult:
    """Return the failure of a call; what is too long is cut, and what is no Unicode replaced."""
    error = ToolError(message=_fit(message, MAX_MESSAGE_CHARS), code=_fit(str(code), MAX_CODE_CHARS))
    return ToolResult(session_id=session_id, call_id=call_id, success=False, error=error)


def code_of(error: BaseException) -> str:
    """Return the code of what a tool raised: its own, if it is text."""
    code = getattr(error, "code", None)
    return str(code) if isinstance(code, str) and code else Code.EXECUTION_ERROR


def _fit(text: str, most_chars: int) -> str:
    return text[:most_chars].encode(errors="replace").decode()  # half of a surrogate pair can't be sent


def describe(error: BaseException) -> str:
    """Return what a tool raised in words: its type and its message."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a tool's exception may fail to print itself
        text = "(its message can't be shown)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
