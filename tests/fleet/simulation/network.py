"""A network that carries messages between hosts, late, and breaks in every way that TCP does.

Within one connection nothing is lost, doubled or reordered: what arrives is a prefix of what was sent. Across
connections anything goes. A connection ends by a goodbye (`close`, which comes after what was sent before it), by a
reset (`cut`: both ends learn of it, each when it does), or not at all: `silence` drops everything that is sent from
then on in one direction or both, without a word to anybody, until an end gives up by itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .virtual_time import Process, VirtualLoop

WINDOW_BYTES = 32 * 1024
"""What a direction takes before its reader has taken it: then sending waits."""
CLOSE_TIMEOUT_S = 0.5
_LONG = re.compile(r"(x|y)\1{5,}")


class Goodbye(ConnectionResetError):  # noqa: N818 - not an error
    """The other end closed in good order."""


class End:
    """One end of a connection: a message channel, owned by one process.

    Args:
        network: the network.
        process: whose it is.
        host: where that runs.
        patience_s: how soon, at least and at most, this end breaks a connection that became silent, by pings of its
            own that are not simulated; None: it never does.
    """

    def __init__(
        self, network: Network, process: Process, host: str, patience_s: tuple[float, float] | None = None
    ) -> None:
        self.process = process
        self.host = host
        self.peer: End
        self.patience_s = patience_s
        self.gone: ConnectionError | None = None
        """Why nothing more can be sent or received here."""
        self._network = network
        self._inbox: deque[Any] = deque()
        self._unread_bytes = 0
        """Sent to this end, and not taken by it."""
        self._arrives_s = 0.0
        self._silent = False
        """Whether what is sent to this end is lost."""
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def __repr__(self) -> str:
        return f"<End {self.host} of {self.peer.host}{f' {self.gone!r}' if self.gone else ''}>"

    # For its owner

    def send_now(self, data: Any) -> bool:
        """Send if that takes no waiting."""
        if self.gone is not None or self.peer._unread_bytes >= WINDOW_BYTES or self._network.balks():
            return False
        self._network.carry(self, self.peer, data)
        return True

    async def send(self, data: Any) -> None:
        """Send, and wait while too much is unread: what was sent is on its way at once, as with a transport."""
        if self.gone is not None:
            raise self.gone
        self._network.carry(self, self.peer, data)
        while self.gone is None and self.peer._unread_bytes >= WINDOW_BYTES:
            self.peer._room.clear()
            await self.peer._room.wait()
        if self.gone is not None:
            raise self.gone

    async def recv(self) -> Any:
        """Return the next message. What arrived before the end is still handed out."""
        while not self._inbox:
            if self.gone is not None:
                raise self.gone
            self._news.clear()
            await self._news.wait()
        data = self._inbox.popleft()
        self._unread_bytes -= size_of(data)
        if self._unread_bytes < WINDOW_BYTES:
            self._room.set()
        return data

    async def close(self) -> None:
        """Say goodbye, and wait a little for an answer."""
        if self.gone is None:
            self.end(ConnectionResetError("closed here"))
            self._network.say_goodbye(self, self.peer)
            wait_s = CLOSE_TIMEOUT_S if self._silent or self.peer._silent else self._network.delay_s()
            await asyncio.sleep(wait_s)

    def abort(self) -> None:
        """Reset the connection."""
        if self.gone is None:
            self._network.cut(self)

    # For the network

    def arrive(self, data: Any) -> None:
        """Take in a message."""
        if self.gone is None:
            self._network.hear(self, "got from ", data)
            self._inbox.append(data)
            self._news.set()

    def end(self, reason: ConnectionError) -> None:
        """Be told that the connection is over."""
        if self.gone is None:
            self._network.hear(self, "is done with ", reason)
            self.gone = reason
            self._news.set()
            self._room.set()
            self.peer._room.set()
            self._network.forget(self)


class Network:
    """All hosts and what connects them.

    Args:
        loop: its clock.
        rng: its whims.
        delay_s: how long a message takes, at least and at most.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, delay_s: tuple[float, float]) -> None:
        self.tamper: Callable[[End, End, Any], list[Any]] | None = None
        """For the tests of the checker: what arrives in place of a message."""
        self.overheard: Callable[[str], object] | None = None
        """Told of every message and every ending, in words."""
        self.on_message: Callable[[bytes], object] | None = None
        """Told of every message when it is sent."""
        self._loop = loop
        self._rng = rng
        self._delay_s = delay_s
        self._listeners: dict[str, tuple[Process, Callable[[End], None], tuple[float, float] | None]] = {}
        self._ends: dict[End, None] = {}  # an ordered set
        self._apart: set[frozenset[str]] = set()
        self._vanished: set[str] = set()

    def delay_s(self) -> float:
        """Return how long the next message takes."""
        return self._rng.uniform(*self._delay_s)

    def balks(self) -> bool:
        """Whether an end that could take a message at once says that it can't."""
        return self._rng.random() < 0.1

    # Hosts

    def listen(
        self,
        host: str,
        process: Process,
        accept: Callable[[End], None],
        patience_s: tuple[float, float] | None = None,
    ) -> None:
        """Have `accept` called, as `process`, with every connection to `host`."""
        self._listeners[host] = (process, accept, patience_s)
        self._vanished.discard(host.partition(":")[0])

    async def connect(
        self,
        process: Process,
        host: str,
        to: str,
        *,
        timeout_s: float,
        patience_s: tuple[float, float] | None = None,
    ) -> End:
        """Connect `host` to the listener `to`.

        Raises:
            ConnectionRefusedError: nobody listens there.
            ConnectionError: nobody is there.
        """
        await asyncio.sleep(2 * self.delay_s())
        machine = to.partition(":")[0]
        if machine in self._vanished or frozenset((host, machine)) in self._apart:
            await asyncio.sleep(timeout_s)
            raise ConnectionAbortedError(f"{to} does not answer")
        listener = self._listeners.get(to)
        if listener is None or not listener[0].alive:
            raise ConnectionRefusedError(f"nobody listens on {to}")
        server, accept, server_patience_s = listener
        ours, theirs = End(self, process, host, patience_s), End(self, server, machine, server_patience_s)
        ours.peer, theirs.peer = theirs, ours
        self._ends |= {ours: None, theirs: None}
        self._loop.call_later(self.delay_s() / 2, accept, theirs, context=server.context())
        return ours

    def died(self, process: Process, *, vanished: bool) -> None:
        """Tell those who were connected to a dead process, or nobody if its whole host is gone."""
        for host, (listening, _, _) in list(self._listeners.items()):
            if listening is process:
                del self._listeners[host]
                if vanished:
                    self._vanished.add(host.partition(":")[0])
        for end in [end for end in self._ends if end.process is process]:
            if vanished:
                self.silence(end, both=True)
            else:
                self._loop.call_later(self.delay_s(), end.peer.end, _reset_by_peer(), context=_OUTSIDE)
            del self._ends[end]

    def between(self, one: str, other: str) -> list[End]:
        """Return the ends at `one` of the connections with `other`."""
        return [end for end in self._ends if end.host == one and end.peer.host == other and end.gone is None]

    def part(self, one: str, other: str) -> None:
        """Take two hosts apart: what connects them becomes silent, and neither reaches the other."""
        self._apart.add(frozenset((one, other)))
        for end in self.between(one, other):
            self.silence(end, both=True)

    def join(self, one: str, other: str) -> None:
        """Let two hosts reach each other again. What connected them before stays silent."""
        self._apart.discard(frozenset((one, other)))

    # Connections

    def carry(self, sender: End, receiver: End, data: Any) -> None:
        """Take a message to the other end, unless that is out of reach."""
        receiver._unread_bytes += size_of(data)
        self.hear(sender, "loses to " if receiver._silent else "sends ", data)
        if self.on_message is not None and isinstance(data, bytes):
            self.on_message(data)
        if receiver._silent:
            return
        for message in [data] if self.tamper is None else self.tamper(sender, receiver, data):
            receiver._arrives_s = max(receiver._arrives_s, self._loop.time() + self.delay_s())
            self._loop.call_at(receiver._arrives_s, receiver.arrive, message, context=_OUTSIDE)

    def say_goodbye(self, sender: End, receiver: End) -> None:
        """Tell the other end, after everything that was sent before."""
        del sender
        if not receiver._silent:
            receiver._arrives_s = max(receiver._arrives_s, self._loop.time() + self.delay_s())
            self._loop.call_at(receiver._arrives_s, receiver.end, Goodbye("closed by peer"), context=_OUTSIDE)

    def cut(self, end: End) -> None:
        """Reset a connection. Each end learns of it by itself; what is on the way until then may arrive."""
        for each in (end, end.peer):
            self._loop.call_later(self.delay_s(), each.end, ConnectionResetError("reset"), context=_OUTSIDE)

    def silence(self, end: End, *, both: bool = False) -> None:
        """Lose what is sent to `end` from now on, and with `both` what it sends, too."""
        for each in (end, end.peer) if both else (end,):
            each._silent = True
        for each in (end, end.peer):
            if each.patience_s is not None:
                after_s = self._rng.uniform(*each.patience_s)
                self._loop.call_later(after_s, self._give_up, each, context=_OUTSIDE)

    def stall(self, end: End, for_s: float) -> None:
        """Let nothing arrive in either direction for a while; then everything does."""
        for each in (end, end.peer):
            each._arrives_s = max(each._arrives_s, self._loop.time() + for_s)

    def hear(self, end: End, what: str, data: object) -> None:
        """Tell whoever listens."""
        if self.overheard is not None:
            said = data.decode() if isinstance(data, bytes) else str(data)
            self.overheard(f"{end.process.name} {what}{end.peer.host}: {shortened(said)}")

    def _give_up(self, end: End) -> None:
        end.end(ConnectionResetError("no answer to a ping"))

    def forget(self, end: End) -> None:
        """Drop an end that is over."""
        self._ends.pop(end, None)


def _reset_by_peer() -> ConnectionResetError:
    return ConnectionResetError("reset by peer")


def shortened(text: str) -> str:
    """Return a text with runs of one letter told by their length."""
    return _LONG.sub(lambda same: f"{same[1]}*{len(same[0])}", text)


def size_of(data: Any) -> int:
    """Return what a message counts for."""
    return len(data) if isinstance(data, (bytes, str)) else 100


_OUTSIDE = contextvars.Context()
"""What the network does belongs to no process."""
