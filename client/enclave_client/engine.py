"""The client's side of `/ws`, without a socket, a clock or a task: frames and wishes in, frames and actions out.

Theory of operation. The engine knows every session that has not ended and the number of the event that is due. What it
wants to say it puts into `outgoing`; what it hears, `receive` turns into actions for the shell. A connection that ends
takes `outgoing` with it: `connected` says again all that the broker needs to hear, from what the engine knows of each
session, so nothing depends on which frames of the old connection arrived.

- Something came of it already: `attach` from the number that is due. Events before it are dropped, a hole is an error.
- Nothing came yet: `attach` from 1. A broker that does not know the session never got it, and gets the `execute` again;
  the id is the client's, so a broker that did get it does not run it twice while it remembers it. Not without end: it
  may be the request that breaks the connection.
- A tool's answer that was not applied yet is sent again; the broker takes one answer per call. A call that still runs
  goes on running: it is not delivered again, since its event was.
- A cancel that was asked for is asked for again.

A rejection names a session but not the message that was refused. Each phase of a session has one kind of message whose
rejection matters, told apart by its field.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from enclave_protocol import (
    Cancel,
    EnclaveError,
    Hello,
    Rejection,
    RemoteProtocolError,
    decode_event,
    decode_worker_message,
    encode,
    peek,
)
from enclave_protocol import events as ev

from .actions import Action, Arrived, Called, CallOver, Greeted, Lost
from .errors import RequestRefused, SessionLost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_protocol.messages import Envelope, ToolResult

    from .errors import LossReason

log = logging.getLogger("enclave.client")

MAX_REASON_CHARS = 1000
MAX_RESENDS = 5
"""How often a request is sent again."""


class _Phase(enum.Enum):
    WAITING = enum.auto()
    """Nothing was sent on this connection."""
    STARTING = enum.auto()
    """The `execute` was, and nothing came back."""
    ATTACHING = enum.auto()
    """An `attach` was, and nothing came back."""
    RUNNING = enum.auto()


@dataclass(slots=True, kw_only=True)
class _Session:
    execute: bytes | None
    """Kept until something comes of it. None from the start for a session that somebody else began."""
    tools: frozenset[str]
    next_seq: int = 1
    phase: _Phase = _Phase.WAITING
    sent: bool = False
    """Whether any broker may have heard of it from us."""
    resends: int = 0
    joined: bool = False
    """Whether the caller asked to attach, so that a rejection is about what he asked for."""
    cancel: bytes | None = None
    abandoned: bool = False
    calls: dict[str, bytes | None] = field(default_factory=dict)
    """Calls that were not applied yet: None while one runs, then its answer."""
    called: set[str] = field(default_factory=set)
    """Every call that was handed out: none is run twice, whatever a broker says."""


class Engine:
    """Many sessions on one connection at a time."""

    def __init__(self) -> None:
        self.outgoing: deque[bytes] = deque()
        """Frames to send, in order."""
        self.outgoing_bytes = 0
        self.online = False
        self._sessions: dict[str, _Session] = {}

    @property
    def live(self) -> int:
        """Sessions that have not ended, those that nobody waits for included."""
        return len(self._sessions)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a session."""
        return any(not session.abandoned for session in self._sessions.values())

    @property
    def resuming(self) -> bool:
        """Whether a broker may know one of the sessions, so that a lost connection is worth some patience."""
        return any(session.sent for session in self._sessions.values())

    # Wishes

    def start(self, session_id: str, execute: bytes, tools: Iterable[str] = ()) -> None:
        """Run a session.

        Args:
            session_id: its id, which the message names too; no session of this engine has it.
            execute: the whole message.
            tools: names of the tools that are answered here.
        """
        self._add(session_id, _Session(execute=execute, tools=frozenset(tools)))

    def attach(self, session_id: str, from_seq: int) -> None:
        """Read a session that was begun elsewhere."""
        self._add(session_id, _Session(execute=None, tools=frozenset(), next_seq=from_seq, joined=True))

    def cancel(self, session_id: str, reason: str) -> None:
        """Ask for a session's end. Asking again, or for one that has ended, changes nothing."""
        session = self._sessions.get(session_id)
        if session is None or session.cancel is not None:
            return
        session.cancel = encode(Cancel(session_id=session_id, reason=reason[:MAX_REASON_CHARS] or UNSET))
        if self.online:
            self._say(session.cancel)

    def abandon(self, session_id: str, reason: str) -> None:
        """Ask for a session's end, and forget it with the connection: nobody waits for it."""
        session = self._sessions.get(session_id)
        if session is None:
            return
        self.cancel(session_id, reason)
        session.abandoned = True
        if not self.online:
            del self._sessions[session_id]

    def answer(self, result: ToolResult) -> None:
        """Answer a call. Too late an answer changes nothing."""
        session = self._sessions.get(result.session_id)
        if session is None or result.call_id not in session.calls:
            return
        frame = session.calls[result.call_id] = encode(result)
        if self.online:
            self._say(frame)

    # The connection

    def connected(self) -> None:
        """Say all that a broker on a new connection needs to hear."""
        self.online = True
        for session_id, session in list(self._sessions.items()):
            if session.abandoned:
                del self._sessions[session_id]
            else:
                self._open(session_id, session)

    def disconnected(self) -> None:
        """Forget what was not sent; `connected` says it again."""
        self.online = False
        self.outgoing.clear()
        self.outgoing_bytes = 0
        for session_id, session in list(self._sessions.items()):
            session.phase = _Phase.WAITING
            if session.abandoned:
                del self._sessions[session_id]

    def next_frame(self) -> bytes | None:
        """Return the next frame to send, None if there is none now."""
        if not self.outgoing:
            return None
        frame = self.outgoing.popleft()
        self.outgoing_bytes -= len(frame)
        return frame

    def receive(self, data: bytes) -> list[Action]:
        """Take in a frame, and return what to do about it.

        Raises:
            RemoteProtocolError: it is no event and no message; the connection is of no use.
        """
        envelope = peek(data)
        if envelope.seq is not UNSET:
            return self._event(envelope, data)
        if envelope.type == "hello":
            hello = decode_worker_message(data)
            return [Greeted(hello)] if isinstance(hello, Hello) else []
        if envelope.type == "error":
            rejection = decode_worker_message(data)
            return self._rejected(rejection) if isinstance(rejection, Rejection) else []
        return []

    def fail(self, error: EnclaveError) -> list[Action]:
        """Give every session up: no connection can be had, or none is wanted any more."""
        sessions, self._sessions = self._sessions, {}
        return [Lost(session_id, _loss(session_id, session, error)) for session_id, session in sessions.items()]

    def _add(self, session_id: str, session: _Session) -> None:
        if session_id in self._sessions:
            message = f"sessionId: {session_id} is a session of this client that has not ended"
            raise RequestRefused(message, field="sessionId", allowed="an id that no live session has")
        self._sessions[session_id] = session
        if self.online:
            self._open(session_id, session)

    def _open(self, session_id: str, session: _Session) -> None:
        if session.execute is not None and not session.sent:
            self._execute(session, session.execute)
        else:
            session.phase = _Phase.ATTACHING
            session.sent = True
            self._say(_attach(session_id, session.next_seq))
        for answer in session.calls.values():
            if answer is not None:
                self._say(answer)
        if session.cancel is not None:
            self._say(session.cancel)

    def _execute(self, session: _Session, execute: bytes) -> None:
        session.phase = _Phase.STARTING
        session.sent = True
        self._say(execute)

    def _say(self, frame: bytes) -> None:
        self.outgoing.append(frame)
        self.outgoing_bytes += len(frame)

    def _event(self, envelope: Envelope, line: bytes) -> list[Action]:
        session_id = envelope.session_id or ""
        session = self._sessions.get(session_id)
        if session is None or envelope.seq is UNSET or envelope.seq < session.next_seq:
            return []  # its reader is gone, or it was read before
        if envelope.seq > session.next_seq:
            self.cancel(session_id, "its stream has a hole")
            return self._lose(session_id, f"event {envelope.seq} came where {session.next_seq} was due")
        session.next_seq += 1
        session.phase = _Phase.RUNNING
        session.execute = None
        session.joined = False
        arrived = Arrived(session_id, envelope.type, line)
        if envelope.type == "final":
            del self._sessions[session_id]
        elif envelope.type == "tool_call" and session.tools:
            return [arrived, *self._called(session_id, session, line)]
        elif envelope.type == "tool_result_applied" and session.calls:
            return [arrived, *self._applied(session_id, session, line)]
        return [arrived]

    def _called(self, session_id: str, session: _Session, line: bytes) -> list[Action]:
        event = _decoded(line)
        if not isinstance(event, ev.ToolCall) or event.payload.tool_name not in session.tools:
            return []
        if event.payload.call_id in session.called:
            log.warning("session %s: call %s came again, and is not run again", session_id, event.payload.call_id)
            return []
        session.called.add(event.payload.call_id)
        session.calls[event.payload.call_id] = None
        return [] if session.abandoned else [Called(session_id, event.payload)]

    def _applied(self, session_id: str, session: _Session, line: bytes) -> list[Action]:
        event = _decoded(line)
        if not isinstance(event, ev.ToolResultApplied) or event.payload.call_id not in session.calls:
            return []
        answer = session.calls.pop(event.payload.call_id)
        return [] if answer is not None else [CallOver(session_id, event.payload.call_id)]

    def _rejected(self, rejection: Rejection) -> list[Action]:
        session_id, payload = rejection.session_id or "", rejection.payload
        session = self._sessions.get(session_id)
        if session is None:
            log.debug("the broker refused a message: %s", payload.message)
            return []
        refusal = RequestRefused(
            payload.message,
            code=payload.code or "VALIDATION_ERROR",
            field=payload.field or "",
            allowed=payload.allowed or "",
        )
        if session.phase is _Phase.STARTING:
            del self._sessions[session_id]
            return [Lost(session_id, refusal)]
        if session.phase is not _Phase.ATTACHING or refusal.field not in {"sessionId", "fromSeq"}:
            log.debug("the broker refused a message of session %s: %s", session_id, payload.message)
            return []  # an answer or a cancel that came too late: the session goes on, or its final is on the way
        if session.joined:
            del self._sessions[session_id]
            return [Lost(session_id, refusal)]
        if session.execute is not None and session.cancel is None and session.resends < MAX_RESENDS:
            session.resends += 1
            self._execute(session, session.execute)
            return []
        return self._not_resumed(session_id, session, refusal)

    def _not_resumed(self, session_id: str, session: _Session, refusal: RequestRefused) -> list[Action]:
        if refusal.field == "fromSeq":
            message = f"the broker no longer keeps event {session.next_seq}, which is due: {refusal}"
            return self._lose(session_id, message, "trimmed")
        # It was restarted without a store that keeps sessions, or the session ended too long ago.
        return self._lose(session_id, f"the broker does not know it any more: {refusal}", "forgotten")

    def _lose(self, session_id: str, message: str, reason: LossReason = "given up") -> list[Action]:
        last_seq = self._sessions.pop(session_id).next_seq - 1
        return [Lost(session_id, SessionLost(message, session_id=session_id, last_seq=last_seq, reason=reason))]


def _loss(session_id: str, session: _Session, error: EnclaveError) -> EnclaveError:
    if isinstance(error, RequestRefused) or not session.sent or session.joined:
        return error
    return SessionLost(str(error), session_id=session_id, last_seq=session.next_seq - 1, reason="unreachable")


def _attach(session_id: str, from_seq: int) -> bytes:
    return msgspec.json.encode({"type": "attach", "sessionId": session_id, "fromSeq": from_seq})


def _decoded(line: bytes) -> ev.AnyEvent | None:
    try:
        return decode_event(line)
    except RemoteProtocolError as error:
        log.warning("the broker sent an event that is none: %s", error)
        return None
