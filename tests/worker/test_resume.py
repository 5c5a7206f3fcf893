"""Revision 2 of the link: sessions outlive the connection of a broker that resumes, for as long as their lease."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.real_client import check_stream
from tests.support import NAME_PROCESS, PATIENCE_S, Client, client_of, new_name, processes_named, running, watched

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
async def test_metrics_tell_what_waits_for_a_broker_and_what_none_came_for() -> None:
    async with running(lease_s=0.2) as worker:
        # As soon as the connection is over: the lease may be, before we are asked to look.
        detached: list[float | None] = []
        worker.on_disconnect(lambda _: detached.append(sample(worker, "enclave_sessions_detached")))
        async with broker_of(worker) as first:
            session = await first.start("return await call_tool('ask')")
            await first.until(session, "tool_call")
            size = sum(map(len, first.lines[session]))
            assert sample(worker, "enclave_events_kept_bytes") == size
            assert sample(worker, "enclave_sessions_detached") == 0
        await worker.sessions.holdings.wait_empty()
        assert detached == [1]

        assert sample(worker, "enclave_leases_expired_total") == 1
        assert sample(worker, "enclave_events_kept_bytes") == sample(worker, "enclave_sessions_detached") == 0


def sample(worker: RuntimeWorker, name: str) -> float | None:
    return worker.metrics.registry.get_sample_value(name)


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


# One connection of each broker.


async def test_the_newer_connection_of_a_broker_closes_the_older_one_unread(worker: RuntimeWorker) -> None:
    async with broker_of(worker) as older, broker_of(worker) as newer:
        await newer.ping()
        with contextlib.suppress(ConnectionClosed):
            await older.start("return 1", session_id="s_late")
        await older.socket.wait_closed()

        assert (await newer.ping())["active"] == 0
        await newer.start("return 2", session_id="s_late")
        assert (await newer.finish("s_late")).final["result"] == 2


async def test_a_welcome_that_comes_late_closes_its_own_connection_and_steals_nothing(worker: RuntimeWorker) -> None:
    async with client_of(worker.url) as older, broker_of(worker) as newer:
        session = await newer.start("return await call_tool('ask')")
        call = await newer.until(session, "tool_call")
        await older.send(WELCOME)
        with contextlib.suppress(ConnectionClosed):
            await attach(older, session, 1)
        await older.socket.wait_closed()

        await newer.answer(session, call["callId"], "mine")
        assert (await newer.finish(session)).final["result"] == "mine"
        assert older.events(session) == []


@pytest.mark.usefixtures("no_leaks")
async def test_a_brokers_connection_on_which_nothing_comes_is_closed_and_no_clients() -> None:
    async with running(broker_silence_s=0.1) as worker, client_of(worker.url) as other:
        async with broker_of(worker) as silent:
            await silent.socket.wait_closed()

        assert (await other.run("return 'not a broker'")).final["ok"]


# Bounds.

FLOOD = "import os\nfor n in range({pieces}): os.write(1, b'x' * 65536)\nreturn 'all written'"


@pytest.mark.usefixtures("no_leaks")
async def test_a_guest_waits_when_too_much_of_its_output_is_not_acknowledged_and_loses_nothing() -> None:
    async with running(kept_session_bytes=256 * 1024) as worker:
        async with broker_of(worker) as client:
            session = await client.start(FLOOD.format(pieces=100), maxStdoutBytes=100 << 20)
            while not worker.sessions.holdings.waiting:
                await client.recv()
            budget = worker.sessions.holdings.budget
            assert budget.used_bytes < 1 << 20
            client.socket.transport.abort()
            seen = len(client.lines[session])

        async with broker_of(worker) as client:
            assert client.hello["sessions"][0]["lastSeq"] >= seen
            await attach(client, session, 1)
            message: dict[str, Any] = {}
            while message.get("type") != "final":
                message = await client.recv()
                if message.get("seq", 0) >= seen:  # not one before: the buffer is full all along
                    await ack(client, session, message["seq"])
            run = await client.finish(session)
            await client.ping()

            assert run.final["result"] == "all written"
            assert len(run.text("stdout")) == 100 * 65536
            assert (budget.used_bytes, len(worker.sessions.holdings)) == (0, 0)


@pytest.mark.usefixtures("no_leaks")
async def test_a_broker_that_acknowledges_nothing_gets_no_more_sessions_and_others_go_on() -> None:
    async with running(kept_sessions=3) as worker, broker_of(worker) as greedy, client_of(worker.url) as other:
        for _ in range(3):
            assert (await greedy.run("return 1")).final["ok"]
        await greedy.send({"type": "execute", "sessionId": "s_4", "code": "", "firstSeq": 2})
        refused = await greedy.finish("s_4", first_seq=2)
        assert (refused.code, "acknowledge" in refused.final["error"]["message"]) == ("NO_CAPACITY", True)
        assert (await other.run("return 1")).final["ok"]

        sessions = worker.sessions.holdings.listed()
        await greedy.send({"type": "ack", "seqs": {each.session_id: each.last_seq for each in sessions}})
        assert (await greedy.run("return 1")).final["ok"]


# Drain.


@pytest.mark.usefixtures("no_leaks")
async def test_a_broker_can_drain_a_worker_which_then_waits_for_its_sessions_and_their_acknowledgement() -> None:
    async with running() as worker, broker_of(worker) as client, broker_of(worker, "b_2") as other:
        session = await other.start("return await call_tool('ask')")
        call = await other.until(session, "tool_call")
        await client.send({"type": "drain", "reason": "an upgrade"})
        told = await other.recv()
        assert (told["type"], told["reason"]) == ("drain", "a broker said so: an upgrade")
        drained = asyncio.create_task(worker.wait_drained())

        assert (await other.ping())["draining"]
        await client.send({"type": "execute", "sessionId": "s_late", "code": "", "firstSeq": 2})
        assert (await client.finish("s_late", first_seq=2)).code == "NO_CAPACITY"
        await other.answer(session, call["callId"], "finished")
        run = await other.finish(session)
        assert run.final["result"] == "finished"
        await other.ping()
        assert not drained.done(), "nobody has acknowledged the final"
        await ack(other, session, run.events[-1]["seq"])
        await drained


@pytest.mark.usefixtures("no_leaks")
async def test_a_draining_worker_is_done_when_the_lease_of_what_was_detached_is_over() -> None:
    async with running(lease_s=0.2) as worker:
        async with broker_of(worker) as client:
            session = await client.start("return await call_tool('ask')")
            await client.until(session, "tool_call")
        worker.drain()
        await worker.wait_drained()

        assert worker.sessions.active == 0


@pytest.mark.usefixtures("no_leaks")
async def test_a_worker_that_stops_waits_for_the_acknowledgement_of_what_it_said_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("enclave_worker.connection._FLUSH_S", PATIENCE_S)
    async with running() as worker, broker_of(worker) as client:
        session = await client.start("return await call_tool('ask')")
        await client.until(session, "tool_call")
        stopping = asyncio.create_task(worker.stop())
        run = await client.finish(session)
        assert run.code == "WORKER_LOST"
        assert not stopping.done()
        await ack(client, session, run.events[-1]["seq"])
        await stopping
