"""`enclave doctor`, on this machine: what it finds is what a worker holds."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_worker import doctor
from enclave_worker.doctor import stepped_aside
from enclave_worker.doctor_needs import Need
from tests.support import ordinary_user
from tests.worker.doctor_hosts import COMMAND, NO_USER_NAMESPACES, run_spoilt

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("ours", [False, True])
def test_a_probe_that_says_nothing_is_a_missing_feature(ours: bool) -> None:  # noqa: FBT001 - a parameter
    need = Need(probe="no_such_probe", name="a", needed_for="b", fix=lambda _host, _answer: "", ours=ours)

    answer = doctor.probe(need)

    assert not answer.ok
    assert "no_such_probe" in answer.found


LEVEL_OF_A_WORKER = """
from enclave_worker.config import RuntimeConfig
from enclave_worker.footing import find_footing
from enclave_worker.sandbox.levels import LEVELS, missing_layers

footing = find_footing(RuntimeConfig(level="STANDARD"))
footing.close()
print(next(level.name for level in LEVELS.values() if not missing_layers(level, footing.lacking)))
"""
ENOUGH = {
    "STRICT": {"STRICT"},
    "SECURE": {"STRICT", "SECURE"},
    "BEST": {"STRICT", "SECURE", "STANDARD"},
}
as_both = pytest.mark.parametrize("who", ["whoever runs the tests", "an ordinary user"])


def run_as(who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as one of the two, with nothing configured by the environment."""
    command = [sys.executable, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    return subprocess.run(
        ordinary_user(command) if who == "an ordinary user" else command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_a_limit_of_locked_memory_that_is_too_low_for_zygotes_is_not_called_enough() -> None:
    low = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))\n"
        "from enclave_worker.doctor_layers import pinned_memory\n"
        "try: print(pinned_memory().ok)\n"
        "except OSError: print('refused')\n"
    )
    assert run_as("an ordinary user", "-c", low).stdout.strip() == "refused"


@functools.cache
def level_of_a_worker(who: str) -> str:
    """The strictest level whose layers a worker itself finds."""
    return run_as(who, "-P", "-c", LEVEL_OF_A_WORKER).stdout.strip()


@as_both
@pytest.mark.parametrize("asked", ["", "STRICT", "BEST"])
def test_the_command_finds_the_level_of_a_worker_and_its_exit_code_answers(who: str, asked: str) -> None:
    level = level_of_a_worker(who)

    found = run_as(who, *COMMAND, *(["--level", asked] if asked else []))

    last = found.stdout.splitlines()[-1]
    assert re.split("[,.]", last)[0] == f"This host gives {level}", found.stdout + found.stderr
    assert re.search(rf"^ok +a worker at {level} ", found.stdout, re.MULTILINE)
    assert found.returncode == (0 if level in ENOUGH[asked or "SECURE"] else 1)


@as_both
def test_attacks_are_made_at_the_highest_level(who: str) -> None:
    only = ("--attack", "--only", "network_families")

    assert f", at level {level_of_a_worker(who)}\n" in run_as(who, *COMMAND, *only).stdout


def test_attacks_can_be_made_at_a_level_that_is_asked_for() -> None:
    only = ("--attack", "--only", "network_families")

    assert ", at level STANDARD\n" in run_as("an ordinary user", *COMMAND, *only, "--level", "STANDARD").stdout


def test_the_command_exits_with_one_where_none_can_start_and_gives_the_exact_command() -> None:
    done = run_spoilt(NO_USER_NAMESPACES, *COMMAND, "--level", "STANDARD")

    assert done.returncode == 1
    assert "sudo sysctl -w user.max_user_namespaces=15000" in done.stdout.decode()
    assert "enclave-runtime --level" not in done.stdout.decode()


@pytest.mark.parametrize("arguments", ["", "--attack --only network_families"])
def test_an_output_that_takes_nothing_is_one_clear_line(arguments: str) -> None:
    shell = f'exec "$0" {" ".join(COMMAND)} {arguments} >/dev/full'

    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, timeout=120, check=False)

    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "enclave: cannot write the output: No space left on device"
    assert b"Traceback" not in done.stderr


def test_an_output_that_nobody_reads_ends_quietly() -> None:
    shell = f'"$0" {" ".join(COMMAND)} | true; echo "${{PIPESTATUS[0]}}"'

    done = subprocess.run(["bash", "-c", shell, sys.executable], capture_output=True, timeout=120, check=False)

    assert (done.stdout, done.stderr) == (b"1\n", b"")


@pytest.fixture
def empty_group() -> Iterator[str]:
    """A control group of version 2 that is nobody's, wherever that is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root and control groups of version 2")
    group = f"{mount}/test-doctor-{os.getpid()}"
    Path(group).mkdir()
    yield group
    Path(group).rmdir()


STEP_ASIDE = """
import subprocess, sys
from pathlib import Path
from enclave_worker.doctor import stepped_aside

group = sys.argv[1]
members = Path(group, "cgroup.procs")
members.write_text("0")
with stepped_aside(group) as enter:
    print(members.read_text().split())
    child = subprocess.run(["cat", "/proc/self/cgroup"], preexec_fn=enter, capture_output=True, text=True, check=True)
    print(child.stdout.splitlines()[-1].rpartition("/")[2] == Path(group).name)
print(len(members.read_text().split()), len([path for path in Path(group).iterdir() if path.is_dir()]))
"""


def test_a_worker_that_is_tried_has_our_control_group_for_itself(empty_group: str) -> None:
    done = run_as("whoever runs the tests", "-P", "-c", STEP_ASIDE, empty_group)

    assert done.stdout.splitlines() == ["[]", "True", "1 0"], done.stderr


def test_where_stepping_aside_is_forbidden_we_stay(tmp_path: Path) -> None:
    with stepped_aside(f"{tmp_path}/missing") as enter:
        assert enter is None
    with stepped_aside("") as enter:
        assert enter is None
