"""`Session`, told what happens and nothing else: no sandbox, no clock, no loop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import UNSET, Raw

from enclave_protocol import Code, Limits, RemoteProtocolError, SessionId, State, ToolError, ToolResult, encode
from enclave_protocol.events import CatalogChangedPayload
from enclave_worker.instructions import (
    CheckUsage,
    Conclude,
    Emit,
    Ended,
    Instruction,
    Kill,
    StartToolTimer,
    StopToolTimer,
    ToGuest,
)
from enclave_worker.session import LEAST_INTERVAL_MS, WATCH_INTERVAL_MS, Session
from enclave_worker.tool_calls import MAX_WAITING_CALLS
from enclave_worker.usage import Allowance, Exit, Usage
from tests.real_client import check_line, check_stream

if TYPE_CHECKING:
    from collections.abc import Iterable

DIED = Exit(status=0, usage=Usage(cpu_ms=1.5, peak_memory_bytes=4096))


def new(**limits: Any) -> Session:
    return Session(SessionId("s_1"), Limits(**limits), now_s=100.0)


def running(**limits: Any) -> Session:
    session = new(**limits)
    session.started("return 1", 100.25)
    return session


def frame(session: Session, **message: Any) -> list[Instruction]:
    return session.frame(json.dumps(message).encode())


def events(told: Iterable[Instruction]) -> list[dict[str, Any]]:
    return [json.loads(item.line) for item in told if isinstance(item, Emit)]


def final(session: Session, exit_: Exit | None = DIED) -> dict[str, Any]:
    told = session.ended(exit_, 101.0)
    last = events(told)[-1]
    assert last["type"] == "final"
    assert told[-1] == Ended(last["payload"].get("error", {}).get("code", "OK"))
    payload: dict[str, Any] = last["payload"]
    return payload


def call(session: Session, number: int = 1, name: str = "t") -> str:
    (event,) = events(frame(session, type="tool_call", id=number, name=name, args={}))
    call_id: str = event["payload"]["callId"]
    return call_id


def answer(call_id: str, value: Any = None) -> ToolResult:
    raw = value if isinstance(value, Raw) else Raw(json.dumps(value).encode())
    return ToolResult(session_id="s_1", call_id=call_id, success=True, value=raw)


def failure(call_id: str, error: ToolError) -> ToolResult:
    return ToolResult(session_id="s_1", call_id=call_id, success=False, error=error)


def kinds(told: Iterable[Instruction]) -> list[str]:
    return [type(item).__name__ for item in told]


# Results and errors.


def test_a_session_starts_by_handing_over_the_code() -> None:
    told = new(max_result_bytes=77, memory_limit_bytes=88).started("return 1", 100.5)

    assert told == [
        ToGuest(
            {"type": "execute", "code": "return 1", "addressSpaceBytes": 88, "maxResultBytes": 77, "memoryBytes": 88}
        ),
        CheckUsage(15_000),
    ]


def test_a_result_concludes_and_nothing_is_told_before_the_statistics_are_known() -> None:
    session = running()

    assert frame(session, type="result", value={"a": [1, None]}) == [Conclude()]
    assert str(session.state) == "running"
    assert session.decided

    end = final(session)
    assert (end["ok"], end["result"]) == (True, {"a": [1, None]})
    assert str(session.state) == "completed"


def test_a_result_without_a_value_is_none_at_all_and_null_is_one() -> None:
    nothing, null = running(), running()

    assert kinds(frame(nothing, type="result")) == ["Conclude"]
    frame(null, type="result", value=None)

    assert (final(nothing).get("result", "absent"), final(null)["result"]) == ("absent", None)


def test_what_a_guest_logs_is_told_up_to_a_cap_and_marked_once_where_it_is_cut() -> None:
    session = running(max_stdout_bytes=300)
    told = [events(frame(session, type="log", level="warn", message="x" * 60)) for _ in range(5)]

    levels = [(event["type"], event["payload"]["level"]) for some in told for event in some]
    assert levels == [("log", "warn")] * 3
    assert [len(some) for some in told] == [1, 1, 1, 0, 0], "two, then the mark"
    assert "maxStdoutBytes=300" in told[2][0]["payload"]["message"]
    assert final(session)["stats"]["truncated"]


def test_statistics_come_from_the_kernel_and_the_clock() -> None:
    session = Session(SessionId("s_1"), Limits(), now_s=100.0, queue_ms=12.5)
    session.started("", 100.25)
    session.output("stdout", b"four")
    session.output("stderr", b"nine char")
    frame(session, type="result", value=1)

    assert final(session)["stats"] == {
        "durationMs": 1000.0,
        "toolCallCount": 0,
        "stdoutBytes": 4,
        "stderrBytes": 9,
        "cpuMs": 1.5,
        "peakMemoryBytes": 4096,
        "refusedProcesses": 0,
        "oomKills": 0,
        "queueMs": 12.5,
        "startMs": 250.0,
        "truncated": False,
    }


def test_an_exception_keeps_its_type_message_line_and_stack() -> None:
    session = running()
    message = {"code": "EXECUTION_ERROR", "message": "boom", "name": "ValueError", "line": 3, "stack": "Traceback"}

    assert frame(session, type="error", **message) == [Conclude()]
    assert final(session)["error"] == {
        "message": "ValueError: boom",
        "code": "EXECUTION_ERROR",
        "name": "ValueError",
        "line": 3,
        "stack": "Traceback",
        "retryable": False,
    }
    assert str(session.state) == "failed"


def test_a_syntax_error_is_told_without_its_type_in_front() -> None:
    session = running()
    frame(session, type="error", code="SYNTAX_ERROR", message="invalid syntax", name="SyntaxError", line=2)

    assert final(session)["error"]["message"] == "invalid syntax"


def test_a_result_above_its_limit_fails_whatever_the_driver_said() -> None:
    session = running(max_result_bytes=10)

    assert frame(session, type="result", value="x" * 9) == [Kill()]
    assert final(session)["error"]["code"] == "RESULT_TOO_LARGE"


@pytest.mark.parametrize(
    "claimed", ["DEADLINE_EXCEEDED", "WORKER_LOST", "NO_CAPACITY", "NOT_FOUND", "OK", "", "x y", "x" * 100]
)
def test_a_guest_cannot_claim_a_code_that_is_not_its_to_give(claimed: str) -> None:
    session = running()
    frame(session, type="error", code=claimed, message="m")

    assert final(session)["error"]["code"] == "EXECUTION_ERROR"


def test_a_guest_may_end_with_the_code_of_a_tool_that_failed() -> None:
    session = running()
    call_id = call(session)
    error = ToolError(message="gone", code="NOT_FOUND")
    session.tool_result(failure(call_id, error))
    frame(session, type="error", code="NOT_FOUND", message="gone", name="ToolError")

    assert final(session)["error"]["code"] == "NOT_FOUND"


# Output.


def test_a_character_in_two_pieces_is_told_once_whole() -> None:
    session = running()

    assert session.output("stdout", b"\xe2\x82") == []
    assert [event["payload"]["chunk"] for event in events(session.output("stdout", b"\xacx"))] == ["€x"]


def test_the_streams_do_not_complete_each_others_characters() -> None:
    session = running()
    session.output("stdout", b"\xc3")

    assert [e["payload"]["chunk"] for e in events(session.output("stderr", b"\xa9"))] == ["\ufffd"]


def test_half_a_character_at_the_very_end_is_told_as_a_replacement() -> None:
    session = running()
    session.output("stdout", b"\xe2\x82")
    frame(session, type="result", value=None)

    told = events(session.ended(DIED, 101.0))
    assert [event["type"] for event in told] == ["stdout", "final"]
    assert told[0]["payload"]["chunk"] == "\ufffd"


def test_output_is_cut_at_the_cap_marked_once_and_counted_on() -> None:
    session = running(max_stdout_bytes=4)

    assert [e["type"] for e in events(session.output("stdout", b"abcd"))] == ["stdout"]
    assert not session.is_cut("stdout")
    assert [e["type"] for e in events(session.output("stdout", b"e"))] == ["log"]
    assert session.output("stdout", b"f") == []
    session.count_dropped("stdout", 10)
    frame(session, type="result", value=None)

    stats = final(session)["stats"]
    assert (stats["stdoutBytes"], stats["truncated"]) == (16, True)


def test_a_cap_inside_a_character_leaves_the_character_out() -> None:
    session = running(max_stdout_bytes=4)
    told = events(session.output("stdout", "ab€".encode()))
    frame(session, type="result", value=None)
    told += events(session.ended(DIED, 101.0))

    assert "".join(e["payload"]["chunk"] for e in told if e["type"] == "stdout") == "ab"


# Tools.


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


# Endings.


BROKEN = {
    "no JSON": b"\xff",
    "an unknown type": b'{"type": "final", "ok": true}',
    "a call without a name": b'{"type": "tool_call", "id": 1, "name": "", "args": 1}',
    "a call number below 1": b'{"type": "tool_call", "id": 0, "name": "x", "args": 1}',
    "a huge message": json.dumps({"type": "error", "code": "X", "message": "x" * 30_000}).encode(),
    "a log message of no level": b'{"type": "log", "level": "fatal", "message": "x"}',
    "a log message that is too long": json.dumps({"type": "log", "level": "warn", "message": "x" * 80_000}).encode(),
    "an endless number": b'{"type": "result", "value": 1e999999}',
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_frame_that_the_driver_never_sends_ends_the_session(body: bytes) -> None:
    session = running()

    assert session.frame(body) == [Kill()]
    assert final(session)["error"]["code"] == "GUEST_CRASHED"


def test_nesting_without_end_is_not_serializable() -> None:
    session = running()

    assert session.frame(b'{"type": "result", "value": ' + b"[" * 100_000) == [Kill()]
    assert final(session)["error"]["code"] == "RESULT_NOT_SERIALIZABLE"


def test_the_deadline_is_told_before_the_final() -> None:
    session = running(deadline_ms=500)
    told = session.deadline(100.75)

    assert events(told)[0]["payload"] == {"elapsedMs": 750.0, "budgetMs": 500.0}
    assert told[-1] == Kill()
    assert "deadlineMs=500" in final(session)["error"]["message"]


def test_time_in_a_queue_is_taken_from_the_time_to_live_but_not_from_the_deadline() -> None:
    def budget(**limits: Any) -> float:
        return Session(SessionId("s_1"), Limits(**limits), now_s=0.0, queue_ms=800.0).budget_ms

    assert budget(session_ttl_ms=1000) == 200
    assert budget(session_ttl_ms=1000, deadline_ms=100) == 100
    assert budget(session_ttl_ms=1000, deadline_ms=900) == 200
    assert budget(session_ttl_ms=500) == 1, "a session that is late already ends at once, not never"


def test_the_deadline_may_strike_before_there_is_a_sandbox() -> None:
    session = new(session_ttl_ms=500)

    assert kinds(session.deadline(100.5)) == ["Emit", "Kill"]
    assert "sessionTtlMs=500" in final(session, None)["error"]["message"]


@pytest.mark.parametrize("begun", [True, False])
def test_cancel_ends_a_session_in_any_state(begun: bool) -> None:  # noqa: FBT001 - a parameter of the test
    session = running() if begun else new()
    if begun:
        call_id = call(session)
        assert session.cancel("why") == [StopToolTimer(call_id), Kill()]
    else:
        assert session.cancel("why") == [Kill()]

    error = final(session, DIED if begun else None)["error"]
    assert (error["code"], error["message"]) == ("SESSION_CANCELLED", "why")
    assert str(session.state) == "cancelled"


def test_nothing_changes_a_verdict() -> None:
    session = running()
    frame(session, type="result", value="first")

    assert frame(session, type="error", code="X", message="late") == []
    assert session.cancel("late") == []
    assert session.deadline(200.0) == []
    assert session.fail(Code.INTERNAL_ERROR, "late") == []
    assert session.tool_timeout("c_1") == []
    assert final(session)["result"] == "first"


@pytest.mark.parametrize(
    ("exit_", "code", "said"),
    [
        (Exit(status=9), "GUEST_CRASHED", "SIGKILL"),
        (Exit(status=3 << 8), "GUEST_CRASHED", "status 3"),
        (Exit(status=40), "GUEST_CRASHED", "40"),
        (Exit(status=9, lost="its zygote ended"), "INTERNAL_ERROR", "zygote ended"),
        (None, "GUEST_CRASHED", "never came up"),
    ],
)
def test_an_end_without_a_verdict_says_how(exit_: Exit | None, code: str, said: str) -> None:
    error = final(running(), exit_)["error"]

    assert error["code"] == code
    assert said in error["message"]


# Limits that the kernel counts.


def allowed(**changes: Any) -> Session:
    session = Session(SessionId("s_1"), Limits(), now_s=100.0, allowance=Allowance(**changes))
    session.started("", 100.0)
    return session


def test_processor_time_is_looked_at_when_it_can_be_used_up_at_the_earliest() -> None:
    session = Session(SessionId("s_1"), Limits(), now_s=100.0, allowance=Allowance(cpu_time_ms=10_000, cpus=2))

    assert session.started("", 100.0)[1:] == [CheckUsage(5_000)]
    assert session.used(Usage(cpu_ms=4_000)) == [CheckUsage(3_000)]
    assert session.used(Usage(cpu_ms=9_999)) == [CheckUsage(LEAST_INTERVAL_MS)]
    assert session.used(Usage(cpu_ms=10_000)) == [Kill()]
    assert final(session)["error"]["code"] == "CPU_LIMIT_EXCEEDED"


def test_processor_time_that_cannot_be_used_up_before_the_deadline_is_never_looked_at() -> None:
    session = Session(SessionId("s_1"), Limits(deadline_ms=1000), now_s=0.0, allowance=Allowance(cpu_time_ms=2000))

    assert not any(isinstance(told, CheckUsage) for told in session.started("", 0.0))


def test_a_session_may_lower_its_limits_but_not_raise_them() -> None:
    limits = Limits(memory_limit_bytes=100, cpu_time_ms=9)
    lower, higher = Allowance(memory_bytes=200, cpu_time_ms=8), Allowance(memory_bytes=50, cpu_time_ms=10)

    assert Session(SessionId("s_1"), limits, now_s=0, allowance=lower).memory_bytes == 100
    assert Session(SessionId("s_1"), limits, now_s=0, allowance=lower).cpu_time_ms == 8
    assert Session(SessionId("s_1"), limits, now_s=0, allowance=higher).memory_bytes == 50
    assert Session(SessionId("s_1"), limits, now_s=0, allowance=higher).cpu_time_ms == 9


def test_without_control_groups_memory_is_watched() -> None:
    session = Session(SessionId("s_1"), Limits(), now_s=0.0, allowance=Allowance(memory_bytes=1000, watched=True))

    assert session.started("", 0.0)[1:] == [CheckUsage(WATCH_INTERVAL_MS)]
    assert session.used(Usage(), 1000) == [CheckUsage(WATCH_INTERVAL_MS)]
    assert session.used(Usage(), 1001) == [Kill()]
    assert final(session)["error"]["code"] == "MEMORY_LIMIT_EXCEEDED"


def test_used_up_memory_ends_the_session_whatever_the_guest_made_of_it() -> None:
    killed = Exit(status=9, usage=Usage(oom_kills=1))
    told, dead, claimed = allowed(), allowed(), allowed()

    assert told.out_of_memory() == [Kill()]
    frame(claimed, type="result", value="nothing happened")

    for session in (told, dead, claimed):
        payload = final(session, killed)
        assert payload["error"]["code"] == "MEMORY_LIMIT_EXCEEDED"
        assert payload["stats"]["oomKills"] == 1


def test_a_verdict_of_ours_stays_when_a_process_also_died_of_memory() -> None:
    session = allowed()
    session.cancel("enough")

    assert final(session, Exit(status=9, usage=Usage(oom_kills=1)))["error"]["code"] == "SESSION_CANCELLED"


@pytest.mark.parametrize(
    ("name", "refused", "code"),
    [
        ("BlockingIOError", 1, "PROCESS_LIMIT_EXCEEDED"),
        ("RuntimeError", 1, "PROCESS_LIMIT_EXCEEDED"),
        ("BlockingIOError", 0, "EXECUTION_ERROR"),
        ("ValueError", 1, "EXECUTION_ERROR"),
    ],
)
def test_a_failed_fork_is_the_process_limits_when_the_kernel_counted_it(name: str, refused: int, code: str) -> None:
    session = allowed(processes=7)
    frame(session, type="error", code="EXECUTION_ERROR", message="", name=name, line=1, stack="")
    told = events(session.ended(Exit(status=0, usage=Usage(refused_processes=refused)), 101.0))

    assert told[-1]["payload"]["error"]["code"] == code
    warnings = [event["payload"] for event in told if event["type"] == "log"]
    assert len(warnings) == refused
    assert all("7 at a time" in warning["message"] for warning in warnings)


# Whatever happens, in whatever order.

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_limits = st.builds(
    Limits,
    max_tool_calls=st.integers(1, 4),
    max_stdout_bytes=st.integers(1, 40),
    max_result_bytes=st.integers(1, 40),
    max_tool_result_bytes=st.integers(1, 40),
    cancel_on_first_error=st.booleans(),
    deadline_ms=st.sampled_from([0, 5]),
)
_exits = st.builds(
    Exit,
    status=st.sampled_from([0, 1 << 8, 9, 11, 70 << 8]),
    usage=st.builds(
        Usage,
        cpu_ms=st.floats(0, 1e6),
        peak_memory_bytes=st.integers(0, 2**40),
        oom_kills=st.integers(0, 2),
        refused_processes=st.integers(0, 2),
    ),
    lost=st.sampled_from(["", "its zygote ended"]),
)


class AnyHistory(RuleBasedStateMachine):
    """Plays the shell, and a sandbox that may do anything."""

    @initialize(limits=_limits, first_seq=st.integers(1, 1000))
    def accept(self, limits: Limits, first_seq: int) -> None:
        self.first_seq = first_seq
        self.session = Session(SessionId("s_1"), limits, now_s=0.0, first_seq=first_seq)
        self.now_s = 0.0
        self.lines: list[bytes] = []
        self.timers: set[str] = set()
        self.calls: list[str] = []
        self.begun = self.killed = self.ended = False
        if first_seq == 1:
            self.perform(self.session.init("/sessions/s_1/cancel", "2026-01-01T00:00:00Z"))

    def perform(self, told: list[Instruction]) -> None:
        for item in told:
            assert not self.ended, "nothing follows the end"
            if isinstance(item, Emit):
                check_line(item.line)
                self.lines.append(item.line)
            elif isinstance(item, StartToolTimer):
                assert item.call_id not in self.timers
                self.timers.add(item.call_id)
                self.calls.append(item.call_id)
            elif isinstance(item, StopToolTimer):
                self.timers.remove(item.call_id)
            elif isinstance(item, ToGuest):
                assert self.begun
                json.loads(msgspec.json.encode(item.message))
            elif isinstance(item, Kill | Conclude):
                assert not self.killed, "one verdict, one end"
                self.killed = True
            elif isinstance(item, Ended):
                self.ended = True

    def alive(self) -> bool:
        return not self.ended

    def guest_runs(self) -> bool:
        return self.begun and not self.ended

    @precondition(lambda self: not self.begun and not self.ended and not self.killed)
    @rule()
    def a_sandbox_is_found(self) -> None:
        self.begun = True
        self.perform(self.session.started("code", self.now_s))

    @precondition(guest_runs)
    @rule(number=st.integers(0, 3), name=st.text(max_size=3), args=_values)
    def the_guest_calls(self, number: int, name: str, args: Any) -> None:
        self.perform(frame(self.session, type="tool_call", id=number, name=name, args=args))

    @precondition(guest_runs)
    @rule(value=_values)
    def the_guest_returns(self, value: Any) -> None:
        self.perform(frame(self.session, type="result", value=value))

    @precondition(guest_runs)
    @rule(
        code=st.sampled_from([*Code, "NOPE", "", "a b"]),
        name=st.none() | st.text(max_size=3),
        line=st.none() | st.integers(0, 9),
    )
    def the_guest_raises(self, code: str, name: str | None, line: int | None) -> None:
        self.perform(frame(self.session, type="error", code=code, message="m", name=name, line=line, stack=None))

    @precondition(guest_runs)
    @rule(body=st.binary(max_size=20))
    def the_guest_sends_anything(self, body: bytes) -> None:
        self.perform(self.session.frame(body))

    @precondition(guest_runs)
    @rule(
        stream=st.sampled_from(["stdout", "stderr"]),
        data=st.binary(min_size=1, max_size=12) | st.text(min_size=1, max_size=6).map(str.encode),
    )
    def the_guest_writes(self, stream: Any, data: bytes) -> None:
        if self.session.is_cut(stream):
            self.session.count_dropped(stream, len(data))
        else:
            self.perform(self.session.output(stream, data))

    @precondition(alive)
    @rule(which=st.integers(0, 5), value=_values, outcome=st.sampled_from(["value", "error", "coded", "no JSON"]))
    def a_result_comes(self, which: int, value: Any, outcome: str) -> None:
        call_id = self.calls[which] if which < len(self.calls) else "c_unknown"
        result = answer(call_id, value)
        if outcome == "no JSON":
            result = answer(call_id, value=Raw(b"["))
        elif outcome != "value":
            error = ToolError(message="no", code="NOPE" if outcome == "coded" else UNSET)
            result = failure(call_id, error)
        waited = call_id in self.timers
        try:
            self.perform(self.session.tool_result(result))
        except RemoteProtocolError:
            assert not waited or outcome == "no JSON"
        else:
            assert waited

    @precondition(alive)
    @rule(which=st.integers(0, 5))
    def a_tool_times_out(self, which: int) -> None:
        if which < len(self.calls) and self.calls[which] in self.timers:
            self.perform(self.session.tool_timeout(self.calls[which]))

    @precondition(alive)
    @rule()
    def a_heartbeat_is_due(self) -> None:
        self.perform(self.session.heartbeat("2026-01-01T00:00:00.000Z"))

    @precondition(alive)
    @rule()
    def the_tools_change(self) -> None:
        change = CatalogChangedPayload(version="v", added_actions=["a"], removed_actions=[])
        self.perform(self.session.catalog_changed(change))

    @precondition(alive)
    @rule()
    def the_deadline_strikes(self) -> None:
        self.now_s += 60.0
        self.perform(self.session.deadline(self.now_s))

    @precondition(alive)
    @rule()
    def somebody_cancels(self) -> None:
        self.perform(self.session.cancel("enough"))

    @precondition(alive)
    @rule()
    def the_worker_gives_up(self) -> None:
        self.perform(self.session.fail(Code.INTERNAL_ERROR, "we broke"))

    @precondition(guest_runs)
    @rule(cpu_ms=st.floats(0, 1e5), held_bytes=st.integers(0, 2**40))
    def its_usage_is_looked_at(self, cpu_ms: float, held_bytes: int) -> None:
        self.perform(self.session.used(Usage(cpu_ms=cpu_ms), held_bytes))

    @precondition(alive)
    @rule()
    def its_memory_is_used_up(self) -> None:
        self.perform(self.session.out_of_memory())

    @precondition(lambda self: not self.ended and (self.begun or self.killed))
    @rule(exit_=_exits)
    def the_sandbox_dies(self, exit_: Exit) -> None:
        self.perform(self.session.ended(exit_ if self.begun else None, self.now_s + 1))

    @precondition(lambda self: self.ended)
    @rule()
    def whatever_comes_late_changes_nothing(self) -> None:
        session = self.session
        late = [session.cancel("x"), session.deadline(self.now_s), session.fail(Code.INTERNAL_ERROR, "x")]
        late += [frame(session, type="result", value=1), *(session.tool_timeout(call_id) for call_id in self.calls)]
        assert not any(late)
        for call_id in self.calls:
            with pytest.raises(RemoteProtocolError):
                session.tool_result(answer(call_id))

    @invariant()
    def the_stream_is_whole_so_far(self) -> None:
        if not hasattr(self, "lines"):
            return
        numbers = [json.loads(line)["seq"] for line in self.lines]
        assert numbers == list(range(self.first_seq, self.first_seq + len(numbers)))
        assert self.session.next_seq == self.first_seq + len(numbers)
        assert self.session.state.terminal == self.ended
        assert (self.session.state is State.WAITING_FOR_TOOL) == bool(self.timers)
        if self.ended:
            check_stream(self.lines, first_seq=self.first_seq)
            assert not self.timers, "a timer was left running"


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_an_end_that_there_is_no_memory_for_is_told_in_few_words_with_the_number_that_is_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def encode_small(event: Any) -> bytes:
        line = encode(event)
        if len(line) > 10_000:
            raise MemoryError
        return line

    session = running()
    before = events(frame(session, type="log", level="info", message="before"))
    frame(session, type="result", value="x" * 10_000)
    monkeypatch.setattr("enclave_worker.numbered.encode", encode_small)

    told = events(session.ended(DIED, 101.0))

    assert [event["seq"] for event in told] == [before[-1]["seq"] + 1]
    error = told[-1]["payload"]["error"]
    assert (error["code"], error["retryable"]) == ("INTERNAL_ERROR", True)
    assert told[-1]["payload"]["stats"]["durationMs"] == 1000
