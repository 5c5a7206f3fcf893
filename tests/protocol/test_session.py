"""The state table: only its transitions succeed, and what is over stays over."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from enclave_protocol import LocalProtocolError, State, Trigger, transition
from enclave_protocol.session import TRANSITIONS

# The wire's table, as pairs of states. Written out again here, so that a slip in the code's table shows.
WIRE = {
    ("starting", "running"),
    ("starting", "failed"),
    ("starting", "cancelled"),
    ("running", "waiting_for_tool"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("waiting_for_tool", "running"),
    ("waiting_for_tool", "failed"),
    ("waiting_for_tool", "cancelled"),
}


def test_the_table_is_the_wires() -> None:
    assert {(state.value, after.value) for state, row in TRANSITIONS.items() for after in row.values()} == WIRE


def test_every_state_has_a_row_and_every_trigger_a_use() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)


def test_exactly_three_states_are_terminal() -> None:
    assert {state for state in State if state.terminal} == {State.COMPLETED, State.CANCELLED, State.FAILED}


@pytest.mark.parametrize("state", [state for state in State if not state.terminal])
def test_every_live_state_can_be_failed_and_cancelled(state: State) -> None:
    assert transition(state, Trigger.FAIL) is State.FAILED
    assert transition(state, Trigger.CANCEL) is State.CANCELLED


def test_a_refused_transition_says_what_was_allowed() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        transition(State.STARTING, Trigger.COMPLETE)
    assert caught.value.allowed == "start, fail, cancel"
    with pytest.raises(LocalProtocolError, match="terminal"):
        transition(State.FAILED, Trigger.CANCEL)


class Session(RuleBasedStateMachine):
    """One session under any sequence of triggers at all."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.STARTING
        self.ended: State | None = None

    @rule(trigger=st.sampled_from(Trigger))
    def pull(self, trigger: Trigger) -> None:
        before = self.state
        try:
            self.state = transition(before, trigger)
        except LocalProtocolError:
            assert trigger not in TRANSITIONS[before]
        else:
            assert (before.value, self.state.value) in WIRE
        if self.state.terminal and self.ended is None:
            self.ended = self.state

    @invariant()
    def over_stays_over(self) -> None:
        assert self.ended in {None, self.state}


TestSession = Session.TestCase
