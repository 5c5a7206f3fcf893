"""Workers that dial in: who may, what they are then, and that one is one however it connects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from typing import TYPE_CHECKING, Any, cast

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from enclave_broker import BrokerConfig, create_broker
from enclave_broker.finding.dial_in import name_of
from enclave_broker.finding.urls import canonical
from enclave_broker.ws import workers
from tests.broker.conftest import Fleet, fleet, parse
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel
from tests.resuming_worker import ResumingWorker
from tests.support import running as running_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = secrets.token_urlsafe(32)
DIALLED = name_of("i_1")


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return str(path)


def door_of(running: Fleet) -> str:
    return running.broker.url.replace("http", "ws") + "/workers"


@contextlib.asynccontextmanager
async def dialled_in(worker: FakeWorker, url: str, **headers: str) -> AsyncIterator[asyncio.Task[None]]:
    """Have a fake worker dial in, and serve that connection as one that it has accepted."""
    worker.hello = {"instance": "i_1", **(worker.hello or {})}

    async def serve() -> None:
        async with connect(url, additional_headers=headers, proxy=None) as connection:
            await worker._serve(cast("Any", connection))  # the two kinds of connections differ in how they begin

    task = asyncio.create_task(serve())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(running: Fleet) -> set[str]:
    return set(running.broker.dispatcher.fleet.links)


async def result_of(running: Fleet, code: str) -> Any:
    response = await running.http.post("/sessions", json={"code": code})
    return json.loads(response.text.splitlines()[-1])["payload"].get("result")


async def test_a_worker_that_dials_in_is_a_worker_until_it_hangs_up() -> None:
    async with fleet(accept_workers=True) as running:
        early = asyncio.create_task(result_of(running, "early"))
        await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().waiting == 1)
        async with dialled_in(FakeWorker(), door_of(running)):
            assert await early == "early"
            assert await result_of(running, "x" * 100_000) == "x" * 100_000
            assert names(running) == {DIALLED}
            assert (await running.http.get("/readyz")).status_code == 200
        await running.wait_until(lambda: not names(running))
        assert (await running.http.get("/readyz")).status_code == 503
        async with dialled_in(FakeWorker(), door_of(running)):
            assert await result_of(running, "again") == "again"


async def refusal(url: str, **headers: Any) -> tuple[int, str]:
    """Return the status and the code of what must be refused."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, proxy=None, **headers)
    return caught.value.response.status_code, json.loads(caught.value.response.body)["code"]


