"""Control groups: found, made, limited, read and removed. On trees of plain files, and on what this machine has."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_worker.cgroups import ControlGroups, ControlGroupsMissing, GroupLimits, Layout, find_layout
from tests.fake_cgroupfs import FakeTree
from tests.support import control_groups_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
LIMITS = GroupLimits(memory_bytes=64 * MIB, processes=8, cpus=0.5)
V1_MOUNTS = "".join(
    f"4{number} 33 0:2{number} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(("memory", "pids", "cpu,cpuacct"))
)
V2_MOUNT = "50 33 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"


def nothing(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


# Finding them.


def test_v1_is_found_in_every_tree_at_our_own_place() -> None:
    own = "4:memory:/a/b\n3:pids:/\n2:cpu,cpuacct:/c\n1:name=systemd:/x\n0::/\n"

    assert find_layout(own, V1_MOUNTS, nothing) == Layout(
        version=1,
        directories={
            "memory": "/sys/fs/cgroup/memory/a/b",
            "pids": "/sys/fs/cgroup/pids",
            "cpu": "/sys/fs/cgroup/cpu,cpuacct/c",
            "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/c",
        },
    )


def test_v2_is_used_when_it_has_every_controller() -> None:
    found = find_layout("0::/user.slice/a\n", V2_MOUNT, lambda _: "cpuset cpu io memory pids\n")

    assert found == Layout(
        version=2, directories=dict.fromkeys(("memory", "pids", "cpu"), "/sys/fs/cgroup/user.slice/a")
    )
    assert find_layout("0::/\n", V2_MOUNT, lambda _: "cpu memory pids").at_root


def test_the_hosts_own_root_is_not_taken_for_a_containers_whose_processes_may_be_moved() -> None:
    def read(path: str) -> str:
        return nothing(path) if path.endswith("cgroup.type") else "cpu memory pids"

    assert not find_layout("0::/\n", V2_MOUNT, read).at_root


def test_a_worker_started_in_anothers_leaf_begins_beside_it() -> None:
    found = find_layout("0::/a/enclave-7/worker\n", V2_MOUNT, lambda _: "cpu memory pids")
    in_container = find_layout("0::/enclave-7/worker\n", V2_MOUNT, lambda _: "cpu memory pids")

    assert found.directories["memory"] == "/sys/fs/cgroup/a"
    assert in_container.directories["memory"] == "/sys/fs/cgroup"
    assert in_container.at_root


def test_what_v2_lacks_is_named_with_the_way_to_have_it_delegated() -> None:
    with pytest.raises(ControlGroupsMissing, match="lacks: cpu") as caught:
        find_layout("0::/user.slice/a\n", V2_MOUNT, lambda _: "memory pids\n")

    assert "Delegate=yes" in caught.value.fix


def test_a_host_without_control_groups_is_told_which_are_missing() -> None:
    with pytest.raises(ControlGroupsMissing, match="memory, pids, cpu, cpuacct"):
        find_layout("0::/\n", "", nothing)


def test_a_container_that_is_shown_a_part_of_the_hosts_tree_finds_itself_in_it() -> None:
    mounts = V2_MOUNT.replace(" / /sys", " /docker/1 /sys")

    assert find_layout("0::/docker/1/x\n", mounts, lambda _: "cpu memory pids").directories["memory"] == (
        "/sys/fs/cgroup/x"
    )
    with pytest.raises(ControlGroupsMissing):
        find_layout("0::/elsewhere\n", mounts, lambda _: "cpu memory pids")


# Making and removing them: both versions, on plain files.


@pytest.fixture(params=[1, 2])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> FakeTree:
    """A tree of each version."""
    return FakeTree(tmp_path, request.param)


def open_in(tree: FakeTree) -> ControlGroups:
    groups = ControlGroups(tree.layout, tree.make, tree.remove)
    groups.prepare()
    return groups


def read(tree: FakeTree, name: str) -> list[str]:
    """Return what every slot's control file of this name holds."""
    return [path.read_text() for path in tree.root.rglob(f"slot-*/{name}")]


def test_a_group_has_its_limits_and_nothing_is_left_of_it_in_the_end(tree: FakeTree) -> None:
    groups = open_in(tree)
    groups.group(3, LIMITS)
    slots = {path.name: path.read_text() for path in tree.root.rglob("slot-3/*")}
    groups.close()

    expected = {"pids.max": "8"}
    if tree.version == 1:
        limit = str(64 * MIB)
        expected |= {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit, "cpu.cfs_quota_us": "50000"}
    else:
        expected |= {"memory.max": str(64 * MIB), "memory.swap.max": "0", "memory.oom.group": "1"}
        expected |= {"cpu.max": "50000 100000"}
    assert expected.items() <= slots.items()
    assert not list(tree.root.rglob("enclave-*"))


