"""What an HTTP answer is to a guest."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_broker.tools import ToolFailure
from enclave_broker.tools.sources.answers import HttpAnswer, read_answer


def read(status: int = 200, body: bytes = b"", *, idempotent: bool = True, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = HttpAnswer(status=status, reason="Reason", headers=named, body=body)
    return read_answer(answer, idempotent=idempotent, now_s=1_700_000_000)


def failure(*arguments: Any, **options: Any) -> ToolFailure:
    with pytest.raises(ToolFailure) as failed:
        read(*arguments, **options)
    return failed.value


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"a": 1}', "application/json; charset=utf-8", {"a": 1}),
        (b"[1]", "application/problem+json", [1]),
        (b"hello", "text/plain", "hello"),
        (b"h\xe4llo", "text/plain; charset=latin-1", "hällo"),
        (b"h\xe4llo", "text/plain", "h\ufffdllo"),
        (b"x", "text/plain; charset=nonsense", "x"),
        (b"<a/>", "application/xml", "<a/>"),
        (b"\x00\xff", "image/png", {"base64": "AP8=", "contentType": "image/png"}),
        (b"\x00\xff", "", {"base64": "AP8=", "contentType": "application/octet-stream"}),
        (b"text", "", "text"),
        (b"", "application/json", None),
    ],
)
def test_a_success_is_its_value(body: bytes, content_type: str, expected: Any) -> None:
    assert read(201, body, content_type=content_type) == expected


def test_json_that_is_none_is_the_servers_fault() -> None:
    assert failure(200, b"{", content_type="application/json").code == "UPSTREAM_ERROR"


def test_another_status_is_a_failure_with_the_code_and_what_the_server_said() -> None:
    failed = failure(404, b'{"detail":\n "no such pet"}', content_type="application/json")
    assert failed.code == "HTTP_404"
    assert failed.message == 'HTTP 404 Reason: {"detail": "no such pet"}'
    assert failure(301).code == "HTTP_301"
    assert failure(500, b"\x00\x01", content_type="image/png").message == "HTTP 500 Reason"


@pytest.mark.parametrize(
    ("status", "idempotent", "retryable"),
    [
        (429, False, True),
        (503, False, True),
        (500, False, False),
        (500, True, True),
        (504, True, True),
        (404, True, False),
    ],
)
def test_a_failure_says_whether_trying_again_is_safe_and_can_help(
    status: int,
    idempotent: Any,
    retryable: Any,
) -> None:
    assert failure(status, idempotent=idempotent).retryable is retryable


@pytest.mark.parametrize(
    ("value", "expected_ms"),
    [
        ("3", 3000),
        ("0", 0),
        ("Tue, 14 Nov 2023 22:13:25 GMT", 5000),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0),
        ("99999999999999999999", 86_400_000),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
def test_retry_after_says_when(value: str, expected_ms: int | None) -> None:
    assert failure(503, retry_after=value).retry_after_ms == expected_ms


def test_retry_after_of_what_must_not_be_retried_is_nothing() -> None:
    assert failure(404, retry_after="3").retry_after_ms is None


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "unicode_escape", "rot13", "a\0b"])
def test_only_plain_charsets_are_decoded(charset: str) -> None:
    """Of Python's others, one takes the square of the text's length, and some make what is no text."""
    headers = {"content-type": f"text/plain; charset={charset}"}
    answer = HttpAnswer(status=200, reason="OK", headers=headers, body=b"+2AA-\\ud800")
    assert read_answer(answer, idempotent=True, now_s=0) == "+2AA-\\ud800"
