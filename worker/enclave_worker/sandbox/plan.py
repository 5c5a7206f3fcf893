"""From a sandbox's description to the ordered steps that make it.

Theory of operation. Lists, performed by `enclave_worker.zygote`:

1. `launch`, once, in the process that will be the zygote's parent: a pid namespace for its children. An ordinary user
   gets a user namespace first, in which the zygote is root over nothing but its own namespaces. Where the kernel can,
   the zygote is born with clocks of its own, and each of its forks with the same.
2. `prepare`, once, in the zygote: everything that a fork inherits. It builds the root that sandboxes see, pivots into
   it and lets go of the host's. Modules are preloaded inside of it, and `settle` removes what only that needed.
3. `enclose`, in every sandbox, right after the fork, before it knows what it will run: namespaces, private mounts,
   identity, user namespace, capabilities, limits, Landlock, and last the system call filter.

The user namespace comes last of all namespaces. The others then belong to the zygote's, so that a guest that somehow
regained every capability of its own would still own no mount, no network and no name to use it on. The order inside
`enclose` is a chain of needs: mounting needs the capabilities that `identity` gives up, the id maps need the user
namespace, dropping needs the maps, Landlock forbids mounting, and nothing but the guest's code may come after the
filter.

A step is `[name, operation, *arguments]`: see `enclave_worker.zygote.steps`. In braces stands what is filled in per
sandbox: `{uid}`, the host user id it runs as; `{slot}`, the name of its control groups, below the directories that the
descriptors `{group_…}` show; `{proc}`, a descriptor of a `/proc` of the zygote's; `{seccomp}`, the filter.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import msgspec

from enclave_worker.zygote import kernel

from .landlock import landlock_step
from .seccomp import compile_filter
from .spec import PACKAGES_PATH, Driver

if TYPE_CHECKING:
    from .spec import Rlimit, SandboxSpec

Step = list[str | int | bool | None]
Privilege = Literal["root", "user"]
"""Who started the worker: root with its capabilities, or anybody else."""

_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # MS_* and MOUNT_ATTR_* alike
_BIND, _REC, _PRIVATE = 4096, 16384, 1 << 18
_SYS_ADMIN = 1 << 21
_STAGES = ("/tmp", "/var/tmp", "/mnt", "/media", "/srv", "/opt")  # noqa: S108 - mount points to choose from


_PIDS: Step = ["zygote's pid namespace", "unshare", kernel.CLONE_NEWPID]
# For the zygote and not per sandbox: its forks share it for nothing.
_CLOCKS: list[Step] = [
    ["time namespace", "unshare", kernel.CLONE_NEWTIME],
    ["clocks from zero", "clocks_from_zero"],
]
FILTER: Step = ["system call filter", "seccomp", "{seccomp}"]

# Packages may want a writable directory while they are imported. Sandboxes never see what was written there.
_SCRATCH: list[Step] = [
    ["scratch for preloading", "mount", "scratch", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=64m,mode=0700"],  # noqa: S108
]
_NO_SCRATCH: list[Step] = [["no scratch", "unmount", "/tmp"]]  # noqa: S108 - the sandbox's own


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the zygote is told: lists of steps, the filter they end with, and what to load."""

    launch: list[Step]
    prepare: list[Step]
    enclose: list[Step]
    privilege: Privilege
    seccomp_hex: str
    """The filter, in hexadecimal: steps refer to it as `{seccomp}`."""
    settle: list[Step]
    """What the zygote does once everything is preloaded."""
    driver: Driver
    """What runs the guests' code."""
    preload: tuple[str, ...]
    """Modules to import before the first fork."""
    landlock: bool
    """Whether Landlock is among the layers. The self-test holds a sandbox to it."""
    own_clocks: bool
    """The same of the time namespace."""
    control_groups: dict[str, str]
    """By controller (v2: `unified`), the directory above the slots' groups. Empty: there are none."""
    packages_path: str
    """A directory for the guests' `sys.path`, empty if there are no packages."""
    env: tuple[tuple[str, str], ...]
    """The guests' environment."""
    workdir: str
    """Where guests find the files beside them; empty: wherever they are."""
    scratch: str = ""
    """Without namespaces (`open_plan`): where the sandboxes' directories are made. Empty: each has its own mounts."""


