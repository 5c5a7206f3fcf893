"""Calls of tools that a session's client answers: who answers what, and how long a client may take.

A call that is left to the client has no timer here unless its tool was declared with a `timeoutMs` of its own: the
worker keeps the session's `toolTimeoutMs` itself, and a longer wait than that is never had.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

from msgspec import UNSET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_protocol import ClientTools

    from .sessions import BrokerSession


class Answerer(enum.Enum):
    """Who answers a call."""

    BROKER = "broker"
    CLIENT = "client"
    NOBODY = "nobody"


def answerer(name: str, *, broker_has: bool, client_tools: ClientTools | None) -> Answerer:
    """Return who answers a call of `name`.

    A declared tool stays the client's when the broker gets one of that name later: its session began with it.
    """
    if client_tools is not None and name in client_tools:
        return Answerer.CLIENT
    if broker_has:
        return Answerer.BROKER
    return Answerer.CLIENT if client_tools is None else Answerer.NOBODY


def unknown(name: str, broker_tools: Iterable[str], client_tools: ClientTools | None) -> str:
    """Return what to tell a guest that called a tool nobody answers for."""
    lists = f"tools: {', '.join(broker_tools) or 'none'}"
    if client_tools:
        lists += f"; of the client: {', '.join(client_tools)}"
    return f"no tool {name!r} ({lists})"


class ClientCalls:
    """The timers of calls that wait for a client. Owns them: each ends with its call, or with the session.

    Args:
        give_up: told of each call that waited too long, with the reason.
    """

    def __init__(self, give_up: Callable[[BrokerSession, str, str], None]) -> None:
        self._give_up = give_up
        self._timers: dict[str, dict[str, asyncio.TimerHandle]] = {}

    def left(self, session: BrokerSession, call_id: str, name: str) -> None:
        """Note that a call now waits for the client."""
        declared = (session.client_tools or {}).get(name)
        if declared is None or declared.timeout_ms is UNSET or declared.timeout_ms >= session.limits.tool_wait_ms:
            return
        timer = asyncio.get_running_loop().call_later(
            declared.timeout_ms / 1000, self._late, session, call_id, f"{name} took over {declared.timeout_ms} ms"
        )
        self._timers.setdefault(session.session_id, {})[call_id] = timer

    def answered(self, session_id: str, call_id: str) -> None:
        """Note that a call was answered."""
        timers = self._timers.get(session_id, {})
        timer = timers.pop(call_id, None)
        if timer is not None:
            timer.cancel()
        if not timers:
            self._timers.pop(session_id, None)

    def ended(self, session_id: str) -> None:
        """Note that a session ended, with whatever calls it had open."""
        for timer in self._timers.pop(session_id, {}).values():
            timer.cancel()

    def _late(self, session: BrokerSession, call_id: str, reason: str) -> None:
        self.answered(session.session_id, call_id)
        self._give_up(session, call_id, reason)
