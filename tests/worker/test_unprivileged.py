"""The same worker, started by an ordinary user: every layer holds there too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support import (
    NAME_PROCESS,
    Client,
    client_of,
    new_name,
    processes_named,
    wait_none_named,
    worker_process,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SPIN = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsum(range(10**12))"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A worker that an ordinary user started."""
    with worker_process(as_user=True) as (process, url):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert "0" not in status["Uid"].split(), "it really is an ordinary user's"
        assert int(status["CapEff"], 16) == 0
        yield url


@pytest_asyncio.fixture
async def user_client(url: str) -> AsyncIterator[Client]:
    """A connection to it."""
    async with client_of(url) as client:
        yield client


async def test_it_runs_code_with_output_a_tool_and_a_result(user_client: Client) -> None:
    session = await user_client.start("print('hi', end='')\nreturn await call_tool('add', {'a': 1})")
    call = await user_client.until(session, "tool_call")
    await user_client.answer(session, call["callId"], 3)
    run = await user_client.finish(session)

    assert (run.text("stdout"), run.final["result"]) == ("hi", 3)


async def test_every_lock_is_on(user_client: Client) -> None:
    run = await user_client.run(
        "return dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)"
    )

    status = run.final["result"]
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["NSpid"].split()) == ("1", "2", ["1"])
    assert set(status["Uid"].split()) == {"1000"}


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("open('/etc/shadow').read()", {"FileNotFoundError"}),
        (f"open({__file__!r}).read()", {"FileNotFoundError"}),
        ("open('/usr/bin/planted', 'w')", {"OSError", "PermissionError"}),
        ("__import__('os').setuid(0)", {"PermissionError"}),
        ("__import__('socket').create_connection(('1.1.1.1', 443), 2)", {"OSError"}),
        ("__import__('os').kill(2, 9)", {"ProcessLookupError"}),
        ("__import__('socket').socket(16, 3)", {"OSError"}),
    ],
)
async def test_it_isolates_as_root_started_does(user_client: Client, attempt: str, refusal: set[str]) -> None:
    run = await user_client.run(
        f"try:\n    {attempt}\nexcept OSError as error:\n    return type(error).__name__\nreturn 'WORKED'"
    )

    assert run.final["result"] in refusal


async def test_nested_namespaces_are_refused(user_client: Client) -> None:
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nreturn [libc.unshare(0x10000000), ctypes.get_errno()]"
    )

    assert (await user_client.run(code)).final["result"] == [-1, 1]


async def test_the_deadline_and_cancel_end_whatever_the_guest_does(user_client: Client) -> None:
    name = new_name()
    code = NAME_PROCESS.format(name=name) + "import os\nos.fork()\nprint('up', flush=True)\n" + SPIN
    timed = await user_client.run_to_deadline(code, "up")
    assert timed.code == "DEADLINE_EXCEEDED"
    wait_none_named(name)  # a final waits for the end of its processes, but not for ever

    session = await user_client.start(code)
    await user_client.until_written(session, "up")
    await user_client.send({"type": "cancel", "sessionId": session})
    assert (await user_client.finish(session)).code == "SESSION_CANCELLED"
    wait_none_named(name)


async def test_sandboxes_of_one_user_cannot_reach_each_other(url: str, user_client: Client) -> None:
    # Both run as the same host user: what keeps them apart is the pid and user namespace alone.
    name = new_name()
    victim = await user_client.start(
        NAME_PROCESS.format(name=name) + "print('up', flush=True)\nawait call_tool('wait')"
    )
    await user_client.until_written(victim, "up")
    host_pid = processes_named(name)[0]
    async with client_of(url) as attacker:
        run = await attacker.run(f"""
import os
seen = []
for pid in ({host_pid}, -1):
    try:
        os.kill(pid, 9)
        seen.append('sent')
    except OSError as error:
        seen.append(type(error).__name__)
return [seen, os.listdir('/tmp')]
""")
    assert run.final["result"] == [["ProcessLookupError", "ProcessLookupError"], []]
    assert processes_named(name) == [host_pid]

    await user_client.send({"type": "cancel", "sessionId": victim})
    assert (await user_client.finish(victim)).code == "SESSION_CANCELLED"


async def test_a_fork_bomb_in_one_sandbox_leaves_the_others_their_processes(url: str, user_client: Client) -> None:
    bomb = await user_client.start("""
import os, time
print('up', flush=True)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
""")
    await user_client.until_written(bomb, "up")
    async with client_of(url) as other:
        run = await other.run("import subprocess\nreturn subprocess.run(['/bin/sh', '-c', 'exit 7']).returncode")
    await user_client.send({"type": "cancel", "sessionId": bomb})
    await user_client.finish(bomb)

    assert run.final["result"] == 7
