"""How sessions end, whatever their guests say and the kernel counted."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_protocol import Code, Limits, SessionId, ToolError
from enclave_worker.instructions import Conclude, Kill
from enclave_worker.session import Session
from enclave_worker.usage import Allowance, Exit, Usage
from tests.worker.bare_session import call, events, failure, final, frame, running


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


def allowed(**changes: Any) -> Session:
    session = Session(SessionId("s_1"), Limits(), now_s=100.0, allowance=Allowance(**changes))
    session.started("", 100.0)
    return session


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
