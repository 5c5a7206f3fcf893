"""Approval: somebody is asked before a tool runs, and the call waits for the answer.

The hook is an async function of the program that runs the broker. What it does to find out (a message, a console, a
policy) is its affair; the call's own time limit bounds the wait. Whatever is not a clear yes is a no.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from enclave_broker.access import DEFAULT_TENANT
from enclave_protocol import Code
from enclave_protocol.logs import about

from .tool import ToolFailure

log = logging.getLogger("enclave.broker")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """What is to be approved: one call, its arguments checked and its references resolved."""

    tool: str
    args: dict[str, Any] = field(repr=False)
    session_id: str
    call_id: str
    tenant: str = DEFAULT_TENANT
    description: str = ""
    """The tool's."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no, and why. The guest is told."""

    reason: str


ApprovalHook = Callable[[ApprovalRequest], Awaitable[bool | Refusal]]
"""Returns True to let the call run; False or a Refusal to refuse it. Raising refuses too."""


def _about(request: ApprovalRequest) -> dict[str, Any]:
    return about(session_id=request.session_id, tenant=request.tenant, call_id=request.call_id, tool=request.tool)


async def require_approval(hook: ApprovalHook | None, request: ApprovalRequest) -> None:
    """Return if the hook agrees; raises ToolFailure, `APPROVAL_REFUSED`, if not."""
    if hook is None:
        raise _refused(request, "this broker has no approval hook")
    try:
        answer = await hook(request)
    except Exception:
        log.exception("the approval hook failed on a call of %s", request.tool, extra=_about(request))
        raise _refused(request, "the approval hook failed") from None
    if answer is not True:
        raise _refused(request, answer.reason if isinstance(answer, Refusal) else "the approval hook said no")


def load_hook(where: str) -> ApprovalHook:
    """Return the hook called `module:function`; raises ValueError."""
    module, _, name = where.partition(":")
    if not module or not name:
        raise ValueError(f"approval hook {where!r}: is written module:function")
    try:
        hook = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ValueError(f"approval hook {where!r}: {type(error).__name__}: {error}") from error
    if not inspect.iscoroutinefunction(hook) and not inspect.iscoroutinefunction(getattr(hook, "__call__", None)):  # noqa: B004
        raise ValueError(f"approval hook {where!r}: is no async function")
    found: ApprovalHook = hook
    return found


def _refused(request: ApprovalRequest, reason: str) -> ToolFailure:
    return ToolFailure(Code.APPROVAL_REFUSED, f"{request.tool} was not approved: {reason}")
