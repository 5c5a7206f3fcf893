"""`enclave doctor`: what it finds is what is there, and what it advises fits the cause."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enclave_worker import doctor
from enclave_worker.doctor import Check, Host, fix_namespace, fix_proc, fix_time_namespace, render
from enclave_worker.doctor_probes import PROBES
from enclave_worker.zygote.kernel import landlock_abi
from tests.support import ordinary_user

SCRIPT = Path(doctor.__file__).with_name("doctor_probes.py")
# Enters namespaces in which something is then spoilt, and becomes another program.
SPOILT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import kernel

uid, gid = os.getuid(), os.getgid()
kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
exec(sys.argv[2])
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
COMMAND = ("-P", "-m", "enclave_client.cli", "doctor")
needs_time_namespaces = pytest.mark.skipif(
    not Path("/proc/sys/user/max_time_namespaces").exists(), reason="this kernel has no time namespaces"
)
NO_USER_NAMESPACES = "open('/proc/sys/user/max_user_namespaces', 'w').write('0')"


def run_spoilt(spoil: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python with these arguments in a user namespace in which `spoil` was executed first."""
    command = [sys.executable, "-I", "-S", "-c", SPOILT, str(SCRIPT.parent / "zygote"), spoil, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def probe_after(name: str, spoil: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run_spoilt(spoil, "-I", "-S", str(SCRIPT), name).stdout)
    return answer


def host(*, root: bool = False, container: str = "", **sysctls: str) -> Host:
    return Host(root=root, container=container, sysctls={name.replace("__", "/"): v for name, v in sysctls.items()})


ANSWER = doctor._Answer(ok=False, found="Operation not permitted", errno=1)


def test_every_need_has_a_probe_and_every_probe_is_needed() -> None:
    assert {need.probe for need in doctor.NEEDS} == set(PROBES)


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
    answer = probe_after("capabilities", f"kernel.prctl(kernel.PR_CAPBSET_DROP, {bit})")

    assert (answer["ok"], answer["found"]) == (True, f"as an ordinary user, without {name}")


@pytest.mark.parametrize("probe", ["capabilities", "user_namespace", "guest_user_namespace", "proc", "pivot_root"])
def test_root_that_cannot_do_what_root_does_is_tried_as_an_ordinary_user(probe: str) -> None:
    answer = probe_after(probe, "kernel.prctl(kernel.PR_CAPBSET_DROP, 21)")

    assert answer["ok"]
    assert "as root" not in answer["found"]


@pytest.mark.parametrize(
    ("machine", "advice"),
    [
        (host(user__max_user_namespaces="0"), "sysctl -w user.max_user_namespaces=15000"),
        (host(user__max_net_namespaces="0", root=True), "sysctl -w user.max_net_namespaces=15000"),
        (host(kernel__unprivileged_userns_clone="0"), "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            host(kernel__apparmor_restrict_unprivileged_userns="1"),
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (host(container="docker", kernel__unprivileged_userns_clone="1"), "docker run --cap-add SYS_ADMIN"),
        (host(container="kubernetes"), "hostUsers: false"),
        (host(), "as root"),
        (host(root=True, kernel__unprivileged_userns_clone="0"), "CONFIG_USER_NS"),
    ],
)
def test_the_advice_names_the_setting_that_forbids_it(machine: Host, advice: str) -> None:
    assert advice in fix_namespace(machine, ANSWER)


@pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")
def test_a_landlock_that_cannot_be_entered_is_found_missing() -> None:
    # The kernel stacks sixteen layers, and they are all in force already.
    stack = "kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)\nfor _ in range(16): kernel.landlock(1 << 12, 0, 0)"

    assert not probe_after("landlock", stack)["ok"]


@pytest.mark.parametrize(
    ("machine", "number", "advice"),
    [
        (host(user__max_time_namespaces="0"), errno.ENOSPC, "sysctl -w user.max_time_namespaces=15000"),
        (host(user__max_time_namespaces="15000", root=True), errno.EPERM, "as an ordinary user"),
        (host(container="docker", root=True), errno.EPERM, "as an ordinary user"),
        (host(), errno.EINVAL, "CONFIG_TIME_NS=y"),
    ],
)
def test_clocks_of_their_own_are_not_bought_with_the_power_to_set_the_hosts(
    machine: Host, number: int, advice: str
) -> None:
    assert advice in fix_time_namespace(machine, doctor._Answer(ok=False, found="refused", errno=number))


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


def test_a_masked_proc_in_a_container_is_unmasked_by_the_container() -> None:
    assert "systempaths=unconfined" in fix_proc(host(container="docker"), ANSWER)
    assert "procMount: Unmasked" in fix_proc(host(container="kubernetes"), ANSWER)


def test_a_probe_that_says_nothing_is_a_missing_feature() -> None:
    answer = doctor.probe("no_such_probe")

    assert not answer.ok
    assert "no_such_probe" in answer.found


def check(name: str, *, ok: bool, required: bool = True) -> Check:
    fix = "" if ok else "mend it"
    return Check(name=name, needed_for="something", ok=ok, found="this", fix=fix, required=required)


def test_the_table_names_every_check_and_mends_what_is_missing() -> None:
    text = render([check("a", ok=True), check("b", ok=False), check("c", ok=False, required=False)])

    marks = [line.split()[0] for line in text.splitlines()[1:4]]
    assert marks == ["ok", "MISSING", "absent"]
    assert "  b: mend it" in text
    assert text.endswith("A worker cannot start here: 1 missing.")


def test_what_is_optional_does_not_keep_a_worker_from_starting() -> None:
    text = render([check("a", ok=True), check("c", ok=False, required=False)])

    assert text.endswith("A worker can start here.")


@pytest.mark.parametrize("command", [[sys.executable, *COMMAND], ordinary_user([sys.executable, *COMMAND])])
def test_the_command_exits_with_zero_where_a_worker_can_start(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout.decode()
    assert done.stdout.decode().splitlines()[-1] == "A worker can start here."


def test_the_command_exits_with_one_where_none_can_and_gives_the_exact_command() -> None:
    done = run_spoilt(NO_USER_NAMESPACES, *COMMAND)

    assert done.returncode == 1
    assert "sudo sysctl -w user.max_user_namespaces=15000" in done.stdout.decode()
