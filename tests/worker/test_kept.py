"""The buffer of unacknowledged events, against the simplest thing that does the same: a list of all lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from enclave_worker.kept import Budget, KeptEvents

TOTAL_BYTES, SESSION_BYTES, SESSIONS = 1000, 300, 4


class KeptAgainstAList(RuleBasedStateMachine):
    """Three sessions of one budget; of each everything ever said, and the number up to which it was acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(TOTAL_BYTES, SESSION_BYTES, SESSIONS)
        self.firsts = [1, 5, 100]
        self.kept = [KeptEvents(self.budget, first) for first in self.firsts]
        self.said: list[list[bytes]] = [[], [], []]
        self.acked = [first - 1 for first in self.firsts]

    sessions = st.integers(0, 2)

    @rule(session=sessions, line=st.binary(min_size=1, max_size=120))
    def say(self, session: int, line: bytes) -> None:
        self.kept[session].append(line)
        self.said[session].append(line)

    @rule(session=sessions, part=st.floats(0, 1))
    def acknowledge(self, session: int, part: float) -> None:
        last = self.firsts[session] + len(self.said[session]) - 1
        seq = round(part * last)
        self.kept[session].ack(seq)
        self.acked[session] = max(self.acked[session], seq)

    @rule(session=sessions, beyond=st.integers(1, 1000))
    def acknowledge_what_was_never_said(self, session: int, beyond: int) -> None:
        with pytest.raises(ValueError, match="above the newest"):
            self.kept[session].ack(self.kept[session].last_seq + beyond)

    @rule(session=sessions, seq=st.integers(-10, 200))
    def replay(self, session: int, seq: int) -> None:
        first, said = self.firsts[session], self.said[session]
        if self.acked[session] < seq <= first + len(said):
            assert list(self.kept[session].since(seq)) == said[seq - first :]
        else:
            with pytest.raises(ValueError, match="kept are"):
                self.kept[session].since(seq)

    @invariant()
    def counts_are_those_of_what_is_kept(self) -> None:
        kept_bytes = 0
        for kept, first, said, acked in zip(self.kept, self.firsts, self.said, self.acked, strict=True):
            rest = said[acked + 1 - first :]
            assert (kept.first_seq, kept.last_seq) == (acked + 1, first + len(said) - 1)
            assert kept.size_bytes == sum(map(len, rest))
            kept_bytes += kept.size_bytes
        assert self.budget.used_bytes == kept_bytes


TestKeptAgainstAList = KeptAgainstAList.TestCase
TestKeptAgainstAList.settings = settings(max_examples=40, stateful_step_count=40)


@given(st.lists(st.tuples(st.integers(0, SESSIONS - 1), st.integers(1, 50)), max_size=300))
def test_sessions_that_stop_when_told_to_stay_within_the_budget_and_none_stops_within_its_part(
    said: list[tuple[int, int]],
) -> None:
    budget = Budget(TOTAL_BYTES, SESSION_BYTES, SESSIONS)
    sessions = [KeptEvents(budget, 1) for _ in range(SESSIONS)]
    for number, size in said:
        kept = sessions[number]
        if not budget.is_full(kept.size_bytes):
            kept.append(b"x" * size)
        else:
            assert kept.size_bytes > budget.share_bytes

    assert budget.used_bytes <= TOTAL_BYTES + SESSIONS * 50, "one line of each above it"
    assert all(kept.size_bytes <= SESSION_BYTES + 50 for kept in sessions)


@given(st.integers(0, 2 * SESSION_BYTES), st.integers(0, 2 * TOTAL_BYTES))
def test_who_is_let_go_on_need_not_stop_at_once(size_bytes: int, others_bytes: int) -> None:
    budget = Budget(TOTAL_BYTES, SESSION_BYTES, SESSIONS)
    budget.used_bytes = others_bytes + size_bytes

    assert not (budget.has_room(size_bytes) and budget.is_full(size_bytes))


def test_whoever_lets_go_of_everything_can_go_on() -> None:
    budget = Budget(TOTAL_BYTES, SESSION_BYTES, SESSIONS)
    kept = KeptEvents(budget, 1)
    kept.append(b"x" * 2 * SESSION_BYTES)
    assert budget.is_full(kept.size_bytes)

    kept.clear()

    assert budget.has_room(kept.size_bytes)
    assert (kept.first_seq, kept.last_seq, budget.used_bytes) == (2, 1, 0)
