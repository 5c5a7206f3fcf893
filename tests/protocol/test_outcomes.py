"""The outcome codes are one closed list, and each says whether a retry can help."""

from __future__ import annotations

import pytest

from enclave_protocol import Code, is_retryable

RETRYABLE = {"WORKER_LOST", "NO_CAPACITY", "TOOL_TIMEOUT", "INTERNAL_ERROR", "QUOTA_EXCEEDED"}


@pytest.mark.parametrize("code", Code)
def test_a_codes_text_is_its_name(code: Code) -> None:
    assert code == code.name
    assert str(code) == code.name


def test_exactly_these_are_worth_a_retry() -> None:
    assert {code.value for code in Code if code.retryable} == RETRYABLE


@pytest.mark.parametrize("code", Code)
def test_a_code_as_text_is_judged_alike(code: Code) -> None:
    assert is_retryable(code.value) is code.retryable


@pytest.mark.parametrize("code", ["", "RATE_LIMITED", "worker_lost"])
def test_a_tools_own_code_is_not_known_to_be_retryable(code: str) -> None:
    assert not is_retryable(code)
