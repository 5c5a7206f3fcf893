"""Expected waits: what is told from how long sessions hold their slots, and who is refused for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_broker.placement import Place, Placer, Refuse, Wait
from enclave_broker.placement.pace import BUCKETS, Hold, Pace, hold
from enclave_broker.placement.placer import EVERYBODY


def pace_of(held: int, each_s: float, seconds: float, *, step_s: float = 0.1) -> Pace:
    """Make the pace of a worker whose `held` slots were all taken, by sessions of `each_s`."""
    pace, now, freed = Pace(), 0.0, 0
    while now < seconds:
        now += step_s
        ended = int(now / each_s) * held
        pace.freed += ended - freed
        freed = ended
        pace.pass_time(step_s, held)
    return pace


def busy_placer(slots: int, each_s: float, *, queue_wait_s: float = 30.0, seconds: float = 60.0) -> Placer:
    """Make a placer whose one worker's slots are taken, and were by sessions of `each_s` for some time."""
    placer = Placer(queue_size=1000, queue_bytes=1000, queue_wait_s=queue_wait_s)
    placer.worker_up("w", max_sessions=slots, active=0, draining=False)
    running: list[tuple[float, str]] = []
    for i in range(slots):
        placer.submit(f"old_{i}", 1e9)
        running.append((each_s, f"old_{i}"))
    placer.tick(0.0)
    for step in range(1, round(seconds * 10) + 1):
        now = step / 10
        for i, (ends, session) in enumerate(running):
            if ends <= now:
                placer.release(session)
                placer.submit(f"{session}_", 1e9)
                running[i] = (ends + each_s, f"{session}_")
        placer.tick(now)
    return placer


@given(held=st.integers(1, 50), each_s=st.floats(0.2, 5))
def test_the_time_that_sessions_hold_a_slot_is_found_out(held: int, each_s: float) -> None:
    found = hold([pace_of(held, each_s, 40)], held)
    assert found is not None
    assert each_s * 0.7 <= found.each_s <= each_s * 1.3


def test_of_a_fleet_that_was_idle_too() -> None:
    pace = Pace()
    for second in range(30):
        pace.pass_time(0.5, 1)
        pace.freed += 1
        pace.pass_time(9.5 if second % 2 else 1.0, 0)
    found = hold([pace], 0)
    assert found is not None
    assert found.each_s == pytest.approx(0.5, rel=0.05)


def test_short_sessions_of_an_hour_ago_say_nothing_about_long_ones_of_now() -> None:
    pace = pace_of(4, 0.2, 60)
    for step in range(1, 151):
        pace.freed += 4 * (step % 50 == 0)
        pace.pass_time(0.1, 4)
    found = hold([pace], 4)
    assert found is not None
    assert found.each_s > 0.5, "15 s of sessions of 5 s"


def test_nothing_is_said_where_nothing_has_run() -> None:
    assert hold([], 0) is None
    assert hold([Pace()], 0) is None


def test_sessions_that_all_run_still_take_at_least_as_long_as_they_have() -> None:
    pace = Pace()
    pace.pass_time(3, 4)
    assert hold([pace], 4) == Hold(each_s=3, sessions=0)


def test_the_past_is_bounded() -> None:
    assert len(pace_of(1, 1, 3 * BUCKETS).buckets()) == BUCKETS


def test_a_session_that_would_wait_too_long_is_refused_and_told_for_how_long() -> None:
    placer = busy_placer(4, 2.0, queue_wait_s=5)
    decisions = [placer.submit(f"s_{i}", 1e9) for i in range(20)]
    waiting = [decision for decision in decisions if isinstance(decision, Wait)]
    refused = [decision for decision in decisions if isinstance(decision, Refuse)]
    assert len(waiting) == pytest.approx(5 * 4 / 2.0, abs=2)
    assert {refuse.reason for refuse in refused} == {"long_wait"}
    assert all(5 < refuse.retry_after_s < 8 for refuse in refused)


