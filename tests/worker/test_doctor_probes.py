"""What this host can do is tried, and what is missing is found."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from enclave_worker import doctor_layers, doctor_probes
from enclave_worker.doctor_needs import NEEDS
from enclave_worker.doctor_probes import landlock_adds
from enclave_worker.zygote.kernel import landlock_abi
from tests.worker.doctor_hosts import NO_USER_NAMESPACES, SCRIPT, SPOILT, run_spoilt

needs_time_namespaces = pytest.mark.skipif(
    not Path("/proc/sys/user/max_time_namespaces").exists(), reason="this kernel has no time namespaces"
)


def probe_after(name: str, spoil: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run_spoilt(spoil, "-I", "-S", str(SCRIPT), name).stdout)
    return answer


def test_every_need_has_a_probe_and_every_probe_is_needed() -> None:
    assert {need.probe for need in NEEDS if not need.ours} == set(doctor_probes.PROBES)
    assert {need.probe for need in NEEDS if need.ours} == set(doctor_layers.PROBES)


def test_a_forbidden_user_namespace_is_found_missing() -> None:
    answer = probe_after("user_namespace", NO_USER_NAMESPACES)

    assert not answer["ok"]
    assert "No space left" in answer["found"]


@pytest.mark.parametrize("kind", ["mnt", "net", "pid", "ipc", "uts", "cgroup", "time"])
def test_a_forbidden_namespace_is_found_missing(kind: str) -> None:
    names = {"mnt": "mount", "net": "network"}
    spoil = f"open('/proc/sys/user/max_{kind}_namespaces', 'w').write('0')"

    assert not probe_after(f"{names.get(kind, kind)}_namespace", spoil)["ok"]


def test_a_masked_proc_is_found_missing() -> None:
    # As in a container: something lies over a part of /proc, and a namespace below cannot take it away.
    again = SPOILT[SPOILT.index("uid, gid") : SPOILT.index("exec")]
    spoil = "kernel.mount(b'tmpfs', b'/proc/sys', b'tmpfs', 0, None)\n" + again

    assert not probe_after("proc", spoil)["ok"]


def test_few_open_files_are_found_missing() -> None:
    spoil = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"

    answer = probe_after("rlimits", spoil)

    assert (answer["ok"], answer["found"]) == (False, "at most 100 open files")


@pytest.mark.parametrize(("name", "bit"), [("KILL", 5), ("NET_ADMIN", 12), ("SYS_ADMIN", 21)])
def test_root_without_a_capability_it_needs_is_an_ordinary_user(name: str, bit: int) -> None:
    # From the bounding set, so that the next program lacks it too.
    answer = probe_after("own_user", f"kernel.prctl(kernel.PR_CAPBSET_DROP, {bit})")

    assert (answer["ok"], answer["found"]) == (False, f"root here lacks {name}")


@pytest.mark.parametrize("probe", ["user_namespace", "guest_user_namespace", "proc", "pivot_root"])
def test_root_that_cannot_do_what_root_does_is_tried_as_an_ordinary_user(probe: str) -> None:
    answer = probe_after(probe, "kernel.prctl(kernel.PR_CAPBSET_DROP, 21)")

    assert answer["ok"]
    assert "as root" not in answer["found"]


@pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")
def test_a_landlock_that_cannot_be_entered_is_found_missing() -> None:
    # The kernel stacks sixteen layers, and they are all in force already.
    stack = "kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)\nfor _ in range(16): kernel.landlock(1 << 12, 0, 0)"

    assert not probe_after("landlock", stack)["ok"]


@needs_time_namespaces
def test_root_that_may_not_set_clocks_makes_none() -> None:
    spoil = "kernel.prctl(kernel.PR_CAPBSET_DROP, 25)"

    answer = probe_after("time_namespace", spoil)

    assert (answer["ok"], answer["errno"]) == (False, errno.EPERM)


@needs_time_namespaces
@pytest.mark.parametrize(
    ("spoil", "possible"),
    [
        ("", True),
        ("kernel.prctl(kernel.PR_CAPBSET_DROP, 25)", False),
        ("open('/proc/sys/user/max_time_namespaces', 'w').write('0')", False),
    ],
    ids=["allowed", "root without CAP_SYS_TIME", "none allowed"],
)
def test_a_worker_plans_for_clocks_only_where_it_can_set_them(spoil: str, possible: bool) -> None:  # noqa: FBT001 - a parameter
    ask = "import sys; sys.path.insert(0, sys.argv[1]); import kernel; print(kernel.can_set_clocks())"

    done = run_spoilt(spoil, "-I", "-S", "-c", ask, str(SCRIPT.parent / "zygote"))

    assert done.stdout.decode().strip() == str(possible), done.stderr.decode()


@pytest.mark.parametrize(
    ("abi", "words"),
    [
        (1, "files; not yet truncation (ABI 3), device controls (ABI 5), abstract sockets, signals (ABI 6)"),
        (5, "files, truncation, device controls; not yet abstract sockets, signals (ABI 6)"),
        (7, "files, truncation, device controls, abstract sockets, signals"),
    ],
)
def test_an_abi_of_landlock_is_said_by_what_it_guards(abi: int, words: str) -> None:
    assert landlock_adds(abi) == words
