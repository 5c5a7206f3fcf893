"""The queue: who is served next, and who may wait at all."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enclave_broker.placement.fair_queue import FairQueue


def queue_of(*sessions: str, size: int = 100, shared: bool = False) -> FairQueue:
    """Make a queue of sessions such as `a1`: the first of tenant a. Of several needs, as in `a1/data`."""
    queue = FairQueue(size, 1000, shared=shared)
    for session in sessions:
        add(queue, session)
    return queue


def add(queue: FairQueue, session: str, size_bytes: int = 0) -> None:
    queue.add(session, 9, need=session.partition("/")[2], tenant=session[0], size_bytes=size_bytes)


def served(queue: FairQueue, count: int = 100) -> list[str]:
    """Serve whoever is next, whatever they need."""
    order: list[str] = []
    while queue and len(order) < count:
        order.append(queue.heads()[0].session_id)
        queue.serve(order[-1])
    return order


def test_tenants_take_turns_and_each_one_s_sessions_go_in_the_order_they_came() -> None:
    assert served(queue_of("a1", "a2", "a3", "b1", "b2", "c1")) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_was_served_and_comes_again_comes_after_all_who_wait() -> None:
    queue = queue_of("a1", "b1", "b2", "b3")
    order = []
    while queue:
        order += served(queue, 1)
        if order[-1][0] == "a" and len(order) < 5:
            add(queue, f"a{len(order) + 1}")
    assert order == ["a1", "b1", "a2", "b2", "a4", "b3"]


def test_a_tenant_that_waits_for_several_things_has_no_more_turns_than_others() -> None:
    queue = queue_of("a1/x", "a2/y", "a3/x", "a4/y", "b1/x", "b2/y")
    assert served(queue) == ["a1/x", "b1/x", "a2/y", "b2/y", "a3/x", "a4/y"]


def test_what_nobody_can_run_costs_its_tenant_no_turn_of_what_can_be_run() -> None:
    queue = queue_of("a1/none", "a2/none", "b1/x", "a3/x", "b2/x")
    order = []
    for _ in range(3):
        (head,) = [head for head in queue.heads() if head.need == "x"]
        queue.serve(head.session_id)
        order.append(head.session_id)
    assert order == ["a3/x", "b1/x", "b2/x"]


def test_who_comes_back_goes_first_in_the_order_of_coming_back_and_costs_no_turn() -> None:
    queue = queue_of("a1", "b1", "a2")
    queue.add_first("z1", 9, need="", size_bytes=0)
    queue.add_first("z2", 9, need="", size_bytes=0)
    assert [waiting.session_id for waiting in queue.order()] == ["z1", "z2", "a1", "b1", "a2"]
    assert served(queue) == ["z1", "z2", "a1", "b1", "a2"]


def test_only_what_competes_is_counted_before_somebody() -> None:
    queue = queue_of("a1/x", "a2/y", "b1/z")
    assert [waiting.session_id for waiting in queue.order({"x", "z"})] == ["a1/x", "b1/z"]
    assert queue.ahead("c", {"x", "z"}) == 2
    assert queue.count({"x", "y"}) == 2


def test_a_tenant_with_few_is_let_in_where_one_with_many_is_not() -> None:
    queue = queue_of(*(f"a{i}" for i in range(14)), size=16, shared=True)
    assert not queue.fits("a", 0)
    assert queue.fits("b", 0)
    for session in ("b1", "c1"):
        add(queue, session)
    assert not queue.fits("b", 0), "the queue is as long as it gets"


def test_a_tenant_with_the_queue_for_itself_may_fill_it() -> None:
    queue = queue_of(*(f"a{i}" for i in range(15)), size=16)
    assert queue.fits("a", 0)
    add(queue, "a15")
    assert not queue.fits("a", 0)


def test_the_last_bytes_are_kept_for_others_too() -> None:
    queue = queue_of(size=16, shared=True)
    add(queue, "a1", 700)
    add(queue, "a2", 100)
    assert not queue.fits("a", 100)
    assert queue.fits("b", 100)
    assert not queue.fits("b", 201)


def test_whoever_s_time_is_over_is_late() -> None:
    queue = queue_of("a1")
    assert queue.late(8.9) == []
    assert queue.late(9) == ["a1"]


class AnyQueue(RuleBasedStateMachine):
    """Whoever comes and goes: the order told is the order served, and tenants that wait have equal parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(1000, 1000, shared=False)
        self.count = 0
        self.served: dict[str, int] = {}
        """How many of each tenant were served since all those of today wait."""

    @rule(tenant=st.sampled_from("abcd"), need=st.sampled_from("xy"))
    def add(self, tenant: str, need: str) -> None:
        self.count += 1
        session = f"{tenant}{self.count}"
        ahead = self.queue.ahead(tenant, "xy")
        self.queue.add(session, 9, need=need, tenant=tenant, size_bytes=1)
        assert [waiting.session_id for waiting in self.queue.order()].index(session) == ahead
        if tenant not in self.served:
            self.served = dict.fromkeys([*self.served, tenant], 0)

    @rule(need=st.sampled_from("xy"))
    def come_back(self, need: str) -> None:
        self.count += 1
        self.queue.add_first(f"z{self.count}", 9, need=need, size_bytes=1)

    @rule(data=st.data())
    @precondition(lambda self: bool(self.queue))
    def remove(self, data: st.DataObject) -> None:
        waiting = self.queue.remove(data.draw(st.sampled_from(sorted(self.queue))))
        assert waiting is not None
        self._left(waiting.tenant)

    @rule()
    @precondition(lambda self: bool(self.queue))
    def serve(self) -> None:
        head = self.queue.heads()[0]
        assert head == self.queue.order()[0]
        self.queue.serve(head.session_id)
        if head.tenant is not None:
            self.served[head.tenant] += 1
            assert max(self.served.values()) - min(self.served.values()) <= 1, "somebody has had two turns in a round"
        self._left(head.tenant)

    def _left(self, tenant: str | None) -> None:
        waits = {waiting.tenant for waiting in self.queue.order()}
        if tenant not in waits and tenant in self.served:
            del self.served[tenant]

    @invariant()
    def holds(self) -> None:
        self.queue.validate()


TestAnyQueue = AnyQueue.TestCase
TestAnyQueue.settings = settings(max_examples=40)


@pytest.mark.parametrize("tenants", [1, 7])
def test_a_queue_that_has_been_served_keeps_nothing(tenants: int) -> None:
    queue = FairQueue(1000, 1000, shared=False)
    for i in range(100):
        queue.add(f"s{i}", 9, need=str(i % 3), tenant=str(i % tenants), size_bytes=1)
    served(queue)
    queue.validate()
    assert not queue.needs()
    assert queue.size_bytes == 0