async def test_only_the_workers_token_opens_the_door_and_no_page_gets_in(token_file: str) -> None:
    good = {"Authorization": f"Bearer {TOKEN}"}
    async with fleet(accept_workers=True, worker_token_file=token_file, cors_origins=["*"]) as running:
        url = door_of(running)
        wrong: list[Any] = [
            {},
            {"Authorization": f"Bearer {TOKEN[:-1]}x"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Basic {TOKEN}"},
            [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")],
        ]
        for headers in wrong:
            assert await refusal(url, additional_headers=headers) == (401, "UNAUTHENTICATED")
        assert await refusal(url, subprotocols=[f"enclave.bearer.{TOKEN}"]) == (401, "UNAUTHENTICATED")
        for origin in (running.broker.url, "http://localhost:1", "https://evil.example", "null"):
            assert (await refusal(url, additional_headers=good, origin=origin)) == (403, "ORIGIN_NOT_ALLOWED")
        assert not names(running)
        async with dialled_in(FakeWorker(), url, **good):
            assert await result_of(running, "1") == "1"
        assert running.metric("enclave_rejections_total", code="UNAUTHENTICATED") == len(wrong) + 1


async def test_nobody_dials_in_to_a_broker_that_was_not_told_so(token_file: str) -> None:
    async with fleet(worker_token_file=token_file) as running:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert await refusal(door_of(running), additional_headers=headers) == (403, "FORBIDDEN")


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0", "insecure": True}, {"keys_file": "KEYS"}])
def test_no_broker_takes_strangers_for_workers(settings: dict[str, Any], tmp_path: Path, token_file: str) -> None:
    if "keys_file" in settings:
        settings["keys_file"] = str(tmp_path / "keys")
        (tmp_path / "keys").write_text("")
    with pytest.raises(ValueError, match="--worker-token-file"):
        create_broker(accept_workers=True, **settings)
    create_broker(accept_workers=True, worker_token_file=token_file, **settings)


def test_a_broker_with_its_workers_inside_has_no_door_for_others() -> None:
    with pytest.raises(ValueError, match="embedded"):
        BrokerConfig(mode="embedded", accept_workers=True)


@pytest.mark.parametrize("first", ["not json", '{"type": "pong", "timestamp": 1}', b"\x00"])
async def test_who_says_no_hello_is_told_so_and_hung_up_on(first: str | bytes) -> None:
    async with fleet(accept_workers=True) as running, connect(door_of(running), proxy=None) as socket:
        await socket.send(first)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == workers.NO_WORKER_CODE
        assert "its first message is no hello" in caught.value.rcvd.reason
        assert not names(running)


async def test_so_many_may_owe_their_hello_and_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MAX_GREETING", 2)
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(fleet(accept_workers=True))
        silent = [await stack.enter_async_context(connect(door_of(running), proxy=None)) for _ in range(2)]
        assert await refusal(door_of(running)) == (503, "NO_CAPACITY")
        await silent[0].close()
        async with dialled_in(FakeWorker(), door_of(running)):
            assert await result_of(running, "1") == "1"  # the place is free, and a worker does not hold it
            await stack.enter_async_context(connect(door_of(running), proxy=None))
    async with (
        fleet(accept_workers=True, hello_timeout_s=0.02) as running,
        connect(door_of(running), proxy=None) as socket,
    ):
        await socket.wait_closed()
        assert socket.close_reason is not None
        assert "did not say hello within" in socket.close_reason


async def test_so_many_workers_may_be_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MAX_WORKERS", 1)
    async with fleet(accept_workers=True) as running, dialled_in(FakeWorker(), door_of(running)):
        await running.wait_workers(1)
        assert await refusal(door_of(running)) == (503, "NO_CAPACITY")


async def test_nobody_takes_the_place_of_a_worker_that_is_heard_or_is_told_its_instance() -> None:
    worker, other = FakeWorker(waits_for_cancel), FakeWorker(name="other")
    async with (
        fleet(accept_workers=True, ping_interval_s=60, dead_after_s=600) as running,
        dialled_in(worker, door_of(running)),
    ):
        await running.wait_workers(1)
        post = asyncio.create_task(running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"}))
        await worker.wait_received("execute")
        async with connect(door_of(running), proxy=None) as socket:
            await socket.send(json.dumps(other._hello() | {"instance": "i_1"}))
            await socket.wait_closed()
            assert (socket.close_code, socket.close_reason) == (
                1013,
                "the worker is connected already",
            )
        shown = (await running.http.get("/fleet")).text
        assert DIALLED in shown
        assert "i_1" not in shown
        await running.http.post("/sessions/s_1/cancel")
        assert parse((await post).text)[-1]["payload"]["error"]["code"] == "SESSION_CANCELLED"
        assert running.metric("enclave_workers_lost_total") == 0


async def test_a_worker_that_connects_anew_takes_its_own_place() -> None:
    old, new = FakeWorker(name="old"), FakeWorker(name="new")
    async with fleet(accept_workers=True) as running, dialled_in(old, door_of(running)) as first:
        await running.wait_workers(1)
        old.silent = True  # its connection is open, as a half-open one seems to be
        await running.wait_until(lambda: not running.broker.dispatcher.fleet.links[DIALLED].heard)
        async with dialled_in(new, door_of(running)):
            await asyncio.wait([first])
            await running.wait_until(lambda: new.pings > 0)
            await running.wait_workers(1)
            assert await result_of(running, "1") == "1"
            assert new.received
            assert not old.received
            assert names(running) == {DIALLED}


async def test_a_worker_that_is_listed_and_dials_in_counts_once_and_neither_way_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    async with FakeWorker(max_sessions=3) as worker, FakeWorker(name="other", max_sessions=5) as other:
        worker.hello = {"instance": "i_1"}
        file.write_text(worker.url)
        async with fleet(accept_workers=True, workers_file=str(file), workers_file_look_s=0.01) as running:
            await running.wait_workers(1)
            async with dialled_in(worker, door_of(running)) as refused:
                await asyncio.wait([refused])
                assert running.broker.dispatcher.placer.statistics().slots == 3
            file.write_text(other.url)  # not its list any more
            await running.wait_until(lambda: not any(worker.url in name for name in names(running)))
            async with dialled_in(worker, door_of(running)):
                await running.wait_workers(2)
                assert running.broker.dispatcher.placer.statistics().slots == 8
                file.write_text(f"{worker.url}\n{other.url}")
                connections = worker.connections
                await running.wait_until(lambda: worker.connections >= connections + 2)  # tried, and tried again
                assert running.broker.dispatcher.placer.statistics().slots == 8
                assert DIALLED in names(running)


async def test_a_worker_that_is_away_is_taken_back_in_another_way_with_its_sessions(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    file.write_text("ws://127.0.0.1:1/ws")
    gate = asyncio.Event()

    async def waits(session: FakeSession) -> None:
        await gate.wait()
        await session.final(7)

    async with ResumingWorker(waits) as worker:
        settings: dict[str, Any] = {"workers_file": str(file), "workers_file_look_s": 0.01}
        async with fleet(accept_workers=True, **settings) as running:
            async with dialled_in(worker, door_of(running)):
                result = asyncio.create_task(result_of(running, "1"))
                await worker.wait_received("execute")
            await running.wait_until(lambda: running.broker.dispatcher.placer.statistics().away == 1)
            file.write_text(worker.url)
            await running.wait_workers(1)
            gate.set()
            assert await result == 7
            await running.wait_until(lambda: names(running) == {canonical(worker.url)})
    assert len(await worker.wait_received("execute")) == 1


async def test_a_real_worker_without_a_port_serves_two_brokers_and_finds_one_that_was_started_again(
    token_file: str,
) -> None:
    settings: dict[str, Any] = {"accept_workers": True, "worker_token_file": token_file}
    async with fleet(**settings) as one, fleet(**settings) as two:
        urls = (door_of(one), door_of(two))
        async with running_worker(listen=False, dial=urls, worker_token_file=token_file, pool_size=1) as worker:
            assert worker.port == 0
            await one.wait_workers(1)
            await two.wait_workers(1)
            assert [await result_of(each, "return 6 * 7") for each in (one, two)] == [42, 42]
            await one.broker.stop()
            async with create_broker(config=one.broker.config, port=one.broker.port) as again:
                final = [event async for event in again.execute("return 1")][-1]
                assert final.payload.result == 1  # type: ignore[union-attr]  # it is a final


async def test_a_worker_dials_in_by_tls_to_a_broker_that_it_knows(tmp_path: Path, token_file: str) -> None:
    ours, others = trustme.CA(), trustme.CA()
    issued = ours.issue_cert("127.0.0.1")
    cert, key, ca, other = (str(tmp_path / name) for name in ("cert", "key", "ca", "other"))
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(cert)
    ours.cert_pem.write_to_path(ca)
    others.cert_pem.write_to_path(other)
    settings: dict[str, Any] = {
        "accept_workers": True,
        "worker_token_file": token_file,
        "tls_cert": cert,
        "tls_key": key,
    }
    async with create_broker(port=0, **settings) as broker:
        url = broker.url.replace("https", "wss") + "/workers"
        options: dict[str, Any] = {"listen": False, "dial": (url,), "worker_token_file": token_file, "pool_size": 1}
        async with running_worker(**options, tls_ca=ca):
            final = [event async for event in broker.execute("return 1")][-1]
            assert final.payload.result == 1  # type: ignore[union-attr]  # it is a final
            known = set(broker.dispatcher.fleet.links)
        async with running_worker(**options, tls_ca=other) as worker:
            assert worker._parts is not None
            assert "CERTIFICATE_VERIFY_FAILED" in await worker._parts.dialing._call(url)
            assert set(broker.dispatcher.fleet.links) <= known