def make_plan(
    spec: SandboxSpec,
    *,
    privilege: Privilege,
    uid: int,
    gid: int,
    landlock_abi: int,
    own_clocks: bool,
    control_groups: dict[str, str] | None = None,
) -> Plan:
    """Compile a spec.

    Args:
        spec: the sandbox.
        privilege: whether real root performs the plan.
        uid: the effective user id of whoever performs it.
        gid: the same, of the group.
        landlock_abi: what `kernel.landlock_abi` says; at 0 the plan does without.
        own_clocks: what `kernel.can_set_clocks` says; if not, guests see the host's monotonic clocks.
        control_groups: by controller, the directory above the slots' groups; None or empty if there are none.
    """
    groups = control_groups or {}
    landlock = [landlock_step(spec, landlock_abi)] if landlock_abi else []
    return Plan(
        launch=[*_own_user_namespace(privilege, uid, gid), *(_CLOCKS if own_clocks else []), _PIDS],
        prepare=[*_detach(privilege), *_root(spec), *_lock(), *(_SCRATCH if spec.packages else [])],
        settle=_NO_SCRATCH if spec.packages else [],
        enclose=[
            *join_groups(groups),
            *_namespaces(spec),
            *_private_mounts(spec),
            *_identity(spec, privilege),
            *limits(spec.rlimits),
            *landlock,
            FILTER,
        ],
        privilege=privilege,
        seccomp_hex=compile_filter(spec.machine, memory_is_counted=bool(groups)).hex(),
        driver=spec.driver,
        preload=spec.preload,
        landlock=bool(landlock),
        own_clocks=own_clocks,
        packages_path=PACKAGES_PATH if spec.packages else "",
        env=spec.env,
        workdir=spec.workdir,
        control_groups=groups,
    )


def _own_user_namespace(privilege: Privilege, uid: int, gid: int) -> list[Step]:
    if privilege == "root":
        return []
    return [
        ["user namespace", "unshare", kernel.CLONE_NEWUSER],
        # The kernel lets an ordinary user map a group only after giving up setgroups.
        ["deny setgroups", "write", "/proc/self/setgroups", "deny"],
        ["map user", "write", "/proc/self/uid_map", f"0 {uid} 1"],
        ["map group", "write", "/proc/self/gid_map", f"0 {gid} 1"],
    ]


def _detach(privilege: Privilege) -> list[Step]:
    steps: list[Step] = [
        ["session keyring", "keyring"],
        ["umask", "umask", 0o022],
        ["no core dumps", "rlimit", 4, 1, 1],
        ["no new privileges", "prctl", kernel.PR_SET_NO_NEW_PRIVS, 1],
        ["mount namespace", "unshare", kernel.CLONE_NEWNS],
        ["private mounts", "mount", None, "/", None, _REC | _PRIVATE],
    ]
    if privilege == "root":
        steps.insert(0, ["no groups", "no_groups"])
        # A sandbox gives up root before it enters its user namespace; some kernels let only privilege enter one.
        steps.insert(1, ["keep capabilities across identity", "prctl", kernel.PR_SET_KEEPCAPS, 1])
    return steps


def _root(spec: SandboxSpec) -> list[Step]:
    stage = _stage((*spec.visible, *(package.source for package in spec.packages)))
    inodes = 512 + len(spec.packages)
    steps: list[Step] = [
        ["root tmpfs", "mount", "root", stage, "tmpfs", _NOSUID | _NODEV, f"size=1m,nr_inodes={inodes},mode=0755"],
        ["enter new root", "chdir", stage],
    ]
    made: set[str] = set()

    def directory(path: str) -> None:
        if path not in made:
            made.add(path)
            steps.append([f"directory {path}", "directory", f".{path}"])

    for source in spec.visible:
        directory(source)
        steps += _bind(source, _RDONLY | _NOSUID | _NODEV)
    directory("/dev")
    files = [(path, _RDONLY | _NOSUID | _NODEV) for path in spec.visible_files]
    devices = [(f"/dev/{name}", _RDONLY | _NOSUID | _NOEXEC) for name in spec.devices]
    for source, attributes in files + devices:
        directory(str(PurePosixPath(source).parent))
        steps.append([f"mount point {source}", "file", f".{source}", ""])
        steps += _bind(source, attributes)
    steps += _packages(spec)
    for path in spec.hidden:
        flags = _RDONLY | _NOSUID | _NODEV | _NOEXEC
        steps.append([f"hide {path}", "mount", "hidden", f".{path}", "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555"])
    for target, path in spec.links:
        directory(str(PurePosixPath(path).parent))
        steps.append([f"link {path}", "symlink", target, f".{path}"])
    for path, content in spec.files:
        directory(str(PurePosixPath(path).parent))
        steps.append([f"file {path}", "file", f".{path}", content])
    for link, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        steps.append([f"link /dev/{link}", "symlink", f"/proc/self/{target}", f"./dev/{link}"])
    for tmpfs in spec.tmpfs:
        directory(tmpfs.path)
    directory("/proc")
    return steps


def _packages(spec: SandboxSpec) -> list[Step]:
    steps: list[Step] = []
    for package in spec.packages:
        if package.directory:
            steps.append([f"directory {package.path}", "directory", f".{package.path}"])
        else:
            steps.append([f"directory {PACKAGES_PATH}", "directory", f".{PACKAGES_PATH}"])
            steps.append([f"mount point {package.path}", "file", f".{package.path}", ""])
        steps += _bind(package.source, _RDONLY | _NOSUID | _NODEV, package.path)
    return steps


