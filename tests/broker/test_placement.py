"""Placement: who runs where, and who waits."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from enclave_broker.placement import Lose, Place, Placer, Refuse, Wait


def placer_with(*slots: int, queue_size: int = 2) -> Placer:
    placer = Placer(queue_size=queue_size, queue_bytes=1000)
    for i, count in enumerate(slots):
        placer.worker_up(f"w{i}", max_sessions=count, active=0, draining=False)
    return placer


def test_a_session_goes_to_the_worker_with_most_free_slots() -> None:
    assert placer_with(1, 3, 2).submit("s_1", 9) == Place("s_1", "w1")


def test_equal_workers_take_turns() -> None:
    placer = placer_with(4, 4, 4)
    placed = [placer.submit(f"s_{i}", 9) for i in range(6)]
    assert [place.worker for place in placed if isinstance(place, Place)] == ["w0", "w1", "w2"] * 2


def test_without_a_free_slot_a_session_waits_and_then_is_refused() -> None:
    placer = placer_with(1)
    placer.submit("s_1", 9)
    assert [placer.submit(f"s_{i}", 9) for i in (2, 3, 4)] == [
        Wait("s_2", 1),
        Wait("s_3", 2),
        Refuse("s_4", "queue_full", 1.0),
    ]


def test_the_queue_is_bounded_in_bytes_too() -> None:
    placer = placer_with(queue_size=100)
    assert placer.submit("s_1", 9, size_bytes=900) == Wait("s_1", 1)
    assert placer.submit("s_2", 9, size_bytes=101) == Refuse("s_2", "queue_full", 1.0)
    assert placer.withdraw("s_1")
    assert placer.submit("s_2", 9, size_bytes=101) == Wait("s_2", 1)


def test_a_freed_slot_goes_to_the_first_in_line() -> None:
    placer = placer_with(1)
    for i in (1, 2, 3):
        placer.submit(f"s_{i}", 9)
    assert placer.release("s_1") == [Place("s_2", "w0")]
    assert placer.release("s_1") == []


def test_a_session_its_worker_refused_goes_to_another_worker_first_and_ahead_of_the_queue() -> None:
    placer = placer_with(1, 1)
    for i in (1, 2, 3):
        placer.submit(f"s_{i}", 9)
    assert placer.refused("s_1", 9) == []
    assert placer.waiting() == ["s_1", "s_3"]
    assert placer.release("s_2") == [Place("s_1", "w1")]


def test_a_worker_that_refused_is_offered_nothing_until_it_says_how_busy_it_is() -> None:
    placer = placer_with(5)
    placer.submit("s_1", 9)
    assert placer.refused("s_1", 9) == []
    assert placer.worker_status("w0", max_sessions=5, active=4, draining=False) == [Place("s_1", "w0")]


def test_slots_taken_by_others_are_not_given_away() -> None:
    placer = placer_with(2)
    placer.submit("s_1", 9)
    placer.worker_status("w0", max_sessions=2, active=2, draining=False)
    assert placer.submit("s_2", 9) == Wait("s_2", 1)


def test_a_draining_worker_gets_nothing_new() -> None:
    placer = placer_with(2)
    placer.worker_status("w0", max_sessions=2, active=0, draining=True)
    assert placer.submit("s_1", 9) == Wait("s_1", 1)


def test_a_lost_workers_sessions_are_named_and_those_that_wait_go_on_waiting() -> None:
    placer = placer_with(1)
    placer.submit("s_1", 9)
    placer.submit("s_2", 9)
    assert placer.worker_down("w0") == [Lose("s_1", "w0")]
    assert placer.waiting() == ["s_2"]
    assert placer.worker_up("w0", max_sessions=1, active=0, draining=False) == [Place("s_2", "w0")]


def test_only_those_whose_deadline_has_passed_expire() -> None:
    placer = placer_with()
    placer.submit("s_1", 5)
    placer.submit("s_2", 7)
    assert placer.expire(5) == [Refuse("s_1", "deadline", 1.0)]
    assert placer.waiting() == ["s_2"]


def test_the_repr_tells_the_fleets_story() -> None:
    placer = placer_with(2)
    placer.submit("s_1", 9)
    assert repr(placer) == "<Placer waiting=0/2 [w0 1+0/2]>"


def test_submitting_a_session_twice_is_a_bug() -> None:
    placer = placer_with(2)
    placer.submit("s_1", 9)
    with pytest.raises(AssertionError):
        placer.submit("s_1", 9)


def test_a_session_goes_only_to_a_worker_that_offers_its_profile() -> None:
    placer = placer_with(9)
    placer.worker_up("data", max_sessions=1, active=0, draining=False, profiles=["python", "data"])

    assert placer.submit("s_1", 9, profile="data") == Place("s_1", "data")
    assert placer.submit("s_2", 9, profile="data") == Wait("s_2", 1)
    assert placer.submit("s_3", 9) == Place("s_3", "w0"), "who waits for another profile holds up nobody"
    assert placer.release("s_3") == []
    assert placer.release("s_1") == [Place("s_2", "data")]


def test_among_those_whose_profile_has_a_slot_whoever_came_first_goes_first() -> None:
    placer = placer_with(queue_size=9)
    for number, profile in enumerate(("b", "a", "none", "b", "a"), 1):
        placer.submit(f"s_{number}", 9, profile=profile)
    assert placer.waiting() == [f"s_{number}" for number in range(1, 6)]

    placed = placer.worker_up("w", max_sessions=3, active=0, draining=False, profiles=["a", "b"])

    assert [place.session_id for place in placed] == ["s_1", "s_2", "s_4"]
    assert placer.refused("s_2", 9) == []
    assert placer.waiting() == ["s_2", "s_3", "s_5"]
    assert placer.release("s_1") == [Place("s_2", "w"), Place("s_5", "w")]


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens in whatever order: no slot is given twice, nobody is lost, nobody waits beside a free slot."""

    sessions = Bundle("sessions")
    workers = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.placer = Placer(queue_size=5, queue_bytes=50)
        self.count = 0
        self.now = 0
        self.up: set[str] = set()
        self.alive: set[str] = set()
        self.max_sessions: dict[str, int] = {}
        self.profiles: dict[str, str] = {}
        """What each session asks for, and each worker offers."""

    @rule(target=sessions, wait=st.integers(1, 5), size=st.integers(0, 20), profile=st.sampled_from("ab"))
    def submit(self, wait: int, size: int, profile: str) -> object:
        self.count += 1
        session = f"s_{self.count}"
        if isinstance(self.placer.submit(session, self.now + wait, profile=profile, size_bytes=size), Refuse):
            return multiple()
        self.alive.add(session)
        self.profiles[session] = profile
        return session

    @rule(session=consumes(sessions))
    def end(self, session: str) -> None:
        self.placer.withdraw(session)
        self.placer.release(session)
        self.alive.discard(session)

    @rule(session=sessions, size=st.integers(0, 20))
    def refused(self, session: str, size: int) -> None:
        self.placer.refused(session, self.now + 3, size_bytes=size)

    @rule(
        target=workers,
        slots=st.integers(1, 3),
        active=st.integers(0, 4),
        draining=st.booleans(),
        profiles=st.sampled_from(["a", "b", "ab"]),
    )
    def worker_up(self, slots: int, active: int, draining: bool, profiles: str) -> str:  # noqa: FBT001 - drawn by Hypothesis
        self.count += 1
        worker = f"w{self.count}"
        self.up.add(worker)
        self.profiles[worker] = profiles
        self.placer.worker_up(worker, max_sessions=slots, active=active, draining=draining, profiles=profiles)
        return worker

    @rule(worker=workers, slots=st.integers(1, 3), active=st.integers(0, 4), draining=st.booleans())
    def worker_status(self, worker: str, slots: int, active: int, draining: bool) -> None:  # noqa: FBT001 - hypothesis passes it
        self.placer.worker_status(worker, max_sessions=slots, active=active, draining=draining)

    @rule(worker=consumes(workers))
    def worker_down(self, worker: str) -> None:
        self.alive -= {lost.session_id for lost in self.placer.worker_down(worker)}
        self.up.discard(worker)

    @rule(passed=st.integers(0, 3))
    def expire(self, passed: int) -> None:
        self.now += passed
        self.alive -= {refuse.session_id for refuse in self.placer.expire(self.now)}

    @invariant()
    def holds(self) -> None:
        self.placer.validate()
        waiting = set(self.placer.waiting())
        for session in self.alive:
            worker = self.placer.worker_of(session)
            assert (session in waiting) != (worker in self.up)
            assert worker is None or self.profiles[session] in self.profiles[worker]
        assert self.placer.statistics().reserved + len(waiting) == len(self.alive)


TestAnyHistory = AnyHistory.TestCase
