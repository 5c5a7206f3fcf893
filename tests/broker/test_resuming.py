"""What becomes of a session when the connection to its worker breaks: every combination of what both sides know."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from enclave_broker.resuming import (
    MAX_RETRIES,
    Acknowledge,
    Attach,
    Cancelled,
    Discard,
    Known,
    Lose,
    PlaceAgain,
    Release,
    fate_of_leftover,
    fate_on_loss,
    fate_on_refusal,
    fate_on_return,
)
from enclave_protocol import KeptSession


@st.composite
def _known(draw: st.DrawFn) -> Known:
    first_seq, begun = draw(st.integers(2, 5)), draw(st.booleans())
    return Known(
        first_seq=first_seq,
        next_seq=first_seq + (draw(st.integers(1, 5)) if begun else 0),
        live=draw(st.booleans()),
        begun=begun,
        cancelling=draw(st.booleans()),
        may_retry=draw(st.booleans()),
        retries=draw(st.integers(0, MAX_RETRIES)),
    )


@st.composite
def _kept(draw: st.DrawFn) -> KeptSession:
    first_seq = draw(st.integers(1, 12))
    return KeptSession(session_id="s_1", first_seq=first_seq, last_seq=first_seq - 1 + draw(st.integers(0, 8)))


known_sessions, kept_sessions = _known(), _kept()
NEW = Known(first_seq=2, next_seq=2, live=True, begun=False, cancelling=False, may_retry=False)


@given(known=known_sessions, kept=st.none() | kept_sessions, same=st.booleans())
def test_a_session_that_has_ended_here_is_never_run_or_ended_again(
    *, known: Known, kept: KeptSession | None, same: bool
) -> None:
    fate = fate_on_return(replace(known, live=False), kept, same_instance=same)
    assert isinstance(fate, Discard | Release)
    assert fate_on_loss(replace(known, live=False)) == Release()


@given(known=known_sessions, kept=st.none() | kept_sessions, same=st.booleans(), has_it=st.booleans())
def test_a_session_with_an_event_of_its_worker_is_never_run_again(
    *, known: Known, kept: KeptSession | None, same: bool, has_it: bool
) -> None:
    assume(known.begun)
    fates = (
        fate_on_return(known, kept, same_instance=same),
        fate_on_loss(known),
        fate_on_refusal(known, has_it=has_it),
    )
    assert not any(isinstance(fate, PlaceAgain) for fate in fates)


@given(known_sessions, st.none() | kept_sessions)
def test_a_session_that_its_worker_may_have_is_not_placed_again_on_its_return(
    known: Known, kept: KeptSession | None
) -> None:
    assert not isinstance(fate_on_return(known, kept, same_instance=True), PlaceAgain)


@given(known_sessions, kept_sessions)
def test_a_session_goes_on_exactly_if_its_worker_has_the_next_event_or_the_place_for_it(
    known: Known, kept: KeptSession
) -> None:
    assume(known.live)
    fate = fate_on_return(known, kept, same_instance=True)
    if kept.first_seq <= known.next_seq <= kept.last_seq + 1:
        assert fate == Attach(known.next_seq, kept.last_seq)
    else:
        assert isinstance(fate, Lose)


@given(known_sessions, kept_sessions)
def test_what_is_discarded_is_asked_for_from_an_event_that_is_kept_or_next(known: Known, kept: KeptSession) -> None:
    fates = [
        fate_on_return(replace(known, live=False), kept, same_instance=True),
        fate_of_leftover(kept, known=True, ended_at=None),
    ]
    for fate in fates:
        assert isinstance(fate, Discard)
        assert kept.first_seq <= fate.from_seq <= kept.last_seq + 1


@given(known_sessions)
def test_a_lost_session_is_run_again_only_if_that_does_no_harm_and_not_for_ever(known: Known) -> None:
    fate = fate_on_loss(known)
    harmless = known.live and not known.begun and not known.cancelling and known.may_retry
    assert isinstance(fate, PlaceAgain) == (harmless and known.retries < MAX_RETRIES)
    assert not isinstance(fate, PlaceAgain) or fate.counts


@given(known_sessions, st.none() | kept_sessions)
def test_another_instance_has_nothing_of_the_one_before(known: Known, kept: KeptSession | None) -> None:
    assert fate_on_return(known, kept, same_instance=False) == fate_on_loss(known)


@given(known=known_sessions, has_it=st.booleans())
def test_a_session_that_is_to_be_cancelled_is_run_by_nobody_else(*, known: Known, has_it: bool) -> None:
    known = replace(known, cancelling=True)
    assert not isinstance(fate_on_loss(known), PlaceAgain)
    assert not isinstance(fate_on_refusal(known, has_it=has_it), PlaceAgain)


@pytest.mark.parametrize(
    ("known", "has_it", "fate"),
    [
        (NEW, False, PlaceAgain(counts=False)),
        (replace(NEW, retries=MAX_RETRIES), False, PlaceAgain(counts=False)),
        (replace(NEW, cancelling=True), False, Cancelled()),
        (replace(NEW, live=False), False, Release()),
        (replace(NEW, begun=True, next_seq=4), False, Lose("it no longer has the session")),
        (replace(NEW, begun=True, next_seq=4), True, Lose("its events from 4 on are no longer kept there")),
    ],
)
def test_a_refusal_proves_that_the_session_never_arrived_if_nothing_was_heard_of_it(
    *, known: Known, has_it: bool, fate: object
) -> None:
    assert fate_on_refusal(known, has_it=has_it) == fate


def test_what_hello_does_not_list_may_arrive_at_this_moment_so_the_worker_is_asked() -> None:
    assert fate_on_return(NEW, None, same_instance=True) == Attach(2, 1)
    assert fate_on_return(replace(NEW, live=False), None, same_instance=True) == Discard(2)
    assert isinstance(fate_on_return(replace(NEW, begun=True, next_seq=4), None, same_instance=True), Lose)


def test_a_session_that_nobody_here_knows_may_be_another_brokers_and_is_left_alone() -> None:
    kept = KeptSession(session_id="s_1", first_seq=3, last_seq=7)
    assert fate_of_leftover(kept, known=False, ended_at=None) is None
    assert fate_of_leftover(kept, known=True, ended_at=7) == Acknowledge(7)
    assert fate_of_leftover(kept, known=True, ended_at=5) == Discard(7)
