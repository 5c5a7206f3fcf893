"""What a worker makes of this host's own settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_worker.doctor_layers import judge_ids
from tests.worker.doctor_hosts import COMMAND


@pytest.mark.parametrize(
    ("uid_map", "ok", "options"),
    [
        ("         0          0 4294967295\n", True, ()),
        ("         0     589824      65536\n", True, ("--first-uid", "20000")),
        ("0 1000 1\n1 589824 5000\n", True, ("--first-uid", "1000")),
        ("0 1000 1\n", False, ()),
        ("0 0 1060\n", False, ()),
    ],
    ids=["a host", "a pod", "few", "one", "the system's only"],
)
def test_a_range_of_user_ids_with_room_for_all_sandboxes_is_found(
    uid_map: str,
    ok: bool,  # noqa: FBT001 - a parameter
    options: tuple[str, ...],
) -> None:
    answer = judge_ids(uid_map, 200_000, 80)

    assert (answer.ok, answer.options) == (ok, options)


def test_a_worker_starts_with_the_ids_that_were_found() -> None:
    # A user namespace with the ids of a pod, and all capabilities: root inside of it acts as root.
    if os.geteuid() != 0:
        pytest.skip("only root can map a range of ids")
    command = [sys.executable, *COMMAND, "--level", "STANDARD"]
    wait = "import os, sys; os.read(0, 1); os.execv(sys.argv[1], sys.argv[1:])"
    namespace = ["unshare", "--user", sys.executable, "-c", wait, *command]
    with subprocess.Popen(namespace, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        wait_for_other_namespace(process.pid)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536")
        out, _ = process.communicate(b"x", timeout=60)

    assert "--first-uid 20000" in out.decode(), out.decode()
    assert process.returncode == 0


def wait_for_other_namespace(pid: int) -> None:
    """Wait until a process has entered a user namespace; it cannot tell us itself, before it has ids there."""
    own = Path("/proc/self/ns/user").readlink()
    while Path(f"/proc/{pid}/ns/user").readlink() == own:
        os.sched_yield()
