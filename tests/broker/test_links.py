"""The links to workers: what happens when one is slow, silent, senseless or gone."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.access import LOCAL
from enclave_broker.new_session import NewSession
from enclave_protocol import Final
from tests.broker.conftest import Fleet, fleet
from tests.fakes import FakeSession, FakeWorker, answers_at_once, returns_its_code, waits_for_cancel

if TYPE_CHECKING:
    from enclave_broker.sessions import BrokerSession


async def events_of(running: Fleet, code: str = "1", **options: Any) -> list[dict[str, Any]]:
    response = await running.http.post("/sessions", json={"code": code, **options})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def error_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events].count("final") == 1
    assert set(events[-1]["payload"]["stats"]) >= {"durationMs", "toolCallCount", "stdoutBytes"}
    error: dict[str, Any] = events[-1]["payload"]["error"]
    return error


def told(session: BrokerSession) -> list[dict[str, Any]]:
    """Return the events of a session that nobody reads."""
    return [json.loads(line) for line in session.log.lines(1, 1 << 30)]


async def test_a_killed_worker_ends_its_sessions_at_once_and_they_may_be_retried() -> None:
    async def dies(session: FakeSession) -> None:
        await session.stdout("before\n")
        asyncio.get_running_loop().create_task(session.worker.kill())
        await asyncio.Event().wait()

    async with fleet(FakeWorker(dies)) as running:
        events = await events_of(running)
        assert error_of(events)["code"] == "WORKER_LOST"
        assert error_of(events)["retryable"] is True
        assert events[-1]["payload"]["stats"]["stdoutBytes"] == 7
        await running.wait_workers(0)
        assert (await running.http.get("/readyz")).status_code == 503
        assert running.metric("enclave_sessions_total", outcome="WORKER_LOST") == 1


async def test_a_silent_worker_is_dead() -> None:
    async def falls_silent(session: FakeSession) -> None:
        session.worker.silent = True
        await asyncio.Event().wait()

    async with fleet(FakeWorker(falls_silent), dead_after_s=0.3) as running:
        error = error_of(await events_of(running))
        assert error["code"] == "WORKER_LOST"
        assert "silent" in error["message"]


async def test_a_session_that_is_refused_after_its_cancel_is_not_placed_again() -> None:
    async def refuses_once_cancelled(session: FakeSession) -> None:
        await session.cancelled.wait()
        await session.refuse()

    worker = FakeWorker(refuses_once_cancelled)
    async with fleet(worker) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1"))
        await worker.wait_received("execute")
        await running.http.post("/sessions/s_1/cancel")
        assert error_of(await ended)["code"] == "SESSION_CANCELLED"
        assert len(await worker.wait_received("execute")) == 1


async def test_any_frame_is_a_sign_of_life() -> None:
    async def talks_without_pongs(session: FakeSession) -> None:
        session.worker.silent = True
        for _ in range(12):  # twice as many pings without a pong as make a silent worker dead
            await session.worker.wait_pinged()
            await session.stdout(".")
        await session.final()

    async with fleet(FakeWorker(talks_without_pongs), dead_after_s=0.3) as running:
        assert (await events_of(running))[-1]["payload"]["ok"] is True


async def test_a_worker_that_comes_back_is_used_again() -> None:
    async with fleet(FakeWorker()) as running:
        (worker,) = running.workers
        await worker.kill()
        await running.wait_workers(0)
        waiting = asyncio.create_task(events_of(running, "later"))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)
        await worker.start()
        assert (await waiting)[-1]["payload"]["result"] == "later"


async def test_a_broker_starts_before_its_workers() -> None:
    late = FakeWorker()
    await late.start()
    await late.stop()
    async with fleet() as running:
        assert (await running.http.get("/readyz")).status_code == 503
    async with fleet(late) as running:
        assert (await running.http.get("/readyz")).status_code == 200


async def test_a_session_its_worker_has_no_slot_for_runs_on_another() -> None:
    async def refuses(session: FakeSession) -> None:
        await session.refuse()

    full, free = FakeWorker(refuses, name="full", max_sessions=50), FakeWorker(name="free", max_sessions=1)
    async with fleet(full, free) as running:
        events = await events_of(running, "x")
        assert [event["type"] for event in events] == ["session_init", "stdout", "final"]
        assert running.metric("enclave_requeues_total") == 1
        info = (await running.http.get(f"/sessions/{events[0]['sessionId']}")).json()
        assert info["worker"] == "free"


async def test_a_session_that_finds_no_slot_in_time_is_told_so() -> None:
    async with fleet(queue_timeout_ms=1) as running:
        error = error_of(await events_of(running))
        assert error["code"] == "NO_CAPACITY"
        assert error["retryable"] is True


async def test_a_waiting_session_has_heartbeats_and_its_worker_numbers_on_from_them() -> None:
    async with (
        fleet() as running,
        running.http.stream("POST", "/sessions", json={"code": "1", "limits": {"heartbeatIntervalMs": 1}}) as response,
    ):
        lines = response.aiter_lines()
        kinds = [json.loads(await anext(lines))["type"] for _ in range(4)]
        assert kinds == ["session_init", "status", "heartbeat", "heartbeat"]


async def test_events_out_of_order_end_the_session_and_free_the_slot_once_the_worker_lets_go() -> None:
    async def skips(session: FakeSession) -> None:
        session.seq += 1
        await session.stdout("x")
        await session.cancelled.wait()
        await session.fail("SESSION_CANCELLED")

    async with fleet(FakeWorker(skips)) as running:
        assert error_of(await events_of(running))["code"] == "INTERNAL_ERROR"
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().reserved == 0)


async def test_nothing_follows_the_final() -> None:
    async def talks_on(session: FakeSession) -> None:
        await session.final()
        await session.stdout("after the end")
        await session.final()

    async with fleet(FakeWorker(talks_on)) as running:
        events = await events_of(running)
        assert [event["type"] for event in events] == ["session_init", "final"]
        await running.wait_until(lambda: running.metric("enclave_stray_events_total") == 2)


async def test_a_worker_that_never_ends_a_session_does_not_keep_its_client_waiting() -> None:
    async def hangs(session: FakeSession) -> None:
        await session.cancelled.wait()
        await asyncio.Event().wait()

    async with fleet(FakeWorker(hangs), final_grace_s=0.01) as running:
        error = error_of(await events_of(running, limits={"sessionTtlMs": 20}))
        assert error["code"] == "DEADLINE_EXCEEDED"
        assert await running.workers[0].wait_received("cancel")
        assert running.broker.dispatcher.placer.statistics().reserved == 1  # the sandbox may still be there


async def test_a_worker_that_ignores_a_cancel_does_not_keep_its_client_waiting() -> None:
    async def hangs(_: FakeSession) -> None:
        await asyncio.Event().wait()

    async with fleet(FakeWorker(hangs), cancel_grace_s=0.01) as running:
        running_session = asyncio.create_task(events_of(running, sessionId="s_1"))
        await running.workers[0].wait_received("execute")
        await running.http.post("/sessions/s_1/cancel")
        assert error_of(await running_session)["code"] == "SESSION_CANCELLED"


async def test_a_worker_that_refuses_an_execute_ends_that_session_only() -> None:
    async def rejects(session: FakeSession) -> None:
        payload = {"message": "profile: no such profile", "code": "VALIDATION_ERROR", "recoverable": True}
        await session.raw({"type": "error", "sessionId": session.session_id, "payload": payload})

    async with fleet(FakeWorker(rejects)) as running:
        error = error_of(await events_of(running))
        assert error["code"] == "VALIDATION_ERROR"
        assert "no such profile" in error["message"]
        assert running.broker.dispatcher.placer.statistics().reserved == 0


@pytest.mark.parametrize("hello", [None, {"type": "pong", "timestamp": 1}, {"protocolVersion": 7}])
async def test_a_peer_that_is_no_worker_is_not_used(hello: dict[str, Any] | None) -> None:
    stranger = FakeWorker()
    stranger.hello = hello
    async with fleet(strangers=[stranger], hello_timeout_s=0.02) as running:
        await running.wait_until(lambda: stranger.connections >= 2)
        assert running.broker.dispatcher.placer.statistics().workers == 0


async def test_a_worker_that_does_not_read_is_dead_and_its_buffer_bounded() -> None:
    deaf = FakeWorker(waits_for_cancel)
    deaf.reads = False
    async with fleet(deaf, link_buffer_bytes=1_000_000) as running:
        # In one step: none of them comes later, to be alone on the next connection, whose buffer it would not fill.
        submit = running.broker.dispatcher.submit
        sessions = [submit(NewSession(code="#" * 1_000_000), LOCAL) for _ in range(20)]
        link = running.broker.dispatcher.fleet.links[deaf.url]
        assert link._outgoing_bytes < 3_000_000
        await running.wait_until(lambda: not any(session.live for session in sessions))
        errors = [error_of(told(session)) for session in sessions]
        assert {error["code"] for error in errors} == {"WORKER_LOST"}
        assert all("unread" in error["message"] for error in errors)


async def test_sessions_are_spread_over_workers() -> None:
    first, second = FakeWorker(waits_for_cancel, name="a"), FakeWorker(waits_for_cancel, name="b")
    async with fleet(first, second) as running:
        tasks = [asyncio.create_task(events_of(running, sessionId=f"s_{i}")) for i in range(4)]
        await first.wait_received("execute", 2)
        await second.wait_received("execute", 2)
        for i in range(4):
            await running.http.post(f"/sessions/s_{i}/cancel")
        await asyncio.gather(*tasks)


async def test_many_sessions_at_once_all_end_and_leave_no_slot_taken() -> None:
    workers = [FakeWorker(script, max_sessions=3) for script in (returns_its_code, answers_at_once)]
    async with fleet(*workers) as running:

        async def run_one() -> Any:
            return [event async for event in running.broker.execute("1")][-1]

        finals = await asyncio.gather(*(run_one() for _ in range(100)))
        assert all(isinstance(final, Final) and final.payload.ok for final in finals)
        assert running.broker.dispatcher.placer.statistics().reserved == 0


@pytest.mark.parametrize(
    ("fault", "connections"), [("link_up", 3), ("link_down", 3), ("link_event", 2), ("link_pong", 2)]
)
async def test_a_fault_in_the_handling_of_a_worker_costs_its_connection_alone(
    fault: str, connections: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = FakeWorker()
    async with fleet(worker) as running:
        handler = running.broker.dispatcher.fleet.incoming
        sound, failed = getattr(handler, fault), asyncio.Event()

        def fails_once(*args: Any) -> None:
            if failed.is_set():
                sound(*args)
            else:
                failed.set()
                raise RuntimeError("of the broker's own")

        monkeypatch.setattr(handler, fault, fails_once)
        if fault == "link_event":
            assert error_of(await events_of(running))["code"] == "WORKER_LOST"
        elif fault != "link_pong":
            await worker.kill()
            await worker.start()
        await running.wait_until(lambda: worker.connections == connections)
        await running.wait_workers(1)
        assert (await events_of(running, "x"))[-1]["payload"]["result"] == "x"
        assert "of the broker's own" in caplog.text


async def test_a_fault_in_what_is_done_with_time_is_logged_and_time_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(queue_timeout_ms=1) as running:
        dispatcher = running.broker.dispatcher
        sound = dispatcher.tick

        def fails_once() -> None:
            monkeypatch.setattr(dispatcher, "tick", sound)
            raise RuntimeError("of the broker's own")

        monkeypatch.setattr(dispatcher, "tick", fails_once)
        await running.wait_until(lambda: "of the broker's own" in caplog.text)
        assert error_of(await events_of(running))["code"] == "NO_CAPACITY"
