"""What callers say becomes what the wire wants, or an error that names what was wrong."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_client import Limits, RequestRefused, Result, SessionFailed, Stats
from enclave_client.connection import LONGEST_PAUSE_S, pause_s
from enclave_client.mapping import with_item
from enclave_client.request import SessionOptions, make_attachment, make_request
from enclave_protocol import parse_limits

if TYPE_CHECKING:
    from pathlib import Path


def execute(code: str = "", **options: Any) -> dict[str, Any]:
    request = make_request(code, SessionOptions(**options), default_wait_s=600)  # type: ignore[typeddict-item]
    message: dict[str, Any] = json.loads(request.execute)
    return message


def wait_s(**options: Any) -> float:
    return make_request("", SessionOptions(**options), default_wait_s=600).wait_s  # type: ignore[typeddict-item]


def test_every_limit_reaches_the_wire_under_a_name_that_it_knows() -> None:
    limits = Limits(
        timeout_s=1.5,
        memory_mb=64,
        cpu_s=2,
        max_tool_calls=3,
        tool_timeout_s=0.25,
        max_stdout_bytes=10,
        max_result_bytes=20,
        max_tool_result_bytes=30,
        heartbeat_s=5,
        cancel_on_first_error=True,
    )
    wire = limits.on_the_wire()
    parsed = parse_limits(wire)
    assert (parsed.wall_ms, parsed.tool_wait_ms, parsed.memory_limit_bytes) == (1500, 250, 64 * 1024 * 1024)
    assert (parsed.cpu_time_ms, parsed.heartbeat_interval_ms, parsed.cancel_on_first_error) == (2000, 5000, True)
    assert all(getattr(limits, name) is not None for name in Limits.__slots__)


def test_limits_that_are_not_said_are_left_to_the_broker() -> None:
    assert "limits" not in execute()
    assert execute(limits=Limits(max_tool_calls=5))["limits"] == {"maxToolCalls": 5}


def test_who_may_run_twice_says_so() -> None:
    assert execute(retry="safe")["retry"] == "safe"
    assert "retry" not in execute()


def test_a_timeout_holds_although_sessions_live_shorter_by_default() -> None:
    assert parse_limits(execute(timeout_s=300)["limits"]).wall_ms == 300_000


def test_files_may_be_text_or_bytes_or_files_of_ours(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    files = execute(files={"a": "text", "b": b"bytes", "c": tmp_path / "x"})["files"]
    assert files == {"a": "text", "b": "bytes", "c": {"base64": "/w=="}}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"session_id": "mine"}, "sessionId"),
        ({"retry": "always"}, "retry"),
        ({"limits": {"maxTools": 5}}, "limits.maxTools"),
        ({"limits": {"deadlineMs": 5}, "timeout_s": 1}, "limits.deadlineMs"),
        ({"timeout_s": -1}, "limits."),
        ({"memory_mb": "much"}, "limits.memoryLimitBytes"),
        ({"timeout_s": float("nan")}, "limits."),
        ({"env": {"1": "x"}}, "env.1"),
        ({"files": {"../x": "y"}}, "files.../x"),
        ({"files": {"x": 5}}, "files.x"),
        ({"files": {"x": b"0" * 2_000_000}}, "files"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": len}, "tools"),
        ({"tools": 5}, "tools"),
        ({"tools": [len, len]}, "tools[1]"),
        ({"tools": [functools.partial(len)]}, "tools[0].name"),
        ({"tools": {str(n): len for n in range(129)}}, "tools"),
        ({"wait_s": 0}, "wait_s"),
        ({"wait_s": float("nan")}, "wait_s"),
        ({"wait_s": float("inf")}, "wait_s"),
    ],
)
def test_what_is_not_acceptable_is_named_before_anything_is_sent(options: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        execute(**options)
    assert refused.value.field.startswith(field)


@pytest.mark.parametrize("code", [5, None, "\ud800", "x" * 2_000_000])
def test_code_is_text_of_a_bounded_size(code: Any) -> None:
    with pytest.raises(RequestRefused, match="code"):
        execute(code)


@pytest.mark.parametrize(("session_id", "from_seq", "wait"), [("mine", 1, 5), ("s_1", 0, 5), ("s_1", 1, -5)])
def test_an_attachment_is_checked_too(session_id: str, from_seq: int, wait: float) -> None:
    with pytest.raises(RequestRefused):
        make_attachment(session_id, from_seq, wait)


def test_waiting_ends_some_time_after_the_session_has_to() -> None:
    assert wait_s() == 600
    assert wait_s(limits={"maxToolCalls": 5}) == 600
    assert wait_s(timeout_s=5) == 40
    assert wait_s(timeout_s=900) == 1830
    assert wait_s(timeout_s=5, wait_s=7) == 7


def test_pauses_grow_and_are_bounded() -> None:
    pauses = [pause_s(attempt, 0.5) for attempt in range(100)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S
    assert pause_s(3, 0) < pause_s(3, 1)


# Results


def test_a_value_is_converted_to_the_type_that_is_expected() -> None:
    result = Result(session_id="s_1", ok=True, value=["2030-01-01", 5], stats=Stats())

    assert result.unwrap() == ["2030-01-01", 5]
    assert result.unwrap(list[str | int]) == ["2030-01-01", 5]
    with pytest.raises(SessionFailed, match="Expected `int`, got `str`") as failed:
        result.unwrap(list[int])
    assert failed.value.result.error is not None
    assert failed.value.result.error.code == "RESULT_NOT_EXPECTED"


# The item of a map

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def python_value(code: str) -> Any:
    assignment = ast.parse(code).body[0]
    assert isinstance(assignment, ast.Assign)
    return ast.literal_eval(assignment.value)


@settings(deadline=None, max_examples=40)
@given(JSON)
def test_python_finds_the_value_that_was_given(item: Any) -> None:
    assert python_value(with_item("return item", item, None)) == json.loads(json.dumps(item))


@settings(deadline=None, max_examples=40)
@given(JSON)
def test_javascript_is_given_json(item: Any) -> None:
    code = with_item("return item", item, "javascript")
    assert "\n" not in code
    assert json.loads(code.removeprefix("const item = ").removesuffix("; return item")) == item


@pytest.mark.parametrize("item", ["it's", '"; rm -rf /; "', "$(x) `y` \\ \n", ["a", {"b": None}], 5])
def test_a_shell_script_is_given_json_as_text(item: Any) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", with_item('printf %s "$item"', item, "shell")], capture_output=True, check=True, text=True
    )
    assert json.loads(done.stdout) == item


@pytest.mark.parametrize(
    "code",
    ["return item", "\nfor x in item: pass", "# comment\nif item: pass", '"""doc"""\nreturn 1', "x = (\n1)", "1 +"],
)
def test_lines_are_counted_as_in_the_code_itself(code: str) -> None:
    assert with_item(code, 5, None) == f"item = 5; {code}"


@pytest.mark.parametrize("code", ["for x in item: pass", "@a\ndef b(): pass", "async def b(): pass"])
def test_a_compound_statement_right_at_the_start_is_moved_down_a_line(code: str) -> None:
    assert with_item(code, 5, None) == f"item = 5\n{code}"


@pytest.mark.parametrize(("item", "language"), [(object(), None), ({1j}, "python"), (1, "cobol")])
def test_an_item_that_cannot_be_given_is_refused(item: Any, language: str | None) -> None:
    with pytest.raises(RequestRefused):
        with_item("", item, language)
