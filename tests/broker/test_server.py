"""The server inside the broker's process."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from enclave_broker import BrokerConfig
from enclave_broker.metrics import Metrics
from enclave_broker.server import Server, server_config
from tests.broker.conftest import fleet
from tests.fakes import FakeWorker

if TYPE_CHECKING:
    import pytest

_RAISED = """
import resource
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))
from enclave_broker.server import raise_descriptor_limit
raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most))
"""


def test_the_broker_may_have_as_many_sockets_as_its_host_lets_it() -> None:
    done = subprocess.run([sys.executable, "-c", _RAISED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def test_a_plain_broker_loads_nothing_that_only_others_need() -> None:
    code = (
        "import sys; from enclave_broker import create_broker; from enclave_broker.http import create_app; "
        "create_app(create_broker(workers=['ws://127.0.0.1:1/ws'], port=0)); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    # Of those who have tools, filters, encryption, names for their workers; and of nobody's models.
    assert not loaded & {"jsonschema", "regex", "httpx", "mcp", "re2", "cryptography", "dns", "pydantic", "sqlite3"}


async def test_a_broker_that_nobody_uses_stops_without_waiting_for_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(FakeWorker()) as running:
        assert (await running.http.get("/healthz")).status_code == 200  # on a connection that stays open
        loop = asyncio.get_running_loop()
        now = loop.time()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: now)  # no timer ends
            stopping = asyncio.create_task(running.broker.stop())
            for _ in range(10_000):
                await asyncio.sleep(0)
            assert stopping.done()


async def test_a_request_that_is_not_answered_in_time_is_given_up_by_a_server_that_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    config = server_config(app, BrokerConfig(), Metrics())
    config.timeout_graceful_shutdown = 0
    server, listener = Server(config), socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.wait_started()
    _, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    async with asyncio.timeout(60):
        await asked.wait()
        server.stop()
        await serving
        await cancelled.wait()
        writer.close()
        await writer.wait_closed()
    assert "1 requests are not answered in time, and are given up" in caplog.text
