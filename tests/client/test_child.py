"""A child of the fleet cannot outlive the process that started it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

PARENT = """
import os, subprocess, sys
command = [sys.executable, "-m", "enclave_client.child", str(os.getpid() + int(sys.argv[1])), "timeit", "-n1", "-r1",
           "-s", "print('ready', flush=True); import time", "time.sleep(600)"]
child = subprocess.Popen(command, start_new_session=True)
child.wait()
print("child exited", child.returncode, flush=True)
"""


async def start_parent(wrong_pid: int) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(wrong_pid), stdout=pipe, stderr=pipe)


async def test_a_child_dies_with_a_parent_that_was_killed() -> None:
    parent = await start_parent(0)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"ready\n"

    os.kill(parent.pid, signal.SIGKILL)

    # The child holds the other ends of the pipes for as long as it lives.
    async with asyncio.timeout(60):
        assert await parent.communicate() == (b"", b"")


async def test_a_child_whose_parent_is_already_another_does_not_run() -> None:
    parent = await start_parent(1)
    out, err = await parent.communicate()

    assert b"ready" not in out
    assert b"child exited 1" in out
    assert b"is gone" in err
