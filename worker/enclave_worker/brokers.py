"""The brokers of a worker, by what they call themselves."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection

MAX_BROKERS = 1000
"""Brokers that are remembered. One with a store in memory is another one at every start."""


class Brokers:
    """Which connection of each broker is the one to listen to."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Connection | None]] = {}
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        """Return the number of a connection that has just come."""
        return next(self._numbers)

    def welcomed(self, broker_id: str, connection: Connection) -> None:
        """A broker speaks on a connection: the older of this and the one known so far is overtaken."""
        number, other = self._newest.pop(broker_id, (0, None))
        if number > connection.number:
            connection.overtake()
            self._newest[broker_id] = number, other
            return
        if other is not None:
            other.overtake()
        self._newest[broker_id] = connection.number, connection
        if len(self._newest) > MAX_BROKERS:
            del self._newest[next(iter(self._newest))]

    def ended(self, connection: Connection) -> None:
        """A connection is over. Its number is remembered: an older one may still be heard of."""
        for broker_id, (number, other) in self._newest.items():
            if other is connection:
                self._newest[broker_id] = number, None
                return
