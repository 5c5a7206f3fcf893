"""The `enclave-runtime` command: one line for what is wrong, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from enclave_protocol.credentials import WORKER_TOKEN_VARIABLE
from enclave_worker.config import RuntimeConfig
from tests.support import PATIENCE_S, Client, children_of, client_of, complaints, watched, worker_process


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


@pytest.mark.parametrize(
    "option", [["--max-sessions", "0"], ["--port", "70000"], ["--grace-s", "nan"], ["--no-such"], ["--lease-s", "inf"]]
)
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


async def test_a_second_signal_waits_neither_for_sessions_nor_for_brokers_that_are_gone() -> None:
    with worker_process("--grace-s", "3600", "--lease-s", "3600") as (process, url):
        async with client_of(url) as gone:
            await gone.send({"type": "welcome", "revision": 2, "brokerId": "b_1"})
            await gone.run("return 1")  # whose events are never acknowledged
        async with client_of(url) as client:
            session = await client.start("print('up', flush=True)\nwhile True: pass")
            await client.until_written(session, "up")
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)  # not SIGTERM again: two of one kind at once are one
            assert (await client.finish(session)).code == "WORKER_LOST"
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0


async def test_sigterm_tells_brokers_at_once_and_ends_with_0_when_the_last_session_is_acknowledged() -> None:
    with worker_process("--grace-s", str(PATIENCE_S)) as (process, url):
        async with client_of(url) as client:
            await client.send({"type": "welcome", "revision": 2, "brokerId": "b_1"})
            session = await client.start("return await call_tool('ask')")
            call = await client.until(session, "tool_call")
            process.send_signal(signal.SIGTERM)
            assert (await client.recv())["type"] == "drain"
            assert fetch(url, "/readyz") == 503
            await client.answer(session, call["callId"], "finished")
            run = await client.finish(session)
            await client.send({"type": "ack", "seqs": {session: run.events[-1]["seq"]}})
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0

    assert run.final["result"] == "finished"


def fetch(url: str, path: str, method: str = "GET", **headers: str) -> int:
    """Return the status of a request to a worker's port."""
    address = url.replace("ws://", "http://").removesuffix("/ws") + path
    request = urllib.request.Request(address, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


async def test_a_worker_that_is_told_to_drain_ends_with_0_when_its_sessions_have_and_strangers_cannot_tell_it() -> None:
    with worker_process(env={WORKER_TOKEN_VARIABLE: "a-secret-of-the-tests-that-is-long-enough"}) as (process, url):
        own = {"Authorization": "Bearer a-secret-of-the-tests-that-is-long-enough"}
        async with connect(url, additional_headers=own) as socket:
            client = Client(socket)
            await client.recv()
            session = await client.start("return await call_tool('ask')")
            call = await client.until(session, "tool_call")
            asked = [fetch(url, "/drain", "POST"), fetch(url, "/drain", **own), fetch(url, "/readyz")]
            assert asked == [401, 405, 200]
            assert fetch(url, "/drain", "POST", Origin="https://elsewhere.example", **own) == 403

            assert fetch(url, "/drain", "POST", **own) == 202
            assert fetch(url, "/readyz") == 503
            assert process.poll() is None
            await client.answer(session, call["callId"], "finished")
            assert (await client.finish(session)).final["result"] == "finished"
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0


def port_of(pid: int) -> int:
    """Return the port that a process listens on, 0 if it does not yet."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].partition(":")[2], 16)
    return 0


async def test_a_full_disk_under_its_output_and_its_log_costs_no_session_and_not_its_exit_code() -> None:
    with Path("/dev/full").open("w") as full:  # noqa: ASYNC230 - a device
        process = subprocess.Popen(  # noqa: ASYNC220 - a program that runs on its own
            [sys.executable, "-m", "enclave_worker.cli", "--port", "0", "--debug"], stdout=full, stderr=full
        )
    try:
        while not (port := port_of(process.pid)):
            assert process.poll() is None, "it must not end for want of a place to write"
        async with client_of(f"ws://127.0.0.1:{port}/ws") as client:
            assert (await client.run("print('out')\nreturn 1")).final["result"] == 1
    finally:
        process.terminate()
        code = await asyncio.to_thread(process.wait, PATIENCE_S)
    assert code == 0


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


def test_a_worker_may_have_as_many_descriptors_as_its_host_lets_it() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = ["/bin/sh", "-c", 'ulimit -S -n 100 && exec "$@"', "sh"]
    with worker_process("--level", "BEST", "--pool-size", "1", before=few) as (process, _):
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (most, most)


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [("max_sessions", value, "above 0") for value in (0, -1, "3")]
    + [("pool_size", value, ", 0 or more") for value in (-1, "3")],
)
def test_a_worker_without_slots_cannot_be_configured(setting: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}: {value!r} is not a whole number ?{allowed}"):
        RuntimeConfig(**{setting: value})  # type: ignore[arg-type]  # what is refused
