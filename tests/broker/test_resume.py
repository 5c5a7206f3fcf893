"""Sessions outlive the connection to their worker: whenever it breaks, their streams go on or end honestly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from enclave_broker.tools import ToolRegistry
from enclave_client import AsyncClient
from enclave_protocol import Final
from tests.broker.conftest import Fleet, fleet
from tests.broker.tools.stubs.schemas import fake
from tests.fakes import FakeSession, FakeWorker, returns_its_code, waits_for_cancel
from tests.resuming_worker import ResumingSession, ResumingWorker


async def events_of(running: Fleet, code: str = "1", **options: Any) -> list[dict[str, Any]]:
    response = await running.http.post("/sessions", json={"code": code, **options})
    assert response.status_code == 200, response.text
    events: list[dict[str, Any]] = [json.loads(line) for line in response.text.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events].count("final") == 1
    return events


def code_of(events: list[dict[str, Any]]) -> str:
    final = events[-1]["payload"]
    return "ok" if final["ok"] else str(final["error"]["code"])


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["payload"]["chunk"] for event in events if event["type"] == "stdout")


async def test_the_broker_welcomes_a_worker_that_resumes_and_acknowledges_what_it_has() -> None:
    worker = ResumingWorker()
    async with fleet(worker) as running:
        assert code_of(await events_of(running)) == "ok"
        await worker.wait_kept(0)
        assert worker.received[0] == {
            "type": "welcome",
            "revision": 2,
            "brokerId": running.broker.dispatcher.store.broker_id,
        }


async def test_many_short_sessions_share_few_acks() -> None:
    async def ends_with_the_others(session: FakeSession) -> None:
        await worker.wait_received("execute", 20)
        await session.final()

    worker = ResumingWorker(ends_with_the_others)
    async with fleet(worker) as running:
        await asyncio.gather(*(events_of(running) for _ in range(20)))
        await worker.wait_kept(0)
        acked = [session_id for ack in await worker.wait_received("ack") for session_id in ack["seqs"]]
        assert len(set(acked)) == 20
        assert len(await worker.wait_received("ack")) < 20


async def test_output_while_the_link_is_cut_arrives_once_and_in_order() -> None:
    async def prints_through_a_cut(session: FakeSession) -> None:
        for i in range(30):
            await session.stdout(f"{i} ")
            if i in {5, 15}:
                assert isinstance(session, ResumingSession)
                session.worker.cut()
        await session.final()

    async with fleet(ResumingWorker(prints_through_a_cut)) as running:
        events = await events_of(running)
        assert code_of(events) == "ok"
        assert text_of(events) == "".join(f"{i} " for i in range(30))
        assert running.metric("enclave_session_attaches_total") >= 1


async def test_an_execute_that_never_arrived_is_placed_again() -> None:
    worker = ResumingWorker()
    worker.cut_at = "execute"
    async with fleet(worker) as running:
        events = await events_of(running, "x")
        assert events[-1]["payload"]["result"] == "x"
        assert len(await worker.wait_received("execute")) == 1
        assert running.metric("enclave_sessions_placed_again_total", reason="never_arrived") == 1


@pytest.mark.parametrize("cut", ["cut_at", "cut_after"])
async def test_an_answer_that_is_on_its_way_when_the_link_breaks_reaches_the_guest_once(cut: str) -> None:
    async def calls(session: FakeSession) -> None:
        await session.final((await session.call("double", {"x": 21}))["value"])

    def double(x: int) -> int:
        return 2 * x

    worker = ResumingWorker(calls)
    setattr(worker, cut, "tool_result")
    async with fleet(worker, tools=[double]) as running:
        events = await events_of(running)
        assert events[-1]["payload"]["result"] == 42
        kinds = [event["type"] for event in events]
        assert kinds == ["session_init", "tool_call", "tool_result_applied", "final"]


async def test_a_tool_that_answers_while_the_worker_is_away_answers_the_guest_when_it_is_back() -> None:
    async def calls(session: FakeSession) -> None:
        await session.final((await session.call("late"))["value"])

    called, back = asyncio.Event(), asyncio.Event()

    async def late() -> str:
        called.set()
        await back.wait()
        return "at last"

    worker = ResumingWorker(calls)
    async with fleet(worker, tools=[late]) as running:
        ended = asyncio.create_task(events_of(running))
        await called.wait()
        worker.present.clear()
        worker.cut()
        await running.wait_workers(0)
        back.set()
        await running.wait_until(lambda: running.broker.dispatcher.tool_calls.running == 0)
        worker.present.set()
        assert (await ended)[-1]["payload"]["result"] == "at last"


async def test_answers_that_waited_for_a_worker_are_more_than_a_link_may_buffer_and_all_arrive() -> None:
    async def calls(session: FakeSession) -> None:
        await session.final(len((await session.call("late"))["value"]))

    back = asyncio.Event()

    async def late() -> str:
        await back.wait()
        return "x" * 4_000_000

    worker = ResumingWorker(calls)
    async with fleet(worker, tools=[late], link_buffer_bytes=1_000_000) as running:
        tasks = [asyncio.create_task(events_of(running)) for _ in range(6)]
        await running.wait_until(lambda: running.broker.dispatcher.tool_calls.running == 6)
        worker.present.clear()
        worker.cut()
        await running.wait_workers(0)
        back.set()
        await running.wait_until(lambda: running.broker.dispatcher.tool_calls.running == 0)
        worker.present.set()
        assert [events[-1]["payload"]["result"] for events in await asyncio.gather(*tasks)] == [4_000_000] * 6
        assert running.metric("enclave_workers_lost_total") == 1


async def test_a_final_whose_acknowledgement_was_lost_is_acknowledged_again() -> None:
    worker = ResumingWorker()
    worker.lose = {"ack"}
    async with fleet(worker) as running:
        assert code_of(await events_of(running)) == "ok"
        worker.lose = set()
        worker.cut()
        await worker.wait_kept(0)
        assert not [message for message in worker.received if message["type"] == "attach"]


async def test_a_final_that_was_lost_on_its_way_arrives_after_the_cut() -> None:
    async def ends_unheard(session: FakeSession) -> None:
        assert isinstance(session, ResumingSession)
        session.loses_next = True
        await session.final("heard")
        session.worker.cut()

    async with fleet(ResumingWorker(ends_unheard)) as running:
        assert (await events_of(running))[-1]["payload"]["result"] == "heard"
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().reserved == 0)


async def test_a_cancel_that_was_lost_with_its_link_is_said_again() -> None:
    worker = ResumingWorker(waits_for_cancel)
    worker.cut_at = "cancel"
    async with fleet(worker, cancel_grace_s=60) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1"))
        await worker.wait_received("execute")
        await running.http.post("/sessions/s_1/cancel")
        events = await ended
        assert code_of(events) == "SESSION_CANCELLED"
        assert events[-1]["payload"]["error"]["message"] == "cancelled"  # the worker's own


async def test_a_session_that_was_cancelled_while_its_execute_was_lost_is_not_run() -> None:
    worker = ResumingWorker()
    worker.lose = {"execute", "cancel"}
    async with fleet(worker, cancel_grace_s=60) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1"))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().reserved == 1)
        await running.http.post("/sessions/s_1/cancel")
        worker.cut()
        assert code_of(await ended) == "SESSION_CANCELLED"
        assert running.broker.dispatcher.placer.statistics().reserved == 0


async def test_news_of_tools_reach_a_session_once_whether_they_were_lost_in_a_cut_or_not() -> None:
    async def waits(session: FakeSession) -> None:
        await session.stdout("here")
        await session.cancelled.wait()
        await session.final()

    worker, registry = ResumingWorker(waits), ToolRegistry()
    async with fleet(worker, tools=registry) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1"))
        session = running.broker.dispatcher.fleet.routes.get
        await running.wait_until(lambda: (found := session("s_1")) is not None and found.request is None)
        worker.cut_after = "catalog_changed"
        registry.replace_source("second", [fake("second_get")])
        await running.wait_until(lambda: running.metric("enclave_session_attaches_total") == 1)
        worker.cut_at = "catalog_changed"
        registry.replace_source("third", [fake("third_get")])
        await running.wait_until(lambda: running.metric("enclave_session_attaches_total") == 2)
        await running.wait_until(lambda: not session("s_1").told)  # type: ignore[union-attr]
        await running.http.post("/sessions/s_1/cancel")
        added = [event["payload"]["addedActions"] for event in await ended if event["type"] == "catalog_changed"]
        assert added == [["second_get"], ["third_get"]]


async def test_a_worker_that_was_started_again_has_lost_its_sessions_and_takes_new_ones() -> None:
    worker = ResumingWorker(waits_for_cancel)
    async with fleet(worker, refused_is_dead=False) as running:
        ended = asyncio.create_task(events_of(running))
        await worker.wait_received("execute")
        await worker.kill()
        worker.script = answers
        await worker.start()
        events = await ended
        assert code_of(events) == "WORKER_LOST"
        assert "another one was in its place" in events[-1]["payload"]["error"]["message"]
        assert code_of(await events_of(running)) == "ok"


async def answers(session: FakeSession) -> None:
    await session.final()


async def test_nobody_waits_for_a_worker_whose_address_refuses() -> None:
    worker = ResumingWorker(waits_for_cancel)
    async with fleet(worker) as running:
        ended = asyncio.create_task(events_of(running))
        await worker.wait_received("execute")
        await worker.kill()
        assert code_of(await ended) == "WORKER_LOST"


async def test_a_worker_that_comes_back_too_late_is_told_to_end_what_it_still_has() -> None:
    worker = ResumingWorker(waits_for_cancel)
    async with fleet(worker, resume_s=0.02) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1"))
        await worker.wait_received("execute")
        worker.present.clear()
        worker.cut()
        events = await ended
        assert code_of(events) == "WORKER_LOST"
        assert "did not come back within 0.02 s" in events[-1]["payload"]["error"]["message"]
        worker.present.set()
        await worker.wait_received("cancel")
        await worker.wait_kept(0)
        assert running.broker.dispatcher.placer.statistics().reserved == 0


async def test_a_session_whose_time_ran_out_while_its_worker_was_away_is_ended_there_too() -> None:
    worker = ResumingWorker(waits_for_cancel)
    worker.lose = {"cancel"}  # of a time that ran out before it was away, as it may on a slow machine
    async with fleet(worker, final_grace_s=0.01) as running:
        ended = asyncio.create_task(events_of(running, limits={"sessionTtlMs": 200}))
        await worker.wait_received("execute")
        worker.present.clear()
        worker.cut()
        assert code_of(await ended) == "DEADLINE_EXCEEDED"
        assert running.broker.dispatcher.placer.statistics().reserved == 1  # the sandbox may still be there
        worker.lose = set()
        worker.present.set()
        await worker.wait_kept(0)
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().reserved == 0)


async def test_a_half_open_link_is_noticed_and_its_sessions_move_to_the_next_one() -> None:
    async def freezes(session: FakeSession) -> None:
        assert isinstance(session, ResumingSession)
        await session.stdout("before ")
        session.worker.freeze()
        await session.stdout("after")
        await session.final()

    worker = ResumingWorker(freezes)
    async with fleet(worker, dead_after_s=0.3) as running:
        events = await events_of(running)
        assert code_of(events) == "ok"
        assert text_of(events) == "before after"
        assert worker.connections == 2


async def test_a_hole_in_the_stream_is_filled_by_an_attach() -> None:
    async def loses_one(session: FakeSession) -> None:
        assert isinstance(session, ResumingSession)
        await session.stdout("one ")
        session.loses_next = True
        await session.stdout("two ")
        await session.stdout("three ")
        await session.stdout("four")
        await session.final()

    worker = ResumingWorker(loses_one)
    async with fleet(worker) as running:
        events = await events_of(running)
        assert code_of(events) == "ok"
        assert text_of(events) == "one two three four"
        assert [message["fromSeq"] for message in await worker.wait_received("attach")] == [3]


async def test_an_event_that_comes_twice_is_told_once_and_another_one_of_its_number_ends_the_session() -> None:
    async def repeats(session: FakeSession) -> None:
        await session.stdout("once")
        session.seq -= 1
        await session.stdout("once")
        session.seq -= 1
        await session.stdout("twice")
        await session.cancelled.wait()
        await session.fail("SESSION_CANCELLED")

    async with fleet(ResumingWorker(repeats)) as running:
        events = await events_of(running)
        assert text_of(events) == "once"
        assert code_of(events) == "INTERNAL_ERROR"
        assert "another one before" in events[-1]["payload"]["error"]["message"]
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().reserved == 0)


@pytest.mark.parametrize("reason", ["no longer has", "no longer kept"])
async def test_a_session_that_the_worker_will_not_go_on_with_is_lost(reason: str) -> None:
    worker = ResumingWorker(waits_for_cancel)
    async with fleet(worker) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1"))
        await worker.wait_received("execute")
        session = running.broker.dispatcher.fleet.routes["s_1"]
        await running.wait_until(lambda: session.request is None)
        worker.present.clear()
        worker.cut()
        await running.wait_workers(0)
        worker.hello = {"sessions": [worker.kept["s_1"].described]}
        if reason == "no longer has":
            worker.kept.clear()
        else:
            worker.kept["s_1"].kept.clear()
            worker.kept["s_1"].seq += 3
        worker.present.set()
        events = await ended
        assert code_of(events) == "WORKER_LOST"
        assert reason in events[-1]["payload"]["error"]["message"]
        assert running.broker.dispatcher.placer.statistics().reserved == 0


async def test_a_session_that_the_worker_has_given_up_is_lost_and_not_run_again() -> None:
    worker = ResumingWorker(waits_for_cancel)
    async with fleet(worker) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1", retry="safe"))
        await worker.wait_received("execute")
        session = running.broker.dispatcher.fleet.routes["s_1"]
        await running.wait_until(lambda: session.request is None)
        worker.kept.clear()
        worker.cut()
        assert code_of(await ended) == "WORKER_LOST"
        assert len(await worker.wait_received("execute")) == 1


async def dies(session: FakeSession) -> None:
    await session.worker.kill()


async def speaks_and_dies(session: FakeSession) -> None:
    assert isinstance(session, ResumingSession)
    await session.stdout("I live")
    await session.worker.wait_received("ack")
    await session.worker.kill()


async def test_a_session_that_is_safe_to_retry_runs_elsewhere_when_its_worker_dies_before_it_began() -> None:
    doomed, other = ResumingWorker(dies, name="doomed", max_sessions=50), ResumingWorker(name="other", max_sessions=1)
    async with fleet(doomed, other) as running:
        events = await events_of(running, "x", retry="safe")
        assert events[-1]["payload"]["result"] == "x"
        assert [event["type"] for event in events] == ["session_init", "stdout", "final"]
        assert running.metric("enclave_sessions_placed_again_total", reason="worker_lost") == 1


async def test_every_way_to_make_a_session_says_whether_it_is_safe_to_retry() -> None:
    async with fleet(ResumingWorker()) as running:
        batches = ({"code": "item", "inputs": [1], "retry": "safe"}, {"items": [{"code": "1", "retry": "safe"}]})
        for batch in batches:
            response = await running.http.post("/sessions:batch", json=batch)
            assert json.loads(response.text.splitlines()[0])["ok"] is True
        events = [event async for event in running.broker.execute("1", retry="safe")]
        assert isinstance(events[-1], Final)
        async with AsyncClient(running.broker.url) as client:
            assert (await client.run("x", retry="safe")).value == "x"
        assert [session.may_retry for session in running.broker.dispatcher.directory.sessions()] == [True] * 4
        refused = await running.http.post("/sessions", json={"code": "1", "retry": "always"})
        assert (refused.status_code, refused.json()["details"]["field"]) == (400, "retry")


async def test_a_worker_that_says_that_it_drains_gets_no_more_from_that_moment() -> None:
    async def drains(session: FakeSession) -> None:
        await session.raw({"type": "drain", "reason": "time to go"})
        await session.final()

    draining, other = ResumingWorker(drains, name="draining", max_sessions=50), ResumingWorker(name="other")
    async with fleet(draining, other, ping_interval_s=60, dead_after_s=120) as running:
        await events_of(running)
        assert code_of(await events_of(running)) == "ok"
        assert len(await draining.wait_received("execute")) == 1


@pytest.mark.parametrize(("script", "retry"), [(dies, "never"), (speaks_and_dies, "safe")])
async def test_a_session_that_is_not_safe_to_retry_or_has_begun_is_lost_with_its_worker(
    script: Any, retry: str
) -> None:
    doomed, other = ResumingWorker(script, name="doomed", max_sessions=50), ResumingWorker(name="other", max_sessions=1)
    async with fleet(doomed, other) as running:
        events = await events_of(running, retry=retry)
        assert code_of(events) == "WORKER_LOST"
        assert not other.received[1:]


async def test_a_session_that_runs_elsewhere_waits_for_a_slot_as_long_as_a_new_one() -> None:
    async def says_nothing(session: FakeSession) -> None:
        await session.cancelled.wait()

    worker = ResumingWorker(says_nothing)
    async with fleet(worker) as running:
        dispatcher = running.broker.dispatcher
        ended = asyncio.create_task(events_of(running, "x", sessionId="s_1", retry="safe"))
        await worker.wait_received("execute")
        session = dispatcher.fleet.routes["s_1"]
        session.created -= 3600  # as if it had been on its worker for that long
        session.waits_from -= 3600
        await worker.kill()
        await running.wait_until(lambda: dispatcher.placer.statistics().waiting == 1)
        dispatcher.tick()
        worker.script = returns_its_code
        await worker.start()
        assert (await ended)[-1]["payload"]["result"] == "x"


async def test_a_session_is_retried_twice_at_most() -> None:
    workers = [ResumingWorker(dies, name=f"doomed-{i}") for i in range(4)]
    async with fleet(*workers) as running:
        assert code_of(await events_of(running, retry="safe")) == "WORKER_LOST"
        executes = [message for worker in workers for message in worker.received if message["type"] == "execute"]
        assert len(executes) == 3


@pytest.mark.parametrize(("retry", "code"), [("safe", "ok"), ("never", "WORKER_LOST")])
async def test_a_session_that_its_worker_gives_up_before_it_began_runs_elsewhere_if_it_may(
    retry: str, code: str
) -> None:
    async def gives_up(session: FakeSession) -> None:
        session.worker.draining = True
        await session.fail("WORKER_LOST", "the worker is stopping")

    leaving = ResumingWorker(gives_up, name="leaving", max_sessions=50)
    async with fleet(leaving, ResumingWorker(name="staying", max_sessions=1)) as running:
        assert code_of(await events_of(running, retry=retry)) == code
        await leaving.wait_kept(0)


async def test_an_id_can_be_used_again_as_soon_as_its_session_has_ended() -> None:
    async with fleet(ResumingWorker()) as running:
        for _ in range(5):
            assert code_of(await events_of(running, sessionId="s_1")) == "ok"


async def test_a_session_that_is_refused_after_its_cancel_does_not_wait_for_another_turn() -> None:
    worker = ResumingWorker()
    worker.lose = {"execute"}  # so that it refuses the cancel as well, for want of a session of that id
    async with fleet(worker, cancel_grace_s=60) as running:
        ended = asyncio.create_task(events_of(running, sessionId="s_1"))
        await running.wait_until(lambda: "s_1" in running.broker.dispatcher.fleet.routes)
        await running.http.post("/sessions/s_1/cancel")
        assert code_of(await ended) == "SESSION_CANCELLED"
        assert running.metric("enclave_requeues_total") == 0
        assert running.broker.dispatcher.placer.statistics().reserved == 0


async def test_a_session_whose_id_its_worker_has_not_let_go_of_waits_for_that() -> None:
    worker = ResumingWorker()
    worker.lose = {"ack"}
    async with fleet(worker) as running:
        assert code_of(await events_of(running, "first", sessionId="s_1")) == "ok"
        again = asyncio.create_task(events_of(running, "second", sessionId="s_1"))
        await running.wait_until(lambda: running.metric("enclave_requeues_total") >= 1)
        worker.kept.clear()
        assert (await again)[-1]["payload"]["result"] == "second"


async def test_a_worker_of_revision_1_is_retried_from_as_well() -> None:
    async def dies_as_ever(session: FakeSession) -> None:
        asyncio.get_running_loop().create_task(session.worker.kill())
        await asyncio.Event().wait()

    doomed, other = FakeWorker(dies_as_ever, name="doomed", max_sessions=50), FakeWorker(name="other", max_sessions=1)
    async with fleet(doomed, other) as running:
        assert (await events_of(running, "x", retry="safe"))[-1]["payload"]["result"] == "x"


async def test_a_worker_of_another_age_is_refused_and_the_others_serve_on() -> None:
    newer = ResumingWorker()
    newer.hello = {"minRevision": 9, "maxRevision": 12}
    async with fleet(ResumingWorker(), FakeWorker(name="older"), strangers=[newer]) as running:
        await running.wait_until(lambda: running.metric("enclave_workers_unfit_total") >= 2)
        finals = await asyncio.gather(*(events_of(running) for _ in range(6)))
        assert {code_of(events) for events in finals} == {"ok"}
        assert not newer.received


async def test_a_worker_is_offered_its_free_slots_when_it_is_back() -> None:
    worker = ResumingWorker(waits_for_cancel, max_sessions=2)
    async with fleet(worker) as running:
        first = asyncio.create_task(events_of(running, sessionId="s_1"))
        await worker.wait_received("execute")
        worker.present.clear()
        worker.cut()
        await running.wait_workers(0)
        second = asyncio.create_task(events_of(running, sessionId="s_2"))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)
        worker.present.set()
        await worker.wait_received("execute", 2)
        order = [message["type"] for message in worker.received]
        assert order.index("attach") < len(order) - 1 - order[::-1].index("execute")
        for session_id in ("s_1", "s_2"):
            await running.http.post(f"/sessions/{session_id}/cancel")
        assert {code_of(await first), code_of(await second)} == {"SESSION_CANCELLED"}
