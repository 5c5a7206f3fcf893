"""A broker that keeps its sessions in a file, stopped or killed, and the one that is started after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from enclave_broker import create_broker
from enclave_broker.store.database import Database
from enclave_broker.tools import Tool, ToolPolicy, ToolRegistry
from enclave_broker.tools.sources.watched import WatchedSource
from tests.broker.conftest import FAST, Fleet
from tests.broker.http.test_encrypted import Client
from tests.fakes import FakeSession, waits_for_cancel
from tests.plain_http import NO_AUTHORITIES
from tests.resuming_worker import ResumingWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from enclave_broker.sessions import BrokerSession

Events = list[dict[str, Any]]


@contextlib.asynccontextmanager
async def broker_on(
    path: Path, worker: ResumingWorker, *, alone: bool = False, **settings: Any
) -> AsyncIterator[Fleet]:
    """Run a broker on a file, and stop it as SIGTERM does. Alone: without waiting for the worker."""
    settings = FAST | settings
    broker = create_broker(runtimes=[worker.url], store=f"sqlite:{path / 'broker.sqlite'}", **settings)
    async with broker, httpx.AsyncClient(base_url=broker.url, timeout=60, verify=NO_AUTHORITIES) as http:
        running = Fleet(broker, [worker], http)
        await running.wait_workers(0 if alone else 1)
        yield running
        broker.dispatcher.validate()


async def told(running: Fleet, session_id: str, until: str, **body: Any) -> Events:
    """Post a session and read its events up to one of some type; then leave."""
    found: Events = []
    async with running.http.stream("POST", "/sessions", json={"code": "1", "sessionId": session_id, **body}) as stream:
        async for line in stream.aiter_lines():
            found.append(json.loads(line))
            if found[-1]["type"] == until:
                return found
    raise AssertionError(f"no {until} came")


async def rest(running: Fleet, session_id: str, seen: Events = ()) -> Events:  # type: ignore[assignment]
    """Read a session's events from where a client was, to the end."""
    response = await running.http.get(f"/sessions/{session_id}/stream", params={"fromSeq": len(seen) + 1})
    assert response.status_code == 200, response.text
    events = [*seen, *(json.loads(line) for line in response.text.splitlines())]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events].count("final") == 1
    return events


def outcome(events: Events) -> str:
    final = events[-1]["payload"]
    return "ok" if final["ok"] else str(final["error"]["code"])


def printing(gate: asyncio.Event) -> Callable[[FakeSession], Any]:
    async def script(session: FakeSession) -> None:
        await session.stdout("before\n")
        await gate.wait()
        await session.stdout("after\n")
        await session.final(7)

    return script


