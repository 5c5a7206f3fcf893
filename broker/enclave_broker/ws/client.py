"""One WebSocket: many sessions, each a cursor in its log.

Theory of operation. What a client may send a worker it may send here, and it gets the same events. A bad message is
answered by a rejection and touches nothing else. Calls of tools that the broker does not have are left to the client,
or of those it declared.

One task reads, one writes. A cursor with something to read is in `_ready`, in turn; answers to messages go before
events. Nothing piles up here: a slow client falls behind in the logs, which are bounded, and is cut off when one is
trimmed past its cursor or when it takes nothing for `write_timeout_s`. Answers are bounded by not reading on.

A session belongs to no socket: any that attached may read it, answer its calls and cancel it. When the last one is gone
it lives on for `disconnect_grace_s`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from enclave_broker.access import Denied, QuotaExceeded, Scope
from enclave_broker.event_log import Interrupted, Trimmed
from enclave_broker.new_session import DuplicateSession, NewSession
from enclave_broker.patience import within
from enclave_broker.placement import DEFAULT_PROFILE
from enclave_protocol import (
    Attach,
    Cancel,
    Code,
    Execute,
    Final,
    FinalError,
    FinalPayload,
    Hello,
    NoCapacity,
    Ping,
    Pong,
    Rejection,
    RemoteProtocolError,
    Stats,
    __version__,
    decode_client_message,
    encode,
    new_session_id,
    parse_declared_tools,
    parse_env,
    parse_files,
    parse_limits,
)
from enclave_protocol.languages import DEFAULT_LANGUAGE
from enclave_protocol.trace_context import parse_trace

from .codes import BROKER_STOPS, TOO_SLOW, CloseCode

if TYPE_CHECKING:
    from litestar import WebSocket

    from enclave_broker.access import Caller
    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.event_log import Cursor
    from enclave_broker.sessions import BrokerSession
    from enclave_protocol.messages import ClientMessage

MESSAGES_A_TURN = 32
"""Messages of one client that are handled before everybody else's."""
MAX_REPLIES = 100
"""Answers that may wait to be written; then no more is read from the client."""


@dataclass(frozen=True, slots=True)
class Closing:
    """How a socket ended."""

    reason: str
    code: CloseCode | None = None
    """What to close it with; None: it is closed."""


class _SocketGone(Exception):  # noqa: N818 - a fact
    pass


class _NotKept(RemoteProtocolError):  # noqa: N818 - a fact about the log
    """Nobody can read on from there."""

    def __init__(self, reason: str, allowed: str, session: BrokerSession) -> None:
        self.first_seq = session.log.first_seq
        super().__init__(reason, field="fromSeq", allowed=allowed, session_id=session.session_id)


