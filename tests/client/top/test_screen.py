"""`enclave top` on a terminal, in front of real programs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.client.top.terminal import terminal
from tests.fleet.seeing.programs import Program, program
from tests.support import PATIENCE_S, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    with worker_process("--level", "BEST", "--max-sessions", "3", "--worker-id", "w-top") as (_, url):
        yield url


def top(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "enclave_client.cli", "top", *options]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_live_view_follows_a_fleet_and_survives_its_brokers_restart(worker: str) -> None:
    with program("enclave_broker.cli", "--port", "0", "--worker", worker) as first:
        port = urlsplit(first.url).port
        options = ("--broker", first.url, "--interval-s", "0.1")
        with terminal("enclave_client.cli", "top", *options, env=ENVIRONMENT) as screen:
            shown = screen.wait_shows(lambda text: "w-top" in text and "/s started" in text)
            assert "workers  1 of 1 connected    slots 0 of 3 used" in shown
            first.post("/sessions", {"code": "return 1"})
            # What has ended in between is of one look only: it may be over before the screen is read.
            screen.wait_shows(lambda text: "sessions 0 active" in text)

            screen.resize(60, 10)
            screen.wait_shows(lambda text: max(map(len, text.splitlines())) <= 60 and "workers  1 of 1" in text)
            screen.resize(160, 40)

            first.stop()
            shown = screen.wait_shows(lambda text: "! no answer since" in text)
            assert "w-top" in shown, "the last frame stays"
            with program("enclave_broker.cli", "--port", str(port), "--worker", worker):
                screen.wait_shows(lambda text: "! the broker was started again" in text and "1 of 1 connected" in text)
                screen.press("q")
                assert screen.wait_ended() == 0


@pytest.fixture(scope="module")
def fleet(worker: str) -> Iterator[Program]:
    with program("enclave_broker.cli", "--port", "0", "--worker", worker) as running:
        running.post("/sessions", {"code": "return 1"})
        yield running


def test_once_prints_one_frame_as_text_without_a_terminal(fleet: Program) -> None:
    for options in (["--once"], []):
        done = top("--broker", fleet.url, "--interval-s", "0.1", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"enclave top  {fleet.url}  broker ")
        assert "w-top   up     [....................] 0/3" in done.stdout
        assert "\x1b" not in done.stdout


def test_a_broker_that_is_not_there_is_said_in_one_line() -> None:
    done = top("--broker", "http://127.0.0.1:1", "--once")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "enclave: http://127.0.0.1:1: Connection refused\n"


def test_something_else_that_answers_is_said_too(worker: str) -> None:
    done = top("--broker", worker.replace("ws://", "http://").removesuffix("/ws"), "--once")
    assert done.returncode == 2
    assert "is it an enclave-broker" in done.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ws://127.0.0.1:3000", "http://", "http://h:0", "http://me:pw@h"])
def test_an_address_that_is_none_is_a_usage_error(url: str) -> None:
    done = top("--broker", url, "--once")
    assert done.returncode == 2
    assert "give an address such as" in done.stderr
