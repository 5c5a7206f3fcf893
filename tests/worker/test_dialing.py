"""How a worker calls its brokers: what is refused before it starts, and what it says of brokers that don't answer."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from websockets.asyncio.server import ServerConnection, serve

from enclave_worker.cli import main
from enclave_worker.config import RuntimeConfig
from enclave_worker.dialing import FIRST_DELAY_S, LONGEST_DELAY_S, Dialing, delay_s
from enclave_worker.door import AccessError
from enclave_worker.runtime import create_runtime_worker
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-listen"], "nobody could reach the worker"),
        (["--dial", "http://broker/workers"], "is not ws:// or wss://"),
        (["--dial", "ws://"], "is not ws:// or wss://"),
        (["--dial", "ws://broker:0"], "is not ws:// or wss://"),
        (["--dial", "ws://[::1/workers"], "is not ws:// or wss://"),
        (["--dial", "ws://me:secret@broker/workers"], "use worker_token_file instead"),
    ],
)
def test_what_can_not_work_is_refused_in_a_line(options: list[str], said: str) -> None:
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 2
    assert said in done.output.splitlines()[-1]
    assert "secret@" not in done.output


@pytest.mark.parametrize("file", ["worker_token_file", "tls_ca", "tls_cert"])
async def test_a_worker_does_not_start_without_what_it_shows_or_believes(file: str) -> None:
    config = RuntimeConfig(listen=False, dial=("wss://broker/workers",), **{file: "/no/file"})  # type: ignore[arg-type]
    with pytest.raises(AccessError, match="/no/file"):
        await create_runtime_worker(config).start()


def test_the_command_without_a_port_says_whom_it_calls_and_ends_cleanly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"ws://127.0.0.1:{free.getsockname()[1]}/workers"
    dial = ("--dial", url, "--dial", "ws://127.0.0.1:1/workers")
    command = [sys.executable, "-m", "enclave_worker.cli", "--no-listen", *dial, "--level", "BEST", "--pool-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert re.match(rf"enclave-runtime dialling {url},ws://127.0.0.1:1/workers at level \w+$", line)
    assert process.returncode == 0
    assert "Traceback" not in said


def test_the_delay_grows_up_to_a_limit_and_is_spread() -> None:
    for failures in (1, 2, 3, 10, 10_000):
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (min(failures, 100) - 1))
        delays = [delay_s(failures) for _ in range(50)]
        assert all(longest / 2 <= delay <= longest for delay in delays)
        assert len(set(delays)) > 1


async def test_a_broker_that_does_not_answer_is_told_once_and_called_until_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arrived = asyncio.Event()
    shown = []

    async def accepts(connection: ServerConnection) -> None:
        assert connection.request is not None
        shown.append(connection.request.headers.get("Authorization"))
        arrived.set()
        await connection.wait_closed()

    async def holds(connection: ClientConnection) -> None:
        await connection.wait_closed()

    dialing = Dialing([f"ws://127.0.0.1:{port}/workers"] * 2, token="t" * 32, tls=None, serve=holds)
    with caplog.at_level(logging.WARNING, "enclave.worker"):
        dialing.start()
        await asyncio.sleep(0)
        while not caplog.records:  # noqa: ASYNC110 - a log record has no event
            await asyncio.sleep(0.01)
        async with serve(accepts, "127.0.0.1", port), asyncio.timeout(PATIENCE_S):
            await arrived.wait()
            await dialing.stop()
    assert shown == ["Bearer " + "t" * 32]
    assert len([record for record in caplog.records if "calling again" in record.getMessage()]) == 1


async def test_a_fault_in_serving_a_broker_ends_the_connection_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0
    again = asyncio.Event()

    async def accepts(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async def fails_once(connection: ClientConnection) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a fault")
        again.set()
        await connection.wait_closed()

    async with serve(accepts, "127.0.0.1", 0) as server, asyncio.timeout(PATIENCE_S):
        port = server.sockets[0].getsockname()[1]
        dialing = Dialing([f"ws://127.0.0.1:{port}/workers"], token="", tls=None, serve=fails_once)
        dialing.start()
        await again.wait()
        await dialing.stop()
    assert [record.levelno for record in caplog.records if "a fault of ours" in record.message] == [logging.ERROR]