class SocketClient:
    """Serves one socket.

    Args:
        socket: it, accepted.
        dispatcher: where its sessions are.
        caller: whose it is.
    """

    def __init__(self, socket: WebSocket[Any, Any, Any], dispatcher: Dispatcher, caller: Caller) -> None:
        self._socket = socket
        self._caller = caller
        self._dispatcher = dispatcher
        self._cursors: dict[str, tuple[BrokerSession, Cursor]] = {}
        self._ready: dict[str, None] = {}  # an ordered set
        self._replies: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._replies_fit = asyncio.Event()

    async def serve(self) -> Closing:
        """Serve until the client leaves or must."""
        closing = Closing("the broker failed")
        self._reply(encode(self._hello()))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                await self._read()
        except* _SocketGone as gone:
            closing = Closing(str(gone.exceptions[0]))
        except* Interrupted:
            closing = Closing(BROKER_STOPS, CloseCode.BROKER_STOPS)
        except* (Trimmed, TimeoutError):
            self._dispatcher.metrics.readers_cut.inc()
            closing = Closing(TOO_SLOW, CloseCode.TOO_SLOW)
        finally:
            for session, cursor in self._cursors.values():
                cursor.close()
                self._dispatcher.readers.left(session)
        return closing

    async def _read(self) -> None:
        for number in itertools.count(1):
            if number % MESSAGES_A_TURN == 0:
                await asyncio.sleep(0)  # what has arrived already comes without a wait: others want their turn
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise _SocketGone(f"closed with {message['code']} {message.get('reason') or ''}".rstrip())
            data = message.get("text")
            try:
                self._handle(decode_client_message(_text(data)))
            except RemoteProtocolError as error:
                self._reject(error)
            while len(self._replies) > MAX_REPLIES:
                self._replies_fit.clear()
                await self._replies_fit.wait()

    def _handle(self, message: ClientMessage) -> None:
        if isinstance(message, Execute):
            self._execute(message)
        elif isinstance(message, Attach):
            self._attach(message)
        elif isinstance(message, Cancel):
            self._allow(Scope.CONTROL, message.session_id)
            self._dispatcher.cancel(self._own(message.session_id), message.reason or "")
        elif isinstance(message, Ping):
            self._reply(encode(self._pong(message)))
        else:
            self._allow(Scope.CONTROL, message.session_id)
            self._dispatcher.answering.answer_call(self._own(message.session_id), message)

    def _execute(self, message: Execute) -> None:
        session_id = message.session_id or new_session_id()
        if session_id in self._cursors:
            # Also of one that has ended: what is left of its events would never be sent.
            allowed = "an id of which this connection has every event"
            reason = "its events are still being sent"
            raise RemoteProtocolError(reason, field="sessionId", allowed=allowed, session_id=session_id)
        full = self._full()
        if full:
            self._refuse_for_now(session_id, Code.NO_CAPACITY, full)
            return
        if message.first_seq is not UNSET:
            allowed = "absent: the broker numbers the events"
            raise RemoteProtocolError("not for clients", field="firstSeq", allowed=allowed, session_id=session_id)
        profile = DEFAULT_PROFILE if message.profile is UNSET else message.profile
        offers = self._dispatcher.offers
        defaults = offers.limits_of(profile)
        try:
            new = NewSession(
                code=message.code,
                session_id=session_id,
                limits=defaults if message.limits is UNSET else parse_limits(message.limits, defaults=defaults),
                language=self._dispatcher.offers.unsaid_language().language(
                    message.language or None, message.profile or None
                ),
                profile=profile,
                env={} if message.env is UNSET else parse_env(message.env),
                files={} if message.files is UNSET else parse_files(message.files),
                retry=message.retry or "never",
                client_tools=None if message.tools is UNSET else parse_declared_tools(message.tools),
                trace=None if message.traceparent is UNSET else parse_trace(message.traceparent, message.tracestate),
            )
            session = self._dispatcher.submit(new, self._caller)
        except DuplicateSession as error:
            allowed = "an id that no live session has"
            raise RemoteProtocolError(str(error), field="sessionId", allowed=allowed, session_id=session_id) from error
        except NoCapacity as error:
            self._refuse_for_now(session_id, Code.NO_CAPACITY, str(error), error.retry_after_s)
            return
        except QuotaExceeded as error:
            self._refuse_for_now(session_id, Code.QUOTA_EXCEEDED, str(error), error.retry_after_s)
            return
        except Denied as error:
            raise _rejection(error, session_id) from error
        except RemoteProtocolError as error:
            error.session_id = session_id
            raise
        self._subscribe(session, 1)

    def _attach(self, message: Attach) -> None:
        session_id = message.session_id
        self._allow(Scope.READ, session_id)
        session = self._dispatcher.find(session_id, self._caller)
        if session is None:
            allowed = "a session that is live or retained"
            raise RemoteProtocolError("unknown session", field="sessionId", allowed=allowed, session_id=session_id)
        if session_id in self._cursors:
            allowed = "a session that this connection does not read yet"
            raise RemoteProtocolError("attached already", field="sessionId", allowed=allowed, session_id=session_id)
        full = self._full()
        if full:
            allowed = "fewer sessions on one connection"
            raise RemoteProtocolError(full, field="sessionId", allowed=allowed, session_id=session_id)
        refused = session.log.refuses(message.from_seq)
        if refused is not None:
            raise _NotKept(*refused, session)
        self._dispatcher.metrics.resumes.inc()
        self._subscribe(session, message.from_seq)

    def _allow(self, scope: Scope, session_id: str) -> None:
        try:
            self._dispatcher.gate.allow(self._caller, scope)
        except Denied as error:
            raise _rejection(error, session_id) from error

    def _full(self) -> str:
        """Say why this socket can't take another session; empty if it can."""
        most = self._dispatcher.config.socket_sessions
        return f"{most} sessions of this connection have not ended" if len(self._cursors) >= most else ""

    def _refuse_for_now(self, session_id: str, code: Code, reason: str, retry_after_s: float | None = None) -> None:
        self._dispatcher.metrics.rejections.labels(code.value).inc()
        self._reply(encode(_refused(session_id, code, reason, retry_after_s)))

    def _subscribe(self, session: BrokerSession, from_seq: int) -> None:
        cursor = session.log.subscribe(from_seq, functools.partial(self._wake, session.session_id))
        self._cursors[session.session_id] = (session, cursor)
        self._dispatcher.readers.came(session)
        self._wake(session.session_id)

    def _own(self, session_id: str) -> BrokerSession:
        found = self._cursors.get(session_id)
        if found is None:
            allowed = "a session of this connection that has not ended"
            raise RemoteProtocolError("unknown session", field="sessionId", allowed=allowed, session_id=session_id)
        return found[0]

    async def _write(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._replies or self._ready:
                if self._replies:
                    await self._send(self._replies.popleft())
                    self._replies_fit.set()
                else:
                    await self._write_session(next(iter(self._ready)))

    async def _write_session(self, session_id: str) -> None:
        """Write one batch of a session's; with more to come it goes to the back of the line."""
        del self._ready[session_id]
        session, cursor = self._cursors[session_id]
        for line in cursor.take():
            await self._send(line)
        if cursor.finished:
            cursor.close()
            del self._cursors[session_id]
            self._ready.pop(session_id, None)
            self._dispatcher.readers.left(session)
        elif cursor.behind:
            self._ready[session_id] = None

    async def _send(self, line: bytes) -> None:
        try:
            sending = self._socket.send({"type": "websocket.send", "bytes": None, "text": line.decode()})
            await within(self._dispatcher.config.write_timeout_s, sending)
        except TimeoutError:
            raise  # an OSError too, but about a client that is still there
        except OSError as error:
            raise _SocketGone("the connection broke") from error

    def _wake(self, session_id: str) -> None:
        self._ready[session_id] = None
        self._more.set()

    def _reply(self, message: bytes) -> None:
        self._replies.append(message)
        self._more.set()

    def _reject(self, error: RemoteProtocolError) -> None:
        self._dispatcher.metrics.rejections.labels(Code.VALIDATION_ERROR.value).inc()
        rejection = Rejection.of(error)
        if isinstance(error, _NotKept):
            payload = msgspec.structs.replace(rejection.payload, first_seq=error.first_seq)
            rejection = msgspec.structs.replace(rejection, payload=payload)
        self._reply(encode(rejection))

    def _hello(self) -> Hello:
        fleet = self._dispatcher.placer.statistics()
        levels = {
            link.hello.level for link in self._dispatcher.fleet.links.values() if link.up and link.hello is not None
        }
        return Hello(
            worker_id="broker",
            version=__version__,
            level=levels.pop() if len(levels) == 1 else "MIXED" if levels else "UNKNOWN",
            languages=self._dispatcher.offers.languages() or [DEFAULT_LANGUAGE],
            profiles=self._dispatcher.offers.profiles() or [DEFAULT_PROFILE],
            max_sessions=max(1, fleet.slots),
            active=self._dispatcher.directory.live,
        )

    def _pong(self, ping: Ping) -> Pong:
        fleet = self._dispatcher.placer.statistics()
        active = self._dispatcher.directory.live
        return Pong(timestamp=ping.timestamp, active=active, max_sessions=fleet.slots)


def _rejection(error: Denied, session_id: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"{error.code}: {error}", session_id=session_id)


def _text(data: object) -> str:
    if not isinstance(data, str):
        raise RemoteProtocolError("binary frame", allowed="text frames of one JSON value each")
    return data


def _refused(session_id: str, code: Code, message: str, retry_after_s: float | None) -> Final:
    error = FinalError(
        message=message,
        code=code.value,
        retryable=code.retryable,
        retry_after_ms=UNSET if retry_after_s is None else math.ceil(retry_after_s * 1000),
    )
    return Final(session_id=session_id, seq=1, payload=FinalPayload(ok=False, error=error, stats=Stats()))
