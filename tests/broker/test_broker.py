"""The broker as a library and as a command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any

import httpx
import pytest

from enclave_broker import Broker, BrokerConfig, Channel, PortInUse, create_broker
from enclave_broker.channels import MEMORY_QUEUE, MEMORY_QUEUE_CHARS, memory_pair
from enclave_protocol import Final, NoCapacity, RemoteProtocolError
from enclave_protocol.events import Stdout
from tests.broker.conftest import FAST, fleet
from tests.fakes import FakeWorker, waits_for_cancel
from tests.real_client import check_stream


class EmbeddedWorker:
    """A worker in this process: every session is a line of output and a result."""

    def __init__(self) -> None:
        self.state = "new"

    async def start(self) -> None:
        self.state = "started"

    async def stop(self) -> None:
        self.state = "stopped"

    async def handle(self, channel: Channel) -> None:
        await channel.send(json.dumps(FakeWorker(name="embedded")._hello()))
        try:
            while True:
                await self._answer(json.loads(await channel.recv()), channel)
        except (ConnectionError, EOFError):
            return

    async def _answer(self, message: dict[str, Any], channel: Channel) -> None:
        if message["type"] == "ping":
            await channel.send(json.dumps(FakeWorker()._pong(message)))
        elif message["type"] == "execute":
            envelope = {"protocolVersion": 2, "sessionId": message["sessionId"]}
            seq = message["firstSeq"]
            stdout = {**envelope, "seq": seq, "type": "stdout", "payload": {"chunk": "hi"}}
            await channel.send(json.dumps(stdout))
            final = {**envelope, "seq": seq + 1, "type": "final", "payload": {"ok": True, "result": message["code"]}}
            await channel.send(json.dumps(final))


async def test_an_embedded_worker_that_fails_is_tried_again() -> None:
    class Fails(EmbeddedWorker):
        handled = 0

        async def handle(self, channel: Channel) -> None:
            self.handled += 1
            if self.handled == 1:
                raise ZeroDivisionError("a bug in somebody's runtime")
            await super().handle(channel)

    worker = Fails()
    async with create_broker(mode="embedded", runtimes=[worker], **FAST) as broker:
        events = [event async for event in broker.execute("1 + 1")]
    assert isinstance(events[-1], Final)
    assert events[-1].payload.ok
    assert worker.handled == 2


async def test_when_one_embedded_worker_cannot_start_those_that_did_are_stopped() -> None:
    class Fails(EmbeddedWorker):
        async def start(self) -> None:
            raise OSError("no room")

    first = EmbeddedWorker()
    with pytest.raises(OSError, match="no room"):
        await create_broker(mode="embedded", runtimes=[first, Fails()], **FAST).start()
    assert first.state == "stopped"


async def test_an_embedded_worker_is_started_used_and_stopped() -> None:
    worker = EmbeddedWorker()
    async with create_broker(mode="embedded", runtimes=[worker], **FAST) as broker:
        events = [event async for event in broker.execute("1 + 1")]
        assert isinstance(events[1], Stdout)
        assert isinstance(events[-1], Final)
        assert events[-1].payload.result == "1 + 1"
    assert worker.state == "stopped"


async def test_every_stream_is_what_the_real_client_accepts() -> None:
    async with fleet(FakeWorker()) as running:
        response = await running.http.post("/sessions", json={"code": "1"})
        check_stream(response.content.splitlines())
    async with fleet(queue_timeout_ms=1) as running:
        response = await running.http.post("/sessions", json={"code": "1", "limits": {"heartbeatIntervalMs": 1}})
        check_stream(response.content.splitlines())


async def test_leaving_execute_early_cancels_the_session() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running:
        events = running.broker.execute("1")
        await anext(events)
        await events.aclose()
        assert await running.workers[0].wait_received("cancel")


async def test_execute_refuses_what_can_not_run() -> None:
    async with fleet(queue_size=0) as running:
        with pytest.raises(NoCapacity):
            await anext(running.broker.execute("1"))
        with pytest.raises(RemoteProtocolError, match="code"):
            await anext(running.broker.execute("x" * 2_000_000))
        with pytest.raises(RemoteProtocolError, match="maxToolCalls"):
            await anext(running.broker.execute("1", limits={"maxToolCalls": -1}))


async def test_a_broker_can_be_made_outside_a_loop_and_stopped_before_it_started() -> None:
    broker = await asyncio.to_thread(create_broker, runtimes=["ws://127.0.0.1:1/ws"], **FAST)
    assert isinstance(broker, Broker)
    await broker.stop()


async def test_a_port_in_use_is_said_in_one_line() -> None:
    async with fleet() as running:
        with pytest.raises(PortInUse, match=f"port {running.broker.port} .* in use"):
            await create_broker(**(FAST | {"port": running.broker.port})).start()


@pytest.mark.parametrize("url", ["http://x/ws", "ws://", "ws://host:99999/ws", "127.0.0.1:3001"])
def test_a_malformed_worker_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="worker URL"):
        BrokerConfig(workers=[url])


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_duration_that_no_clock_can_measure_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=f"retain_s: {value} is not a finite number"):
        BrokerConfig(retain_s=float(value))


def test_mode_and_runtimes_must_fit() -> None:
    with pytest.raises(ValueError, match="extracted"):
        create_broker(mode="extracted", runtimes=[EmbeddedWorker()])
    with pytest.raises(ValueError, match="embedded"):
        create_broker(mode="embedded", runtimes=["ws://127.0.0.1:3001/ws"])


async def test_a_memory_channel_is_ordered_bounded_and_closes_both_ends() -> None:
    left, right = memory_pair()
    sent = 0

    async def fill() -> None:
        nonlocal sent
        for i in range(MEMORY_QUEUE + 10):
            await left.send(str(i))
            sent += 1

    filling = asyncio.create_task(fill())
    for _ in range(5):
        await asyncio.sleep(0)
    assert sent == MEMORY_QUEUE
    assert [await right.recv() for _ in range(MEMORY_QUEUE + 10)] == [str(i) for i in range(MEMORY_QUEUE + 10)]
    await filling
    receiving = asyncio.create_task(right.recv())
    await asyncio.sleep(0)
    await left.close()
    with pytest.raises(ConnectionError):
        await receiving
    with pytest.raises(ConnectionError):
        await right.send("late")


async def test_a_memory_channel_holds_a_bounded_number_of_characters_too() -> None:
    left, right = memory_pair()
    half = "x" * (MEMORY_QUEUE_CHARS // 2 + 1)
    await left.send(half)
    sending = asyncio.create_task(left.send(half))
    await asyncio.sleep(0)
    assert not sending.done()
    assert await right.recv() == half
    await sending
    assert await right.recv() == half


class Command:
    """`enclave-broker` as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *args: str, **env: str) -> Command:
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                "from enclave_broker.cli import main; main()",
                *args,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | env,
            )
        )

    async def url(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            words = (await self.process.stdout.readline()).decode().split()
        assert words[:3] == ["enclave-broker", "listening", "on"]
        return words[3]

    async def says(self, word: str) -> str:
        """Wait until a line of its log has a word; returns what it said up to that."""
        assert self.process.stderr is not None
        said = ""
        async with asyncio.timeout(60):
            while word not in said:
                line = await self.process.stderr.readline()
                assert line, said
                said += line.decode()
        return said

    async def end(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and what it said."""
        async with asyncio.timeout(60):
            _, stderr = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_and_stops_cleanly(number: signal.Signals) -> None:
    async with FakeWorker() as worker:
        command = await Command.start(
            "--port", "0", "--tools", "tests.broker.sample_tools", ENCLAVE_WORKER=worker.url, ENCLAVE_QUEUE_SIZE="7"
        )
        async with httpx.AsyncClient(base_url=await command.url()) as http:
            response = await http.post("/sessions", json={"code": "return 1"})
            assert json.loads(response.text.splitlines()[-1])["payload"]["ok"] is True
        command.process.send_signal(number)
        code, said = await command.end()
        assert code == 0
        assert "Traceback" not in said


async def test_the_command_retries_a_worker_that_does_not_answer_and_says_so_once() -> None:
    worker = FakeWorker()
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))  # nobody listens there, and nobody but the worker may
        worker.port = place.getsockname()[1]
        command = await Command.start("--port", "0", "--worker", worker.url)
        async with httpx.AsyncClient(base_url=await command.url(), timeout=60) as http:
            assert (await http.get("/readyz")).status_code == 503
            said = await command.says("unreachable")
            async with worker:
                async with asyncio.timeout(60):
                    while (await http.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - another process has no event
                        await asyncio.sleep(0.01)
                command.process.terminate()
                code, more = await command.end()
    assert code == 0
    assert (said + more).count("unreachable") == 1


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--host", "203.0.113.7"], 2, "--keys-file"),
        (["--insecure", "--host", "203.0.113.7", "--port", "0"], 1, "can't listen on 203.0.113.7"),
    ],
)
async def test_the_command_says_in_a_line_what_is_wrong(args: list[str], code: int, said: str) -> None:
    ended, output = await (await Command.start("--worker", "ws://127.0.0.1:1/ws", *args)).end()
    assert ended == code
    assert said in output.splitlines()[-1]
    assert "Traceback" not in output


async def test_the_command_names_a_port_in_use() -> None:
    async with fleet() as running:
        args = ["--worker", "ws://127.0.0.1:1/ws", "--port", str(running.broker.port)]
        code, said = await (await Command.start(*args)).end()
        assert code == 1
        assert said.strip().splitlines()[-1].startswith(f"Error: port {running.broker.port} on 127.0.0.1 is in use")
