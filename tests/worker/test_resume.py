"""Revision 2 of the link: sessions outlive the connection of a broker that resumes, for as long as their lease."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.real_client import check_stream
from tests.support import NAME_PROCESS, Client, client_of, new_name, processes_named, running, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enclave_worker.runtime import RuntimeWorker

WELCOME = {"type": "welcome", "revision": 2, "brokerId": "b_1"}


@contextlib.asynccontextmanager
async def broker_of(worker: RuntimeWorker, broker_id: str = "b_1") -> AsyncIterator[Client]:
    """Connect as a broker that resumes does."""
    async with client_of(worker.url) as client:
        await client.send({**WELCOME, "brokerId": broker_id})
        yield client


async def attach(client: Client, session_id: str, from_seq: int) -> None:
    await client.send({"type": "attach", "sessionId": session_id, "fromSeq": from_seq})


async def ack(client: Client, session_id: str, seq: int) -> None:
    await client.send({"type": "ack", "seqs": {session_id: seq}})


async def kept(worker: RuntimeWorker) -> list[dict[str, Any]]:
    """Return what a worker tells whoever connects now that it keeps."""
    async with client_of(worker.url) as client:
        sessions: list[dict[str, Any]] = client.hello.get("sessions", [])
        return sessions


async def test_a_session_goes_on_where_its_cut_connection_left_off(worker: RuntimeWorker) -> None:
    async with broker_of(worker) as first:
        session = await first.start("print('one', flush=True)\nx = await call_tool('ask')\nprint('two')\nreturn x")
        call = await first.until(session, "tool_call")
        before = first.lines[session]
        first.socket.transport.abort()

    async with broker_of(worker) as second:
        last = len(before)
        assert second.hello["sessions"] == [{"sessionId": session, "firstSeq": 1, "lastSeq": last}]
        await attach(second, session, last + 1)
        await second.answer(session, call["callId"], "answered")
        run = await second.finish(session, first_seq=last + 1)

        assert run.final["result"] == "answered"
        check_stream([*before, *second.lines[session]])
        await ack(second, session, run.events[-1]["seq"])
        await second.ping()
    assert await kept(worker) == []


async def test_what_was_not_acknowledged_is_sent_again_byte_for_byte(worker: RuntimeWorker) -> None:
    async with broker_of(worker) as first:
        session = await first.start("for n in range(50): print('line', n, flush=True)\nreturn list(range(100))")
        await first.finish(session)
        sent = first.lines[session]
        await ack(first, session, 2)
        await first.ping()
        first.socket.transport.abort()

    async with broker_of(worker) as second:
        assert second.hello["active"] == 0
        await attach(second, session, 3)
        await second.finish(session, first_seq=3)

    assert second.lines[session] == sent[2:]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown session": ({"type": "attach", "sessionId": "s_no"}, "sessionId"),
    "a number that is not kept any more": ({"type": "attach", "sessionId": "s_cut", "fromSeq": 1}, "fromSeq"),
    "a number that is not the next": ({"type": "attach", "sessionId": "s_cut", "fromSeq": 100}, "fromSeq"),
    "an ack of what was never sent": ({"type": "ack", "seqs": {"s_cut": 100}}, "seqs.s_cut"),
    "a second welcome": (WELCOME, "type"),
    "an id that is kept": ({"type": "execute", "sessionId": "s_cut", "code": ""}, "sessionId"),
}


@pytest.mark.parametrize(("message", "field"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_resumed_is_refused_by_name(
    worker: RuntimeWorker, message: dict[str, Any], field: str
) -> None:
    async with broker_of(worker) as first:
        await first.start("return 1", session_id="s_cut")
        await first.finish("s_cut")
        await ack(first, "s_cut", 1)
        await first.ping()

    async with broker_of(worker) as second:
        refused = await second.rejection(message)

        assert refused["payload"]["field"] == field
        await attach(second, "s_cut", 2)
        await second.finish("s_cut", first_seq=2)


async def test_a_broker_that_was_not_welcomed_to_it_resumes_nothing(client: Client) -> None:
    refused = await client.rejection({**WELCOME, "revision": 3})
    assert refused["payload"]["field"] == "revision"

    for message in ({"type": "ack", "seqs": {}}, {"type": "drain"}):
        refused = await client.rejection(message)
        assert refused["payload"]["field"] == "type"


async def test_a_session_is_stolen_from_a_connection_that_still_has_it(worker: RuntimeWorker) -> None:
    async with broker_of(worker) as first, broker_of(worker, "b_2") as second:
        session = await first.start("x = await call_tool('ask')\nprint('stolen')\nreturn x")
        call = await first.until(session, "tool_call")

        await attach(second, session, 1)
        await second.until(session, "tool_call")
        await second.answer(session, call["callId"], 7)
        run = await second.finish(session)
        await first.ping()
        await ack(first, session, run.events[-1]["seq"])  # no longer its to acknowledge
        await first.ping()

        assert [event["type"] for event in first.events(session)] == ["session_init", "tool_call"]
        assert [each["sessionId"] for each in await kept(worker)] == [session]


@pytest.mark.usefixtures("no_leaks")
async def test_sessions_that_nobody_attaches_to_are_killed_when_their_lease_is_over() -> None:
    name = new_name()
    async with running(lease_s=0.2) as worker:
        cancelled = asyncio.Event()
        worker.on_cancel(lambda *_: cancelled.set())
        async with broker_of(worker) as first:
            session = await first.start(NAME_PROCESS.format(name=name) + "print('up', flush=True)\nwhile True: pass")
            await first.until_written(session, "up")
        with watched(processes_named(name)) as wait_gone:
            await asyncio.to_thread(wait_gone)
        await cancelled.wait()

        assert worker.sessions.active == 0
        await worker.sessions.holdings.wait_empty()
        assert worker.sessions.holdings.budget.used_bytes == 0
