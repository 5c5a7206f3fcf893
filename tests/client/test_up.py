"""`enclave up` and the private fleet of `enclave run`: real workers, a real broker, real sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import children_of, ordinary_user, own_children_of, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COMMAND = (sys.executable, "-P", "-m", "enclave_client.cli")
PIPE = asyncio.subprocess.PIPE


async def enclave(
    *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> asyncio.subprocess.Process:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")} | (environment or {})
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=cwd, env=env
    )


async def run(*arguments: str, code: str, cwd: Path | None = None) -> tuple[int, str, str]:
    process = await enclave("run", "-", *arguments, cwd=cwd)
    out, err = await process.communicate(code.encode())
    return process.returncode or 0, out.decode(), err.decode()


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, f"{pattern} not in {text}"
    return match[1]


async def start_code(code: str) -> asyncio.subprocess.Process:
    """Start a private run, and wait for the first line the code prints."""
    process = await enclave("run", "-")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(code.encode())
    process.stdin.close()
    assert await process.stdout.readline() == b"started\n"
    return process


ENDS_SOON = "import asyncio\nprint('started', flush=True)\nawait asyncio.sleep(1)\nreturn 1"


async def start_on(fleet: Up, code: str, *options: str) -> asyncio.subprocess.Process:
    """Start a run on a fleet, and wait for the first line the code prints."""
    process = await enclave("run", "-", "--broker", fleet.url, *options)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(code.encode())
    process.stdin.close()
    assert await process.stdout.readline() == b"started\n"
    return process


class Up:
    """A running `enclave up`."""

    def __init__(self, process: asyncio.subprocess.Process, banner: str) -> None:
        self.process = process
        self.banner = banner
        self.url = found(r"(http://127\.0\.0\.1:\d+)", banner)

    def pid_of(self, module: str) -> int:
        """Return the process of a program that it started. What is below one, the kernel may show by its name too."""
        pids = own_children_of(self.process.pid)
        [found] = [pid for pid in pids if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return found

    async def wait_said(self, words: str) -> str:
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            while words not in (line := (await self.process.stderr.readline()).decode()):
                assert line, f"it ended without saying {words!r}"
        return line


@contextlib.asynccontextmanager
async def up(*arguments: str) -> AsyncIterator[Up]:
    process = await enclave("up", "--port", "0", *arguments)
    assert process.stdout is not None
    try:
        banner = (await process.stdout.readuntil(b"Ctrl-C stops everything.\n")).decode()
        yield Up(process, banner)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_everything_with_exit_code_zero(number: signal.Signals) -> None:
    async with up("--workers", "1") as fleet:
        below = children_of(fleet.process.pid)
        assert len(below) >= 3  # broker, worker, zygote
        with watched(below) as wait_gone:
            fleet.process.send_signal(number)
            await fleet.process.communicate()
            wait_gone()
    assert fleet.process.returncode == 0


async def test_a_fleet_that_is_stopped_lets_sessions_end() -> None:
    async with up("--workers", "1", "--grace-s", "3600") as fleet:
        running = await start_on(fleet, ENDS_SOON)
        fleet.process.send_signal(signal.SIGTERM)
        assert "stopping" in await fleet.wait_said("stopping")
        out, _ = await running.communicate()
        assert (running.returncode, out) == (0, b"1\n")
        await fleet.process.communicate()
    assert fleet.process.returncode == 0


async def test_a_fleet_that_is_told_twice_waits_for_nobody() -> None:
    async with up("--workers", "1", "--grace-s", "3600") as fleet:
        running = await start_on(fleet, "print('started', flush=True)\nwhile True: pass", "--timeout-ms", "0")
        fleet.process.send_signal(signal.SIGINT)
        await fleet.wait_said("stopping")
        fleet.process.send_signal(signal.SIGINT)
        await fleet.process.communicate()
        await running.communicate()
        assert running.returncode == 1
    assert fleet.process.returncode == 0


async def test_a_killed_fleet_leaves_no_process_behind() -> None:
    async with up("--workers", "2") as fleet:
        with watched(children_of(fleet.process.pid)) as wait_gone:
            fleet.process.kill()
            wait_gone()


async def test_a_worker_that_dies_is_started_again_and_works() -> None:
    async with up("--workers", "1") as fleet:
        os.kill(fleet.pid_of("enclave_worker.cli"), signal.SIGKILL)

        assert "killed by SIGKILL" in await fleet.wait_said("died")
        await fleet.wait_said("is back at")
        assert await run("--broker", fleet.url, code="return 1") == (0, "1\n", "")


async def test_a_fleet_without_its_broker_ends_and_says_so() -> None:
    async with up("--workers", "1") as fleet:
        os.kill(fleet.pid_of("enclave_broker.cli"), signal.SIGKILL)
        _, err = await fleet.process.communicate()

    assert fleet.process.returncode == 1
    assert err.decode().splitlines()[-1].startswith("enclave: the broker died (killed by SIGKILL)")


def sessions_of(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/sessions") as response:
        sessions: list[dict[str, Any]] = json.load(response)["sessions"]
        return sessions


async def test_a_broker_that_keeps_its_sessions_is_started_again_and_has_them(tmp_path: Path) -> None:
    async with up("--workers", "1", "--store", f"sqlite:{tmp_path / 'sessions.sqlite'}") as fleet:
        code, _, _ = await run("--broker", fleet.url, code="return 1")
        assert code == 0
        os.kill(fleet.pid_of("enclave_broker.cli"), signal.SIGKILL)
        assert "killed by SIGKILL" in await fleet.wait_said("died")
        assert fleet.url in await fleet.wait_said("is back at")
        [session] = sessions_of(fleet.url)
    assert session["outcome"] == "ok"


async def test_the_curl_line_is_right() -> None:
    async with up("--workers", "1") as fleet:
        body = found(r"-d '(.*)'", fleet.banner).encode()
        host, port = fleet.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        answer = (await reader.read()).decode()
        writer.close()

    assert '"chunk":"hello\\n"' in answer
    assert '"result":2' in answer


async def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await enclave("up", "--workers", "1", "--port", str(port))
        out, err = await process.communicate()

    assert (process.returncode, out) == (1, b"")
    assert str(port) in err.decode()
    assert "choose another --port" in err.decode().splitlines()[-1]


async def test_a_worker_that_cannot_start_is_said_with_its_own_words() -> None:
    process = await enclave("up", "--workers", "1", environment={"ENCLAVE_ZYGOTE_FORKS": "never"})
    _, err = await process.communicate()

    assert process.returncode == 1
    assert "never" in err.decode()
    assert "enclave doctor" in err.decode().splitlines()[-1]


async def test_a_private_fleet_that_cannot_start_exits_with_two() -> None:
    process = await enclave("run", "-", environment={"ENCLAVE_ZYGOTE_FORKS": "never"})
    out, err = await process.communicate(b"return 1")

    assert (process.returncode, out) == (2, b"")
    assert "never" in err.decode()
    assert "enclave doctor" in err.decode().splitlines()[-1]


async def test_a_fleet_started_with_nohup_outlives_its_terminal() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by the child
    try:
        async with up("--workers", "1") as fleet:
            fleet.process.send_signal(signal.SIGHUP)

            assert await run("--broker", fleet.url, code="return 1") == (0, "1\n", "")
            fleet.process.send_signal(signal.SIGTERM)
            await fleet.process.communicate()
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert fleet.process.returncode == 0


async def test_a_private_fleet_runs_code_and_leaves_nothing_behind() -> None:
    process = await start_code("print('started')\nimport time; time.sleep(0.3)\nreturn {'a': [1, 2.5, None]}")
    with watched(children_of(process.pid)) as wait_gone:
        out, err = await process.communicate()
        wait_gone()

    assert (process.returncode, out, err) == (0, b'{"a":[1,2.5,null]}\n', b"")


async def test_a_private_fleet_runs_tools_from_the_current_directory(tmp_path: Path) -> None:
    tool = "from enclave_broker import tool\n@tool\ndef add(a, b):\n    return a + b\n"
    (tmp_path / "my_tools.py").write_text(tool)

    answer = await run("--tools", "my_tools", code="return await call_tool('add', {'a': 1, 'b': 2})", cwd=tmp_path)

    assert answer == (0, "3\n", "")


async def test_a_failure_shows_the_codes_own_lines_and_both_streams() -> None:
    code = "import sys\nprint('out', end='')\nprint('err', end='', file=sys.stderr)\nraise KeyError('x')\n"

    exit_code, out, err = await run(code=code)

    assert (exit_code, out) == (1, "out\n")
    assert err.startswith("err\nTraceback (most recent call last):\n")
    assert "line 4" in err
    assert err.splitlines()[-1].startswith("enclave: EXECUTION_ERROR: ")


async def test_a_deadline_ends_an_endless_loop() -> None:
    exit_code, _, err = await run("--timeout-ms", "200", code="while True: pass")

    assert exit_code == 1
    assert err.splitlines()[-1].startswith("enclave: DEADLINE_EXCEEDED: ")


async def test_interrupting_a_private_run_cancels_it() -> None:
    process = await start_code("print('started')\nwhile True: pass")
    with watched(children_of(process.pid)) as wait_gone:
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        wait_gone()

    assert process.returncode == 1
    assert err.decode().splitlines()[-1].startswith("enclave: SESSION_CANCELLED")


async def test_a_source_of_tools_that_does_not_answer_is_told_by_run(tmp_path: Path) -> None:
    tools_file = tmp_path / "mcp.json"
    tools_file.write_text('{"mcpServers": {"notes": {"command": "/nonexistent"}}}')
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "run", "-", "--tools-file", str(tools_file), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )

    out, err = await process.communicate(b"return 1")

    assert (process.returncode, out) == (0, b"1\n")
    assert b"tools of notes" in err


async def test_an_ordinary_user_can_run_code_too() -> None:
    command = ordinary_user([*COMMAND, "run", "-"])
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)

    out, err = await process.communicate(b"import os; return os.getuid()")

    assert (process.returncode, out, err) == (0, b"1000\n", b"")
