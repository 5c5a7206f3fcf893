"""Endings of sessions that are due at some time, unless their worker ends them before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_protocol import Code

    from .sessions import BrokerSession


class Overdue:
    """One timer for each session that is to end. Owns them: each ends with the session.

    Args:
        strike: told of a session whose time is over, with the code and message of its end.
    """

    def __init__(self, strike: Callable[[BrokerSession, Code, str], None]) -> None:
        self._strike = strike
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self, session: BrokerSession, delay_s: float, code: Code, message: str) -> None:
        """Have a session end in a while. An earlier ending that is due is not put off."""
        loop = asyncio.get_running_loop()
        earlier = self._timers.get(session.session_id)
        if earlier is not None and earlier.when() <= loop.time() + delay_s:
            return
        self.end(session.session_id)
        self._timers[session.session_id] = loop.call_later(delay_s, self._strike, session, code, message)

    def end(self, session_id: str) -> None:
        """Have a session end no more: it did, or is on its way anew."""
        timer = self._timers.pop(session_id, None)
        if timer is not None:
            timer.cancel()

    def clear(self) -> None:
        """Have none end."""
        for session_id in list(self._timers):
            self.end(session_id)
