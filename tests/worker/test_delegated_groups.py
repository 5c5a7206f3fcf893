"""Workers in a part of a real v2 tree that was handed to them: where there is none, see tests/vm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_worker.cgroups import CONTROLLERS
from tests.support import PATIENCE_S, USER, children_of, client_of, ordinary_user, watched, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/sys/fs/cgroup")
JOIN = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')
FILES = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
HOG = "kept = bytearray(200 << 20)"


def enter(group: Path) -> tuple[str, ...]:
    """Return a command that runs another in this group."""
    return (*JOIN, str(group))


@pytest.fixture
def handed() -> Iterator[Path]:
    """A group of the ordinary user's, with all controllers, that nobody is in."""
    controllers = ROOT / "cgroup.controllers"
    if os.geteuid() != 0 or not controllers.exists() or not {*CONTROLLERS[2]} <= {*controllers.read_text().split()}:
        pytest.skip("needs root of a machine whose control groups are all v2")
    before = (ROOT / "cgroup.subtree_control").read_text().split()
    for name in CONTROLLERS[2]:
        try:
            (ROOT / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError as error:
            pytest.skip(f"the root of this tree hands nothing down: {error.strerror}")
    group = ROOT / f"handed-{os.getpid()}"
    group.mkdir()
    for path in (group, *(group / name for name in FILES)):
        os.chown(path, USER, USER)
    yield group
    assert not list(group.glob("enclave-*")), "the last worker to stop leaves nothing"
    group.rmdir()
    for name in {*CONTROLLERS[2]}.difference(before):
        with contextlib.suppress(OSError):
            (ROOT / "cgroup.subtree_control").write_text(f"-{name}")


async def limits_hold(url: str) -> None:
    """Run a session that is fine and one that takes too much."""
    async with client_of(url) as client:
        assert client.hello["level"] == "SECURE"
        assert (await client.run("return 'fine'")).final["result"] == "fine"
        greedy = await client.run(HOG, memoryLimitBytes=128 << 20)
        assert greedy.final["error"]["code"] == "MEMORY_LIMIT_EXCEEDED"


@pytest.mark.parametrize("as_user", [False, True], ids=["root", "an ordinary user"])
async def test_a_worker_in_a_group_handed_to_it_holds_secure(handed: Path, as_user: bool) -> None:  # noqa: FBT001 - a parameter of the test
    with worker_process("--level", "SECURE", as_user=as_user, before=enter(handed)) as (process, url):
        await limits_hold(url)
        assert process.pid not in pids_in(handed)


async def test_a_second_worker_beside_the_first_outlives_it(handed: Path) -> None:
    with contextlib.ExitStack() as first_stops:
        first, _ = first_stops.enter_context(worker_process("--level", "SECURE", as_user=True, before=enter(handed)))
        # As whatever the first's container starts later: it is in the first's leaf.
        leaf = handed / f"enclave-{first.pid}" / "worker"
        with worker_process("--level", "SECURE", as_user=True, before=enter(leaf)) as (_, url):
            await limits_hold(url)
            first_stops.close()
            await limits_hold(url)


async def test_a_group_whose_worker_was_killed_can_be_entered_again(handed: Path) -> None:
    with worker_process("--level", "SECURE", as_user=True, before=enter(handed)) as (process, url):
        await limits_hold(url)
        with watched(children_of(process.pid)) as wait_gone:
            process.kill()
            await asyncio.to_thread(wait_gone)
    with worker_process("--level", "SECURE", as_user=True, before=enter(handed)) as (_, url):
        await limits_hold(url)


def test_a_group_with_others_in_it_is_refused_with_what_helps(handed: Path) -> None:
    command = ordinary_user([sys.executable, "-m", "enclave_worker.cli", "--port", "0", "--level", "SECURE"])
    with subprocess.Popen([*enter(handed), "/bin/sleep", str(PATIENCE_S)]) as neighbour:
        while neighbour.pid not in pids_in(handed):
            assert neighbour.poll() is None
        refused = subprocess.run(
            [*enter(handed), *command], check=False, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert pids_in(handed) == [neighbour.pid]
        neighbour.send_signal(signal.SIGKILL)

    assert refused.returncode
    assert "Device or resource busy" in refused.stderr
    assert "Delegate=yes" in refused.stderr


def pids_in(group: Path) -> list[int]:
    """Return the processes that are in this very group."""
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
