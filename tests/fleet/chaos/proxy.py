"""A TCP proxy that can do to connections what networks do to them.

Theory of operation. Each connection that the proxy takes is joined to one of its own to the target, by a task for each
direction that reads a piece, waits until its direction flows, and writes it. What is done to connections is done by the
tasks' gates: a direction whose gate is shut takes nothing any more, so the sender's window fills up and nobody is told,
as if the host had vanished; a rate makes each piece take its time. `reset` and `finish` end both sides at once, in
TCP's two ways. While a proxy is down nobody listens, so that whoever connects is refused, as by a host whose program
has died.

The proxy owns its sockets; all are gone when `close` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Literal

Direction = Literal["up", "down"]
BOTH: tuple[Direction, ...] = ("up", "down")
_PIECE_BYTES = 65_536
_SLOW_PIECE_BYTES = 4096
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing resets."""


class Joined:
    """Two connections that are one."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._ends = (near, far)
        self._gates: dict[Direction, asyncio.Event] = {direction: asyncio.Event() for direction in BOTH}
        self.bytes_per_s = 0.0
        """How much goes through in each direction; 0: as much as there is."""
        for gate in self._gates.values():
            gate.set()

    def stall(self, *directions: Direction) -> None:
        """Let nothing through in these directions, and say nothing of it."""
        for direction in directions:
            self._gates[direction].clear()

    def flow(self) -> None:
        """Let everything through again."""
        self.bytes_per_s = 0.0
        for gate in self._gates.values():
            gate.set()

    def reset(self) -> None:
        """End both sides with RST: what was on its way is lost."""
        for end in self._ends:
            if not end.is_closing():
                with contextlib.suppress(OSError):  # the other side was faster
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()
        self.flow()  # so that whoever waits here finds out

    def finish(self) -> None:
        """End both sides with FIN, as a program does that ends well, wherever in a message that is."""
        self.flow()
        for end in self._ends:
            end.close()

    async def carry(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what comes until it ends. Raises ConnectionError."""
        while data := await reader.read(_SLOW_PIECE_BYTES if self.bytes_per_s else _PIECE_BYTES):
            await self._gates[direction].wait()
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            if writer.is_closing():  # it was cut in the meantime
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        await self._gates[direction].wait()  # an end that nobody is told of, either
        if not writer.is_closing():
            writer.write_eof()


class Proxy:
    """Listens on a port of loopback for connections to another.

    Args:
        port: where to listen.
        target_port: where what listens for them is.
    """

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._more = asyncio.Event()
        self._shut: tuple[Direction, ...] = ()
        self._bytes_per_s = 0.0
        self.joined: list[Joined] = []
        """The connections that there are, oldest first."""

    async def up(self) -> None:
        """Listen."""
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)

    async def down(self) -> None:
        """Refuse connections. Those that there are stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def wait_joined(self, count: int) -> None:
        """Wait until there are so many connections."""
        while len(self.joined) < count:
            self._more.clear()
            await self._more.wait()

    def partition(self, *directions: Direction) -> None:
        """Let nothing through in these directions: neither on the connections that there are nor on new ones."""
        self._shut = directions
        for joined in self.joined:
            joined.stall(*directions)

    def slow(self, bytes_per_s: float) -> None:
        """Let only so much through each connection and direction."""
        self._bytes_per_s = bytes_per_s
        for joined in self.joined:
            joined.bytes_per_s = bytes_per_s

    def heal(self) -> None:
        """End `partition` and `slow`."""
        self._shut, self._bytes_per_s = (), 0.0
        for joined in self.joined:
            joined.flow()

    async def close(self) -> None:
        """End everything."""
        await self.down()
        self.heal()
        for joined in list(self.joined):
            joined.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In a task of ours: a server's own are not waited for by anybody.
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        try:
            far, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            near_writer.transport.abort()
            return
        joined = Joined(near_writer, far_writer)
        joined.bytes_per_s = self._bytes_per_s
        joined.stall(*self._shut)
        self.joined.append(joined)
        self._more.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(joined.carry("up", near, far_writer))
                group.create_task(joined.carry("down", far, near_writer))
        except* OSError:  # one side is gone: so is the other
            joined.reset()
        finally:
            self.joined.remove(joined)
            for writer in (near_writer, far_writer):
                writer.transport.abort()
