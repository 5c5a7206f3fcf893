"""One connection of a client, with the sessions that go over it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .actions import Greeted
from .connection import Connection
from .engine import Engine

if TYPE_CHECKING:
    from .actions import Action
    from .connection import Settings
    from .local_tools import ToolRunner
    from .session import AsyncSession

CLOSE_GRACE_S = 2.0
"""How long a closing client waits for the ends of sessions that it cancels."""


class Wiring:
    """One connection: its engine, its socket, and the sessions that hear of it. Owns the socket.

    Args:
        settings: where to connect.
        runner: runs tools, for all connections of the client.
        buffer_bytes: events of one session that may wait for their reader.
    """

    def __init__(self, settings: Settings, runner: ToolRunner, buffer_bytes: int) -> None:
        self.engine = Engine()
        self.connection = Connection(settings, self.engine, self._act)
        self.runner = runner
        self.buffer_bytes = buffer_bytes
        self.sessions: dict[str, AsyncSession] = {}

    async def close(self) -> None:
        """End the sessions that still run, waiting a little for that, and the connection."""
        self.connection.leave()
        sessions = list(self.sessions.values())
        for session in sessions:
            session.cancel("the client was closed")
        if self.engine.online and sessions:
            waits = [asyncio.ensure_future(session.wait_over()) for session in sessions]
            _, late = await asyncio.wait(waits, timeout=CLOSE_GRACE_S)
            for wait in late:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        await self.connection.close()

    def _act(self, action: Action) -> None:
        if not isinstance(action, Greeted) and (session := self.sessions.get(action.session_id)) is not None:
            session.act(action)
