"""Whether, and when, a call that failed is tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tool import ToolPolicy

FIRST_DELAY_MS = 100.0
LONGEST_DELAY_MS = 5_000.0


def delay_ms(policy: ToolPolicy, error: BaseException, *, attempts: int, left_ms: float, jitter: float) -> float | None:
    """Return how long to wait before the next attempt; None: there is none, the failure stands.

    Delays double from 100 ms to 5 s, each shortened by up to half so that callers that failed together do not come
    back together. What the failure itself asks for (`retry_after_ms`) is the least. An attempt that could only begin
    when the call's time is over is not made.

    Args:
        policy: the tool's.
        error: what the last attempt raised; `retryable = True` on it says that a retry can help.
        attempts: how many were made, 1 or more.
        left_ms: of the call's time.
        jitter: a random number from 0 up to 1.
    """
    if not policy.retryable or getattr(error, "retryable", False) is not True or attempts > policy.max_retries:
        return None
    # The exponent is bounded: max_retries is the operator's, and may be large.
    delay = min(FIRST_DELAY_MS * 2.0 ** min(attempts - 1, 16), LONGEST_DELAY_MS) * (1 - jitter / 2)
    asked = getattr(error, "retry_after_ms", None)
    if isinstance(asked, int | float):
        delay = max(delay, asked)
    return delay if delay < left_ms else None
