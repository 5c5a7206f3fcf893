"""A session as the broker sees it: its state, and what goes into the log of what its client was told.

Theory of operation. The log's lines come from two writers. The broker writes `session_init`, heartbeats while the
session waits, and the `final` of sessions that no worker ends; the worker writes the rest, numbered on from there, and
its bytes are kept as they came. `accept` checks that nothing is missing and answers what the broker has to do; `end`
writes the broker's own `final`. Either closes the log, and a closed log takes nothing more: that is why there is
exactly one `final`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from enclave_protocol import (
    NO_TOOLS,
    Code,
    Execute,
    Final,
    FinalError,
    FinalPayload,
    Limits,
    ProtocolError,
    State,
    Stats,
    Trigger,
    decode_event,
    encode,
    is_retryable,
    peek,
    transition,
)
from enclave_protocol.events import (
    CatalogChanged,
    Heartbeat,
    HeartbeatPayload,
    Status,
    StatusPayload,
    Stderr,
    Stdout,
    ToolCall,
    ToolResultApplied,
    iso_time,
)
from enclave_protocol.inputs import size_bytes
from enclave_protocol.logs import about

from . import languages
from .access import DEFAULT_TENANT
from .own_lines import init_event, read_final, written_bytes
from .resuming import Known, PlaceAgain, fate_on_loss
from .steps import Broken, Ended, LetGo, Missing, Refused, Replayed, ToolCalled
from .tools.catalog import merged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_protocol import ClientTools
    from enclave_protocol.encryption import Channel
    from enclave_protocol.events import CatalogChangedPayload
    from enclave_protocol.messages import Envelope

    from .event_log import EventLog
    from .steps import Step
    from .tracing import SessionTrace


class BrokerSession:
    """One session.

    Args:
        session_id: its id.
        request: what to send to a worker; `firstSeq` and `queueMs` are filled in at placement. None for one that has
            ended.
        limits: what holds for it.
        now: seconds on the monotonic clock.
        wall: seconds since the epoch.
        log: where its events go. Empty for a new session.
        client_tools: the tools that its client answers for, by name; None: every one that the broker does not have.
        channel: what seals its events; None leaves them as they are.
        fingerprint: tells its request from others; empty for one that is not to be recognised.
        tenant: whose it is.
        may_retry: whether it may run once more if its worker is lost before its first event.
    """

    __slots__ = (
        "answers",
        "attached_from",
        "calls",
        "cancelling",
        "channel",
        "client_tools",
        "created",
        "created_at",
        "ended",
        "ended_here",
        "fingerprint",
        "first_seq",
        "heartbeat",
        "instance",
        "limits",
        "log",
        "may_retry",
        "open_calls",
        "outcome",
        "placement",
        "profile",
        "queue_position",
        "request",
        "request_bytes",
        "retries",
        "session_id",
        "started",
        "state",
        "stats",
        "tenant",
        "told",
        "told_after",
        "tool_call_count",
        "trace",
        "untold",
        "waits_from",
        "worker",
        "worker_name",
    )

    def __init__(
        self,
        session_id: str,
        request: Execute | None,
        limits: Limits,
        *,
        now: float,
        wall: float,
        log: EventLog,
        client_tools: ClientTools | None = NO_TOOLS,
        channel: Channel | None = None,
        fingerprint: bytes = b"",
        tenant: str = DEFAULT_TENANT,
        may_retry: bool = False,
    ) -> None:
        self.session_id = session_id
        self.tenant = tenant
        self.request = request  # until the worker's first event: after it, no other can take over
        self.profile = "" if request is None else request.profile or ""
        self.request_bytes = 0 if request is None else _size_bytes(request)
        self.limits = limits
        self.client_tools = client_tools
        self.channel = channel
        self.fingerprint = fingerprint
        self.state = State.STARTING
        self.created = now
        self.created_at = wall
        self.waits_from = now
        """Since when it has waited for a slot, or did until it got its last one."""
        self.heartbeat = now
        self.started: float | None = None
        """When a worker got it."""
        self.ended: float | None = None
        self.queue_position = 0
        """What its client was last told; 0: nothing."""
        self.worker: str | None = None
        """The link it went out on."""
        self.worker_name: str | None = None
        """What that worker calls itself,"""
        self.instance: str | None = None
        """and which of its lives it was in; None if it does not say."""
        self.placement = 0
        """How often it was placed or attached to: what was meant for one time must not go out the next time."""
        self.may_retry, self.retries = may_retry, 0
        """Whether it may be placed again if its worker is lost before it began, and how often it was."""
        self.cancelling: str | None = None
        """Why its worker was asked to end it: one that refuses it then must not have it placed elsewhere."""
        self.calls: dict[str, bool] = {}
        """Tool calls by id, and whether each was answered."""
        self.open_calls: dict[str, int] = {}
        """Calls whose result the guest does not have yet, and the numbers of their events."""
        self.tool_call_count = 0
        self.stats: Stats | None = None
        self.trace: SessionTrace | None = None
        """Told what becomes of it; None if it belongs to no trace."""
        self.outcome = ""
        """How it ended: `ok`, or the code of its error."""
        self.ended_here = False
        """Whether its `final` is the broker's own."""
        self.log = log
        self.first_seq = 0
        """Number of its worker's first event."""
        self._init_unheard()
        if log.next_seq == 1:
            log.append(encode(init_event(session_id, self.expires_at, channel)))

    def _init_unheard(self) -> None:
        """Make what its worker may not have heard yet: it is said again if the connection is lost with it."""
        self.attached_from = 0
        """From which event on its worker was last asked to go on."""
        self.answers: dict[str, bytes] = {}
        """Results of open calls that were sent."""
        self.untold: CatalogChangedPayload | None = None
        """What changed among the tools while the worker could not be told."""
        self.told: list[CatalogChangedPayload] = []
        """What it was told of that, and has not written into the stream yet, the first first."""
        self.told_after = 0
        """It can be told more when its events up to this number are here."""

    @property
    def about(self) -> dict[str, Any]:
        """What a log record about it is about."""
        return about(
            session_id=self.session_id,
            worker_id=self.worker_name or "",
            tenant=self.tenant,
            trace_id="" if self.trace is None else self.trace.trace_id,
        )

    @property
    def expires_at(self) -> float:
        """When it ends at the latest, in seconds since the epoch."""
        return self.created_at + self.limits.session_ttl_ms / 1000

    @property
    def live(self) -> bool:
        """Whether its `final` is still to come."""
        return not self.log.closed

    @property
    def need(self) -> str:
        """What it asks of a worker, as the placer has it."""
        language = None if self.request is None else self.request.language or None
        return languages.need(self.profile, language)

    @property
    def stored_seq(self) -> int:
        """Number of the last event of its worker's that is kept for good."""
        return self.log.end_seq - 1 - self.ended_here

    @property
    def stored(self) -> bool:
        """Whether that is the last one that it has."""
        return self.log.end_seq == self.log.next_seq

    @property
    def known(self) -> Known:
        """What decides its fate when its worker's connection breaks."""
        return Known(
            next_seq=self.log.next_seq,
            first_seq=self.first_seq,
            live=self.live,
            begun=self.request is None,
            cancelling=self.cancelling is not None,
            may_retry=self.may_retry,
            retries=self.retries,
        )

    def place(self, worker: str, worker_name: str, instance: str | None) -> None:
        """Note on which worker it is from now on."""
        self.worker, self.worker_name, self.instance = worker, worker_name, instance
        self.placement += 1
        self.attached_from = 0

    def unplace(self) -> None:
        """Note that it is on no worker, and was on none."""
        self.worker = self.worker_name = self.instance = self.started = None

    def attach(self, last_seq: int) -> None:
        """Note that its worker is asked for all events that the log lacks; it has them up to `last_seq`.

        Which of our messages arrived before the connection broke can be seen from those events, when they are here.
        """
        # What waits for the store at this moment must not go out before the `attach`: the worker would refuse it, for
        # the session is not this connection's yet. All that matters is said again behind it.
        self.placement += 1
        self.attached_from = self.log.next_seq
        self.told_after = last_seq
        for change in self.told:
            self.untold = merged(self.untold, change)
        self.told.clear()

    def execute(self, now: float) -> Execute:
        """Return what to send to the worker that it was just placed on."""
        if self.request is None:
            raise AssertionError("placed again after its worker began: only NO_CAPACITY re-queues")
        self.started = now
        self.first_seq = self.log.next_seq
        self.queue_position = 0
        queue_ms = round((now - self.created) * 1000, 3)
        execute = msgspec.structs.replace(self.request, first_seq=self.first_seq, queue_ms=queue_ms)
        if self.trace is None:
            return execute
        context = self.trace.placing(self.worker_name or "")
        return msgspec.structs.replace(execute, traceparent=context.traceparent)

    def beat(self, now: float, wall: float) -> None:
        """Write a heartbeat if one is due. The worker does so once it has the session."""
        interval_s = self.limits.heartbeat_interval_ms / 1000
        if interval_s and now - self.heartbeat >= interval_s:
            self.heartbeat = now
            payload = HeartbeatPayload(ts=iso_time(wall))
            self._append(encode(Heartbeat(session_id=self.session_id, seq=self.log.next_seq, payload=payload)))

    def tell_position(self, position: int) -> None:
        """Write how long the line before it is, as it waits for a slot, unless that is known."""
        if position != self.queue_position:
            self.queue_position = position
            payload = StatusPayload(state="queued", queue_position=position)
            self._append(encode(Status(session_id=self.session_id, seq=self.log.next_seq, payload=payload)))

    def tell(self, change: CatalogChangedPayload) -> bool:
        """Take in that the tools changed; True: its worker has to be told, which then writes the event.

        Whoever numbers the events writes this one: the broker while the session waits, then the worker, whose own
        events may be on their way. In between, until the worker's first event shows that it has the session, the change
        is kept: a worker that has no slot after all would lose it. So it is after an attach, until it can be seen
        which changes the worker had been told of.
        """
        if self.worker is None:
            event = CatalogChanged(session_id=self.session_id, seq=self.log.next_seq, payload=change)
            self._append(encode(event))
            return False
        if not self.may_tell:
            self.untold = merged(self.untold, change)
            return False
        self.told.append(change)
        return True

    @property
    def may_tell(self) -> bool:
        """Whether a change of the tools can be told to the worker that it is on."""
        return self.request is None and self.log.next_seq > self.told_after

    def accept(self, envelope: Envelope, line: bytes, now: float) -> Step:
        """Take in an event of the worker's, and say what to do about it."""
        if not self.live:
            raise AssertionError("an event for an ended session: the broker drops those")
        if envelope.seq != self.log.next_seq:
            return self._out_of_turn(envelope, line)
        if envelope.type != "final" and self.channel is not None and self.channel.to_client.left <= 1:
            reason = "its key has sealed as many events as one may; the final is the last"
            return Broken(reason, code=Code.ENCRYPTION_KEY_EXPIRED)
        try:
            if envelope.type == "final":
                return self._accept_final(line, now)
            self._begin()
            step = self._accept_call(line) if envelope.type.startswith("tool_") else None
            if self.told and envelope.type == "catalog_changed":
                self.told.pop(0)
        except ProtocolError as error:
            return Broken(str(error))
        except (msgspec.MsgspecError, RecursionError) as error:
            return Broken(f"unreadable {envelope.type}: {error}")
        self._append(line)
        return step

    def replay(self, lines: Iterable[bytes]) -> None:
        """Take in events of the worker's that are in the log already, for what follows from them."""
        for line in lines:
            self._begin()
            if peek(line).type.startswith("tool_"):
                self._accept_call(line)

    def replay_calls(self, call_ids: Iterable[str]) -> None:
        """Take in calls whose own events are in the log no more, after those that are: what became of them is there."""
        for call_id in call_ids:
            if call_id not in self.calls:
                self.calls[call_id] = False
                self.open_calls[call_id] = 0
                self.tool_call_count += 1
        if self.open_calls and self.state is State.RUNNING:
            self.state = transition(self.state, Trigger.TOOL_CALL)

    def end(self, code: Code, message: str, now: float) -> None:
        """Write the broker's own `final`, because no worker will. A session that has ended stays as it is."""
        if not self.live:
            return
        cancelled = code is Code.SESSION_CANCELLED
        self.state = transition(self.state, Trigger.CANCEL if cancelled else Trigger.FAIL)
        stats = self._broker_stats(now)
        error = FinalError(message=message, code=code.value, retryable=is_retryable(code))
        payload = FinalPayload(ok=False, error=error, stats=stats)
        line = encode(Final(session_id=self.session_id, seq=self.log.next_seq, payload=payload))
        self.ended_here = True
        self._finish(code.value, stats, line, now)

    def answer(self, call_id: str) -> bool:
        """Note that a call is being answered; False if there is no such call, or it was answered before."""
        if self.calls.get(call_id, True):
            return False
        self.calls[call_id] = True
        return True

    def duration_ms(self, now: float) -> float:
        """Return how long it has lived, or did."""
        return round(((self.ended or now) - self.created) * 1000, 3)

    def _out_of_turn(self, envelope: Envelope, line: bytes) -> Step:
        seq, due = envelope.seq or 0, self.log.next_seq
        reason = f"event {seq} of type {envelope.type} came where {due} was due"
        if seq > due:
            return Missing(reason)
        kept = seq >= self.log.first_seq
        if kept and self._opened(self.log.kept()[seq - self.log.first_seq]) != line:
            return Broken(f"{reason}, and was another one before")
        return Replayed()

    def _accept_final(self, line: bytes, now: float) -> Step:
        body = read_final(line)
        code = body.code
        if code == Code.NO_CAPACITY and self.request is not None:
            return Refused()
        if code == Code.WORKER_LOST and isinstance(fate_on_loss(self.known), PlaceAgain):
            return LetGo()
        outcome = "ok" if body.ok else (code or Code.EXECUTION_ERROR.value)
        if body.ok:
            self._begin()
            if self.state is State.WAITING_FOR_TOOL:  # the guest returned without waiting for all its calls
                self.state = transition(self.state, Trigger.TOOL_RESULT)
            self.state = transition(self.state, Trigger.COMPLETE)
        else:
            cancelled = outcome == Code.SESSION_CANCELLED
            self.state = transition(self.state, Trigger.CANCEL if cancelled else Trigger.FAIL)
        self._finish(outcome, body.stats or None, line, now)
        return Ended()

    def _accept_call(self, line: bytes) -> Step:
        event = decode_event(line)
        if isinstance(event, ToolCall):
            if event.payload.call_id in self.calls:
                return Broken(f"call {event.payload.call_id} was made twice")
            self.calls[event.payload.call_id] = False
            self.open_calls[event.payload.call_id] = event.seq
            self.tool_call_count += 1
            if self.state is State.RUNNING:
                self.state = transition(self.state, Trigger.TOOL_CALL)
            return ToolCalled(event, len(line))
        if isinstance(event, ToolResultApplied):
            self.calls[event.payload.call_id] = True
            self.open_calls.pop(event.payload.call_id, None)
            self.answers.pop(event.payload.call_id, None)
            if self.state is State.WAITING_FOR_TOOL and not self.open_calls:
                self.state = transition(self.state, Trigger.TOOL_RESULT)
        return None

    def _begin(self) -> None:
        self.request = None
        if self.state is State.STARTING:
            self.state = transition(self.state, Trigger.START)

    def _finish(self, outcome: str, stats: Stats | None, line: bytes, now: float) -> None:
        self.outcome = outcome
        self.stats = stats
        self.ended = now
        self.request = None
        self.answers.clear()
        self.told.clear()
        self.client_tools = NO_TOOLS  # nobody calls any more; the log outlives the session
        self._append(line, last=True)

    def _append(self, line: bytes, *, last: bool = False) -> None:
        # Sealed here, once, so that all readers and replays have the same bytes.
        sealed = line if self.channel is None else self.channel.to_client.seal(self.log.next_seq, line)
        self.log.append(sealed, last=last)

    def _opened(self, line: bytes) -> bytes:
        sealed = self.channel is not None and peek(line).type == "enc"
        return self.channel.to_client.open(line) if sealed and self.channel is not None else line

    def _broker_stats(self, now: float) -> Stats:
        queued_until = self.started if self.started is not None else now
        return Stats(
            duration_ms=self.duration_ms(now),
            tool_call_count=self.tool_call_count,
            stdout_bytes=self._written(Stdout),
            stderr_bytes=self._written(Stderr),
            queue_ms=round((queued_until - self.created) * 1000, 3),
        )

    def _written(self, kind: type[Stdout | Stderr]) -> int:
        # Counted from the log only when a session ends this way, so that passing events on needs no decoding.
        return written_bytes(map(self._opened, self.log.kept()), kind)


def _size_bytes(request: Execute) -> int:
    return len(request.code) + size_bytes(request.env or {}, request.files or {})
