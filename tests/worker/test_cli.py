"""The `enclave-runtime` command: one line for what is wrong, and a clean end."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys

import pytest

from enclave_worker.config import RuntimeConfig
from tests.support import PATIENCE_S, children_of, client_of, complaints, watched, worker_process


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "enclave_worker.cli", *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_port_in_use_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = command("--port", str(taken.getsockname()[1]))

    assert done.returncode == 1
    assert len(complaints(done.stderr)) == 1
    assert "choose another --port" in done.stderr


def test_an_address_that_is_not_ours_is_one_line() -> None:
    done = command("--insecure", "--host", "203.0.113.1", "--port", "0")

    assert done.returncode == 1
    assert len(complaints(done.stderr)) == 1
    assert "--host" in done.stderr


@pytest.mark.parametrize("option", [["--max-sessions", "0"], ["--port", "70000"], ["--grace-s", "nan"], ["--no-such"]])
def test_a_wrong_option_is_refused_before_anything_starts(option: list[str]) -> None:
    done = command(*option)

    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_the_first_line_says_where_it_listens() -> None:
    with worker_process() as (_, url):
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/ws", url)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_with_its_whole_family(number: signal.Signals) -> None:
    with worker_process("--grace-s", "0", "--max-sessions", "3") as (process, url):
        async with client_of(url) as client:
            assert client.hello["maxSessions"] == 3
            session = await client.start("print('up', flush=True)\nwhile True: pass")
            await client.until_written(session, "up")
            with watched(children_of(process.pid)) as wait_gone:
                process.send_signal(number)
                run = await client.finish(session)
                # In a thread: the client must be able to say goodbye.
                assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
                wait_gone()

    assert run.code == "WORKER_LOST"


def test_options_have_environment_variables() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "enclave_worker.cli"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={"ENCLAVE_PORT": "nonsense"},
    )

    assert done.returncode == 2
    assert "ENCLAVE_PORT" in done.stderr or "--port" in done.stderr


@pytest.mark.parametrize("setting", ["max_sessions", "pool_size"])
@pytest.mark.parametrize("value", [0, -1, "3"])
def test_a_worker_without_slots_or_sandboxes_cannot_be_configured(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting}: {value!r} is not a whole number above 0"):
        RuntimeConfig(**{setting: value})  # type: ignore[arg-type]  # what is refused
