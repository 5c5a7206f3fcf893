"""What Landlock is told: of each ABI all that it knows, and no right to write but where a sandbox's own files lie."""

from __future__ import annotations

import subprocess
import sys

import pytest

from enclave_worker.sandbox import landlock
from enclave_worker.sandbox.landlock import handled, landlock_step, scoped
from enclave_worker.sandbox.levels import LEVELS
from enclave_worker.sandbox.plan import make_plan
from enclave_worker.sandbox.spec import python_spec
from tests.support import PATIENCE_S

SPEC = python_spec(LEVELS["SECURE"].resources, counted=False)
ABIS = range(1, 10)
READING = landlock.EXECUTE | landlock.READ_FILE | landlock.READ_DIR


def rules(abi: int) -> dict[str, int]:
    paths, masks = landlock_step(SPEC, abi)[5::2], landlock_step(SPEC, abi)[6::2]
    return {str(path): int(mask or 0) for path, mask in zip(paths, masks, strict=True)}


@pytest.mark.parametrize(
    ("abi", "highest_right", "scopes"),
    [(1, 12, 0), (2, 13, 0), (3, 14, 0), (4, 14, 0), (5, 15, 0), (6, 15, 3), (7, 15, 3), (8, 15, 3)],
)
def test_each_abi_is_asked_for_every_right_and_scope_it_knows_and_none_it_does_not(
    abi: int, highest_right: int, scopes: int
) -> None:
    assert handled(abi) == (1 << highest_right + 1) - 1
    assert scoped(abi) == scopes


@pytest.mark.parametrize("abi", range(8))
def test_the_plan_has_the_step_just_before_the_filter_wherever_there_is_landlock(abi: int) -> None:
    plan = make_plan(SPEC, privilege="root", uid=0, gid=0, landlock_abi=abi, own_clocks=False)
    order = [step[0] for step in plan.enclose]

    assert plan.landlock is (abi > 0)
    assert order[-2:] == ["Landlock", "system call filter"] if abi else "Landlock" not in order


@pytest.mark.parametrize("abi", ABIS)
def test_no_rule_allows_what_is_not_handled(abi: int) -> None:
    # The kernel refuses such a rule, and we the sandbox.
    for path, mask in rules(abi).items():
        assert mask
        assert not mask & ~handled(abi), path


@pytest.mark.parametrize("abi", ABIS)
def test_only_reading_is_allowed_outside_of_a_sandboxes_own_directories(abi: int) -> None:
    allowed = rules(abi)
    assert allowed.pop("/") == READING
    assert not allowed.pop("/dev") & ~(landlock.WRITE_FILE | landlock.IOCTL_DEV)
    assert set(allowed) == {tmpfs.path for tmpfs in SPEC.tmpfs}


@pytest.mark.parametrize("abi", ABIS)
def test_device_nodes_can_be_made_nowhere(abi: int) -> None:
    for mask in rules(abi).values():
        assert not mask & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK)


WITHOUT = """
import os, struct, sys
from enclave_worker.zygote import kernel

number, equal, refuse, allow = (0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7FFF0000)
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
program = b"".join(struct.pack("HBBI", *each) for each in (number, equal, refuse, allow))
kernel.load_seccomp(*kernel.filter_program(program))
os.execv(sys.executable, [sys.executable, "-m", "enclave_worker.cli", "--port", "0", *sys.argv[1:]])
"""
"""Becomes a worker to which the kernel says that it has no Landlock: ENOSYS."""


@pytest.mark.parametrize("level", ["STRICT", "SECURE"])
def test_a_worker_that_must_have_landlock_does_not_start_without(level: str) -> None:
    command = [sys.executable, "-c", WITHOUT, "--level", level]

    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)

    assert done.returncode == 1
    assert b"no Landlock" in done.stderr or b"no control groups" in done.stderr


def test_a_worker_that_may_do_without_landlock_says_so_and_runs() -> None:
    command = [sys.executable, "-c", WITHOUT, "--level", "STANDARD", "--pool-size", "1"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        started = worker.stdout.readline()
        worker.terminate()
        _, said = worker.communicate(timeout=PATIENCE_S)

    assert started.startswith(b"enclave-runtime listening on ")
    assert b"without Landlock" in said


@pytest.mark.parametrize("abi", ABIS)
def test_refusals_are_not_logged_where_a_guest_could_flood_the_log(abi: int) -> None:
    assert landlock_step(SPEC, abi)[4] == (1 if abi >= 7 else 0)
