"""Workers that fail: they get less for a while, and never is nobody left."""

from __future__ import annotations

import pytest

from enclave_broker.placement import Place, Placer


def fleet(*names: str, slots: int = 4) -> Placer:
    placer = Placer(queue_size=1000, queue_bytes=1000)
    for name in names:
        placer.worker_up(name, max_sessions=slots, active=0, draining=False)
    placer.tick(0)
    return placer


def worker_for(placer: Placer, session: str) -> str:
    decision = placer.submit(session, 1e9)
    assert isinstance(decision, Place)
    return decision.worker


def failing(placer: Placer) -> set[str]:
    return {view.name for view in placer.workers() if view.failing}


def run_all(placer: Placer, bad: set[str], seconds: float, *, each_s: float = 0.1) -> list[str]:
    """Run a session each tenth of a second, which fails on bad workers; return which worker each was placed on."""
    start, used = placer_now[0], []
    steps = round(seconds / each_s)
    for step in range(1, steps + 1):
        placer_now[0] = start + step * each_s
        placer.tick(placer_now[0])
        session = f"s_{placer_now[0]:.3f}"
        used.append(worker_for(placer, session))
        placer.release(session, failed=used[-1] in bad)
    return used


placer_now = [0.0]


@pytest.fixture(autouse=True)
def _starts_anew() -> None:
    placer_now[0] = 0.0


def test_a_worker_whose_sessions_fail_is_only_tried_now_and_then_though_it_has_most_free_slots() -> None:
    placer = fleet("good", "bad")
    run_all(placer, {"bad"}, 2)
    used = run_all(placer, {"bad"}, 20)
    assert 5 <= used.count("bad") <= 15
    assert failing(placer) == {"bad"}


def test_one_that_works_again_gets_its_part_again() -> None:
    placer = fleet("good", "bad")
    run_all(placer, {"bad"}, 10)
    run_all(placer, set(), 60)
    assert failing(placer) == set()
    assert run_all(placer, set(), 10).count("bad") == 50


def test_where_all_fail_all_are_used() -> None:
    placer = fleet("one", "other")
    used = run_all(placer, {"one", "other"}, 20)
    assert failing(placer) == set()
    assert abs(used.count("one") - used.count("other")) <= len(used) * 0.25


def test_one_that_alone_offers_a_profile_is_used_for_it_however_it_fails() -> None:
    placer = fleet("good")
    placer.worker_up("data", max_sessions=4, active=0, draining=False, profiles=["python", "data"])
    for i in range(50):
        assert placer.submit(f"d_{i}", 1e9, profile="data") == Place(f"d_{i}", "data")
        placer.release(f"d_{i}", failed=True)
    assert failing(placer) == set()


def test_nobody_waits_for_ever_for_the_good_ones_when_they_are_gone() -> None:
    placer = fleet("good", "bad", slots=1)
    run_all(placer, {"bad"}, 3)
    placer.worker_away("good")
    _, placed = placer.tick(placer_now[0] + 0.1)
    assert placed == []
    assert worker_for(placer, "s_1") == "bad"


def test_while_good_ones_are_full_sessions_wait_for_them_rather_than_fail_elsewhere() -> None:
    placer = fleet("good", "bad", slots=1)
    run_all(placer, {"bad"}, 3)
    waiting = [f"w_{i}" for i in range(20)]
    for session in waiting:
        placer.submit(session, 1e9)
    placed: list[Place] = []
    for step in range(1, 31):
        late, now = placer.tick(placer_now[0] + step / 10)
        assert late == []
        placed += now
        for place in now:
            placed += placer.release(place.session_id, failed=True)
    assert len(placed) <= 3, "one is tried, every two seconds"
    assert {place.worker for place in placed} <= {"bad"}
    placer.validate()


def test_a_few_failures_among_many_sessions_are_held_against_nobody() -> None:
    placer = fleet("one", "other")
    for i in range(1000):
        worker = worker_for(placer, f"s_{i}")
        placer.release(f"s_{i}", failed=worker == "one" and i % 20 == 0)
    assert failing(placer) == set()


def test_a_worker_whose_connection_breaks_again_and_again_is_avoided_and_one_break_is_nothing() -> None:
    placer = fleet("steady", "flapping")
    for times in range(1, 4):
        placer.worker_down("flapping")
        placer.worker_up("flapping", max_sessions=4, active=0, draining=False)
        placer.tick(times)
        assert failing(placer) == ({"flapping"} if times == 3 else set())
    placer.worker_away("flapping")
    placer.worker_back("flapping", max_sessions=4, active=0, draining=False)
    assert failing(placer) == {"flapping"}, "coming back is no recovery"
    for second in range(4, 40):
        placer.tick(second)
    assert failing(placer) == set()


def test_a_worker_that_refuses_what_it_has_slots_for_is_avoided() -> None:
    placer = fleet("good", "refuses")
    refused = 0
    for i in range(40):
        if worker_for(placer, f"s_{i}") == "refuses":
            refused += 1
            assert placer.refused(f"s_{i}", 1e9) == [Place(f"s_{i}", "good")]
        placer.release(f"s_{i}")
        placer.worker_status("refuses", max_sessions=4, active=0, draining=False)
    assert refused == 3


def test_one_that_has_other_brokers_sessions_too_may_refuse() -> None:
    placer = fleet("quiet", "shared")
    for i in range(20):
        placer.worker_status("shared", max_sessions=9, active=1, draining=False)
        assert worker_for(placer, f"s_{i}") == "shared"
        placer.refused(f"s_{i}", 1e9)
        placer.release(f"s_{i}")
    assert failing(placer) == set()


def test_of_workers_that_are_gone_nothing_is_remembered_for_ever() -> None:
    placer = fleet()
    for i in range(100):
        placer.worker_up(f"w{i}", max_sessions=1, active=0, draining=False)
        placer.worker_down(f"w{i}")
    for second in range(100):
        placer.tick(second)
    assert placer._slots._health == {}
