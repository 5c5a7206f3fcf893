"""A worker without a port: served over memory channels, to a client and to a broker in the same process."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from enclave_broker import create_broker
from enclave_protocol import Final
from enclave_protocol.events import Stdout
from enclave_worker.api import (
    ChannelClosed,
    MemoryChannel,
    RuntimeConfig,
    RuntimeState,
    RuntimeWorker,
    create_memory_channel_pair,
    create_runtime_worker,
)
from tests.support import PATIENCE_S
from tests.worker.leaks import nothing_leaks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enclave_protocol import AnyEvent

CONFIG = RuntimeConfig(listen=False, pool_size=2)
LOUD = "import os\nwhile True: os.write(1, b'x')"
ENDLESS = "print('up', flush=True)\nwhile True: pass"


@pytest.fixture
async def worker() -> AsyncIterator[RuntimeWorker]:
    async with create_runtime_worker(CONFIG) as worker:
        yield worker


@pytest.fixture
async def client(worker: RuntimeWorker) -> AsyncIterator[MemoryChannel]:
    client, server = create_memory_channel_pair()
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.handle(server))
        async with client:
            yield client


async def say(client: MemoryChannel, **message: Any) -> None:
    await client.send(json.dumps(message))


async def read_until(client: MemoryChannel, kind: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["type"] != kind:
        seen.append(json.loads(await client.recv()))
    return seen


async def result_of(events: AsyncIterator[AnyEvent]) -> object:
    *_, final = [event async for event in events]
    assert isinstance(final, Final)
    return final.payload.result if final.payload.ok else final.payload.error


async def test_a_channel_carries_the_same_messages_as_the_port(client: MemoryChannel) -> None:
    hello = json.loads(await client.recv())
    assert hello["type"] == "hello"
    await say(client, type="execute", sessionId="s_1", code="print('hi')\nreturn await call_tool('t', {})")
    *_, call = await read_until(client, "tool_call")
    await say(client, type="tool_result", sessionId="s_1", callId=call["payload"]["callId"], success=True, value=5)
    *_, final = await read_until(client, "final")
    assert final["payload"]["result"] == 5
    await say(client, type="ping", timestamp=7)
    assert json.loads(await client.recv())["timestamp"] == 7


async def test_a_bad_message_is_rejected_and_closes_nothing(client: MemoryChannel) -> None:
    await client.recv()
    for text in ("{", '{"type":"dance"}', '{"type":"execute","code":1}', "[]"):
        await client.send(text)
        answer = json.loads(await client.recv())
        assert (answer["type"], answer["payload"]["code"]) == ("error", "VALIDATION_ERROR")
    await say(client, type="execute", sessionId="s_1", code="return 1")
    *_, final = await read_until(client, "final")
    assert final["payload"]["ok"]


async def test_closing_the_channel_ends_its_sessions_and_the_serving(worker: RuntimeWorker) -> None:
    told: list[tuple[str, ...]] = []
    worker.on_connect(lambda peer: told.append(("connect", peer)))
    worker.on_disconnect(lambda peer: told.append(("disconnect", peer)))
    worker.on_connection_error(lambda peer, error: told.append(("error", peer, str(error))))
    cancelled = asyncio.get_running_loop().create_future()
    worker.on_cancel(lambda session_id, _: cancelled.set_result(session_id))
    client, server = create_memory_channel_pair()
    serving = asyncio.create_task(worker.handle(server))
    await say(client, type="execute", sessionId="s_left", code=ENDLESS)
    await read_until(client, "stdout")
    await client.close()
    await serving
    assert await cancelled == "s_left"
    assert told == [("connect", "memory:1"), ("disconnect", "memory:1")]


async def test_cancelling_the_serving_closes_the_channel(worker: RuntimeWorker) -> None:
    client, server = create_memory_channel_pair()
    serving = asyncio.create_task(worker.handle(server))
    await client.recv()
    serving.cancel()
    await asyncio.wait([serving])
    with pytest.raises(ChannelClosed):
        await client.recv()


async def test_stopping_the_worker_sends_the_last_events_and_then_ends_the_channel(
    worker: RuntimeWorker, client: MemoryChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave_worker.connection._FLUSH_S", PATIENCE_S)
    await say(client, type="execute", sessionId="s_1", code=ENDLESS)
    await read_until(client, "stdout")
    await worker.stop()
    *_, final = await read_until(client, "final")
    assert final["payload"]["error"]["code"] == "WORKER_LOST"
    with pytest.raises(ChannelClosed):
        await client.recv()


async def test_stopping_waits_for_a_client_that_still_reads(
    worker: RuntimeWorker, client: MemoryChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave_worker.connection._FLUSH_S", PATIENCE_S)
    await say(client, type="execute", sessionId="s_1", code=LOUD, limits={"maxStdoutBytes": 100_000_000})
    for _ in range(20):  # meanwhile the channel fills up
        await worker.execute(None, "return 1")
    stopping = asyncio.create_task(worker.stop())
    seen = await read_until(client, "final")
    assert [event["seq"] for event in seen if "seq" in event] == list(range(1, len(seen)))
    await stopping


async def test_a_client_that_does_not_read_holds_up_neither_other_clients_nor_the_stop(
    worker: RuntimeWorker, client: MemoryChannel
) -> None:
    await say(client, type="execute", sessionId="s_loud", code=LOUD)
    assert (await worker.execute(None, "return 1")).ok
    await worker.stop()


async def test_a_worker_that_does_not_run_serves_no_channel() -> None:
    client, server = create_memory_channel_pair()
    with pytest.raises(ConnectionRefusedError, match="worker is stopped"):
        await create_runtime_worker(CONFIG).handle(server)
    with pytest.raises(ChannelClosed):
        await client.recv()


async def test_a_broker_runs_sessions_and_tools_on_embedded_workers() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    workers = [create_runtime_worker(CONFIG) for _ in range(2)]
    async with create_broker(mode="embedded", runtimes=workers, tools=[add], port=0) as broker:
        code = "print('live')\nreturn await call_tool('add', {'a': 1, 'b': 2})"
        events = [event async for event in broker.execute(code)]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert "".join(event.payload.chunk for event in events if isinstance(event, Stdout)) == "live\n"
        final = events[-1]
        assert isinstance(final, Final)
        assert final.payload.result == 3
        async with httpx.AsyncClient(base_url=broker.url) as http:
            answer = await http.post("/sessions", json={"code": "raise KeyError('k')"})
        assert json.loads(answer.text.splitlines()[-1])["payload"]["error"]["name"] == "KeyError"
    assert [worker.get_state() for worker in workers] == [RuntimeState.STOPPED] * 2
    assert sum(worker.get_stats().total_executions for worker in workers) == 2


async def test_a_broker_survives_an_embedded_worker_that_is_stopped_and_started_under_it() -> None:
    worker = create_runtime_worker(CONFIG)
    settings: dict[str, Any] = {"port": 0, "reconnect_min_s": 0.01, "reconnect_max_s": 0.05}
    async with create_broker(mode="embedded", runtimes=[worker], **settings) as broker:
        assert await result_of(broker.execute("return 1")) == 1
        await worker.stop()
        waiting = asyncio.create_task(result_of(broker.execute("return 2")))
        await worker.start()
        assert await waiting == 2


def test_embedding_leaks_nothing() -> None:
    async def live() -> None:
        workers = [create_runtime_worker(CONFIG)]
        async with create_broker(mode="embedded", runtimes=workers, port=0) as broker:
            async for _ in broker.execute("return 1"):
                pass
            async for _ in broker.execute(ENDLESS):
                break
        async with create_runtime_worker(CONFIG) as worker, asyncio.TaskGroup() as group:
            client, server = create_memory_channel_pair()
            group.create_task(worker.handle(server))
            async with client:
                await say(client, type="execute", sessionId="s_1", code=ENDLESS)
                await read_until(client, "stdout")

    asyncio.run(live())
    with nothing_leaks():
        asyncio.run(live())
