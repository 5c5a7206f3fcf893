"""What waits for a client that takes nothing.

A stream gives its reader up after a while, but that only stops the writing. What was handed to the connection by then
stays there, and a connection that is closed waits for it to be taken: for ever, as long as the client's machine answers
for it. The same goes for an answer that nobody gives up, such as a list of sessions.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from enclave_broker.metrics import Metrics

log = logging.getLogger("enclave.broker.http")


class Unread:
    """Aborts a connection whose client takes nothing. Owns one timer, which `stop` stops.

    Args:
        transport: the connection's.
        loop: that it is on.
        patience_s: how long the client may take nothing.
        metrics: counts the clients that are cut off.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience_s: float, metrics: Metrics
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._patience_s = patience_s
        self._metrics = metrics
        self._timer: asyncio.TimerHandle | None = None
        self._left_bytes = 0

    def look(self) -> None:
        """See to it that what waits now is taken: to be called when it is much, or when the connection is closed."""
        if self._timer is None and self._transport.get_write_buffer_size():
            self._wait()

    def taken(self) -> None:
        """Note that the client has taken something."""
        self._left_bytes = sys.maxsize

    def stop(self) -> None:
        """Look no more: the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._left_bytes = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._patience_s, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        left_bytes = self._transport.get_write_buffer_size()
        if not left_bytes:
            return
        if left_bytes < self._left_bytes:
            self._wait()
            return
        if not self._transport.is_closing():  # else it was given up before, and counted then
            self._metrics.readers_cut.inc()
        log.info("connection aborted: its client takes nothing of %d bytes", left_bytes)
        self._transport.abort()
