"""One connection to a worker: messages in, events out.

The same code serves a WebSocket and an in-memory channel. It owns two tasks in one group, a reader and a writer, and
one bounded outbox between the sessions and the writer.

Once a broker has said `welcome`, both speak revision 2: sessions outlive the connection (`holdings`), and the broker
acknowledges their events. Without a welcome they end with it.

What a broker sent on a connection that it has given up may still arrive, late. So of one broker's connections only the
newest is listened to: its welcome closes the older ones unread, and a welcome that comes late closes its own. A third
task, with revision 2 only, watches for that and for silence: a link can be dead without anybody saying so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, NoReturn, Protocol

import msgspec
from msgspec import UNSET

from enclave_protocol import (
    Ack,
    Attach,
    Cancel,
    CatalogNotice,
    Drain,
    Execute,
    Hello,
    Ping,
    Pong,
    Rejection,
    RemoteProtocolError,
    ToolResult,
    Welcome,
    __version__,
    decode_broker_message,
    encode,
)
from enclave_protocol.languages import LANGUAGES
from enclave_protocol.logs import about
from enclave_protocol.revisions import NEWEST_REVISION, OLDEST_REVISION, RESUMING_REVISION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .holdings import Holdings
    from .sessions import Sessions

log = logging.getLogger("enclave.worker")

_REJECTED_FIELDS = frozenset(
    {"sessionId", "callId", "code", "limits", "type", "language", "profile", "env", "files", "payload"}
    | {"fromSeq", "revision"}
)


_FLUSH_S = 1.0
"""How long the last events may take to leave when the worker stops; a reader that does not read loses them."""


_SILENT_PARTS = 3
"""How often in the time after which a silent broker is gone somebody looks."""


class PeerLeft(ConnectionError):  # noqa: N818 - the ordinary end, not an error
    """The peer closed the connection in good order."""


class Peer(Protocol):
    """The other end. Both methods raise PeerLeft when it has closed, another ConnectionError when it broke."""

    name: str
    """For logs and handlers: `address:port`, or `memory:number`."""

    def send_now(self, line: bytes) -> bool:
        """Send one JSON value as text if that takes no waiting; False says that nothing was sent."""

    async def send(self, line: bytes) -> None:
        """Send one JSON value as text."""

    async def recv(self) -> str | bytes:
        """Wait for the next message: text, or bytes if the peer sent a binary frame."""


class WorkerIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself on every connection."""

    worker_id: str
    instance: str = ""
    """A new one at each start. Empty: sessions end with their connection, and only revision 1 is spoken."""
    level: str
    missing_layers: tuple[str, ...] = ()
    """Layers that it does without."""


