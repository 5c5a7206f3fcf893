"""`enclave doctor`: what it finds is what is there, and what it advises fits the cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enclave_worker import doctor
from enclave_worker.doctor import Check, Host, fix_namespace, fix_proc, render
from enclave_worker.doctor_probes import PROBES

SCRIPT = Path(doctor.__file__).with_name("doctor_probes.py")
NO_USER_NAMESPACES = """
import os, runpy, sys
sys.path.insert(0, sys.argv[1])
import kernel

uid, gid = os.getuid(), os.getgid()
kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
exec(sys.argv[4])
sys.argv[:] = sys.argv[2:4]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def probe_after(name: str, spoil: str) -> dict[str, Any]:
    """Run a probe in a user namespace in which `spoil` was executed first."""
    kernel = str(SCRIPT.parent / "zygote")
    command = [sys.executable, "-I", "-S", "-c", NO_USER_NAMESPACES, kernel, str(SCRIPT), name, spoil]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def host(*, root: bool = False, container: str = "", **sysctls: str) -> Host:
    return Host(root=root, container=container, sysctls={name.replace("__", "/"): v for name, v in sysctls.items()})


ANSWER = doctor._Answer(ok=False, found="Operation not permitted", errno=1)


def test_every_need_has_a_probe_and_every_probe_is_needed() -> None:
    assert {need.probe for need in doctor.NEEDS} == set(PROBES)


def test_a_forbidden_user_namespace_is_found_missing() -> None:
    spoil = "open('/proc/sys/user/max_user_namespaces', 'w').write('0')"

    answer = probe_after("user_namespace", spoil)

    assert not answer["ok"]
    assert "No space left" in answer["found"]


@pytest.mark.parametrize("kind", ["mnt", "net", "pid", "ipc", "uts"])
def test_a_forbidden_namespace_is_found_missing(kind: str) -> None:
    names = {"mnt": "mount", "net": "network"}
    spoil = f"open('/proc/sys/user/max_{kind}_namespaces', 'w').write('0')"

    assert not probe_after(f"{names.get(kind, kind)}_namespace", spoil)["ok"]


def test_a_masked_proc_is_found_missing() -> None:
    # As in a container: something lies over a part of /proc, and a namespace below cannot take it away.
    again = NO_USER_NAMESPACES[NO_USER_NAMESPACES.index("uid, gid") : NO_USER_NAMESPACES.index("exec")]
    spoil = "kernel.mount(b'tmpfs', b'/proc/sys', b'tmpfs', 0, None)\n" + again

    assert not probe_after("proc", spoil)["ok"]


def test_few_open_files_are_found_missing() -> None:
    spoil = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"

    answer = probe_after("rlimits", spoil)

    assert (answer["ok"], answer["found"]) == (False, "at most 100 open files")


def test_a_lost_capability_is_named() -> None:
    # Sets permitted and effective to everything but CAP_SYS_ADMIN.
    answer = probe_after("capabilities", "kernel.set_capabilities((1 << 41) - 1 - (1 << 21))")

    assert (answer["ok"], answer["found"]) == (False, "without SYS_ADMIN")


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
