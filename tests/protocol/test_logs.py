"""One record is one line, whatever is in it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.logs import (
    LOG_FORMATS,
    MAX_FIELD_CHARS,
    MAX_MESSAGE_CHARS,
    LineFormatter,
    LogFormat,
    about,
    make_formatter,
)

WALL_S = 1_795_252_938.5


def record(message: str, *arguments: object, error: Any = None, **fields: str) -> logging.LogRecord:
    made = logging.LogRecord("enclave.test", logging.WARNING, __file__, 1, message, arguments, error)
    made.created = WALL_S
    vars(made).update(about(**fields))
    return made


def failure(text: str) -> Any:
    error = ValueError(text)
    return type(error), error, None


def test_a_pretty_line_has_time_level_logger_fields_and_message() -> None:
    line = make_formatter("pretty").format(record("ended: %s", "ok", session_id="s_1", worker_id="w-1"))
    assert line == "2026-11-21T09:22:18.500Z WARNING enclave.test [sessionId=s_1 workerId=w-1] ended: ok"


def test_a_pretty_line_without_fields_has_no_brackets() -> None:
    assert make_formatter("pretty").format(record("up")) == "2026-11-21T09:22:18.500Z WARNING enclave.test up"


def test_a_json_line_is_one_object_with_the_fields_beside_the_message() -> None:
    line = make_formatter("json").format(record("ended", session_id="s_1", tenant="t", trace_id="ab", call_id="c"))
    assert json.loads(line) == {
        "time": "2026-11-21T09:22:18.500Z",
        "level": "warning",
        "logger": "enclave.test",
        "message": "ended",
        "sessionId": "s_1",
        "tenant": "t",
        "traceId": "ab",
        "callId": "c",
    }


def test_fields_of_every_line_are_on_lines_of_libraries_too() -> None:
    library = logging.LogRecord("uvicorn.error", logging.INFO, __file__, 1, "started", (), None)
    assert json.loads(make_formatter("json", worker_id="w-7").format(library))["workerId"] == "w-7"
    assert "[workerId=w-7]" in make_formatter("pretty", worker_id="w-7").format(library)


@pytest.mark.parametrize("form", LOG_FORMATS)
@given(text=st.text(), field=st.text(min_size=1))
def test_no_text_ends_a_line_or_moves_a_cursor(form: LogFormat, text: str, field: str) -> None:
    line = make_formatter(form).format(record("%s", text, worker_id=field))
    assert line.isprintable()
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\x1b[2J", "\u2028", "\x85", "\u202e", "\ud800", "\x9b"])
def test_what_cannot_be_printed_is_written_as_an_escape(text: str) -> None:
    message = json.loads(make_formatter("json").format(record("%s", text)))["message"]
    assert message == text.encode("unicode_escape").decode()


def test_an_exceptions_lines_stand_behind_bars_where_none_looks_like_a_record() -> None:
    forged = "2026-11-21T09:22:18.500Z INFO enclave.broker all is well"
    line = make_formatter("pretty").format(record("failed", error=failure(f"oh\n{forged}\x1b[1A")))
    first, *below = line.split("\n")
    assert first.endswith("failed")
    assert all(each.startswith("    | ") for each in below)
    assert below[-1] == f"    | {forged}\\x1b[1A"


def test_an_exception_is_a_field_of_the_object() -> None:
    line = make_formatter("json").format(record("failed", error=failure("oh\x00no")))
    assert json.loads(line)["exception"].endswith("ValueError: oh\\x00no")


def test_a_message_can_not_forge_a_field() -> None:
    line = make_formatter("pretty").format(record("[sessionId=s_forged] hello", session_id="s_1"))
    assert line.split(" ")[3] == "[sessionId=s_1]"


def test_a_field_with_spaces_or_brackets_is_quoted() -> None:
    line = make_formatter("pretty").format(record("hello", worker_id='a] b="c'))
    assert r'[workerId="a] b=\"c"] hello' in line


@pytest.mark.parametrize("form", LOG_FORMATS)
def test_secrets_are_taken_out_of_message_fields_and_exception_before_anything_is_escaped(form: LogFormat) -> None:
    secret = 'hunter"2\nhunter2'
    formatter: LineFormatter = make_formatter(form)
    formatter.clean = lambda text: text.replace(secret, "[secret]")
    line = formatter.format(record("m %s", secret, error=failure(secret), tenant=f"t{secret}"))
    assert "hunter" not in line.replace("\\n", "")
    assert line.count("[secret]") == 3


@pytest.mark.parametrize("form", LOG_FORMATS)
def test_a_line_is_bounded_and_says_how_much_is_missing(form: LogFormat) -> None:
    line = make_formatter(form).format(record("%s", "x" * 1_000_000, worker_id="w" * 1_000))
    assert len(line) < MAX_MESSAGE_CHARS + MAX_FIELD_CHARS + 300
    assert f"{1_000_000 - MAX_MESSAGE_CHARS} characters more" in line


def test_a_librarys_mistake_in_a_log_call_does_not_lose_the_line() -> None:
    assert "can't be formatted" in make_formatter("pretty").format(record("%d", "no number"))
