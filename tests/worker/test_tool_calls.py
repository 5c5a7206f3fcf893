"""The tool calls of a session, told what happens and nothing else."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import Raw

from enclave_protocol import Code, RemoteProtocolError, ToolError
from enclave_worker.instructions import Kill, StartToolTimer, StopToolTimer, ToGuest
from enclave_worker.tool_calls import MAX_WAITING_CALLS
from enclave_worker.usage import Exit, Usage
from tests.worker.bare_session import answer, call, events, failure, final, frame, kinds, running


def test_a_call_is_passed_on_or_breaks_its_session_however_deep_its_arguments_are_nested() -> None:
    # How deep is too deep depends on the reader's stack: what we can read must not be what we fail to pass on.
    codes = set()
    for depth in range(600, 1100):
        session = running()
        told = session.frame(b'{"type":"tool_call","id":1,"name":"x","args":%b}' % (b"[" * depth + b"]" * depth))
        assert session.decided or isinstance(told[1], StartToolTimer)
        session.cancel("enough")
        codes.add(final(session)["error"]["code"])

    assert codes == {"SESSION_CANCELLED", "RESULT_NOT_SERIALIZABLE"}


def test_a_tools_result_is_passed_on_or_refused_however_deep_it_is_nested() -> None:
    refused = set()
    for depth in range(600, 1100):
        session = running()
        call_id = events(frame(session, type="tool_call", id=7, name="add", args=1))[0]["payload"]["callId"]
        try:
            told = session.tool_result(answer(call_id, Raw(b"[" * depth + b"]" * depth)))
        except RemoteProtocolError as error:
            refused.add(error.field)
        else:
            assert isinstance(told[1], ToGuest)
            msgspec.json.encode(told[1].message)

    assert refused == {"value"}


def test_a_tool_call_starts_a_timer_and_its_result_stops_it() -> None:
    session = running(tool_timeout_ms=500, per_tool_deadline_ms=400)
    told = frame(session, type="tool_call", id=7, name="add", args=[1])
    (event,) = events(told)
    call_id = event["payload"]["callId"]

    assert told[1] == StartToolTimer(call_id, 400)
    assert str(session.state) == "waiting_for_tool"

    told = session.tool_result(answer(call_id, {"x": 1}))

    assert told[0] == StopToolTimer(call_id)
    assert isinstance(told[1], ToGuest)
    assert json.loads(msgspec.json.encode(told[1].message)) == {
        "type": "tool_result",
        "id": 7,
        "ok": True,
        "value": {"x": 1},
    }
    assert [e["type"] for e in events(told)] == ["tool_result_applied"]
    assert str(session.state) == "running"


def test_the_session_waits_until_the_last_of_several_calls_is_answered() -> None:
    session = running()
    first, second = call(session, 1), call(session, 2)
    session.tool_result(answer(second))
    assert str(session.state) == "waiting_for_tool"
    session.tool_result(answer(first))
    assert str(session.state) == "running"


def test_a_tool_that_does_not_answer_times_out_in_the_guest() -> None:
    session = running(tool_timeout_ms=30)
    call_id = call(session)
    told = session.tool_timeout(call_id)

    assert told[1].message["code"] == "TOOL_TIMEOUT"  # type: ignore[union-attr]
    assert str(session.state) == "running"
    assert session.tool_timeout(call_id) == []


@pytest.mark.parametrize("case", ["twice", "unknown", "after the verdict", "after a timeout"])
def test_a_result_that_no_call_waits_for_is_refused_and_changes_nothing(case: str) -> None:
    session = running()
    call_id = call(session)
    if case == "twice":
        session.tool_result(answer(call_id))
    elif case == "after a timeout":
        session.tool_timeout(call_id)
    elif case == "after the verdict":
        session.cancel("x")
    before = (session.state, session.next_seq)

    with pytest.raises(RemoteProtocolError) as caught:
        session.tool_result(answer("c_other" if case == "unknown" else call_id))

    assert (caught.value.field, caught.value.session_id) == ("callId", "s_1")
    assert (session.state, session.next_seq) == before


def test_a_result_that_is_not_json_is_refused_and_the_call_still_waits() -> None:
    session = running()
    call_id = call(session)

    with pytest.raises(RemoteProtocolError) as caught:
        session.tool_result(answer(call_id, value=Raw(b"{nope")))

    assert caught.value.field == "value"
    assert session.tool_result(answer(call_id))


def test_one_call_too_many_is_answered_by_the_worker_itself() -> None:
    session = running(max_tool_calls=1)
    call(session, 1)
    (told,) = frame(session, type="tool_call", id=2, name="t", args=None)

    assert isinstance(told, ToGuest)
    assert (told.message["id"], told.message["code"]) == (2, "MAX_TOOL_CALLS_EXCEEDED")


def test_the_arguments_of_a_call_that_is_refused_are_not_looked_at() -> None:
    session = running(max_tool_calls=1)
    frame(session, type="tool_call", id=1, name="t", args=None)

    # Read, they would end the session.
    told = session.frame(b'{"type":"tool_call","id":2,"name":"t","args":%b}' % (b"9" * 5000))

    (refused,) = told
    assert isinstance(refused, ToGuest)
    assert (refused.message["id"], refused.message["code"]) == (2, Code.MAX_TOOL_CALLS_EXCEEDED)


def test_calls_that_wait_at_once_are_bounded_whatever_the_limits_say() -> None:
    session = running(max_tool_calls=10_000)
    ids = [call(session, number) for number in range(1, MAX_WAITING_CALLS + 1)]
    (told,) = frame(session, type="tool_call", id=5000, name="t", args=None)

    assert isinstance(told, ToGuest)
    assert (told.message["code"], "wait at once" in told.message["message"]) == ("MAX_TOOL_CALLS_EXCEEDED", True)
    session.tool_result(answer(ids[0]))
    assert call(session, 5001)


def test_arguments_that_grow_beyond_a_frame_when_encoded_are_refused_to_the_guest() -> None:
    session = running()
    numbers = b",".join([b"1e15"] * 1_000_000)  # 5 MB as the guest writes it, 19 MB as anybody else would
    (told,) = session.frame(b'{"type":"tool_call","id":1,"name":"t","args":[' + numbers + b"]}")

    assert isinstance(told, ToGuest)
    assert told.message["code"] == "VALIDATION_ERROR"
    assert "more than 15728640" in told.message["message"]
    assert str(session.state) == "running"


def test_the_first_error_ends_the_other_calls_if_the_limits_say_so() -> None:
    session = running(cancel_on_first_error=True)
    ids = [call(session, number) for number in (1, 2, 3)]
    told = session.tool_result(failure(ids[1], ToolError(message="no")))

    assert {item.call_id for item in told if isinstance(item, StopToolTimer)} == set(ids)
    assert str(session.state) == "running"


def test_a_sandbox_that_dies_with_a_call_open_stops_the_calls_timer() -> None:
    session = running()
    call_id = call(session)

    told = session.ended(Exit(status=9, usage=Usage()), 101.0)

    assert told[0] == StopToolTimer(call_id)
    assert kinds(told) == ["StopToolTimer", "Emit", "Ended"]


def test_the_same_number_for_two_waiting_calls_breaks_the_guest() -> None:
    session = running()
    call(session, 1)

    assert frame(session, type="tool_call", id=1, name="t", args=None)[-1] == Kill()
    assert final(session)["error"]["code"] == "GUEST_CRASHED"
