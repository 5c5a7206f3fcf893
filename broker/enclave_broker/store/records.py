"""What is stored of a session beside its events, and a session made from it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from enclave_broker.sessions import BrokerSession
from enclave_protocol import NO_TOOLS, Execute, Limits, ProtocolError, State, Stats, encode, peek
from enclave_protocol.declared_tools import DeclaredTool  # noqa: TC001 - msgspec reads it at run time

from .base import Loaded, StoreError, Unended
from .logs import ShelvedLog, StoredLog

if TYPE_CHECKING:
    from enclave_broker.event_log import EventLog

    from .database import Database, Row
    from .sqlite import SqliteStore


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What never changes."""

    tenant: str
    created_at: float
    """Seconds since the epoch."""
    limits: Limits
    client_tools: list[DeclaredTool] | None = None
    fingerprint: bytes = b""
    encrypted: bool = False
    may_retry: bool = False


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a live session is. All absent: it waits for a slot."""

    worker: str | None = None
    """The link it went out on,"""
    worker_name: str | None = None
    """what that worker calls itself,"""
    instance: str | None = None
    """which of its lives it was in,"""
    first_seq: int = 0
    """and the number of its first event."""
    started_after_s: float = 0.0
    """How long it had waited by then."""
    cancelling: str | None = None
    retries: int = 0


class Ending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a session ended, and what can be read of it."""

    state: State
    outcome: str
    ended_at: float
    """Seconds since the epoch."""
    duration_s: float
    first_seq: int
    end_seq: int
    size_bytes: int
    worker_name: str | None = None
    has_run: bool = False
    ended_here: bool = False
    tool_call_count: int = 0
    stats: Stats | None = None


record_decoder = msgspec.json.Decoder(Record)
place_decoder = msgspec.json.Decoder(Place)
ending_decoder = msgspec.json.Decoder(Ending)
request_decoder = msgspec.json.Decoder(Execute)


def record_of(session: BrokerSession) -> bytes:
    """Return what never changes of a session."""
    tools = session.client_tools
    return msgspec.json.encode(
        Record(
            tenant=session.tenant,
            created_at=session.created_at,
            limits=session.limits,
            client_tools=None if tools is None else list(tools.values()),
            fingerprint=session.fingerprint,
            encrypted=session.channel is not None,
            may_retry=session.may_retry,
        )
    )


def request_of(request: Execute, *, encrypted: bool) -> bytes:
    """Return what a session asks for; nothing of an encrypted one, which ends with the broker that has its key."""
    return encode(Execute(session_id=request.session_id, code="") if encrypted else request)


def place_of(session: BrokerSession) -> bytes:
    """Return where a live session is."""
    return msgspec.json.encode(
        Place(
            worker=session.worker,
            worker_name=session.worker_name,
            instance=session.instance,
            retries=session.retries,
            first_seq=session.first_seq if session.worker is not None else 0,
            started_after_s=0.0 if session.started is None else session.started - session.created,
            cancelling=session.cancelling,
        )
    )


def ending_of(session: BrokerSession) -> bytes:
    """Return how a session ended."""
    if session.ended is None:
        raise AssertionError("it has not ended")
    duration_s = session.ended - session.created
    return msgspec.json.encode(
        Ending(
            state=session.state,
            outcome=session.outcome,
            duration_s=duration_s,
            ended_at=session.created_at + duration_s,
            first_seq=session.log.first_seq,
            end_seq=session.log.next_seq,
            size_bytes=session.log.size_bytes,
            worker_name=session.worker_name,
            has_run=session.started is not None,
            ended_here=session.ended_here,
            tool_call_count=session.tool_call_count,
            stats=session.stats,
        )
    )


def load(database: Database, store: SqliteStore, *, log_bytes: int, now: float, wall: float) -> Loaded:
    """Make every session of a file again: see `SqliteStore.load`."""
    loaded = Loaded(finished=[], live=[], unwritten=database.unwritten)
    for row in database.rows():
        try:
            if row.ending is None:
                loaded.live.append(_live(database, store, row, log_bytes=log_bytes, now=now, wall=wall))
            else:
                loaded.finished.append(_finished(store, row, row.ending, now=now, wall=wall))
        except (msgspec.MsgspecError, ProtocolError) as error:
            raise StoreError(f"{database.path} is damaged: session {row.session_id}: {error}") from error
    loaded.finished.sort(key=lambda session: session.ended or 0.0)
    return loaded


def _live(database: Database, store: SqliteStore, row: Row, *, log_bytes: int, now: float, wall: float) -> Unended:
    record = record_decoder.decode(row.record)
    if row.request is None:
        raise StoreError(f"{database.path} is damaged: session {row.session_id} has not ended, and has no request")
    first_seq, lines = database.all_lines(row.key)
    log = StoredLog(log_bytes, first_seq=first_seq)
    log.restore(lines)
    created = now - max(0.0, wall - record.created_at)
    session = _session(row, record, request_decoder.decode(row.request), log, created)
    log.keep(store, row.key, session.open_calls)
    stored_calls = database.answers(row.key)
    log.calls.update(stored_calls)
    place = Place() if row.place is None else place_decoder.decode(row.place)
    session.cancelling, session.retries = place.cancelling, place.retries
    if place.worker is not None:
        session.place(place.worker, place.worker_name or place.worker, place.instance)
        session.first_seq = place.first_seq
        session.started = created + place.started_after_s
        if not record.encrypted:
            session.replay(lines[max(0, place.first_seq - first_seq) :])
            session.replay_calls(stored_calls)
    session.heartbeat = now
    calls = {call_id: line for call_id, line in stored_calls.items() if peek(line).type == "tool_call"}
    answers = {call_id: line for call_id, line in stored_calls.items() if call_id not in calls}
    return Unended(session=session, log=log, calls=list(calls.values()), answers=answers, encrypted=record.encrypted)


def _finished(store: SqliteStore, row: Row, data: bytes, *, now: float, wall: float) -> BrokerSession:
    record, ending = record_decoder.decode(row.record), ending_decoder.decode(data)
    log = ShelvedLog(store, row.key, first_seq=ending.first_seq, end_seq=ending.end_seq, size_bytes=ending.size_bytes)
    ended = now - max(0.0, wall - ending.ended_at)
    session = _session(row, record, None, log, ended - ending.duration_s)
    session.ended = ended
    session.started = session.created if ending.has_run else None
    session.state = ending.state
    session.outcome = ending.outcome
    session.ended_here = ending.ended_here
    session.worker_name = ending.worker_name
    session.tool_call_count = ending.tool_call_count
    session.stats = ending.stats
    return session


def _session(row: Row, record: Record, request: Execute | None, log: EventLog, created: float) -> BrokerSession:
    tools = record.client_tools
    return BrokerSession(
        row.session_id,
        request,
        record.limits,
        now=created,
        wall=record.created_at,
        log=log,
        client_tools=None if tools is None else {tool.name: tool for tool in tools} or NO_TOOLS,
        fingerprint=record.fingerprint,
        tenant=record.tenant,
        may_retry=record.may_retry,
    )
