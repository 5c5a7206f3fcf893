"""Placement: who runs where, and who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from enclave_broker.placement import Lose, Place, Placer, Refuse, Wait

if TYPE_CHECKING:
    import random


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
    assert placer.submit("s_2", 9, size_bytes=101) == Refuse("s_2", "queue_full", 5.0)
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


def test_a_worker_can_be_told_to_drain_and_is_busy_until_its_last_session_has_ended() -> None:
    placer = placer_with(2)
    placer.submit("s_1", 9)
    placer.worker_draining("w0")
    assert placer.submit("s_2", 9) == Wait("s_2", 1)
    assert placer.is_busy("w0")
    assert placer.release("s_1") == []
    assert not placer.is_busy("w0")
    assert not placer.is_busy("w1"), "nor is one that nobody knows"


def test_a_lost_workers_sessions_are_named_and_those_that_wait_go_on_waiting() -> None:
    placer = placer_with(1)
    placer.submit("s_1", 9)
    placer.submit("s_2", 9)
    assert placer.worker_down("w0") == [Lose("s_1", "w0")]
    assert placer.waiting() == ["s_2"]
    assert placer.worker_up("w0", max_sessions=1, active=0, draining=False) == [Place("s_2", "w0")]


def test_a_worker_that_is_away_keeps_its_sessions_slots_and_gets_nothing_new() -> None:
    placer = placer_with(2)
    placer.submit("s_1", 9)
    placer.worker_away("w0")
    assert placer.submit("s_2", 9) == Wait("s_2", 1)
    assert placer.worker_of("s_1") == "w0"
    assert placer.release("s_1") == [], "the slot is free, but its worker is not there"
    assert placer.statistics().workers == 0


def test_a_worker_that_is_back_offers_what_neither_ours_nor_others_take() -> None:
    placer = placer_with(3, queue_size=9)
    placer.submit("s_1", 9)
    placer.worker_away("w0")
    for i in (2, 3, 4):
        placer.submit(f"s_{i}", 9)
    placed = placer.worker_back("w0", max_sessions=4, active=2, draining=False)
    assert placed == [Place("s_2", "w0"), Place("s_3", "w0")], "4 slots, less s_1 and a foreign session"
    assert not placer.is_away("w0")


def test_a_session_that_never_reached_its_worker_is_placed_elsewhere_ahead_of_the_queue() -> None:
    placer = placer_with(1, 1)
    for i in (1, 2, 3):
        placer.submit(f"s_{i}", 9)
    placer.worker_away("w0")
    assert placer.put_back("s_1", 9, size_bytes=1) == []
    assert placer.waiting() == ["s_1", "s_3"]
    assert placer.release("s_2") == [Place("s_1", "w1")]
    assert placer.worker_back("w0", max_sessions=1, active=0, draining=False) == [Place("s_3", "w0")]


def test_a_session_whose_worker_is_gone_can_be_placed_once_more() -> None:
    placer = placer_with(1)
    placer.submit("s_1", 9, profile="python")
    placer.worker_down("w0")
    assert placer.put_back("s_1", 9) == []
    assert placer.worker_up("w1", max_sessions=1, active=0, draining=False) == [Place("s_1", "w1")]


def test_an_adopted_session_has_a_slot_on_a_worker_that_nobody_has_seen_yet() -> None:
    placer = placer_with()
    placer.adopt("s_1", "w0", "data")
    assert placer.is_away("w0")
    assert placer.submit("s_2", 9, profile="data") == Wait("s_2", 1)
    assert placer.worker_back("w0", max_sessions=2, active=1, draining=False, profiles=["data"]) == [Place("s_2", "w0")]
    assert placer.release("s_1") == []
    assert placer.submit("s_3", 9, profile="data") == Place("s_3", "w0")


def test_an_adopted_session_was_no_foreign_one() -> None:
    placer = placer_with()
    placer.worker_up("w0", max_sessions=3, active=2, draining=False)
    placer.adopt("s_1", "w0")
    assert [placer.submit(f"s_{i}", 9) for i in (2, 3)] == [Place("s_2", "w0"), Wait("s_3", 1)]


def test_a_session_moves_with_its_worker_to_another_name() -> None:
    placer = placer_with()
    placer.adopt("s_1", "w0", "data")
    placer.move("s_1", "w1")
    placer.validate()
    assert (placer.worker_of("s_1"), placer.is_busy("w0"), placer.is_away("w1")) == ("w1", False, True)
    assert placer.worker_down("w0") == []
    assert placer.worker_back("w1", max_sessions=1, active=1, draining=False, profiles=["data"]) == []
    assert placer.submit("s_2", 9, profile="data") == Wait("s_2", 1)
    assert placer.release("s_1") == [Place("s_2", "w1")]


def test_the_sessions_of_a_worker_that_does_not_come_back_are_lost() -> None:
    placer = placer_with()
    placer.adopt("s_1", "w0")
    assert placer.worker_down("w0") == [Lose("s_1", "w0")]
    assert not placer.is_away("w0")


@pytest.mark.parametrize("known", [True, False])
def test_only_a_worker_that_was_away_comes_back(known: bool) -> None:  # noqa: FBT001 - a parameter
    placer = placer_with(*([1] if known else []))
    with pytest.raises(AssertionError):
        placer.worker_back("w0", max_sessions=1, active=0, draining=False)


def test_a_session_that_has_its_place_is_not_adopted_and_one_that_waits_not_put_back() -> None:
    placer = placer_with(1)
    placer.submit("s_1", 9)
    placer.submit("s_2", 9)
    for session in ("s_1", "s_2"):
        with pytest.raises(AssertionError):
            placer.adopt(session, "w0")
    with pytest.raises(AssertionError):
        placer.put_back("s_2", 9)


def test_only_those_whose_deadline_has_passed_expire() -> None:
    placer = placer_with()
    placer.submit("s_1", 5)
    placer.submit("s_2", 7)
    assert placer.tick(5) == ([Refuse("s_1", "deadline", 5.0)], [])
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
        self.placer = Placer(queue_size=5, queue_bytes=50, queue_wait_s=4)
        self.count = 0
        self.now = 0
        self.up: set[str] = set()
        self.alive: set[str] = set()
        self.max_sessions: dict[str, int] = {}
        self.profiles: dict[str, str] = {}
        """What each session asks for, and each worker offers."""

    @rule(
        target=sessions,
        wait=st.integers(1, 5),
        size=st.integers(0, 20),
        profile=st.sampled_from("ab"),
        tenant=st.sampled_from("xyz"),
    )
    def submit(self, wait: int, size: int, profile: str, tenant: str) -> object:
        self.count += 1
        session = f"s_{self.count}"
        hopeless = self.placer.refuses(tenant)
        decision = self.placer.submit(session, self.now + wait, profile=profile, tenant=tenant, size_bytes=size)
        if isinstance(decision, Refuse):
            return multiple()
        offered = "".join(self.profiles[worker] for worker in self.up)
        assert hopeless is None or profile not in offered, "refused beforehand, and then accepted"
        if isinstance(decision, Wait):
            assert (session, decision.position) in self.placer.positions()
        self.alive.add(session)
        self.profiles[session] = profile
        return session

    @rule(session=consumes(sessions), failed=st.booleans())
    def end(self, session: str, failed: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        self.placer.withdraw(session)
        self.placer.release(session, failed=failed)
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

    @rule(worker=workers)
    def blame(self, worker: str) -> None:
        self.placer.blame(worker)

    @rule(worker=consumes(workers), again=st.booleans())
    def worker_down(self, worker: str, again: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        for lost in self.placer.worker_down(worker):
            if again:
                self.placer.put_back(lost.session_id, self.now + 3, profile=self.profiles[lost.session_id])
            else:
                self.alive.discard(lost.session_id)
        self.up.discard(worker)

    @rule(worker=workers)
    def worker_away(self, worker: str) -> None:
        held = {session for session in self.alive if self.placer.worker_of(session) == worker}
        self.placer.worker_away(worker)
        assert held == {session for session in self.alive if self.placer.worker_of(session) == worker}

    @rule(
        worker=workers,
        slots=st.integers(1, 3),
        active=st.integers(0, 4),
        draining=st.booleans(),
        arrived=st.randoms(use_true_random=False),
    )
    def worker_back(self, worker: str, slots: int, active: int, draining: bool, arrived: random.Random) -> None:  # noqa: FBT001 - drawn by Hypothesis
        if not self.placer.is_away(worker):
            return
        for session in sorted(self.alive):
            if self.placer.worker_of(session) == worker and arrived.random() < 0.5:
                self.placer.put_back(session, self.now + 3, profile=self.profiles[session])
                assert self.placer.worker_of(session) != worker, "a worker that is away gets nothing"
        ours = sum(self.placer.worker_of(session) == worker for session in self.alive)
        profiles = self.profiles[worker]
        placed = self.placer.worker_back(
            worker, max_sessions=slots, active=active, draining=draining, profiles=profiles
        )
        foreign = max(0, active - ours)
        new = [place for place in placed if place.worker == worker]
        assert len(new) <= (0 if draining else max(0, slots - ours - foreign))

    @rule(target=sessions, worker=workers)
    def adopt(self, worker: str) -> str:
        self.count += 1
        session = f"s_{self.count}"
        if worker not in self.up:
            self.up.add(worker)
        self.profiles[session] = self.profiles[worker][0]
        self.placer.adopt(session, worker, self.profiles[session])
        self.alive.add(session)
        return session

    @rule(target=workers, profiles=st.sampled_from(["a", "b", "ab"]))
    def worker_known_from_a_store(self, profiles: str) -> str:
        self.count += 1
        worker = f"w{self.count}"
        self.profiles[worker] = profiles
        return worker

    @rule(passed=st.integers(0, 3))
    def expire(self, passed: int) -> None:
        self.now += passed
        late, _ = self.placer.tick(self.now)
        self.alive -= {refuse.session_id for refuse in late}

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
TestAnyHistory.settings = settings(max_examples=60)
