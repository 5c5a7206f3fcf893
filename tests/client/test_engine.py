"""The engine against a broker that is as pure as it is: connections cut at any frame."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_client.actions import Action, Arrived, Called, CallOver, Greeted, Lost
from enclave_client.engine import MAX_RESENDS, Engine
from enclave_client.errors import BrokerUnavailable, RequestRefused, SessionLost
from enclave_protocol import RemoteProtocolError, ToolResult, tool_calls

EXECUTE = b'{"type":"execute","sessionId":"s_1","code":""}'


def event(seq: int, kind: str = "stdout", session_id: str = "s_1", **payload: Any) -> bytes:
    payload = payload or {"chunk": str(seq)}
    return json.dumps(
        {"type": kind, "protocolVersion": 2, "sessionId": session_id, "seq": seq, "payload": payload}
    ).encode()


def rejection(field: str, session_id: str = "s_1") -> bytes:
    payload = {"message": f"{field}: no", "code": "VALIDATION_ERROR", "field": field, "allowed": "yes"}
    return json.dumps({"type": "error", "sessionId": session_id, "payload": payload}).encode()


def call(seq: int, call_id: str, name: str = "search") -> bytes:
    return event(seq, "tool_call", callId=call_id, toolName=name, args={})


def answer(call_id: str = "c_1") -> ToolResult:
    return tool_calls.succeeded("s_1", call_id, "search", 1)


def said(engine: Engine) -> list[dict[str, Any]]:
    frames = []
    while (frame := engine.next_frame()) is not None:
        frames.append(json.loads(frame))
    assert engine.outgoing_bytes == 0
    return frames


def types(engine: Engine) -> list[str]:
    return [message["type"] for message in said(engine)]


def started(*, tools: tuple[str, ...] = ()) -> Engine:
    engine = Engine()
    engine.connected()
    engine.start("s_1", EXECUTE, tools)
    assert types(engine) == ["execute"]
    return engine


def again(engine: Engine) -> list[dict[str, Any]]:
    """What is said on a new connection."""
    engine.disconnected()
    assert said(engine) == []
    engine.connected()
    return said(engine)


def test_events_arrive_in_order_and_the_final_is_the_end() -> None:
    engine = started()

    assert engine.receive(event(1)) == [Arrived("s_1", "stdout", event(1))]
    assert engine.receive(event(2, "final", ok=True)) == [Arrived("s_1", "final", event(2, "final", ok=True))]
    assert engine.receive(event(3)) == []
    assert engine.live == 0


def test_a_session_that_was_wished_for_before_there_was_a_connection_is_started_on_it() -> None:
    engine = Engine()
    engine.start("s_1", EXECUTE)
    assert said(engine) == []
    assert not engine.resuming

    engine.connected()

    assert types(engine) == ["execute"]
    assert engine.resuming


def test_a_new_connection_goes_on_from_the_event_that_is_due() -> None:
    engine = started()
    engine.receive(event(1))
    engine.receive(event(2))

    assert again(engine) == [{"type": "attach", "sessionId": "s_1", "fromSeq": 3}]
    assert engine.receive(event(2)) == []
    assert engine.receive(event(3)) == [Arrived("s_1", "stdout", event(3))]


def test_a_broker_that_never_got_the_request_gets_it_again_but_not_for_ever() -> None:
    engine = started()
    for _ in range(MAX_RESENDS):
        assert again(engine) == [{"type": "attach", "sessionId": "s_1", "fromSeq": 1}]
        assert engine.receive(rejection("sessionId")) == []
        assert types(engine) == ["execute"]

    again(engine)
    [lost] = engine.receive(rejection("sessionId"))
    assert isinstance(lost, Lost)
    assert isinstance(lost.error, SessionLost)
    assert types(engine) == []


def test_a_request_whose_end_was_asked_for_is_not_sent_again() -> None:
    engine = started()
    engine.cancel("s_1", "why")
    assert [message["type"] for message in again(engine)] == ["attach", "cancel"]

    [lost] = engine.receive(rejection("sessionId"))

    assert isinstance(lost, Lost)
    assert types(engine) == []


def test_a_session_that_the_broker_forgot_is_lost_and_says_what_came_last() -> None:
    engine = started()
    engine.receive(event(1))
    again(engine)

    [lost] = engine.receive(rejection("sessionId"))

    assert isinstance(lost, Lost)
    assert isinstance(lost.error, SessionLost)
    assert (lost.error.last_seq, lost.error.reason) == (1, "forgotten")
    assert engine.live == 0


def test_events_that_are_not_kept_any_more_lose_the_session() -> None:
    engine = started()
    engine.receive(event(1))
    again(engine)

    [lost] = engine.receive(rejection("fromSeq"))

    assert isinstance(lost, Lost)
    assert isinstance(lost.error, SessionLost)
    assert lost.error.reason == "trimmed"
    assert "no longer keeps event 2, which is due" in str(lost.error)


def test_a_refused_request_is_the_callers_error_with_its_field() -> None:
    engine = started()

    [lost] = engine.receive(rejection("profile"))

    assert isinstance(lost, Lost)
    assert isinstance(lost.error, RequestRefused)
    assert (lost.error.field, lost.error.allowed) == ("profile", "yes")


@pytest.mark.parametrize("field", ["sessionId", "fromSeq"])
def test_a_refused_attach_is_the_callers_error_until_something_came_of_it(field: str) -> None:
    engine = Engine()
    engine.connected()
    engine.attach("s_1", 4)
    engine.attach("s_2", 1)
    assert [message["fromSeq"] for message in said(engine)] == [4, 1]

    [lost] = engine.receive(rejection(field))
    assert isinstance(lost, Lost)
    assert isinstance(lost.error, RequestRefused)

    engine.receive(event(1, session_id="s_2"))
    again(engine)
    [lost] = engine.receive(rejection(field, "s_2"))
    assert isinstance(lost, Lost)
    assert isinstance(lost.error, SessionLost)


def test_a_hole_in_the_stream_loses_the_session_and_has_it_ended() -> None:
    engine = started()
    engine.receive(event(1))

    [lost] = engine.receive(event(3))

    assert isinstance(lost, Lost)
    assert "event 3 came where 2 was due" in str(lost.error)
    assert types(engine) == ["cancel"]


def test_a_call_is_handed_out_once_and_its_answer_sent_until_it_was_applied() -> None:
    engine = started(tools=("search",))
    [arrived, called] = engine.receive(call(1, "c_1"))
    assert isinstance(arrived, Arrived)
    assert isinstance(called, Called)
    assert again(engine) == [{"type": "attach", "sessionId": "s_1", "fromSeq": 2}]

    engine.answer(answer())
    assert types(engine) == ["tool_result"]
    engine.answer(answer())
    assert types(engine) == ["tool_result"]

    assert [message["type"] for message in again(engine)] == ["attach", "tool_result"]
    assert engine.receive(rejection("callId")) == []  # it had arrived after all
    engine.receive(event(2, "tool_result_applied", callId="c_1"))
    assert [message["type"] for message in again(engine)] == ["attach"]
    engine.answer(answer())
    assert said(engine) == []


def test_a_call_that_comes_again_under_another_number_is_not_run_again() -> None:
    engine = started(tools=("search",))
    engine.receive(call(1, "c_1"))
    assert [type(action) for action in engine.receive(call(2, "c_1"))] == [Arrived]

    engine.answer(answer())
    engine.receive(event(3, "tool_result_applied", callId="c_1"))
    assert [type(action) for action in engine.receive(call(4, "c_1"))] == [Arrived]
    assert [type(action) for action in engine.receive(call(5, "c_2"))] == [Arrived, Called]


def test_a_call_that_somebody_else_answered_need_not_run_on() -> None:
    engine = started(tools=("search",))
    engine.receive(call(1, "c_1"))

    [_, over] = engine.receive(event(2, "tool_result_applied", callId="c_1"))

    assert over == CallOver("s_1", "c_1")


def test_calls_of_other_tools_are_somebody_elses() -> None:
    engine = started(tools=("search",))
    assert len(engine.receive(call(1, "c_1", "of_the_broker"))) == 1
    engine.answer(answer())
    assert said(engine) == []


def test_an_abandoned_session_is_cancelled_now_and_forgotten_with_the_connection() -> None:
    engine = started()
    engine.abandon("s_1", "why")
    assert said(engine) == [{"type": "cancel", "sessionId": "s_1", "reason": "why"}]
    assert (engine.live, engine.wanted) == (1, False)

    assert again(engine) == []
    assert engine.live == 0


def test_asking_for_the_end_twice_or_too_late_says_nothing() -> None:
    engine = started()
    engine.cancel("s_1", "")
    engine.cancel("s_1", "again")
    assert said(engine) == [{"type": "cancel", "sessionId": "s_1"}]
    engine.receive(event(1, "final", ok=True))

    engine.cancel("s_1", "")
    engine.abandon("s_1", "")

    assert said(engine) == []


def test_an_id_that_is_in_use_is_refused() -> None:
    engine = started()
    with pytest.raises(RequestRefused, match="sessionId"):
        engine.start("s_1", EXECUTE)


def test_giving_up_tells_who_was_heard_of_and_who_never_was() -> None:
    engine = started()
    engine.disconnected()
    engine.start("s_2", EXECUTE)

    one, other = engine.fail(BrokerUnavailable("nobody there"))

    assert isinstance(one, Lost)
    assert isinstance(one.error, SessionLost)
    assert isinstance(other, Lost)
    assert type(other.error) is BrokerUnavailable
    assert engine.live == 0


@pytest.mark.parametrize("frame", [b"{", b"[]", b"", b"\xff", b'{"type":5}', b'{"type":"x","seq":0}'])
def test_a_frame_that_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        started().receive(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"pong","timestamp":1}',
        b'{"type":"news","sessionId":"s_1"}',
        b'{"type":"stdout","seq":1}',
        b'{"type":"stdout","seq":1,"sessionId":"s_other"}',
        rejection("code", "s_other"),
    ],
)
def test_what_is_nobodys_is_passed_over(frame: bytes) -> None:
    assert started().receive(frame) == []


def test_an_event_of_an_unknown_type_counts_and_arrives() -> None:
    engine = started()
    [arrived] = engine.receive(event(1, "novelty", x=1))
    assert isinstance(arrived, Arrived)
    assert len(engine.receive(event(2))) == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**64) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
ODD_FRAMES = st.fixed_dictionaries(
    {},
    optional={
        "type": ANYTHING
        | st.sampled_from(["hello", "error", "pong", "final", "tool_call", "tool_result_applied", "stdout", "enc"]),
        "sessionId": st.just("s_1") | ANYTHING,
        "seq": st.integers(1, 3) | ANYTHING,
        "payload": ANYTHING
        | st.fixed_dictionaries(
            {},
            optional={
                "callId": ANYTHING | st.just("c_1"),
                "toolName": ANYTHING | st.just("search"),
                "args": ANYTHING,
                "message": ANYTHING | st.just(""),
                "field": ANYTHING | st.just("sessionId"),
            },
        ),
    },
)


@settings(deadline=None)
@given(st.lists(ODD_FRAMES, max_size=5))
def test_whatever_a_broker_says_is_taken_or_refused(frames: list[dict[str, Any]]) -> None:
    engine = started(tools=("search",))
    for frame in frames:
        try:
            engine.receive(json.dumps(frame).encode())
        except RemoteProtocolError:
            engine.disconnected()
            engine.connected()
    engine.fail(BrokerUnavailable("the end"))
    assert engine.live == 0


class Model:
    """A broker as pure as the engine: every session says three things, calls a tool in between, and ends."""

    def __init__(self) -> None:
        self.logs: dict[str, list[bytes]] = {}
        self.runs: dict[str, int] = {}
        self.readers: dict[str, int] = {}
        self.answered: set[str] = set()
        self.out: list[bytes] = []

    def hear(self, frame: bytes) -> None:
        message = json.loads(frame)
        session_id = message["sessionId"]
        if message["type"] == "execute":
            assert session_id not in self.logs, "a session was asked for twice"
            self.runs[session_id] = self.runs.get(session_id, 0) + 1
            self.logs[session_id] = [event(1, session_id=session_id), self._call(session_id, 2)]
            self.readers[session_id] = 0
        elif message["type"] == "attach":
            if session_id in self.logs:
                self.readers[session_id] = message["fromSeq"] - 1
            else:
                self.out.append(rejection("sessionId", session_id))
        elif message["type"] == "tool_result":
            if message["callId"] in self.answered:
                self.out.append(rejection("callId", session_id))
            else:
                self.answered.add(message["callId"])
                applied = event(3, "tool_result_applied", session_id, callId=message["callId"])
                self.logs[session_id] += [applied, event(4, "final", session_id, ok=True)]

    def speak(self) -> bytes | None:
        if self.out:
            return self.out.pop(0)
        for session_id, at in self.readers.items():
            if at < len(self.logs[session_id]):
                self.readers[session_id] += 1
                return self.logs[session_id][at]
        return None

    def cut(self) -> None:
        self.readers.clear()
        self.out.clear()

    def _call(self, session_id: str, seq: int) -> bytes:
        return event(seq, "tool_call", session_id, callId=f"c_{session_id}", toolName="search", args={})


class Pair:
    """An engine and its broker, and what came of it."""

    def __init__(self, *session_ids: str) -> None:
        self.engine, self.broker = Engine(), Model()
        self.seen: dict[str, list[int]] = {session_id: [] for session_id in session_ids}
        self.called: list[str] = []
        self.lost: list[str] = []
        self._pending: list[Called] = []
        self.engine.connected()
        for session_id in session_ids:
            self.engine.start(session_id, EXECUTE.replace(b"s_1", session_id.encode()), ("search",))

    def step(self, name: str) -> None:
        getattr(self, name)()

    def hear(self) -> None:
        if (frame := self.engine.next_frame()) is not None:
            self.broker.hear(frame)

    def lose(self) -> None:
        """A frame never arrives, and neither does anything after it."""
        if self.engine.next_frame() is not None:
            self.cut()

    def speak(self) -> None:
        if (line := self.broker.speak()) is not None:
            for action in self.engine.receive(line):
                self._take(action)

    def answer(self) -> None:
        if self._pending:
            call = self._pending.pop()
            self.engine.answer(tool_calls.succeeded(call.session_id, call.call.call_id, "search", 1))

    def cut(self) -> None:
        self.broker.cut()
        self.engine.disconnected()
        self.engine.connected()

    def _take(self, action: Action) -> None:
        assert not isinstance(action, Greeted)
        if isinstance(action, Arrived):
            self.seen[action.session_id].append(json.loads(action.line)["seq"])
        elif isinstance(action, Called):
            self.called.append(action.session_id)
            self._pending.append(action)
        elif isinstance(action, Lost):
            self.lost.append(action.session_id)


STEPS = st.lists(st.sampled_from(["hear", "lose", "speak", "speak", "answer", "cut"]), max_size=60)


@settings(deadline=None)
@given(STEPS)
def test_wherever_connections_break_each_event_arrives_once_and_each_call_runs_once(steps: list[str]) -> None:
    pair = Pair("s_1", "s_2")
    for name in [*steps, *["hear", "speak", "answer"] * 100]:
        pair.step(name)

    for session_id, numbers in pair.seen.items():
        # The request may get lost more than once; then, and only then, its session is given up.
        assert numbers == ([] if session_id in pair.lost else [1, 2, 3, 4])
        assert pair.called.count(session_id) == (session_id not in pair.lost)
        assert pair.broker.runs.get(session_id, 0) <= 1
    assert pair.engine.live == 0
