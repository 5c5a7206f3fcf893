"""Links come and go while the broker runs, and no session notices."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.finding.urls import canonical
from tests.broker.conftest import Fleet, fleet
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from pathlib import Path

LOOK: dict[str, Any] = {"workers_file_look_s": 0.01}


def write(path: Path, *lines: str) -> None:
    """Write the list as one should: whoever reads it sees the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text("\n".join(["# the fleet", *lines]))
    new.replace(path)


def names(running: Fleet) -> set[str]:
    return set(running.broker.dispatcher.fleet.links)


async def run_one(running: Fleet, code: str) -> str:
    """Run a session; return the worker's name."""
    response = await running.http.post("/sessions", json={"code": code})
    events = [json.loads(line) for line in response.text.splitlines()]
    assert events[-1]["payload"]["result"] == code
    worker: str = (await running.http.get(f"/sessions/{events[0]['sessionId']}")).json()["worker"]
    return worker


async def test_workers_join_and_leave_by_a_file_and_a_session_ends_where_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    go_on = asyncio.Event()

    async def waits(session: FakeSession) -> None:
        if session.execute["code"] == "long":
            await go_on.wait()
        await session.final(session.execute["code"])

    async with FakeWorker(waits, name="old") as old, FakeWorker(name="new") as new:
        write(file, old.url, "", old.url)
        async with fleet(workers_file=str(file), **LOOK) as running:
            await running.wait_workers(1)
            long = asyncio.create_task(run_one(running, "long"))
            await old.wait_received("execute")
            write(file, new.url)
            await running.wait_until(lambda: canonical(new.url) in names(running))
            # It got no further session, although it has more free slots than anybody.
            assert [await run_one(running, str(n)) for n in range(3)] == ["new", "new", "new"]
            assert names(running) == {canonical(old.url), canonical(new.url)}
            go_on.set()
            assert await long == "old"
            await running.wait_until(lambda: names(running) == {canonical(new.url)})
            await running.wait_workers(1)
            assert len(await old.wait_received("execute")) == 1


async def test_a_worker_that_comes_back_to_the_list_is_used_again(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    async with FakeWorker(waits_for_cancel) as one, FakeWorker(name="other") as other:
        write(file, one.url)
        async with fleet(workers_file=str(file), **LOOK) as running:
            await running.wait_workers(1)
            posts = [asyncio.create_task(running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"}))]
            await one.wait_received("execute")
            write(file, other.url)
            await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().draining == 1)
            write(file, one.url)  # it still has a session, the other one none
            await running.wait_until(lambda: names(running) == {canonical(one.url)})
            await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().draining == 0)
            posts.append(asyncio.create_task(running.http.post("/sessions", json={"code": "1", "sessionId": "s_2"})))
            await one.wait_received("execute", 2)
            assert one.connections == 1
            for session_id in ("s_1", "s_2"):
                await running.http.post(f"/sessions/{session_id}/cancel")
            await asyncio.gather(*posts)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        b"",
        b"# nobody\n",
        b"{url}\nhttp://no.worker/ws\n",
        b"{url}\nws://\xff:/",
        "{url}\nws://\ufffd/ws".encode(),
    ],
)
async def test_a_list_that_can_not_be_read_leaves_the_last_one_in_force(
    tmp_path: Path, bad: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "workers"
    async with FakeWorker() as worker, FakeWorker(name="second") as second:
        write(file, worker.url)
        async with fleet(workers_file=str(file), **LOOK) as running:
            await running.wait_workers(1)
            if bad is None:
                file.unlink()
            else:
                file.write_bytes(bad.replace(b"{url}", second.url.encode()))
            await running.wait_until(lambda: running.metric("enclave_worker_source_stale", source=str(file)) == 1)
            assert names(running) == {canonical(worker.url)}
            assert await run_one(running, "1") == "fake"
            write(file, worker.url, second.url)
            await running.wait_workers(2)
            assert running.metric("enclave_worker_source_stale", source=str(file)) == 0
    said = [record.message for record in caplog.records if "the last list stays in force" in record.message]
    assert len(said) == 1


async def test_a_broker_starts_before_the_file_that_says_where_its_workers_are(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    async with FakeWorker() as worker, fleet(workers_file=str(file), **LOOK) as running:
        waiting = asyncio.create_task(run_one(running, "early"))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)
        write(file, worker.url)
        assert await waiting == "fake"


async def test_a_worker_on_two_lists_and_in_two_spellings_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    async with FakeWorker() as worker:
        localhost = worker.url.replace("127.0.0.1", "localhost")
        write(file, localhost, worker.url)
        async with fleet(workers=[localhost, worker.url], workers_file=str(file), **LOOK) as running:
            await running.wait_workers(1)
            assert names(running) == {canonical(worker.url)}
            assert worker.connections == 1
            write(file, worker.url, "ws://127.0.0.1:1/ws")
            await running.wait_until(lambda: "ws://127.0.0.1:1/ws" in names(running))
            write(file, "ws://127.0.0.1:1/ws")  # still on the command line
            write(file, "ws://127.0.0.1:2/ws")
            await running.wait_until(lambda: "ws://127.0.0.1:1/ws" not in names(running))
            assert canonical(worker.url) in names(running)
            assert await run_one(running, "1") == "fake"


async def test_a_worker_found_by_two_names_counts_once_and_the_other_name_stands_in(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    async with FakeWorker(max_sessions=3) as worker:
        worker.hello = {"instance": "i_1"}
        write(file, worker.url + "?one", worker.url + "?two")
        async with fleet(workers_file=str(file), **LOOK) as running:
            await running.wait_until(lambda: worker.connections >= 4)  # the second one tries again and again
            (first,) = names(running)
            assert running.broker.dispatcher.placer.statistics().slots == 3
            second = canonical(worker.url + ("?two" if first.endswith("?one") else "?one"))
            write(file, second)
            await running.wait_until(lambda: names(running) == {second})
            await running.wait_workers(1)
            assert await run_one(running, "1") == "fake"


async def test_a_worker_that_left_hears_that_its_last_events_are_kept_before_its_link_ends(
    tmp_path: Path,
) -> None:
    file = tmp_path / "workers"
    go_on = asyncio.Event()

    async def waits(session: FakeSession) -> None:
        await go_on.wait()
        await session.final(session.seq)

    async with FakeWorker(waits) as old, FakeWorker(name="new") as new:
        old.hello = {"instance": "i_1", "maxRevision": 2}
        write(file, old.url)
        async with fleet(workers_file=str(file), **LOOK) as running:
            await running.wait_workers(1)
            post = asyncio.create_task(running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"}))
            await old.wait_received("execute")
            write(file, new.url)
            await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().draining == 1)
            go_on.set()
            last = json.loads((await post).text.splitlines()[-1])["seq"]
            await running.wait_until(lambda: names(running) == {canonical(new.url)})
            await running.wait_until(lambda: not old._open)
            acks = [message["seqs"] for message in old.received if message["type"] == "ack"]
            assert acks[-1] == {"s_1": last}
