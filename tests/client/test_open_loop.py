"""Requests that are due whatever became of earlier ones, and what is counted of them."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics

import pytest

from enclave_client.bench.load import SUM, Load
from enclave_client.bench.open_loop import Answer, OpenLoop, Outcome, Sessions, arrivals, closed_rate
from tests.client.fake_broker import FakeBroker, Stream


class Gate:
    """A target that answers nobody until it is opened, and then everybody."""

    def __init__(self, opens_at: int) -> None:
        self.asked = 0
        self._opens_at = opens_at
        self._open = asyncio.Event()

    async def ask(self) -> Answer:
        self.asked += 1
        if self.asked == self._opens_at:
            self._open.set()
        await self._open.wait()
        return Answer.ACCEPTED


def test_arrivals_come_at_the_rate_asked_for_and_by_the_seed() -> None:
    first = list(arrivals(1000, 20, random.Random(1)))

    assert first == list(arrivals(1000, 20, random.Random(1)))
    assert first != list(arrivals(1000, 20, random.Random(2)))
    assert first == sorted(first)
    assert 0 < first[0] < first[-1] < 20
    assert len(first) == pytest.approx(20_000, rel=0.05)


def test_arrivals_are_independent_as_those_of_many_clients_are() -> None:
    due_s = list(arrivals(1000, 20, random.Random(1)))
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(due_s)]
    # Of a Poisson process, the gaps' deviation is their mean; of a metronome, it would be zero.
    assert statistics.stdev(gaps_s) == pytest.approx(statistics.fmean(gaps_s), rel=0.05)


async def test_nobody_waits_for_the_answer_to_an_earlier_request_and_the_wait_is_counted() -> None:
    due = list(arrivals(400, 0.25, random.Random(7)))
    gate = Gate(opens_at=len(due))  # a closed loop would wait here for ever
    outcome = Outcome()

    await OpenLoop(gate, 7).run(400, 0.25, outcome, settle_s=0.0)

    assert gate.asked == len(outcome.accepted_ms) == len(due)
    # All were answered when the last one was asked: each took at least from when it was due until the last was.
    waits_ms = [(due[-1] - each) * 1000 for each in due]
    assert all(took_ms >= wait_ms for took_ms, wait_ms in zip(sorted(outcome.accepted_ms), waits_ms[::-1], strict=True))


async def test_what_is_asked_while_the_load_takes_hold_is_not_counted() -> None:
    due = list(arrivals(400, 0.5, random.Random(7)))
    outcome = Outcome()

    await OpenLoop(Gate(opens_at=1), 7).run(400, 0.25, outcome, settle_s=0.25)

    assert outcome.seconds == 0.25
    assert len(outcome.accepted_ms) == sum(each >= 0.25 for each in due)
    assert outcome.rate == len(outcome.accepted_ms) / 0.25


async def test_who_is_overdue_when_the_loop_comes_to_it_counts_as_late_too() -> None:
    due = list(arrivals(20_000, 0.02, random.Random(7)))  # closer to each other than a timer resolves
    outcome = Outcome()

    await OpenLoop(Gate(opens_at=1), 7).run(20_000, 0.02, outcome, settle_s=0.0)

    assert len(outcome.late_ms) == len(outcome.accepted_ms) == len(due)
    assert min(outcome.late_ms) >= 0


async def test_a_closed_loop_asks_as_often_as_it_is_told() -> None:
    gate = Gate(opens_at=4)

    assert await closed_rate(gate, 10, 4) > 0
    assert gate.asked == 10


class Failing:
    """A target that never answers well, and is quick about it."""

    async def ask(self) -> Answer:
        return Answer.FAILED


async def test_what_fails_is_no_capacity() -> None:
    assert await closed_rate(Failing(), 10, 4) == 0


async def test_sessions_are_accepted_or_refused_or_failed() -> None:
    async def script(broker: FakeBroker, stream: Stream) -> None:
        number = len(broker.requests)
        broker.cut = number == 2
        if number == 1:
            await stream.send(b'{"payload":{"ok":true,"result":2}}\n')
        elif number == 3:
            await stream.answer("503 Service Unavailable", b"{}", "application/json\r\nRetry-After: 1")
        elif number == 4:
            await stream.answer("503 Service Unavailable", b"{}")

    async with FakeBroker(script).serving() as broker:
        load = Load(broker.url)
        # The fake hangs up after each answer: who has a connection of its own never meets one that is just going.
        answers = [await Sessions(load, SUM).ask() for _ in range(4)]

    # A refusal that does not say when to come back is none.
    assert answers == [Answer.ACCEPTED, Answer.FAILED, Answer.REFUSED, Answer.FAILED]
    assert (load.sessions, load.failed) == (4, 2)