def _bind(source: str, attributes: int, target: str = "") -> list[Step]:
    target = target or source
    return [
        [f"bind {source}", "mount", source, f".{target}", None, _BIND | _REC],
        [f"read-only {source}", "mount_attributes", f".{target}", attributes],
    ]


def _lock() -> list[Step]:
    return [
        # Of the zygote's own pid namespace. An ordinary user may mount a sandbox's proc only where one is visible.
        ["mount zygote's proc", "mount", "proc", "./proc", "proc", _NOSUID | _NODEV | _NOEXEC],
        ["pivot root", "pivot"],
        ["read-only root", "mount_attributes", "/", _RDONLY | _NOSUID | _NODEV, False],
    ]


def join_groups(groups: dict[str, str]) -> list[Step]:
    """Return the steps by which a sandbox enters its control groups."""
    # First of all, so that everything below is charged to the sandbox; before the cgroup namespace, whose root it is.
    # In v1 as the one thread that it is: moving a process takes a lock that stops every fork and exit of the host, and
    # to get it can take longer (an RCU grace period, some 12 ms) than all the rest. v2 moves processes only.
    file = "cgroup.procs" if "unified" in groups else "tasks"
    return [[f"join {name} group", "join", f"{{group_{name}}}", "{slot}", file] for name in groups]


def _namespaces(spec: SandboxSpec) -> list[Step]:
    flags = (
        kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
    )
    steps: list[Step] = [
        ["mount, net, ipc, uts and cgroup namespaces", "unshare", flags],
        ["hostname", "hostname", spec.hostname],
    ]
    return [*steps, ["loopback up", "loopback"]] if spec.loopback else steps


def _private_mounts(spec: SandboxSpec) -> list[Step]:
    steps: list[Step] = []
    for tmpfs in spec.tmpfs:
        options = f"size={tmpfs.size_bytes},nr_inodes={tmpfs.inodes},mode={tmpfs.mode}"
        options += ",uid={uid},gid={uid}" if tmpfs.owned else ""
        steps.append([f"mount {tmpfs.path}", "mount", "tmpfs", tmpfs.path, "tmpfs", _NOSUID | _NODEV, options])
    # `subset=pid` leaves only the processes: no sysctls, no keys, no kernel memory, nothing of the machine to mask.
    flags = _RDONLY | _NOSUID | _NODEV | _NOEXEC
    steps.append(["mount /proc", "mount", "proc", "/proc", "proc", flags, "subset=pid"])
    steps.append(["working directory", "chdir", spec.workdir])
    return steps


def _identity(spec: SandboxSpec, privilege: Privilege) -> list[Step]:
    steps: list[Step] = []
    if privilege == "root":
        steps += [
            ["identity", "identity", "{uid}"],
            ["keep only CAP_SYS_ADMIN", "capabilities", _SYS_ADMIN],
            # A change of identity makes a process undumpable, and its id maps root's to write.
            ["dumpable for the id maps", "prctl", kernel.PR_SET_DUMPABLE, 1],
        ]
    steps += [
        ["user namespace", "unshare", kernel.CLONE_NEWUSER],
        ["deny setgroups", "write_at", "{proc}", "self/setgroups", "deny"],
        ["map group", "write_at", "{proc}", "self/gid_map", f"{spec.uid} {{uid}} 1"],
        ["map user", "write_at", "{proc}", "self/uid_map", f"{spec.uid} {{uid}} 1"],
        # No further user namespace, and without one no further namespace of any kind.
        ["no nested user namespaces", "write_at", "{proc}", "sys/user/max_user_namespaces", "0"],
        ["empty bounding set", "bounding_set"],
        ["lock securebits", "prctl", kernel.PR_SET_SECUREBITS, kernel.SECUREBITS_LOCKED],
        ["no ambient capabilities", "prctl", kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL],
        ["no capabilities", "capabilities", 0],
        ["undumpable", "prctl", kernel.PR_SET_DUMPABLE, 0],
    ]
    return steps


def limits(rlimits: tuple[Rlimit, ...]) -> list[Step]:
    """Return the steps that set resource limits."""
    # After the user namespace: the kernel counts NPROC per user and namespace, so that each sandbox has its own count
    # even where all of them run as the same host user.
    return [[f"limit {limit.name}", "rlimit", limit.number, limit.soft, limit.hard] for limit in rlimits]


def _stage(sources: tuple[str, ...]) -> str:
    """Choose a directory to build the new root on: any that hides none of the sources."""
    for stage in _STAGES:
        if not any(PurePosixPath(source).is_relative_to(stage) for source in sources):
            return stage
    raise ValueError(f"the interpreter lies below each of {', '.join(_STAGES)}: install it elsewhere")
