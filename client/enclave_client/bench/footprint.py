"""What the processes of a fleet hold and use, read from /proc.

A worker's tree is worker ─▶ launcher ─▶ keeper ─▶ zygote ─▶ sandboxes, one launcher for each kind of sandbox; a
process of it cannot leave the tree, because each keeper is pid 1 of a namespace.

The kernel shows the memory of an ordinary user's sandboxes to root only.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CGROUPS = "/sys/fs/cgroup"
_WORKER_PREFIX = "enclave-"
_SLOT_PREFIX = "slot-"
_KERNEL_MEMORY = ("Slab", "KernelStack", "PageTables", "Percpu")
"""Fields of `/proc/meminfo`."""


def children(pid: int) -> list[int]:
    """Return a process's children; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time that these processes, and the children they have waited for, have used."""
    return sum(sum(_cpu_ticks(pid)) for pid in pids) / _TICKS_PER_S


def own_cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, without any child."""
    return sum(_cpu_ticks(pid)[:2]) / _TICKS_PER_S


def waited_cpu_s(pid: int) -> float:
    """Return the CPU time of the children that a process has waited for."""
    return sum(_cpu_ticks(pid)[2:]) / _TICKS_PER_S


def fleet_cpu_s(broker: int, workers: list[int]) -> dict[str, float]:
    """Return the CPU time that the parts of a fleet have used: `broker`, `worker` and `sandboxes`."""
    return {
        "broker": cpu_s([broker]),
        "worker": sum(own_cpu_s(pid) for pid in workers),
        # Those of past zygotes are by now the worker's, who has waited for their launchers.
        "sandboxes": cpu_s([pid for worker in workers for pid in descendants(worker)])
        + sum(waited_cpu_s(pid) for pid in workers),
    }


def fleet_faults(broker: int, workers: list[int]) -> int:
    """Return how many pages a fleet was given, or a copy of, without reading a disk (minor faults)."""
    below = [pid for worker in workers for pid in descendants(worker)]
    return sum(sum(_numbers(pid, 7, 9)) for pid in (broker, *workers, *below))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, shared pages in full (RSS)."""
    return _field_kib(Path(f"/proc/{pid}/status"), "VmRSS:") / 1024


def highest_mb(pid: int) -> float:
    """Return the most resident memory that a process ever had, or had since `clear_refs` made it forget."""
    return _field_kib(Path(f"/proc/{pid}/status"), "VmHWM:") / 1024


def proportional_mb(pid: int) -> float:
    """Return the memory of a process, each shared page divided by those who share it (PSS)."""
    return _field_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") / 1024


def worker_mb(worker: int) -> float:
    """Return the proportional memory of a worker and all below it, its sandboxes included; 0 if we may not look."""
    held_mb = 0.0
    for pid in (worker, *descendants(worker)):
        try:
            held_mb += proportional_mb(pid)
        except PermissionError:
            return 0.0
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return held_mb


def kernel_mb() -> float:
    """Return what the kernel holds for its own purposes, for all that runs on this machine; page tables included."""
    return sum(_field_kib(Path("/proc/meminfo"), f"{name}:") for name in _KERNEL_MEMORY) / 1024


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return _descriptors([pid])


def warm_sandboxes_mb(worker: int) -> list[list[float]]:
    """Return the proportional memory of the sandboxes of each of a worker's zygotes; empty if we may not look."""
    keepers = [keeper for launcher in children(worker) for keeper in children(launcher)]
    zygotes = [zygote for keeper in keepers for zygote in children(keeper)]
    with contextlib.suppress(PermissionError):
        return [[proportional_mb(pid) for pid in children(zygote)] for zygote in zygotes]
    return []


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet holds: must be the same before and after any number of sessions."""

    processes: int
    zombies: int
    """Of the processes, those that nobody has waited for yet."""
    broker_fds: int
    worker_fds: int
    """Without those that belong to slots, see `cgroups`."""
    zygote_fds: int
    mounts: int
    """In the mount namespaces of this process, the programs and their zygotes."""
    cgroups: int
    """Directories, under every controller of v1 and in v2's hierarchy, without a process that is not the fleet's. Slots
    aside: a worker makes one when it first has that many sandboxes, and keeps it."""


def held(broker: int, workers: list[int]) -> Held:
    """Count what the fleet holds now."""
    launchers = [launcher for worker in workers for launcher in children(worker)]
    keepers = [keeper for launcher in launchers for keeper in children(launcher)]
    zygotes = [*keepers, *(zygote for keeper in keepers for zygote in children(keeper))]
    programs = [broker, *workers]
    processes = [*programs, *(found for pid in programs for found in descendants(pid))]
    return Held(
        processes=len(processes),
        zombies=sum(_is_zombie(pid) for pid in processes),
        broker_fds=_descriptors([broker]),
        worker_fds=sum(worker_descriptors(pid) for pid in workers),
        zygote_fds=_descriptors([*launchers, *zygotes]),
        mounts=sum(_mounts(pid) for pid in (os.getpid(), *programs, *launchers, *zygotes)),
        cgroups=_cgroups(set(processes)),
    )


def worker_descriptors(pid: int) -> int:
    """Return how many descriptors a worker has, without those that belong to slots."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = str(entry.readlink())
            # By an event descriptor the kernel tells a worker that a slot's memory is used up.
            count += f"/{_SLOT_PREFIX}" not in target and target != "anon_inode:[eventfd]"
    return count


def _cgroups(own: set[int]) -> int:
    count = 0
    for directory, below, _ in os.walk(_CGROUPS):
        below[:] = [name for name in below if _may_be_ours(name, own)]
        count += _members(directory) <= own
    return count


def _may_be_ours(name: str, own: set[int]) -> bool:
    """Leave aside what belongs to other workers, named after their process, and slots."""
    worker = name.removeprefix(_WORKER_PREFIX)
    return not name.startswith(_SLOT_PREFIX) and (worker == name or worker in map(str, own))


def _members(cgroup: str) -> set[int]:
    """Return the processes in a cgroup; of what is none, or is gone, everybody's first one."""
    try:
        return set(map(int, Path(cgroup, "cgroup.procs").read_text().split()))
    except OSError:
        return {1}


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _cpu_ticks(pid: int) -> list[int]:
    """Return user and system time, own and waited-for children's; nothing if the process is gone."""
    return _numbers(pid, 11, 15)


def _numbers(pid: int, first: int, end: int) -> list[int]:
    """Return fields of a process's `stat`, counted from its state; nothing if the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [int(field) for field in fields[first:end]]


def _field_kib(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def _descriptors(pids: list[int]) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)  # noqa: PTH208 - pathlib would stat each


def _mounts(pid: int) -> int:
    return len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
