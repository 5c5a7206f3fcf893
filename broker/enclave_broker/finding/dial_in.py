"""Workers that dial in, for networks in which the broker can't reach them.

Theory of operation. A worker's WebSocket arrives at the route `/workers` (`ws/workers.py`), which lets it in or not and
reads its hello. Then it is handed over here by `arrive`, which finds or makes the dial of that worker; the keeper
starts a link with it, and from there on the worker is as any other: the link owns the connection, and its handler at
the route only waits for the end of it.

A worker's name is made of its `instance`, so it is the same for as long as the worker's process lives. It is a hash of
it: names are shown, and whoever knows an instance, and the secret of all workers, can take what is on that worker. When
its connection ends, its name is no longer found: its link is retired, and closed as soon as no session of it waits for
it. A worker that connects anew while its old connection seems to be there (it is half open) takes its own place, but
not while the worker is heard on the old one: then it is somebody else, or calls the same broker twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from .sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_broker.channels import Dial, Transport


class StillHeardError(Exception):
    """A worker has another connection, and is heard on it."""


def name_of(instance: str) -> str:
    """Return what a worker that dialled in is called."""
    return "dialled-in:" + hashlib.sha256(instance.encode()).hexdigest()[:32]


class ArrivingTransport:
    """A connection that was accepted, whose first message was read already.

    Args:
        transport: the connection.
        hello: its first message.
    """

    def __init__(self, transport: Transport, hello: bytes) -> None:
        self.ended = asyncio.Event()
        """Set when whoever took it has closed it."""
        self._transport = transport
        self._hello: bytes | None = hello

    def send_now(self, data: bytes, /) -> bool:
        """Send one message if that takes no waiting."""
        return self._transport.send_now(data)

    async def send(self, data: bytes, /) -> None:
        """Send one message; raises ConnectionError."""
        await self._transport.send(data)

    async def recv(self) -> bytes:
        """Return the first message once more, and then each next one; raises ConnectionError."""
        if self._hello is not None:
            hello, self._hello = self._hello, None
            return hello
        return await self._transport.recv()

    async def close(self) -> None:
        """Close it."""
        try:
            await self._transport.close()
        finally:
            self.ended.set()


class _Arrivals:
    """The dial of one worker: waits for its next connection, of which there is at most one."""

    def __init__(self) -> None:
        self._next: ArrivingTransport | None = None
        self._arrived = asyncio.Event()

    async def __call__(self) -> Transport:
        """Wait until the worker connects."""
        while self._next is None:
            self._arrived.clear()
            await self._arrived.wait()
        transport, self._next = self._next, None
        return transport

    def put(self, transport: ArrivingTransport) -> ArrivingTransport | None:
        """Have the next call return this one; returns the one that was waiting for that before."""
        replaced, self._next = self._next, transport
        self._arrived.set()
        return replaced


class DialIn(Source):
    """The workers that are connected because they have dialled in.

    Args:
        cut_silent: ends the present connection of the link with a name, if there is one, for a reason; returns False,
            and does nothing, if its worker is heard.
    """

    def __init__(self, cut_silent: Callable[[str, str], bool]) -> None:
        super().__init__("dial-in")
        self._cut_silent = cut_silent
        self._changed: Callable[[], None] = lambda: None
        self._dials: dict[str, _Arrivals] = {}
        self._open: dict[str, ArrivingTransport] = {}  # the newest connection of each

    @property
    def names(self) -> Iterable[str]:
        """Those that are connected."""
        return self._open

    def dial(self, name: str) -> Dial:
        """Return what waits for that worker's connections."""
        return self._dials[name]

    def forget(self, name: str) -> None:
        """Let go of the dial, unless the worker is connected again."""
        if name not in self._open:
            self._dials.pop(name, None)

    async def run(self, changed: Callable[[], None]) -> None:
        """Tell of every change from now on."""
        self._changed = changed
        changed()

    async def arrive(self, name: str, transport: Transport, hello: bytes) -> None:
        """Hand a worker's connection over to its link. Returns when the connection has been closed.

        Raises:
            StillHeardError: the worker has another connection that is alive. This one is still the caller's.
        """
        if not self._cut_silent(name, "its worker connected anew"):
            raise StillHeardError("the worker is connected already")
        arriving = ArrivingTransport(transport, hello)
        dial = self._dials.setdefault(name, _Arrivals())
        self._open[name] = arriving
        replaced = dial.put(arriving)
        self._changed()
        try:
            if replaced is not None:
                await replaced.close()
            await arriving.ended.wait()
        finally:
            if self._open.get(name) is arriving:
                del self._open[name]
                self._changed()