class Connection:
    """Serves one peer until it goes away. It is the sink of the sessions it starts."""

    def __init__(self, peer: Peer, sessions: Sessions, identity: WorkerIdentity) -> None:
        self.congested = False
        self.resumes = False
        """Whether its sessions outlive it: the broker has welcomed us to revision 2."""
        self.number = sessions.brokers.next_number()
        """Connections are numbered as they come."""
        self._spoken = False
        self._heard = False
        self._fault: Exception | None = None
        self._overtaken = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._peer = peer
        self._sessions = sessions
        self._identity = identity
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._limit_bytes = sessions.config.send_buffer_bytes
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushed.set()

    async def serve(self) -> None:
        """Greet, then read and write until the peer is gone; its sessions end with it."""
        listeners, name = self._sessions.listeners, self._peer.name
        listeners.connect.notify(name)
        self._sessions.on_drain[self._on_drain] = None
        self.deliver(encode(self._hello()))
        try:
            async with self._group as group:
                group.create_task(self._write())
                await self._read()
        except* PeerLeft:
            pass
        except* ConnectionError as broken:
            log.info("connection from %s broke: %s", name, broken.exceptions[0])
            listeners.connection_error.notify(name, broken.exceptions[0])
        finally:
            self._sessions.on_drain.pop(self._on_drain, None)
            self._sessions.brokers.ended(self)
            self._sessions.abandon(self)
            self._flushed.set()
            listeners.disconnect.notify(name)

    async def wait_flushed(self) -> None:
        """Return when everything delivered so far, and since, was sent, or the peer is gone."""
        await self._flushed.wait()

    def deliver(self, line: bytes) -> None:
        """Send one line, or queue it. Never blocks; `congested` says when it should not go on."""
        if self._fault is not None:
            return
        try:
            if not self._outbox and self._peer.send_now(line):
                return
        except Exception as error:  # noqa: BLE001 - such as a MemoryError: whatever was sent, nothing may follow it
            self._fault = error
            self._filled.set()
            return
        self._outbox.append(line)
        self._outbox_bytes += len(line)
        self._filled.set()
        self._flushed.clear()
        if self._outbox_bytes > self._limit_bytes and not self.congested:
            self.congested = True
            self._drained.clear()

    async def _write(self) -> NoReturn:
        while True:
            await self._filled.wait()
            if self._fault is not None:
                raise ConnectionResetError(f"an event could not be sent: {self._fault!r}")
            while self._outbox:
                line = self._outbox.popleft()
                await self._peer.send(line)
                self._outbox_bytes -= len(line)
                # A reader that waits for room hears nothing: then what the peer takes is its sign of life.
                self._heard = self._heard or self.congested
                if self.congested and self._outbox_bytes <= self._limit_bytes // 2:
                    self.congested = False
                    self._drained.set()
                    self._sessions.resume(self)
            self._filled.clear()
            self._flushed.set()

    async def _read(self) -> NoReturn:
        while True:
            data = await self._peer.recv()
            self._heard = True
            if self._overtaken.is_set():
                raise PeerLeft("its broker has a newer connection")
            try:
                self._handle(data)
            except RemoteProtocolError as error:
                self._reject(error)
            if self.congested:
                # Answers pile up: whoever does not read them is not read either.
                await self._drained.wait()

    def _handle(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            raise RemoteProtocolError("a binary frame", allowed="text frames, one JSON object each")
        message = decode_broker_message(data)
        if isinstance(message, Execute):
            self._sessions.execute(message, self, outlives=self.resumes)
        elif isinstance(message, ToolResult):
            self._sessions.tool_result(message)
        elif isinstance(message, Cancel):
            self._sessions.cancel(message)
        elif isinstance(message, CatalogNotice):
            self._sessions.catalog_changed(message)
        elif isinstance(message, Ping):
            self.deliver(encode(self._pong(message)))
        elif isinstance(message, Welcome):
            self._welcome(message)
        else:
            self._handle_resuming(message)
        self._spoken = True

    def _welcome(self, message: Welcome) -> None:
        if self._spoken:
            raise RemoteProtocolError("it is not the first", field="type", allowed="welcome before anything else")
        newest = self._newest_revision
        if not OLDEST_REVISION <= message.revision <= newest:
            allowed = f"{OLDEST_REVISION} to {newest}"
            raise RemoteProtocolError(f"{message.revision} was not offered", field="revision", allowed=allowed)
        if message.revision < RESUMING_REVISION:
            return
        self.resumes = True
        self._sessions.brokers.welcomed(message.broker_id, self)
        self._group.create_task(self._watch())

    def overtake(self) -> None:
        """The broker has a newer connection: what still comes on this one, nobody wants done any more."""
        self._overtaken.set()

    async def _watch(self) -> NoReturn:
        """Notice that the peer is silent, or that the connection is overtaken."""
        # In parts that this program was awake for: one that was stopped for a while must not take its brokers for dead.
        silence_s = self._sessions.config.broker_silence_s
        silent = 0
        while silent < _SILENT_PARTS:
            self._heard = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(silence_s / _SILENT_PARTS):
                    await self._overtaken.wait()
                    log.info("connection from %s is overtaken: its broker has a newer one", self._peer.name)
                    raise PeerLeft("its broker has a newer connection")
            silent = 0 if self._heard else silent + 1
        raise ConnectionResetError(f"the broker was silent for {silence_s:g} s")

    def _handle_resuming(self, message: Attach | Ack | Drain) -> None:
        """Handle what belongs to revision 2."""
        if not self.resumes:
            session_id = message.session_id if isinstance(message, Attach) else None
            allowed = "execute, cancel, tool_result, ping: nobody said welcome to revision 2 on this connection"
            raise RemoteProtocolError("not for this worker", field="type", allowed=allowed, session_id=session_id)
        if isinstance(message, Ack):
            self._sessions.holdings.ack(message.seqs, self)
        elif isinstance(message, Attach):
            self._sessions.holdings.attach(message.session_id, message.from_seq, self)
        else:
            self._sessions.drain(f"a broker said so: {message.reason}" if message.reason else "a broker said so")

    def _on_drain(self, reason: str) -> None:
        if self.resumes:  # others see it in the next pong
            self.deliver(encode(Drain(reason=reason)))

    def _reject(self, error: RemoteProtocolError) -> None:
        field = error.field.partition(".")[0]
        self._sessions.metrics.refused_messages.labels(field if field in _REJECTED_FIELDS else "message").inc()
        log.warning("refused a message: %s", error, extra=about(session_id=error.session_id or ""))
        self.deliver(encode(Rejection.of(error)))

    def _hello(self) -> Hello:
        offers = self._sessions.pools.offers
        limits_of = {name: offer.profile.limits for name, offer in offers.items()}
        languages_of: dict[str, list[str]] = {name: list(offer.languages) for name, offer in offers.items()}
        return Hello(
            worker_id=self._identity.worker_id,
            instance=self._identity.instance or UNSET,
            max_revision=self._newest_revision,
            version=__version__,
            level=self._identity.level,
            missing_layers=list(self._identity.missing_layers) or UNSET,
            languages=[language for language in LANGUAGES if any(language in own for own in languages_of.values())],
            profile_languages=languages_of,
            profiles=list(limits_of),
            profile_limits={name: limits for name, limits in limits_of.items() if limits} or UNSET,
            max_sessions=self._sessions.config.max_sessions,
            active=self._sessions.active,
            draining=self._sessions.draining,
            sessions=(self._identity.instance and self._sessions.holdings.listed()) or UNSET,
        )

    @property
    def _newest_revision(self) -> int:
        return NEWEST_REVISION if self._identity.instance else OLDEST_REVISION

    def _pong(self, ping: Ping) -> Pong:
        return Pong(
            timestamp=ping.timestamp,
            active=self._sessions.active,
            max_sessions=self._sessions.config.max_sessions,
            draining=self._sessions.draining,
        )


async def flush(connections: Iterable[Connection], holdings: Holdings) -> None:
    """Let what was said on these connections go out and be acknowledged, for a bounded time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_S):
            await holdings.wait_handed_over()
            await asyncio.gather(*(connection.wait_flushed() for connection in connections))