def test_who_could_not_wait_so_long_anyway_is_refused_at_once() -> None:
    placer = busy_placer(1, 2.0)
    refuse = placer.submit("s_1", 60 + 1.0)
    assert isinstance(refuse, Refuse)
    assert refuse.reason == "long_wait"
    assert refuse.retry_after_s == pytest.approx(2, rel=0.2)
    assert placer.submit("s_2", 60 + 3.0) == Wait("s_2", 1)


def test_a_fleet_that_has_just_begun_refuses_nobody_for_a_wait_that_nobody_knows() -> None:
    placer = Placer(queue_size=1000, queue_bytes=1000, queue_wait_s=0.001)
    placer.worker_up("w", max_sessions=2, active=0, draining=False)
    assert all(isinstance(placer.submit(f"s_{i}", 9), Place) for i in range(2))
    assert all(isinstance(placer.submit(f"s_{i}", 9), Wait) for i in range(2, 50))
    for i in range(10):
        placer.tick(i)
        assert placer.refuses(EVERYBODY) is None
        assert isinstance(placer.submit(f"s_{50 + i}", 99), Wait), f"{i} sessions have ended"
        placer.release(f"s_{i}")
    placer.tick(10)
    assert placer.refuses(EVERYBODY) is not None
    assert isinstance(placer.submit("s_99", 99), Refuse)


def test_a_burst_on_a_fleet_that_had_little_to_do_is_not_taken_for_a_fleet_that_is_slow() -> None:
    placer = Placer(queue_size=1000, queue_bytes=1000, queue_wait_s=10)
    placer.worker_up("w", max_sessions=10, active=0, draining=False)
    placer.tick(0)
    for step in range(1, 201):
        if step % 10 == 1:
            placer.submit(f"old_{step}", 1e9)
        placer.tick(step / 10)
        placer.release(f"old_{step}")
    burst = [placer.submit(f"s_{i}", 1e9) for i in range(500)]
    assert not any(isinstance(decision, Refuse) for decision in burst), "500 sessions of 0.1 s on 10 slots"


def test_a_tenant_with_a_long_line_does_not_keep_another_out() -> None:
    placer = busy_placer(2, 1.0, queue_wait_s=4)
    many = [placer.submit(f"a_{i}", 1e9, tenant="a") for i in range(100)]
    assert isinstance(many[-1], Refuse)
    assert placer.refuses("a") is not None
    assert placer.refuses("b") is None
    assert placer.submit("b_1", 1e9, tenant="b") == Wait("b_1", 2)


def test_what_is_refused_whatever_it_asks_for_is_known_before_it_is_read() -> None:
    placer = busy_placer(1, 1.0, queue_wait_s=3)
    placer.worker_up("other", max_sessions=1, active=0, draining=False, profiles=["data"])
    for i in range(9):
        placer.submit(f"s_{i}", 1e9)
    assert isinstance(placer.submit("s_9", 1e9), Refuse)
    assert placer.refuses(EVERYBODY) is None, "data has a slot"
    placer.submit("s_10", 1e9, profile="data")
    assert placer.refuses(EVERYBODY) is None, "nobody knows how long data takes"
    placer.worker_down("other")
    refuse = placer.refuses(EVERYBODY)
    assert refuse is not None
    assert refuse.retry_after_s == pytest.approx(4, rel=0.3)


def test_positions_count_only_those_that_wait_for_the_same_slots() -> None:
    placer = Placer(queue_size=100, queue_bytes=100)
    placer.worker_up("w", max_sessions=0, active=0, draining=False, profiles=["x", "y"])
    for i, profile in enumerate(["x", "z", "y", "z", "x"]):
        placer.submit(f"s_{i}", 9, profile=profile)
    assert dict(placer.positions()) == {"s_0": 1, "s_2": 2, "s_4": 3, "s_1": 1, "s_3": 2}
    assert [placer.position(f"s_{i}") for i in range(6)] == [1, 1, 2, 2, 3, 0]
