"""Which descriptors can be read, for those of sandboxes: they are many, and each lives for milliseconds.

One epoll of ours holds them all, and the loop watches that. To a loop a descriptor is something that stays: uvloop
asks the kernel nine times to watch one and to forget it again. This asks twice, and a turn of the loop learns of all
that are ready with one call more.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_MOST_READY = 256
"""Descriptors that are served before the loop has its next turn. Those left out come first then."""


class Readiness:
    """Calls back for descriptors as long as they can be read, as `loop.add_reader` does. `close` when none is left."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._serve)

    def __repr__(self) -> str:
        return f"<Readiness of {len(self._callbacks)} descriptors>"

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever there is something to read, or the other end is gone. It must not block.

        Safe to call again, with another callback or the same.
        """
        if fd not in self._callbacks:
            self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch it no more. To be called before it is closed; safe to call again."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Let go of the epoll itself. Safe to call again."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _serve(self) -> None:
        for fd, _ in self._epoll.poll(0, _MOST_READY):
            # None: a callback before this one has let go of it. Or it has another by now, of a descriptor that was
            # opened meanwhile under the same number: that one finds nothing to read, and comes again.
            callback = self._callbacks.get(fd)
            if callback is None:
                continue
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - one that fails must not keep the others from being served
                message = f"serving descriptor {fd} failed"
                self._loop.call_exception_handler({"message": message, "exception": error})
