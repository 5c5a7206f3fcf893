from __future__ import annotations

import io
import json

from enclave_client.printer import EventPrinter, RawPrinter
from tests.client.fake_broker import event


def shown(*lines: bytes) -> tuple[int, str, str]:
    out, err = io.BytesIO(), io.BytesIO()
    printer = EventPrinter(out, err)
    for line in lines:
        printer.line(line.rstrip(b"\n"))
    code = printer.finish()
    return code, out.getvalue().decode(), err.getvalue().decode()


def test_the_result_is_a_line_of_its_own_after_output_without_newline() -> None:
    code, out, err = shown(event(1, "stdout", chunk="half a line"), event(2, "final", ok=True, result={"a": [1, None]}))

    assert (code, err) == (0, "")
    assert out == 'half a line\n{"a":[1,null]}\n'


def test_a_session_without_result_ends_with_null() -> None:
    assert shown(event(1, "stdout", chunk="x\n"), event(2, "final", ok=True)) == (0, "x\nnull\n", "")


def test_a_result_keeps_big_integers_and_any_text() -> None:
    result = {"big": 2**200, "text": "žluťoučký 🐎 \u2028"}

    _, out, _ = shown(event(1, "final", ok=True, result=result))

    assert json.loads(out) == result


def test_a_failure_shows_traceback_code_and_message_on_stderr() -> None:
    error = {"message": "no cake", "code": "EXECUTION_ERROR", "stack": "Traceback …\n  line 3\nCakeError: no cake"}

    code, out, err = shown(event(1, "stderr", chunk="warned"), event(2, "final", ok=False, error=error))

    assert (code, out) == (1, "")
    assert err == "warned\nTraceback …\n  line 3\nCakeError: no cake\nenclave: EXECUTION_ERROR: no cake\n"


def test_a_retryable_failure_says_so() -> None:
    error = {"message": "gone", "code": "WORKER_LOST", "retryable": True}

    assert shown(event(1, "final", ok=False, error=error))[2] == "enclave: WORKER_LOST: gone (trying again can help)\n"


def test_log_events_go_to_stderr_and_unknown_types_are_skipped() -> None:
    lines = (
        event(1, "log", level="warn", message="output was cut"),
        event(2, "from_the_future", what={"ever": 1}),
        event(3, "heartbeat", ts="2025-01-01T00:00:00Z"),
        b"\n",
        event(4, "final", ok=True, result=1),
    )

    assert shown(*lines) == (0, "1\n", "[warn] output was cut\n")


def test_raw_lines_pass_unchanged() -> None:
    out, err = io.BytesIO(), io.BytesIO()
    printer = RawPrinter(out, err)
    final = event(2, "final", ok=True).rstrip(b"\n")
    odd = b'{"type" : "stdout",  "seq":1, "payload":{"chunk":"\xe2\x80\xa8 \\u00e9"}}\r'

    printer.line(odd)
    printer.line(final)

    assert printer.finish() == 0
    assert out.getvalue() == odd + b"\n" + final + b"\n"
