"""Quotas: never more than was given in any minute or hour, and a refusal that tells the truth about when to return."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.access import Ledger, QuotaExceeded, Quotas
from enclave_broker.access.quotas import HOUR_S, MINUTE_S, Account, Window

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS_S = st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=120)
LONG_STEPS_S = st.lists(
    st.tuples(st.floats(0, 900, allow_nan=False), st.floats(0, 5000, allow_nan=False)), min_size=1, max_size=60
)


def refusal(step: Callable[[float], None], now: float) -> QuotaExceeded | None:
    try:
        step(now)
    except QuotaExceeded as error:
        return error
    return None


def admitted(account: Account, now: float) -> bool:
    return refusal(account.admit, now) is None


@given(start=st.floats(0, 1e6), steps_s=STEPS_S, limit=st.integers(0, 5))
def test_never_more_sessions_begin_in_any_minute_than_the_quota(start: float, steps_s: list[float], limit: int) -> None:
    account, now, begun = Account("acme", Quotas(sessions_per_minute=limit)), start, list[float]()
    for step_s in steps_s:
        now += step_s
        if admitted(account, now):
            account.ended(now, 0)
            begun.append(now)
        assert sum(now - MINUTE_S < time <= now for time in begun) <= limit


@given(start=st.floats(0, 1e6), steps_s=STEPS_S, limit=st.integers(1, 5))
def test_who_comes_back_when_told_to_is_let_in_and_not_much_later_than_need_be(
    start: float, steps_s: list[float], limit: int
) -> None:
    account, now = Account("acme", Quotas(sessions_per_minute=limit)), start
    for step_s in steps_s:
        now += step_s
        error = refusal(account.admit, now)
        if error is not None:
            assert 0 < error.retry_after_s <= MINUTE_S * (1 + 1 / 60) + 1e-6
            assert (error.quota, error.limit, error.used) == ("sessionsPerMinute", limit, limit)
            now += error.retry_after_s + 1e-6  # one part in 10^12 of the clock, as floats have it
            account.admit(now)


@given(actions=st.lists(st.sampled_from(["begin", "end", "give back"]), max_size=80), limit=st.integers(0, 6))
def test_never_more_sessions_live_at_once_than_the_quota_and_every_place_comes_back(
    actions: list[str], limit: int
) -> None:
    account, live = Account("acme", Quotas(concurrent_sessions=limit)), 0
    for now, action in enumerate(actions):
        if action == "begin":
            assert admitted(account, now) is (live < limit)
            live = min(live + 1, limit)
        elif action == "give back" and admitted(account, now):
            account.give_back(now)
        elif action == "end" and live:
            account.ended(now, 10)
            live -= 1
        assert account.active == live


@given(steps=LONG_STEPS_S, limit_s=st.integers(0, 20))
def test_processor_time_is_overdrawn_by_live_sessions_only(steps: list[tuple[float, float]], limit_s: int) -> None:
    """One session at a time: what an hour's sessions use is at most the quota and one session more."""
    account, now, used = Account("acme", Quotas(cpu_seconds_per_hour=limit_s)), 0.0, list[tuple[float, float]]()
    for step_s, cpu_ms in steps:
        now += step_s
        before = sum(ms for time, ms in used if now - HOUR_S < time)
        if admitted(account, now):
            assert before < limit_s * 1000 or before == 0 < limit_s
            account.ended(now, cpu_ms)
            used.append((now, round(cpu_ms)))


@given(steps_s=STEPS_S, limit=st.integers(0, 5))
def test_never_more_tool_calls_in_any_minute_than_the_quota(steps_s: list[float], limit: int) -> None:
    account, now, called = Account("acme", Quotas(tool_calls_per_minute=limit)), 0.0, list[float]()
    for step_s in steps_s:
        now += step_s
        error = refusal(account.call_tool, now)
        if error is None:
            called.append(now)
        assert error is None or error.quota == "toolCallsPerMinute"
        assert sum(now - MINUTE_S < time <= now for time in called) <= limit


def test_a_refused_session_counts_for_nothing() -> None:
    account = Account("acme", Quotas(sessions_per_minute=1, concurrent_sessions=1))
    account.admit(0)
    for _ in range(5):
        assert not admitted(account, 1)
    account.ended(2, 0)
    assert [usage.used for usage in account.usage(2)] == [0, 1, 0, 0]


def test_what_was_given_back_counts_for_nothing() -> None:
    account = Account("acme", Quotas(sessions_per_minute=1))
    for _ in range(5):
        account.admit(7)
        account.give_back(7)
    assert account.idle(7)


def test_quotas_that_change_apply_at_once_and_what_was_used_stays_used() -> None:
    ledger = Ledger()
    account = ledger.account("acme")
    for _ in range(5):
        account.admit(0)
    ledger.configure({"acme": Quotas(concurrent_sessions=3)})
    with pytest.raises(QuotaExceeded, match="5 of 3 concurrentSessions"):
        account.admit(1)
    for _ in range(3):
        account.ended(2, 0)
    account.admit(2)
    ledger.configure({})
    account.admit(2)


def test_a_tenant_that_is_gone_is_forgotten_when_its_sessions_have_ended_and_the_hour_is_over() -> None:
    ledger = Ledger()
    ledger.account("gone").admit(0)
    assert ledger.tidy(10, frozenset()) == []
    ledger.account("gone").ended(20, 50)
    assert ledger.tidy(20, frozenset()) == []
    assert ledger.tidy(20 + 2 * HOUR_S, frozenset({"gone"})) == []
    assert ledger.tidy(20 + 2 * HOUR_S, frozenset()) == ["gone"]
    assert list(ledger) == []


@given(amounts=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 100)), max_size=300))
def test_a_window_holds_no_more_than_its_slices(amounts: list[tuple[float, int]]) -> None:
    window, now = Window(MINUTE_S), 0.0
    for step_s, amount in amounts:
        now += step_s
        window.add(now, amount)
    assert len(window._slices) <= 62
    assert window.used(now) == sum(amount for _, amount in window._slices)
    assert window.used(now + 62) == 0
