from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclave_client.fleet import (
    ON_LOOPBACK,
    READY,
    Fleet,
    FleetSpec,
    ask_ready,
    broker_arguments,
    restart_delay_s,
    worker_arguments,
    worker_environment,
)

if TYPE_CHECKING:
    import pytest


def test_restarts_come_ever_later_up_to_half_a_minute() -> None:
    delays = [restart_delay_s(failures) for failures in range(1, 12)]

    assert delays[0] == 0.5
    assert delays == sorted(delays)
    assert delays[-1] == 30.0


def test_a_broker_gets_every_file_of_tools() -> None:
    arguments = " ".join(broker_arguments(FleetSpec(tools_files=("a.json", "b.toml")), []))
    assert "--tools-file a.json --tools-file b.toml" in arguments


def test_a_worker_gets_only_the_options_that_were_given() -> None:
    always = [*ON_LOOPBACK, "--tls-ca", "", "--port", "3001", "--worker-id", "worker-1", "--level", "BEST"]

    assert worker_arguments(FleetSpec(), "worker-1", 3001) == always
    spec = FleetSpec(max_sessions=7, pool_size=1)
    assert worker_arguments(spec, "worker-1", 3001) == [*always, "--max-sessions", "7", "--pool-size", "1"]
    spec = FleetSpec(profiles=("a", "b"), profiles_file="f.toml")
    profiles = ["--profile", "a", "--profile", "b", "--profiles", "f.toml"]
    assert worker_arguments(spec, "worker-1", 3001) == [*always, *profiles]


def test_the_broker_is_told_every_worker_and_every_tool_module() -> None:
    arguments = broker_arguments(FleetSpec(port=3000, tools=("a", "b")), ["ws://h:1/ws", "ws://h:2/ws"])

    workers = ["--worker", "ws://h:1/ws", "--worker", "ws://h:2/ws"]
    expected = [*ON_LOOPBACK, "--port", "3000", "--grace-s", "0", *workers, "--tools", "a", "--tools", "b"]
    assert arguments == expected


def test_the_broker_is_told_a_default_language_if_there_is_one() -> None:
    assert "--default-language" not in broker_arguments(FleetSpec(), [])
    assert broker_arguments(FleetSpec(default_language="shell"), [])[-2:] == ["--default-language", "shell"]


async def test_the_secrets_of_tools_are_the_brokers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCLAVE_SECRET_KEY", "hunter2-hunter2")
    monkeypatch.setenv("ENCLAVE_SECRETS", "/a/path")
    fleet = Fleet(FleetSpec(workers=2), lambda *_: None)
    for worker in fleet.workers:
        assert worker.environment is not None
        assert "ENCLAVE_SECRET_KEY" not in worker.environment
        assert "PATH" in worker.environment
    assert fleet.broker.environment is None  # ours


async def test_readiness_is_asked_on_the_port_a_program_listens_on() -> None:
    answers = [b"HTTP/1.1 503 Not Ready\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(answers.pop(0))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        assert await ask_ready(url) == "HTTP/1.1 503 Not Ready"
        assert await ask_ready(url) == READY
    assert asked == [b"GET /readyz HTTP/1.1\r\n"] * 2
    assert (await ask_ready(url)).startswith("no answer: ConnectionRefusedError")


def test_workers_are_given_no_secret_of_the_brokers() -> None:
    theirs = {"ENCLAVE_WORKER_TOKEN": "w", "ENCLAVE_LEVEL": "BEST", "PATH": "/bin"}
    brokers = {"ENCLAVE_SECRET_API": "s", "ENCLAVE_TOKEN_SECRETS": "t", "ENCLAVE_KEYS": "k", "ENCLAVE_KEYS_FILE": "f"}
    assert worker_environment(theirs | brokers) == theirs