def test_without_swap_accounting_v1_does_not_swap(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, 1, without=frozenset({"memory.memsw.limit_in_bytes"}))
    groups = open_in(tree)
    groups.group(0, LIMITS)

    assert (tmp_path / "memory" / f"enclave-{os.getpid()}" / "slot-0" / "memory.swappiness").read_text() == "0"
    groups.close()


def test_v2_moves_the_worker_into_a_leaf_and_hands_the_controllers_down(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, 2)
    groups = open_in(tree)
    base = tmp_path / f"enclave-{os.getpid()}"

    assert (base / "worker" / "cgroup.procs").read_text() == str(os.getpid())
    for handing in (tmp_path, base, base / "sandboxes"):
        assert (handing / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert groups.slot_parents == {"unified": str(base / "sandboxes")}
    groups.close()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "-memory -pids -cpu"
    assert (tmp_path / "cgroup.procs").read_text() == str(os.getpid())


def test_what_was_used_before_is_not_counted_again(tree: FakeTree) -> None:
    groups = open_in(tree)
    groups.group(0, LIMITS)
    slot = {path.name: path for path in tree.root.rglob("slot-0/*")}
    if tree.version == 1:
        slot["cpuacct.usage"].write_text("7000000\n")
        slot["memory.oom_control"].write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    else:
        slot["cpu.stat"].write_text("usage_usec 7000\nuser_usec 1\n")
        slot["memory.events"].write_text("low 0\noom 5\noom_kill 2\n")
    slot["pids.events"].write_text("max 3\n")

    group = groups.group(0, LIMITS)
    usage = group.usage()

    assert (usage.cpu_ms, usage.oom_kills, usage.refused_processes) == (0, 0, 0)
    (slot["cpuacct.usage"] if tree.version == 1 else slot["cpu.stat"]).write_text(
        "9000000\n" if tree.version == 1 else "usage_usec 9000\n"
    )
    slot["pids.events"].write_text("max 7\n")
    usage = group.usage()
    assert (usage.cpu_ms, usage.refused_processes) == (2, 4)
    groups.close()


def test_a_lower_memory_limit_holds_for_one_sandbox_only(tree: FakeTree) -> None:
    name = "memory.limit_in_bytes" if tree.version == 1 else "memory.max"
    groups = open_in(tree)
    groups.group(0, LIMITS).limit_memory(32 * MIB)
    assert read(tree, name) == [str(32 * MIB)]

    groups.group(0, LIMITS)

    assert read(tree, name) == [str(64 * MIB)]
    groups.close()


def test_the_directories_of_a_dead_worker_are_removed_and_a_living_ones_stay(tree: FakeTree) -> None:
    living = open_in(tree)
    living.group(0, LIMITS)
    for directory in dict.fromkeys(tree.layout.directories.values()):
        tree.make(f"{directory}/enclave-999999999")
        if tree.version == 2:
            tree.make(f"{directory}/enclave-999999999/sandboxes")
            tree.make(f"{directory}/enclave-999999999/sandboxes/slot-0")
        else:
            tree.make(f"{directory}/enclave-999999999/slot-0")

    second = open_in(tree)

    assert not list(tree.root.rglob("enclave-999999999"))
    assert list(tree.root.rglob("slot-0"))
    second.close()
    living.close()
    assert not list(tree.root.rglob("enclave-*"))


def test_processes_in_a_dead_workers_leaf_are_taken_along(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path, 2)
    for part in ("", "/sandboxes", "/worker"):
        tree.make(f"{tmp_path}/enclave-999999999{part}")
    (tmp_path / "enclave-999999999" / "worker" / "cgroup.procs").write_text("4242\n")

    groups = open_in(tree)

    assert (tmp_path / f"enclave-{os.getpid()}" / "worker" / "cgroup.procs").read_text() == "4242"
    assert not (tmp_path / "enclave-999999999").exists()
    groups.close()


def test_a_peak_that_cannot_be_reset_makes_a_group_good_for_one_sandbox(tmp_path: Path) -> None:
    old = FakeTree(tmp_path / "old", 2, read_only=frozenset({"memory.peak"}))
    new = FakeTree(tmp_path / "new", 2)
    reusable = []
    for tree in (old, new):
        groups = open_in(tree)
        reusable.append(groups.group(0, LIMITS).reusable)
        groups.close()

    assert reusable == [False, True]


def test_a_tree_that_cannot_be_written_is_a_missing_layer_that_says_what_helps(tree: FakeTree) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with pytest.raises(ControlGroupsMissing, match="Permission denied: /") as caught:
        ControlGroups(tree.layout, refuse, tree.remove).prepare()

    assert caught.value.fix


def test_a_group_that_cannot_serve_again_is_removed(tree: FakeTree) -> None:
    groups = open_in(tree)
    groups.group(0, LIMITS)
    groups.discard(0)

    assert not list(tree.root.rglob("slot-0"))
    assert groups.group(0, LIMITS).held_bytes() == 0
    groups.close()


# What this machine has.


@pytest.fixture
def real() -> Iterator[ControlGroups]:
    """The control groups that a worker would use here."""
    try:
        groups = ControlGroups.open()
    except ControlGroupsMissing as missing:
        pytest.skip(f"no control groups here: {missing.reason}")
    yield groups
    groups.close()
    assert not control_groups_of(os.getpid())


def run_in(groups: ControlGroups, number: int, code: str) -> int:
    """Run a program in a slot's group; return its wait status."""
    procs = [f"{parent}/slot-{number}/cgroup.procs" for parent in groups.slot_parents.values()]
    joining = f"for path in {procs!r}: open(path, 'w').write('0')\n"
    return os.waitstatus_to_exitcode(
        os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-I", "-c", joining + code], os.environ), 0)[1]
    )


def test_processor_time_and_peak_memory_of_all_processes_are_counted(real: ControlGroups) -> None:
    group = real.group(0, LIMITS)
    # What it used before it joined is nobody's.
    work = "import os, time\nx = bytearray(20 << 20)\nend_s = time.process_time() + 0.2\n"
    work += "while time.process_time() < end_s: pass\n"

    assert run_in(real, 0, f"{work}if os.fork() == 0: os._exit(0)\nos.wait()") == 0

    usage = group.usage()
    assert usage.cpu_ms >= 200
    assert 20 * MIB < usage.peak_memory_bytes < 64 * MIB
    if not group.reusable:
        real.discard(0)
    second = real.group(0, LIMITS).usage()
    assert second.cpu_ms < 1
    assert second.peak_memory_bytes < usage.peak_memory_bytes


def test_a_process_too_many_is_refused_and_counted(real: ControlGroups) -> None:
    group = real.group(0, LIMITS)
    code = """
import os, signal
made = []
try:
    while made.append(os.fork()) or made[-1]: pass
    signal.pause()
except BlockingIOError:
    for pid in made: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
os._exit(len(made))
"""

    assert run_in(real, 0, code) == LIMITS.processes - 1
    assert group.usage().refused_processes == 1


async def test_used_up_memory_kills_and_is_told(real: ControlGroups) -> None:
    group = real.group(0, LIMITS)
    told = asyncio.Event()
    group.watch_oom(asyncio.get_running_loop(), told.set)

    status = await asyncio.to_thread(run_in, real, 0, "x = bytearray(200 << 20)")

    assert status == -signal.SIGKILL
    assert group.usage().oom_kills >= 1
    if real.version == 1:  # v2 kills the whole group by itself
        await told.wait()
    real.close()


def test_the_real_group_that_somebody_removed_is_made_again(real: ControlGroups) -> None:
    real.group(0, LIMITS)
    for parent in real.slot_parents.values():
        Path(parent, "slot-0").rmdir()

    group = real.group(0, LIMITS)

    assert run_in(real, 0, "x = bytearray(20 << 20)") == 0
    assert group.usage().peak_memory_bytes > 20 * MIB


async def test_word_of_one_sandboxs_end_does_not_reach_the_next(real: ControlGroups) -> None:
    group = real.group(0, LIMITS)
    told: list[str] = []
    group.watch_oom(asyncio.get_running_loop(), lambda: told.append("out of memory"))
    run_in(real, 0, "x = bytearray(200 << 20)")  # blocks the loop: the word waits

    assert real.group(0, LIMITS) is group
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert told == []
    real.close()


def test_workers_that_start_at_once_do_not_sweep_each_other_away(real: ControlGroups) -> None:
    assert real.slot_parents
    start = "from enclave_worker.cgroups import *; groups = ControlGroups.open(); "
    use = "groups.group(0, GroupLimits(memory_bytes=1 << 26, processes=8, cpus=1)); groups.close()"
    for _ in range(3):
        pids = [os.posix_spawn(sys.executable, [sys.executable, "-c", start + use], os.environ) for _ in range(6)]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6
