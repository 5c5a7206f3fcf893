"""A session's log and state: nothing lost, nothing doubled, one final."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.event_log import EventLog, Trimmed
from enclave_broker.sessions import BrokerSession
from enclave_broker.steps import Broken, Ended, Missing, Refused, Replayed, ToolCalled
from enclave_protocol import Code, Execute, Final, Limits, State, Stats, decode_event, peek
from enclave_protocol.events import iso_time


def new_session(*, log_bytes: int = 100_000, **limits: Any) -> BrokerSession:
    request = Execute(session_id="s_1", code="return 1")
    session = BrokerSession("s_1", request, Limits(**limits), now=10.0, wall=1000.0, log=EventLog(log_bytes))
    session.execute(11.0)
    return session


def line(seq: int, kind: str, payload: dict[str, Any]) -> bytes:
    event = {"protocolVersion": 2, "sessionId": "s_1", "seq": seq, "type": kind, "payload": payload}
    return json.dumps(event).encode()


def give(session: BrokerSession, data: bytes) -> Any:
    return session.accept(peek(data), data, 12.0)


def final(seq: int, code: str = "") -> bytes:
    return line(seq, "final", {"ok": False, "error": {"message": "no", "code": code}} if code else {"ok": True})


def told(session: BrokerSession) -> list[Any]:
    return [decode_event(data) for data in session.log.lines(1, 1 << 30)]


def test_the_first_event_says_where_to_cancel_and_replay() -> None:
    (init,) = told(new_session())
    assert init.seq == 1
    assert init.payload.cancel_url == "/sessions/s_1/cancel"
    assert init.payload.expires_at == "1970-01-01T00:17:40.000Z"


def test_the_worker_is_told_which_number_comes_next_and_how_long_the_session_waited() -> None:
    session = new_session(heartbeat_interval_ms=500)
    session.beat(10.6, 1000.6)
    request = session.execute(11.0)
    assert (request.first_seq, request.queue_ms) == (3, 1000.0)


def test_a_workers_bytes_are_kept_as_they_came() -> None:
    session = new_session()
    data = line(2, "stdout", {"chunk": "ü", "unknown": 1})
    assert give(session, data) is None
    assert session.log.lines(2, 1000) == [data]


@pytest.mark.parametrize("seq", [3, 99])
def test_a_missing_event_changes_nothing_and_is_told(seq: int) -> None:
    session = new_session()
    assert isinstance(give(session, line(seq, "stdout", {"chunk": "x"})), Missing)
    assert session.live
    assert session.log.next_seq == 2


def test_an_event_that_comes_again_changes_nothing_unless_it_is_another_one() -> None:
    session = new_session()
    give(session, line(2, "stdout", {"chunk": "x"}))
    assert give(session, line(2, "stdout", {"chunk": "x"})) == Replayed()
    assert isinstance(give(session, line(2, "stdout", {"chunk": "y"})), Broken)
    assert isinstance(give(session, line(1, "stdout", {"chunk": "x"})), Broken)
    assert session.log.next_seq == 3


def test_an_event_that_comes_again_after_it_was_trimmed_is_believed() -> None:
    session = new_session(log_bytes=400)
    for seq in range(2, 12):
        give(session, line(seq, "stdout", {"chunk": "x" * 100}))
    assert session.log.first_seq > 2
    assert give(session, line(2, "stdout", {"chunk": "x" * 100})) == Replayed()


@pytest.mark.parametrize(
    ("data", "outcome", "state"),
    [
        (final(2), "ok", State.COMPLETED),
        (final(2, "EXECUTION_ERROR"), "EXECUTION_ERROR", State.FAILED),
        (final(2, "SESSION_CANCELLED"), "SESSION_CANCELLED", State.CANCELLED),
        (final(2, "MY_TOOLS_CODE"), "MY_TOOLS_CODE", State.FAILED),
    ],
)
def test_the_final_decides_how_the_session_ended(data: bytes, outcome: str, state: State) -> None:
    session = new_session()
    assert give(session, data) == Ended()
    assert (session.outcome, session.state, session.live) == (outcome, state, False)


def test_no_capacity_is_no_ending_before_anything_ran_and_one_after() -> None:
    session = new_session()
    assert give(session, final(2, "NO_CAPACITY")) == Refused()
    assert session.log.next_seq == 2
    give(session, line(2, "stdout", {"chunk": "x"}))
    assert give(session, final(3, "NO_CAPACITY")) == Ended()


def test_a_senseless_final_is_no_final() -> None:
    session = new_session()
    assert isinstance(give(session, line(2, "final", {"ok": "maybe"})), Broken)
    assert session.live


def test_a_final_that_is_nested_too_deeply_is_no_final() -> None:
    session = new_session()
    deep = b'{"payload":{"ok":true,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    assert isinstance(session.accept(peek(final(2)), deep, 12.0), Broken)
    assert session.live


def test_states_follow_tool_calls() -> None:
    session = new_session()
    step = give(session, line(2, "tool_call", {"callId": "c_1", "toolName": "t", "args": None}))
    assert isinstance(step, ToolCalled)
    assert session.state.value == "waiting_for_tool"
    assert session.answer("c_1")
    assert not session.answer("c_1")
    assert not session.answer("c_2")
    give(session, line(3, "tool_result_applied", {"callId": "c_1"}))
    assert session.state.value == "running"


def test_a_guest_may_return_while_a_call_is_open() -> None:
    session = new_session()
    give(session, line(2, "tool_call", {"callId": "c_1", "toolName": "t", "args": None}))
    assert give(session, final(3)) == Ended()
    assert session.state is State.COMPLETED


def test_the_brokers_own_final_has_full_statistics() -> None:
    session = new_session()
    give(session, line(2, "stdout", {"chunk": "ü\n"}))
    give(session, line(3, "stderr", {"chunk": "abc"}))
    session.end(Code.WORKER_LOST, "gone", 13.0)
    stats = told(session)[-1].payload.stats
    assert (stats.stdout_bytes, stats.stderr_bytes, stats.queue_ms, stats.duration_ms) == (3, 3, 1000.0, 3000.0)
    assert told(session)[-1].payload.error.retryable is True


def test_the_brokers_own_final_counts_the_output_that_can_be_read() -> None:
    session = new_session()
    give(session, line(2, "stdout", {"chunk": "abc"}))
    give(session, line(3, "stdout", {"chunk": 5}))
    give(session, line(4, "of_a_newer_worker", {"from": "stdout"}))
    session.end(Code.WORKER_LOST, "gone", 15.0)
    event = decode_event(session.log.lines(5, 1000)[0])
    assert isinstance(event, Final)
    assert isinstance(event.payload.stats, Stats)
    assert event.payload.stats.stdout_bytes == 3


def test_heartbeats_come_at_their_interval_while_the_session_waits() -> None:
    session = new_session(heartbeat_interval_ms=1000)
    for now in (10.5, 11.0, 11.5, 12.1):
        session.beat(now, now)
    assert [event.seq for event in told(session)] == [1, 2, 3]


def test_no_heartbeat_is_sent_when_the_interval_is_zero() -> None:
    session = new_session(heartbeat_interval_ms=0)
    session.beat(1e6, 1e6)
    assert session.log.next_seq == 2


@given(st.floats(0, 1e11))
def test_times_are_told_in_utc_to_the_millisecond(wall_s: float) -> None:
    known = dt.datetime.fromtimestamp(wall_s, dt.UTC).isoformat(timespec="milliseconds")
    assert iso_time(wall_s) == known.replace("+00:00", "Z")


def test_a_limit_beyond_the_calendar_still_has_a_date() -> None:
    assert iso_time(2.0**53) == "9999-12-31T23:59:59.000Z"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("worker"), st.sampled_from(["stdout", "final", "fails", "cancelled"]), st.integers(-1, 1)),
        st.tuples(st.just("broker"), st.sampled_from([Code.WORKER_LOST, Code.SESSION_CANCELLED]), st.just(0)),
    ),
    max_size=12,
)


@given(steps)
def test_whatever_happens_there_is_one_final_and_it_is_last(history: list[tuple[str, Any, int]]) -> None:
    session = new_session()
    for who, what, offset in history:
        if who == "broker":
            session.end(what, "why", 13.0)
        elif session.live:
            seq = max(1, session.log.next_seq + offset)
            codes = {"fails": "EXECUTION_ERROR", "cancelled": "SESSION_CANCELLED", "final": ""}
            data = line(seq, "stdout", {"chunk": "x"}) if what == "stdout" else final(seq, codes[what])
            if isinstance(give(session, data), Broken):
                session.end(Code.INTERNAL_ERROR, "senseless", 13.0)
    session.end(Code.INTERNAL_ERROR, "last resort", 14.0)
    events = told(session)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.__struct_config__.tag for event in events].count("final") == 1
    assert events[-1].__struct_config__.tag == "final"
    assert session.state.terminal


def test_a_reader_gets_everything_from_where_it_asked() -> None:
    log = EventLog(1000)
    woken: list[int] = []
    log.append(b"one")
    cursor = log.subscribe(1, lambda: woken.append(1))
    assert cursor.take() == [b"one"]
    assert cursor.take() == []
    log.append(b"two")
    log.append(b"three", last=True)
    assert woken == [1, 1]
    assert cursor.take(max_bytes=1) == [b"two"]
    assert not cursor.finished
    assert cursor.take() == [b"three"]
    assert cursor.finished


def test_trimmed_history_is_an_error_for_new_readers_and_for_slow_ones() -> None:
    log = EventLog(10)
    slow = log.subscribe(1, lambda: None)
    for _ in range(5):
        log.append(b"12345")
    assert log.size_bytes <= 10
    with pytest.raises(Trimmed) as caught:
        log.subscribe(1, lambda: None)
    assert caught.value.first_seq == log.first_seq > 1
    with pytest.raises(Trimmed):
        slow.take()


def test_the_newest_event_is_kept_however_large() -> None:
    log = EventLog(10)
    log.append(b"x" * 100)
    assert log.lines(1, 1000) == [b"x" * 100]


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=40), st.integers(1, 60), st.integers(1, 20))
def test_what_a_log_keeps_is_always_the_newest_and_without_a_hole(lines: list[bytes], size: int, batch: int) -> None:
    log = EventLog(size)
    for data in lines:
        log.append(data)
    cursor = log.subscribe(log.first_seq, lambda: None)
    taken = []
    while more := cursor.take(batch):
        taken += more
    assert taken == lines[log.first_seq - 1 :]
    assert log.size_bytes == sum(map(len, taken))
