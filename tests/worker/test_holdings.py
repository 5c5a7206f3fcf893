"""Who has a session that may outlive its connection, and when its lease is over: without a sandbox or a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclave_protocol import RemoteProtocolError, SessionId
from enclave_worker.config import RuntimeConfig
from enclave_worker.holdings import Holding, Holdings
from enclave_worker.metrics import WorkerMetrics
from tests.worker.guest_socket import Lines

LEASE_S = 0.02


class Ends:
    """What a worker does when a lease is over: the session ends and says so."""

    def __init__(self, **settings: Any) -> None:
        self.holdings = Holdings(RuntimeConfig(lease_s=LEASE_S, **settings), WorkerMetrics(), self._end)
        self.held: dict[str, Holding] = {}
        self.over: dict[str, asyncio.Event] = {}

    def start(self, name: str, sink: Lines) -> Holding:
        holding = self.held[name] = self.holdings.hold(SessionId(name), sink, 1)
        self.over[name] = asyncio.Event()
        holding.deliver(b"first")
        return holding

    def finish(self, name: str) -> None:
        self.held[name].deliver(b"final")
        self.holdings.ended(self.held[name])

    def _end(self, session_id: SessionId, reason: str) -> None:
        assert "no broker" in reason
        self.over[session_id].set()
        self.finish(session_id)


@pytest.fixture
async def ends() -> Ends:
    return Ends()


async def test_a_session_that_ends_while_it_is_detached_has_a_lease_of_its_own_from_then_on(ends: Ends) -> None:
    cut, back = Lines(), Lines()
    ends.start("s_ended", cut)
    ends.start("s_other", cut)
    ends.holdings.detach(cut)
    ends.finish("s_ended")
    ends.holdings.attach("s_ended", 1, back)

    await ends.over["s_other"].wait()

    assert back.lines == [b"first", b"final"]
    assert "s_ended" in ends.holdings, "attached, it is kept until it is acknowledged"
    ends.holdings.ack({"s_ended": 2}, back)
    await ends.holdings.wait_empty()
    assert ends.holdings.budget.used_bytes == 0


async def test_a_session_that_is_attached_has_left_the_lease(ends: Ends) -> None:
    cut, back = Lines(), Lines()
    ends.start("s_back", cut)
    ends.start("s_other", cut)
    ends.holdings.detach(cut)
    ends.holdings.attach("s_back", 2, back)

    await ends.over["s_other"].wait()

    assert not ends.over["s_back"].is_set()
    assert ends.holdings.detached == 1
    ends.held["s_back"].deliver(b"second")
    assert back.lines == [b"second"]
    ends.holdings.close()


async def test_what_ended_is_kept_for_a_lease_after_its_end_and_then_dropped(ends: Ends) -> None:
    cut = Lines()
    ends.start("s_ended", cut)
    ends.finish("s_ended")
    ends.holdings.detach(cut)
    assert [(each.first_seq, each.last_seq) for each in ends.holdings.listed()] == [(1, 2)]

    await ends.holdings.wait_empty()

    assert not ends.over["s_ended"].is_set()
    with pytest.raises(RemoteProtocolError) as refused:
        ends.holdings.attach("s_ended", 1, cut)
    assert refused.value.field == "sessionId"


async def test_an_acknowledgement_of_what_is_not_here_is_passed_over_and_the_others_count(ends: Ends) -> None:
    sink, other = Lines(), Lines()
    for name, its in (("s_above", sink), ("s_others", other), ("s_mine", sink)):
        ends.start(name, its)

    ends.holdings.ack({"s_above": 5, "s_unknown": 1, "s_others": 1, "s_mine": 1}, sink)

    assert [ends.held[name].kept.first_seq for name in ("s_above", "s_others", "s_mine")] == [1, 1, 2]
    ends.holdings.close()


async def test_a_connection_that_has_a_session_can_ask_for_its_events_again(ends: Ends) -> None:
    sink = Lines()
    ends.start("s_again", sink).deliver(b"second")

    ends.holdings.attach("s_again", 2, sink)

    assert sink.lines == [b"first", b"second", b"second"]
    ends.holdings.close()


async def test_a_congested_connection_holds_its_guests_up_until_it_drains_or_is_gone() -> None:
    ends, slow, other = Ends(), Lines(), Lines()
    went_on: list[str] = []
    for name, sink in (("s_1", slow), ("s_2", slow), ("s_3", other)):
        holding = ends.start(name, sink)
        holding.on_room = lambda name=name: went_on.append(name)  # type: ignore[misc]
    slow.congested = True
    for name in ("s_1", "s_2", "s_3"):
        ends.held[name].deliver(b"more")
    assert [ends.held[name].congested for name in ("s_1", "s_2", "s_3")] == [True, True, False]

    ends.holdings.attach("s_1", 1, other)
    assert went_on == ["s_1"]
    ends.holdings.detach(slow)
    assert went_on == ["s_1", "s_2"]
    ends.holdings.close()


async def test_one_session_that_lets_go_of_much_has_those_go_on_that_waited_for_the_room_of_all() -> None:
    ends, sink = Ends(kept_bytes=1000, kept_session_bytes=900, max_sessions=10), Lines()
    large, small = ends.start("s_large", sink), ends.start("s_small", sink)
    went_on: list[str] = []
    large.on_room, small.on_room = lambda: went_on.append("s_large"), lambda: went_on.append("s_small")
    large.deliver(b"x" * 600)
    small.deliver(b"x" * 100)
    assert (large.full, small.full) == (True, True)

    ends.holdings.ack({"s_large": 2}, sink)

    assert went_on == ["s_large", "s_small"]
    assert not small.congested
    ends.holdings.close()
