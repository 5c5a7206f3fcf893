"""The advice fits the cause."""

from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING

import pytest

from enclave_worker.doctor_needs import (
    Answer,
    Host,
    fix_control_groups,
    fix_namespace,
    fix_own_user,
    fix_pinned_memory,
    fix_proc,
    fix_time_namespace,
)
from tests.worker.doctor_hosts import host

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = Answer(ok=False, found="Operation not permitted", errno=1)


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
    assert advice in fix_time_namespace(machine, Answer(ok=False, found="refused", errno=number))


@pytest.mark.parametrize(
    ("machine", "number", "advice"),
    [
        (host(), errno.ENOSYS, "CONFIG_IO_URING=y"),
        (host(), errno.ENOMEM, "LimitMEMLOCK"),
        (host(kernel__io_uring_disabled="2", root=True), errno.EPERM, "sysctl -w kernel.io_uring_disabled=1"),
        (host(kernel__io_uring_disabled="1"), errno.EPERM, "kernel.io_uring_group"),
        (host(container="docker", kernel__io_uring_disabled="0"), errno.EPERM, "system call filter"),
    ],
)
def test_the_advice_for_pinned_memory_names_what_forbids_it(machine: Host, number: int, advice: str) -> None:
    assert advice in fix_pinned_memory(machine, Answer(ok=False, found="refused", errno=number))


def test_a_masked_proc_in_a_container_is_unmasked_by_the_container() -> None:
    assert "systempaths=unconfined" in fix_proc(host(container="docker"), ANSWER)
    assert "procMount: Unmasked" in fix_proc(host(container="kubernetes"), ANSWER)


def test_the_apparmor_profile_can_be_pasted_and_is_for_this_interpreter_alone(tmp_path: Path) -> None:
    fix = fix_namespace(host(kernel__apparmor_restrict_unprivileged_userns="1"), ANSWER)

    command = next(line for line in fix.splitlines() if line.startswith("printf")).partition(" | sudo tee ")[0]
    printed = subprocess.run(["sh", "-c", command], capture_output=True, check=True, cwd=tmp_path).stdout.decode()
    assert printed == (
        "abi <abi/4.0>,\n"
        "include <tunables/global>\n"
        "profile enclave-runtime /opt/enclave/bin/python3.12 flags=(unconfined) {\n"
        "  userns,\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("machine", "number", "advice"),
    [
        (host(), errno.EROFS, "its own words"),
        (host(container="docker"), errno.EROFS, "--security-opt writable-cgroups=true"),
        (host(container="kubernetes"), errno.EROFS, "cgroup_writable"),
        (host(container="docker"), errno.EACCES, "its own words"),
    ],
)
def test_the_advice_on_control_groups_is_the_workers_own_unless_a_container_withholds_them(
    machine: Host, number: int, advice: str
) -> None:
    answer = Answer(ok=False, found="none", errno=number, fix="its own words")

    assert advice in fix_control_groups(machine, answer)


def test_the_advice_on_host_users_depends_on_what_took_them_away() -> None:
    assert "as root" in fix_own_user(host(), ANSWER)
    assert "--cap-add" in fix_own_user(host(root=True, container="docker"), ANSWER)
    assert "capabilities.add" in fix_own_user(host(root=True, container="kubernetes"), ANSWER)
