"""The session's states, and every legal way from one to the next.

Theory of operation. A session has exactly one state, and only `transition` says what the next one is. The table is
the whole truth: worker and broker both look here, neither decides for itself, and the diagram in `docs/protocol.md`
is drawn from it. The last three states are terminal; whoever enters one of them sends the single `final`.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from .errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(enum.StrEnum):
    """What a session is doing."""

    STARTING = "starting"
    """Accepted; waiting for a slot or for a sandbox."""
    RUNNING = "running"
    """The guest's code runs."""
    WAITING_FOR_TOOL = "waiting_for_tool"
    """The guest runs, and at least one tool call has no result yet."""
    COMPLETED = "completed"
    """Ended with a result."""
    CANCELLED = "cancelled"
    """Ended by a client, or because its client or broker went away."""
    FAILED = "failed"
    """Ended with an error: the guest's, a limit's or ours."""

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return not TRANSITIONS[self]


class Trigger(enum.StrEnum):
    """What moves a session from one state to another."""

    START = "start"
    """The code was handed to a sandbox."""
    TOOL_CALL = "tool_call"
    """The guest called a tool while no other call was waiting."""
    TOOL_RESULT = "tool_result"
    """The last waiting call got its result."""
    COMPLETE = "complete"
    """The guest returned, and its result was valid."""
    FAIL = "fail"
    """The guest raised, broke a limit or died, or we did."""
    CANCEL = "cancel"
    """Somebody asked for the end."""


TRANSITIONS: Mapping[State, Mapping[Trigger, State]] = MappingProxyType(
    {
        State.STARTING: {
            Trigger.START: State.RUNNING,
            Trigger.FAIL: State.FAILED,
            Trigger.CANCEL: State.CANCELLED,
        },
        State.RUNNING: {
            Trigger.TOOL_CALL: State.WAITING_FOR_TOOL,
            Trigger.COMPLETE: State.COMPLETED,
            Trigger.FAIL: State.FAILED,
            Trigger.CANCEL: State.CANCELLED,
        },
        State.WAITING_FOR_TOOL: {
            Trigger.TOOL_RESULT: State.RUNNING,
            Trigger.FAIL: State.FAILED,
            Trigger.CANCEL: State.CANCELLED,
        },
        State.COMPLETED: {},
        State.CANCELLED: {},
        State.FAILED: {},
    }
)


def transition(state: State, trigger: Trigger) -> State:
    """Return the state that `trigger` leads to.

    Raises:
        LocalProtocolError: the table has no such transition, which is a bug of the caller's.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        allowed = ", ".join(TRANSITIONS[state]) or "nothing: the state is terminal"
        raise LocalProtocolError(f"{trigger} in state {state}", field="state", allowed=allowed) from None
