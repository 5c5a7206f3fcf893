"""Who reads sessions: one that nobody reads is given a while, and then given up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .sessions import BrokerSession


class Readers:
    """The readers of all sessions. Owns a timer for each live session that has none.

    Args:
        grace_s: how long a session may go without a reader.
        give_up: told of a session that went without one for longer.
    """

    def __init__(self, grace_s: float, give_up: Callable[[BrokerSession], None]) -> None:
        self._grace_s = grace_s
        self._give_up = give_up
        self._unread: dict[str, asyncio.TimerHandle] = {}  # when to stop waiting for a reader
        self._readers = 0
        self._all_read = asyncio.Event()
        self._all_read.set()
        self._closed = False

    def came(self, session: BrokerSession) -> None:
        """Note that somebody reads the session: it need not be given up."""
        self._readers += 1
        self._all_read.clear()
        self.stop_waiting(session.session_id)

    def left(self, session: BrokerSession) -> None:
        """Note that a reader is gone, or has all. A live session without any is given a while."""
        self._readers -= 1
        if not self._readers:
            self._all_read.set()
        self.await_one(session)

    def await_one(self, session: BrokerSession) -> None:
        """Wait for somebody to read a session, if nobody does."""
        if session.live and not (session.log.readers or self._closed or session.session_id in self._unread):
            self._unread[session.session_id] = asyncio.get_running_loop().call_later(self._grace_s, self._late, session)

    def stop_waiting(self, session_id: str) -> None:
        """Wait for no reader of this session any more: there is one, or it has ended."""
        timer = self._unread.pop(session_id, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Give up no session from now on for want of a reader."""
        self._closed = True

    async def wait_read(self, most_s: float) -> None:
        """Wait until every reader has left, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._all_read.wait()

    def _late(self, session: BrokerSession) -> None:
        self._unread.pop(session.session_id, None)
        if not session.log.readers:
            self._give_up(session)
