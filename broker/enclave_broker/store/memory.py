"""Sessions that end with their broker."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from enclave_broker.event_log import EventLog

from .base import Loaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_broker.sessions import BrokerSession


class MemoryStore:
    """Keeps nothing but what the sessions themselves do."""

    durable = False
    failure = ""

    def __init__(self) -> None:
        self.broker_id = f"b_{uuid.uuid4()}"

    def open(self, *, log_bytes: int, now: float, wall: float) -> Loaded:
        """Return nothing."""
        return Loaded(finished=[], live=[], unwritten=False)

    def new_log(self, max_bytes: int) -> EventLog:
        """Return a log whose lines can be read at once."""
        return EventLog(max_bytes)

    def add(self, session: BrokerSession) -> None:
        """Do nothing."""

    def update(self, session: BrokerSession) -> None:
        """Do nothing."""

    def answer(self, session: BrokerSession, call_id: str, message: bytes) -> None:
        """Do nothing."""

    def finish(self, session: BrokerSession) -> None:
        """Do nothing: the log stays as it is."""

    def remove(self, session: BrokerSession) -> None:
        """Do nothing."""

    def then(self, action: Callable[[], object]) -> None:
        """Run the action."""
        action()

    async def settle(self) -> None:
        """Return."""

    async def close(self) -> None:
        """Do nothing."""
