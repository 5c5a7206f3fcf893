"""`Session`, told what happens and nothing else: no sandbox, no clock, no loop."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enclave_protocol import Limits, SessionId, encode
from enclave_worker.instructions import CheckUsage, Conclude, Kill, StopToolTimer, ToGuest
from enclave_worker.session import LEAST_INTERVAL_MS, WATCH_INTERVAL_MS, Session
from enclave_worker.usage import Allowance, Usage
from tests.worker.bare_session import DIED, call, events, final, frame, kinds, new, running


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


def test_a_result_above_its_limit_fails_whatever_the_driver_said() -> None:
    session = running(max_result_bytes=10)

    assert frame(session, type="result", value="x" * 9) == [Kill()]
    assert final(session)["error"]["code"] == "RESULT_TOO_LARGE"


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
