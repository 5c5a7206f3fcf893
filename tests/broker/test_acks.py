"""Acknowledgements: few messages, and never for what is not kept for good."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from enclave_broker.acks import ACK_BYTES, Acks
from enclave_broker.event_log import EventLog
from enclave_broker.sessions import BrokerSession
from enclave_protocol import Code, Execute, Limits, peek


class _SlowLog(EventLog):
    """A log whose lines are stored when the test says so."""

    stored_to = 1

    @property
    def end_seq(self) -> int:
        return min(self.stored_to, self.next_seq)


class _Worker:
    """The other end: what it was told."""

    def __init__(self) -> None:
        self.acks: list[dict[str, int]] = []
        self.told = asyncio.Event()

    def send(self, message: bytes) -> None:
        self.acks.append(json.loads(message)["seqs"])
        self.told.set()

    async def wait_told(self) -> dict[str, int]:
        async with asyncio.timeout(60):
            await self.told.wait()
        self.told.clear()
        return self.acks[-1]


def session_of(session_id: str, log: EventLog | None = None) -> BrokerSession:
    request = Execute(session_id=session_id, code="1")
    return BrokerSession(session_id, request, Limits(), now=0.0, wall=0.0, log=log or EventLog(10_000_000))


def take_in(session: BrokerSession, count: int) -> None:
    for _ in range(count):
        payload: dict[str, Any] = {"chunk": "x"}
        event = {"protocolVersion": 2, "sessionId": session.session_id, "seq": session.log.next_seq, "type": "stdout"}
        line = json.dumps({**event, "payload": payload}).encode()
        session.accept(peek(line), line, 1.0)


async def test_one_message_acknowledges_what_several_sessions_have() -> None:
    worker, first, second = _Worker(), session_of("s_1"), session_of("s_2")
    acks = Acks(worker.send)
    for session in (first, second, first):
        take_in(session, 2)
        acks.kept(session, 100)
    acks.dropped("s_3", 7, 100)
    assert await worker.wait_told() == {"s_1": 5, "s_2": 3, "s_3": 7}
    assert len(worker.acks) == 1


async def test_much_at_once_is_acknowledged_at_once() -> None:
    worker, session = _Worker(), session_of("s_1")
    acks = Acks(worker.send)
    take_in(session, 1)
    acks.kept(session, 1)
    acks.kept(session, ACK_BYTES)
    assert worker.acks == [{"s_1": 2}]


async def test_what_is_not_stored_is_not_acknowledged_until_it_is() -> None:
    log = _SlowLog(1_000_000)
    worker, session = _Worker(), session_of("s_1", log)
    acks = Acks(worker.send)
    take_in(session, 4)
    log.stored_to = 4
    acks.kept(session, 100)
    assert await worker.wait_told() == {"s_1": 3}
    log.stored_to = 100
    assert await worker.wait_told() == {"s_1": 5}


async def test_the_brokers_own_final_is_no_event_of_the_workers() -> None:
    worker, session = _Worker(), session_of("s_1")
    acks = Acks(worker.send)
    take_in(session, 2)
    acks.kept(session, 100)
    session.end(Code.DEADLINE_EXCEEDED, "late", 2.0)
    assert await worker.wait_told() == {"s_1": 3}


async def test_a_session_can_have_its_ack_at_once_and_a_link_that_is_down_says_nothing() -> None:
    worker, session = _Worker(), session_of("s_1")
    acks = Acks(worker.send)
    take_in(session, 1)
    acks.kept(session, 100)
    acks.flush("s_other")
    assert worker.acks == []
    acks.flush("s_1")
    assert worker.acks == [{"s_1": 2}]
    acks.kept(session, 100)
    acks.clear()
    acks.flush("s_1")
    assert len(worker.acks) == 1
