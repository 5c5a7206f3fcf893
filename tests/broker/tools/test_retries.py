"""When a failed call is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker import ToolFailure, ToolPolicy
from enclave_broker.tools.retries import LONGEST_DELAY_MS, delay_ms

MAY = ToolPolicy(retryable=True, max_retries=3)
BUSY = ToolFailure("BUSY", "busy", retryable=True)


def test_delays_double_and_are_shortened_by_up_to_half() -> None:
    def delays(jitter: float) -> list[float | None]:
        return [delay_ms(MAY, BUSY, attempts=n, left_ms=1e9, jitter=jitter) for n in range(1, 5)]

    assert delays(0) == [100, 200, 400, None]
    assert delays(0.5) == [75, 150, 300, None]


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (ToolPolicy(retryable=False), BUSY),
        (MAY, ToolFailure("BAD", "bad")),
        (MAY, ValueError("bad")),
        (ToolPolicy(retryable=True, max_retries=0), BUSY),
    ],
)
def test_nothing_else_is_tried_again(policy: ToolPolicy, error: Exception) -> None:
    assert delay_ms(policy, error, attempts=1, left_ms=1e9, jitter=0) is None


def test_any_exception_may_say_that_a_retry_helps() -> None:
    class LostError(ConnectionError):
        retryable = True

    assert delay_ms(MAY, LostError(), attempts=1, left_ms=1e9, jitter=0) == 100


def test_what_the_failure_asks_for_is_the_least() -> None:
    asks = ToolFailure("BUSY", "busy", retryable=True, retry_after_ms=2000)
    assert delay_ms(MAY, asks, attempts=1, left_ms=1e9, jitter=0) == 2000
    assert delay_ms(MAY, asks, attempts=1, left_ms=2000, jitter=0) is None


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(-1e6, 1e6))
def test_a_delay_is_bounded_and_ends_before_the_call_does(attempts: int, jitter: float, left_ms: float) -> None:
    stubborn = ToolPolicy(retryable=True, max_retries=100_000)
    delay = delay_ms(stubborn, BUSY, attempts=attempts, left_ms=left_ms, jitter=jitter)
    assert delay is None or 50 <= delay <= min(LONGEST_DELAY_MS, left_ms)