async def test_a_running_session_goes_on_under_the_next_broker_and_its_stream_with_it(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with ResumingWorker(printing(gate)) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout")
        gate.set()
        await worker.wait_present("s_1", over=True)
        async with broker_on(tmp_path, worker) as running:
            events = await rest(running, "s_1", seen)
            assert [event["type"] for event in events] == ["session_init", "stdout", "stdout", "final"]
            assert events[-1]["payload"]["result"] == 7
            await worker.wait_kept(0)
            info = (await running.http.get("/sessions/s_1")).json()
            assert (info["state"], info["outcome"], info["worker"], info["lastSeq"]) == ("completed", "ok", "fake", 4)
        assert len(await worker.wait_received("execute")) == 1


async def test_a_session_goes_on_where_its_worker_is_found_by_another_name(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with ResumingWorker(printing(gate)) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout")
        broker = create_broker(runtimes=[worker.url + "?other"], store=f"sqlite:{tmp_path / 'broker.sqlite'}", **FAST)
        async with broker, httpx.AsyncClient(base_url=broker.url, timeout=60, verify=NO_AUTHORITIES) as http:
            running = Fleet(broker, [worker], http)
            await running.wait_workers(1)
            broker.dispatcher.validate()
            assert broker.dispatcher.placer.statistics().away == 0
            assert not broker.dispatcher.fleet.absences._timers
            gate.set()
            assert outcome(await rest(running, "s_1", seen)) == "ok"
    assert len(await worker.wait_received("execute")) == 1


async def test_a_reader_is_sent_away_by_a_broker_that_stops_and_never_told_an_end(tmp_path: Path) -> None:
    lines: list[str] = []

    async def read(running: Fleet) -> None:
        async with running.http.stream("POST", "/sessions", json={"code": "1"}) as stream:
            async for line in stream.aiter_lines():
                lines.append(line)  # noqa: PERF401 - it is looked at meanwhile

    async with ResumingWorker(waits_for_cancel) as worker, broker_on(tmp_path, worker) as running:
        reading = asyncio.create_task(read(running))
        await running.wait_until(lambda: len(lines) == 2)
        await running.broker.stop()
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await reading
    assert [json.loads(line)["type"] for line in lines] == ["session_init", "stdout"]


async def test_who_waits_for_a_final_that_is_not_written_yet_is_not_told_that_it_was_seen(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with ResumingWorker(printing(gate)) as worker, broker_on(tmp_path, worker) as running:
        seen = await told(running, "s_1", "stdout")
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        other = sqlite3.connect(tmp_path / "broker.sqlite", isolation_level=None, timeout=60)
        other.execute("BEGIN IMMEDIATE")
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(session.log.end_seq - 1)}
        gate.set()
        while session.live:  # noqa: ASYNC110 - its end is no event of anybody's, for it is not written
            await asyncio.sleep(0)
        async with running.http.stream("GET", "/sessions/s_1/stream", headers=headers) as stream:
            assert stream.status_code == 200
            other.execute("ROLLBACK")
            other.close()
            assert "event: final" in (await stream.aread()).decode()
        assert outcome(await rest(running, "s_1", seen)) == "ok"


async def test_a_socket_is_closed_by_a_broker_that_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    async with (
        ResumingWorker(waits_for_cancel) as worker,
        broker_on(tmp_path, worker) as running,
        connect(running.broker.url.replace("http", "ws") + "/ws") as socket,
    ):
        await socket.send(json.dumps({"type": "execute", "sessionId": "s_1", "code": "1"}))
        kinds = [json.loads(await socket.recv())["type"] for _ in range(3)]
        await running.broker.stop()
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert kinds == ["hello", "session_init", "stdout"]
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert "attach each session from the seq you have, plus 1" in closed.value.rcvd.reason


async def test_a_finished_session_is_read_and_recognised_by_the_next_broker(tmp_path: Path) -> None:
    body = {"code": "print(1)", "sessionId": "s_1"}
    async with ResumingWorker() as worker:
        async with broker_on(tmp_path, worker) as running:
            first = await running.http.post("/sessions", json=body)
            before = (await running.http.get("/sessions/s_1")).json()
        async with broker_on(tmp_path, worker) as running:
            assert (await running.http.get("/sessions/s_1/stream")).content == first.content
            again = await running.http.post("/sessions", json=body)
            assert (again.content, again.headers["x-enclave-replayed"]) == (first.content, "true")
            after = (await running.http.get("/sessions/s_1")).json()
            assert abs(after.pop("createdAt") - before.pop("createdAt")) <= 1
            assert after == before
        async with broker_on(tmp_path, worker, retain_s=0.0) as running:
            assert (await running.http.get("/sessions/s_1")).status_code == 404
        assert len(await worker.wait_received("execute")) == 1


async def test_waiting_sessions_wait_again_in_their_order(tmp_path: Path) -> None:
    async with ResumingWorker(max_sessions=1) as worker:
        await worker.stop()
        seen = {}
        async with broker_on(tmp_path, worker, alone=True) as running:
            for i in range(4):
                seen[f"s_{i}"] = await told(running, f"s_{i}", "session_init", code=str(i), env={"N": "1"})
        await worker.start()
        async with broker_on(tmp_path, worker, alone=True) as running:
            for session_id, events in seen.items():
                assert outcome(await rest(running, session_id, events)) == "ok"
        executes = await worker.wait_received("execute", 4)
        assert [execute["code"] for execute in executes] == ["0", "1", "2", "3"]
        assert executes[0]["env"] == {"N": "1"}


async def test_the_time_without_a_broker_counts_for_a_session_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ResumingWorker() as worker:
        await worker.stop()
        async with broker_on(tmp_path, worker, alone=True) as running:
            seen = await told(running, "s_1", "session_init")
        wall = time.time
        monkeypatch.setattr("time.time", lambda: wall() + 31)
        async with broker_on(tmp_path, worker, alone=True) as running:
            events = await rest(running, "s_1", seen)
    assert outcome(events) == "NO_CAPACITY"
    assert events[-1]["payload"]["stats"]["queueMs"] >= 31_000


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_session_whose_worker_is_gone_too_is_lost(tmp_path: Path, *, comes_back: bool) -> None:
    async with ResumingWorker(waits_for_cancel) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout")
        await worker.kill()
        if comes_back:
            await worker.start()
        async with broker_on(tmp_path, worker, alone=not comes_back, resume_s=60.0 if comes_back else 0.05) as running:
            assert outcome(await rest(running, "s_1", seen)) == "WORKER_LOST"


async def test_a_session_that_is_long_overdue_ends_however_often_brokers_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ResumingWorker(waits_for_cancel) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout", limits={"deadlineMs": 1000})
        await worker.kill()
        wall = time.time
        monkeypatch.setattr("time.time", lambda: wall() + 32)
        async with broker_on(tmp_path, worker, alone=True, resume_s=3600.0) as running:
            assert outcome(await rest(running, "s_1", seen)) == "DEADLINE_EXCEEDED"


async def test_a_session_that_is_safe_to_retry_and_had_not_begun_runs_elsewhere(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def begins_late(session: FakeSession) -> None:
        await gate.wait()
        await session.final(session.worker.lives)  # type: ignore[attr-defined]

    async with ResumingWorker(begins_late) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "session_init", retry="safe")
            await worker.wait_received("execute")
        await worker.kill()
        await worker.start()
        gate.set()
        async with broker_on(tmp_path, worker) as running:
            events = await rest(running, "s_1", seen)
    assert events[-1]["payload"]["result"] == 2


async def test_an_encrypted_session_ends_because_its_key_is_gone(tmp_path: Path) -> None:
    async with ResumingWorker(waits_for_cancel) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "enc", encryption=Client().body()["encryption"])
        async with broker_on(tmp_path, worker) as running:
            events = await rest(running, "s_1", seen)
            await worker.wait_received("cancel")
    assert outcome(events) == "ENCRYPTION_KEY_EXPIRED"
    assert "keeps no keys" in events[-1]["payload"]["error"]["message"]


async def test_what_may_lack_events_that_were_told_ends_and_says_so(tmp_path: Path) -> None:
    async with ResumingWorker(waits_for_cancel) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout")
        with Database(str(tmp_path / "broker.sqlite")) as database:
            database.mark_unwritten(unwritten=True)  # as when the broker is killed while its disk is full
        async with broker_on(tmp_path, worker) as running:
            events = await rest(running, "s_1", seen)
        async with broker_on(tmp_path, worker) as running:
            assert await rest(running, "s_1") == events
    assert outcome(events) == "INTERNAL_ERROR"
    assert "what happened after event 2 is not known" in events[-1]["payload"]["error"]["message"]


async def test_a_cancel_that_was_promised_is_done_by_the_next_broker(tmp_path: Path) -> None:
    async with ResumingWorker(waits_for_cancel) as worker:
        worker.lose = {"cancel"}
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout")
            assert (await running.http.post("/sessions/s_1/cancel")).json()["success"]
        worker.lose = set()
        async with broker_on(tmp_path, worker) as running:
            assert outcome(await rest(running, "s_1", seen)) == "SESSION_CANCELLED"


async def test_what_waits_for_the_store_when_the_worker_comes_back_does_not_overtake_the_attach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    write = Database.write
    async with ResumingWorker(waits_for_cancel) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout")
        worker.present.clear()
        monkeypatch.setattr(Database, "write", lambda database, batch: may_write.wait(60) and write(database, batch))
        async with broker_on(tmp_path, worker, alone=True) as running:
            cancelling = asyncio.create_task(running.http.post("/sessions/s_1/cancel"))
            session = running.broker.dispatcher.directory.get("s_1")
            assert session is not None
            await running.wait_until(lambda: session.cancelling is not None)
            worker.present.set()
            await running.wait_workers(1)
            may_write.set()
            assert (await cancelling).status_code == 200
            assert outcome(await rest(running, "s_1", seen)) == "SESSION_CANCELLED"


async def test_a_session_that_nobody_comes_back_for_is_given_up(tmp_path: Path) -> None:
    async with ResumingWorker(waits_for_cancel) as worker:
        async with broker_on(tmp_path, worker) as running:
            await told(running, "s_1", "stdout")
        async with broker_on(tmp_path, worker, disconnect_grace_s=0.05) as running:
            await worker.wait_received("cancel")
            events = await rest(running, "s_1")
            assert outcome(events) == "SESSION_CANCELLED", events


async def test_sessions_of_an_earlier_broker_count_for_their_tenant(tmp_path: Path) -> None:
    async with ResumingWorker(waits_for_cancel) as worker:
        async with broker_on(tmp_path, worker) as running:
            await told(running, "s_1", "stdout")
        async with broker_on(tmp_path, worker) as running:
            ledger = running.broker.dispatcher.gate.ledger
            assert ledger.account("default").active == 1
            await running.http.post("/sessions/s_1/cancel")
            await rest(running, "s_1")
            assert ledger.account("default").active == 0


class CallsTools:
    """A guest that calls one tool and returns what came of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.called = asyncio.Event()

    async def __call__(self, session: FakeSession) -> None:
        result = await session.call(self.name, {})
        await session.final(result["value"] if result["success"] else result["error"]["message"])


def registry(started: asyncio.Event, *, retryable: bool, answer: str = "") -> ToolRegistry:
    """Return a tool that never answers, or says `answer`."""
    tools = ToolRegistry()

    async def act() -> str:
        started.set()
        if not answer:
            await asyncio.Event().wait()
        return answer

    tools.register("act", act, policy=ToolPolicy(retryable=retryable))
    return tools


@pytest.mark.parametrize(
    ("retryable", "result"), [(True, "done"), (False, "the broker was started again during this call: whether it")]
)
async def test_a_tool_that_ran_when_the_broker_stopped_is_run_again_if_it_may_be(
    tmp_path: Path, *, retryable: bool, result: str
) -> None:
    started, again = asyncio.Event(), asyncio.Event()
    async with ResumingWorker(CallsTools("act")) as worker:
        async with broker_on(tmp_path, worker, tools=registry(started, retryable=retryable)) as running:
            seen = await told(running, "s_1", "tool_call")
            await started.wait()
        tools = registry(again, retryable=retryable, answer="done")
        async with broker_on(tmp_path, worker, tools=tools) as running:
            events = await rest(running, "s_1", seen)
    assert events[-1]["payload"]["result"].startswith(result)
    assert again.is_set() is retryable


class Late(WatchedSource):
    """A source whose tool comes when it is told so."""

    def __init__(self) -> None:
        super().__init__("late")
        self.may_come = asyncio.Event()

    async def load(self) -> list[Tool]:
        return registry(asyncio.Event(), retryable=False, answer="done").tools()

    async def run(self, tools: ToolRegistry) -> None:
        await self.may_come.wait()
        tools.replace_source("late", await self.load())
        self.looked.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("declared", [None, []])
async def test_a_call_made_while_no_broker_ran_waits_for_the_tools_of_the_next_one(
    tmp_path: Path, declared: list[str] | None
) -> None:
    gate = asyncio.Event()

    async def calls_later(session: FakeSession) -> None:
        await session.stdout("before\n")
        await gate.wait()
        await CallsTools("act")(session)

    body: dict[str, Any] = {} if declared is None else {"tools": declared}
    async with ResumingWorker(calls_later) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "stdout", **body)
        gate.set()
        source = Late()
        broker = create_broker(
            runtimes=[worker.url], store=f"sqlite:{tmp_path / 'broker.sqlite'}", sources=[source], **FAST
        )
        starting = asyncio.create_task(broker.start())  # returns when the source was looked at
        async with httpx.AsyncClient(timeout=60) as http:
            running = Fleet(broker, [worker], http)
            await running.wait_until(lambda: running.metric("enclave_tenant_tool_calls_total", tenant="default") == 1)
            source.may_come.set()
            await starting
            http.base_url = broker.url
            events = await rest(running, "s_1", seen)
        await broker.stop()
    assert events[-1]["payload"]["result"] == "done"


async def test_a_clients_answer_that_was_accepted_arrives_and_is_not_asked_for_again(tmp_path: Path) -> None:
    async with ResumingWorker(CallsTools("ask")) as worker:
        worker.lose = {"tool_result"}
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "tool_call", tools=["ask"])
            answer = {"callId": "c_1", "result": "mine"}
            assert (await running.http.post("/sessions/s_1/tool-result", json=answer)).status_code == 200
        worker.lose = set()
        async with broker_on(tmp_path, worker) as running:
            response = await running.http.post("/sessions/s_1/tool-result", json=answer)
            assert response.json()["code"] in {"ALREADY_ANSWERED", "SESSION_ENDED"}
            assert (await rest(running, "s_1", seen))[-1]["payload"]["result"] == "mine"


async def test_a_client_can_answer_the_next_broker(tmp_path: Path) -> None:
    async with ResumingWorker(CallsTools("ask")) as worker:
        async with broker_on(tmp_path, worker) as running:
            seen = await told(running, "s_1", "tool_call", tools=["ask"])
        async with broker_on(tmp_path, worker) as running:
            answer = {"callId": "c_1", "result": "later"}
            assert (await running.http.post("/sessions/s_1/tool-result", json=answer)).status_code == 200
            assert (await rest(running, "s_1", seen))[-1]["payload"]["result"] == "later"


KEPT_BYTES = 20_000


class CallsAndTalks:
    """A guest that calls a tool, writes more than a log keeps, and then waits for the result."""

    def __init__(self, *, takes_it_first: bool = False) -> None:
        self.takes_it_first = takes_it_first
        self.may_talk, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, session: FakeSession) -> None:
        await session.event("tool_call", {"callId": "c_1", "toolName": "act", "args": {}})
        if self.takes_it_first:
            result = await self.applied(session)
        await self.may_talk.wait()
        for _ in range(40):
            await session.stdout("x" * 1000)
        if not self.takes_it_first:
            result = await self.applied(session)
        await self.may_end.wait()
        await session.final(result["value"] if result["success"] else result["error"]["message"])

    async def applied(self, session: FakeSession) -> dict[str, Any]:
        result = await session.results.get()
        await session.event("tool_result_applied", {"callId": "c_1"})
        return result


async def trimmed(running: Fleet, guest: CallsAndTalks, **body: Any) -> None:
    """Post a session, and wait until its call is neither in the log any more nor among the lines that are stored."""
    await told(running, "s_1", "tool_call", **body)  # so that it is stored with nothing that comes later
    guest.may_talk.set()
    await running.wait_until(lambda: known(running).log.end_seq > 40)
    assert known(running).log.first_seq > 5


def known(running: Fleet) -> BrokerSession:
    session = running.broker.dispatcher.directory.get("s_1")
    assert session is not None
    return session


async def result_of(running: Fleet) -> str:
    """Wait for the result of that session."""
    await running.wait_until(lambda: known(running).log.ended)
    response = await running.http.get("/sessions/s_1/stream", params={"fromSeq": known(running).log.end_seq - 1})
    return str(response.json()["payload"]["result"])


UNREAD: dict[str, Any] = {"log_bytes": KEPT_BYTES, "disconnect_grace_s": 60.0}


@pytest.mark.parametrize("restarts", [1, 2])
async def test_a_client_can_answer_a_call_that_the_log_keeps_no_more(tmp_path: Path, restarts: int) -> None:
    guest = CallsAndTalks()
    guest.may_end.set()
    async with ResumingWorker(guest) as worker:
        async with broker_on(tmp_path, worker, **UNREAD) as running:
            await trimmed(running, guest, tools=["act"])
        for _ in range(restarts - 1):
            async with broker_on(tmp_path, worker, **UNREAD) as running:
                assert known(running).state == "waiting_for_tool"
        async with broker_on(tmp_path, worker, **UNREAD) as running:
            answer = {"callId": "c_1", "result": "later"}
            assert (await running.http.post("/sessions/s_1/tool-result", json=answer)).status_code == 200
            assert await result_of(running) == "later"


@pytest.mark.parametrize(
    ("retryable", "result"), [(True, "done"), (False, "the broker was started again during this call: whether it")]
)
async def test_a_tool_whose_call_the_log_keeps_no_more_is_run_again_if_it_may_be(
    tmp_path: Path, *, retryable: bool, result: str
) -> None:
    guest = CallsAndTalks()
    guest.may_end.set()
    async with ResumingWorker(guest) as worker:
        tools = registry(asyncio.Event(), retryable=retryable)
        async with broker_on(tmp_path, worker, tools=tools, **UNREAD) as running:
            await trimmed(running, guest)
        tools = registry(asyncio.Event(), retryable=retryable, answer="done")
        async with broker_on(tmp_path, worker, tools=tools, **UNREAD) as running:
            assert (await result_of(running)).startswith(result)


async def test_an_answer_arrives_whose_call_the_log_keeps_no_more(tmp_path: Path) -> None:
    guest = CallsAndTalks()
    guest.may_end.set()
    async with ResumingWorker(guest) as worker:
        worker.lose = {"tool_result"}
        async with broker_on(tmp_path, worker, **UNREAD) as running:
            await trimmed(running, guest, tools=["act"])
            answer = {"callId": "c_1", "result": "mine"}
            assert (await running.http.post("/sessions/s_1/tool-result", json=answer)).status_code == 200
        worker.lose = set()
        async with broker_on(tmp_path, worker, **UNREAD) as running:
            assert await result_of(running) == "mine"


@pytest.mark.parametrize("takes_it_first", [True, False])
async def test_a_call_that_is_over_is_not_open_under_the_next_broker(tmp_path: Path, *, takes_it_first: bool) -> None:
    guest = CallsAndTalks(takes_it_first=takes_it_first)
    answer = {"callId": "c_1", "result": "mine"}
    async with ResumingWorker(guest) as worker:
        async with broker_on(tmp_path, worker, **UNREAD) as running:
            if takes_it_first:
                await told(running, "s_1", "tool_call", tools=["act"])
            else:
                await trimmed(running, guest, tools=["act"])
            assert (await running.http.post("/sessions/s_1/tool-result", json=answer)).status_code == 200
            guest.may_talk.set()
            await running.wait_until(lambda: known(running).log.end_seq == 44)
        async with broker_on(tmp_path, worker, **UNREAD) as running:
            assert (known(running).open_calls, known(running).answers) == ({}, {})
            assert known(running).state == "running"
            guest.may_end.set()
            assert await result_of(running) == "mine"


async def test_a_deleted_session_stays_deleted(tmp_path: Path) -> None:
    async with ResumingWorker() as worker:
        async with broker_on(tmp_path, worker) as running:
            await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})
            assert (await running.http.delete("/sessions/s_1")).status_code == 200
        async with broker_on(tmp_path, worker) as running:
            assert (await running.http.get("/sessions")).json()["sessions"] == []


class Program:
    """`enclave-broker` as a process of its own."""

    def __init__(self, path: Path, worker: ResumingWorker, *options: str) -> None:
        self._command = [sys.executable, "-m", "enclave_broker.cli", "--port", "0", "--worker", worker.url]
        # Nobody reads its sessions while the one before is gone and it starts.
        patience = ["--disconnect-grace-s", "3600", "--queue-timeout-ms", "3600000"]
        self._command += ["--store", f"sqlite:{path / 'broker.sqlite'}", *patience, *options]

    async def __aenter__(self) -> httpx.AsyncClient:
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*self._command, stdout=pipe, stderr=pipe)
        assert self.process.stdout is not None
        said = (await self.process.stdout.readline()).decode()
        assert said.startswith("enclave-broker listening on "), said
        self.http = httpx.AsyncClient(base_url=said.split()[3], timeout=60)
        return self.http

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.communicate()
        await self.http.aclose()


async def test_a_broker_that_is_killed_has_lost_nothing(tmp_path: Path) -> None:
    gates = {f"s_{i}": asyncio.Event() for i in range(4)}

    async def script(session: FakeSession) -> None:
        if session.session_id in gates:
            await printing(gates[session.session_id])(session)
        else:
            await session.stdout("short\n")
            await session.final(1)

    async with ResumingWorker(script, max_sessions=4) as worker:
        async with Program(tmp_path, worker) as http:
            running: Any = Fleet(None, [worker], http)  # type: ignore[arg-type]
            short = (await http.post("/sessions", json={"code": "1", "sessionId": "s_short"})).content
            seen = {name: await told(running, name, "stdout") for name in gates}
            seen["s_waits"] = await told(running, "s_waits", "status")
        gates["s_0"].set()
        await worker.wait_present("s_0", over=True)
        async with Program(tmp_path, worker) as http:
            running = Fleet(None, [worker], http)  # type: ignore[arg-type]
            for gate in gates.values():
                gate.set()
            assert (await http.get("/sessions/s_short/stream")).content == short
            for name, events in seen.items():
                assert outcome(await rest(running, name, events)) == "ok"
        executes = [message["sessionId"] for message in await worker.wait_received("execute", 6)]
        assert sorted(executes) == ["s_0", "s_1", "s_2", "s_3", "s_short", "s_waits"]


async def test_a_second_broker_on_the_same_file_does_not_start(tmp_path: Path) -> None:
    async with ResumingWorker() as worker, broker_on(tmp_path, worker):
        second = Program(tmp_path, worker)
        process = await asyncio.create_subprocess_exec(*second._command, stderr=asyncio.subprocess.PIPE)
        _, error = await process.communicate()
    assert process.returncode == 1
    assert b"in use by another broker" in error
    assert b"Traceback" not in error
