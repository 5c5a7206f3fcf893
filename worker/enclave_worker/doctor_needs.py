"""What a worker needs of its host, as a table: what tries it, what it is for, and what mends it. Pure.

Each need stands for one of the layers that a security level can require, or for every level, or for none. A fix is
the exact command or setting, chosen by what kind of host this is.
"""

from __future__ import annotations

import dataclasses
import errno
import shlex
from typing import TYPE_CHECKING, Literal

import msgspec

from .cgroups.layout import CONTROLLERS
from .sandbox.levels import Layer

if TYPE_CHECKING:
    from collections.abc import Callable

NeededBy = Layer | Literal["every level", "no level"]


class Answer(msgspec.Struct):
    """What a probe found."""

    ok: bool
    found: str
    errno: int = 0
    fix: str = ""
    """What mends it, if the probe knows better than the table."""
    options: tuple[str, ...] = ()
    """What workers here must be started with for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """What the choice of a fix depends on."""

    root: bool
    container: str
    """`docker`, `kubernetes`, `a container`, or empty."""
    sysctls: dict[str, str]
    """Those that exist, by their name below `/proc/sys`."""
    interpreter: str
    """The file that runs workers, symbolic links followed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """One row. Defaults are those of most rows."""

    probe: str
    name: str
    needed_for: str
    fix: Callable[[Host, Answer], str]
    layer: NeededBy = Layer.NAMESPACES
    ours: bool = False
    """Whether the probe uses the worker's own modules, beyond what a zygote is made of."""


_DOCKER = (
    "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined …"
)
_KUBERNETES = (
    "in the pod: hostUsers: false, procMount: Unmasked, appArmorProfile: Unconfined, a seccompProfile that allows "
    "unshare, mount, umount2, pivot_root, setns and clone, and capabilities.add: [SYS_ADMIN, NET_ADMIN, "
    "SETUID, SETGID, SETPCAP, KILL]"
)
SYSCTLS = (
    "user/max_user_namespaces",
    "user/max_mnt_namespaces",
    "user/max_net_namespaces",
    "user/max_pid_namespaces",
    "user/max_ipc_namespaces",
    "user/max_cgroup_namespaces",
    "user/max_uts_namespaces",
    "user/max_time_namespaces",
    "kernel/io_uring_disabled",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
)


def fix_namespace(host: Host, answer: Answer) -> str:  # noqa: ARG001 - the sysctls say more than the errno
    """Return what opens namespaces: the first cause, from the most certain to the least."""
    for name, value in host.sysctls.items():
        dotted = name.replace("/", ".")
        if name.startswith("user/max_") and value == "0":
            return _sysctl(dotted, 15_000)
        if name == "kernel/unprivileged_userns_clone" and value == "0" and not host.root:
            return _sysctl(dotted, 1)
        if name == "kernel/apparmor_restrict_unprivileged_userns" and value == "1" and not host.root:
            return f"{_apparmor_profile(host.interpreter)}\nor, for every program of this host: {_sysctl(dotted, 0)}"
    return _container_fix(host) or _as_root(host)


def _apparmor_profile(interpreter: str) -> str:
    """Return a command that lets one interpreter make user namespaces, on Ubuntu 23.10 and later."""
    profile = (
        r"abi <abi/4.0>,\ninclude <tunables/global>\nprofile enclave-runtime %s flags=(unconfined) {\n  userns,\n}\n"
    )
    path = "/etc/apparmor.d/enclave-runtime"
    return (
        "let this interpreter make user namespaces, whatever it runs (python3 -m venv --copies makes one of its own):\n"
        f"printf '{profile}' {shlex.quote(interpreter)} | sudo tee {path} && sudo apparmor_parser -r {path}"
    )


def fix_proc(host: Host, answer: Answer) -> str:
    """Return what lets a new /proc be mounted."""
    return _container_fix(host) or fix_namespace(host, answer)


def fix_time_namespace(host: Host, answer: Answer) -> str:
    """Return what gives guests clocks of their own; never CAP_SYS_TIME, by which a container could set the host's."""
    if host.sysctls.get("user/max_time_namespaces") == "0":
        return _sysctl("user.max_time_namespaces", 15_000)
    if answer.errno in (errno.ENOENT, errno.EINVAL):
        return "boot a kernel with CONFIG_TIME_NS=y (Linux 5.6)"
    return "start the worker as an ordinary user: root would need CAP_SYS_TIME for it, which is worth more than this"


def fix_pinned_memory(host: Host, answer: Answer) -> str:
    """Return what lets a zygote register memory with io_uring, which it does nothing else with."""
    if answer.errno == errno.ENOSYS:
        return "boot a kernel with CONFIG_IO_URING=y"
    if answer.errno == errno.ENOMEM:
        return (
            "raise the limit of locked memory to 8 MiB, and 2 more for each further profile of a worker "
            "(ulimit -l 8192; LimitMEMLOCK=8M in a systemd unit)"
        )
    if host.sysctls.get("kernel/io_uring_disabled", "0") != "0":
        # Never to 0: whoever closed io_uring to this host's programs had a reason.
        closed_to_others = _sysctl("kernel.io_uring_disabled", 1)
        return closed_to_others if host.root else f"{closed_to_others}, and kernel.io_uring_group to the worker's group"
    return "have the container's system call filter allow io_uring_setup and io_uring_register to workers"


def fix_control_groups(host: Host, answer: Answer) -> str:
    """Return what gives the worker control groups that it may write; a container's may be there for all to read."""
    if answer.errno not in (errno.EACCES, errno.EPERM):
        if host.container == "docker":
            return "docker run --cgroupns=private --security-opt writable-cgroups=true …   (Docker 28)"
        if host.container == "kubernetes":
            return (
                "on the node, cgroup_writable = true for the runtime in containerd's configuration (2.1); with CRI-O, "
                'in the pod, the annotation io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw: "true"'
            )
    return answer.fix


def fix_own_user(host: Host, answer: Answer) -> str:  # noqa: ARG001 - the table names what is missing
    """Return what lets each sandbox run as a host user of its own."""
    if not host.root:
        return "start the worker as root (in Kubernetes with hostUsers: false, so that it is nobody on the node)"
    return _container_fix(host) or "start the worker as root with all of them: something has taken them away"


def fix_user_ids(host: Host, answer: Answer) -> str:  # noqa: ARG001 - there is nothing to choose from
    """Return what gives a worker that is started as root enough user ids."""
    more = "give the container more user ids" if host.container else "have /proc/self/uid_map name more user ids"
    return f"{more}, or start the worker as an ordinary user"


def _sysctl(name: str, value: int) -> str:
    return (
        f"sudo sysctl -w {name}={value}   (to keep it: echo '{name}={value}' | sudo tee /etc/sysctl.d/60-enclave.conf)"
    )


def _container_fix(host: Host) -> str:
    if host.container == "kubernetes":
        return _KUBERNETES
    return _DOCKER if host.container else ""


def _as_root(host: Host) -> str:
    if host.root:
        return "boot a kernel with CONFIG_NAMESPACES and CONFIG_USER_NS, or lift the security module that forbids it"
    return "start the worker as root: sudo enclave doctor shows whether that helps"


def _kernel(option: str) -> Callable[[Host, Answer], str]:
    """Return a fix: what a container or a kernel's configuration has to allow."""
    return lambda host, _: _container_fix(host) or f"boot a kernel with {option}"


def _text(text: str) -> Callable[[Host, Answer], str]:
    return lambda _host, _answer: text


_CONTROLLERS = {
    "memory": "memory of a whole sandbox",
    "pids": "processes of a sandbox",
    "cpu": "its share of the processors",
    "cpuacct": "its processor time",
}
assert set(_CONTROLLERS) == set(CONTROLLERS[1]), "v1's are all there are"

NEEDS = (
    Need(
        probe="interpreter",
        name="Python for this user",
        needed_for="running guests",
        fix=_text("install Python where this user can read it, or: chmod o+rx on every directory above it"),
        layer="every level",
    ),
    Need(
        probe="user_namespace",
        name="user namespace",
        needed_for="building sandboxes without root",
        fix=fix_namespace,
    ),
    Need(
        probe="guest_user_namespace",
        name="guest's user namespace",
        needed_for="a guest that is nobody outside",
        fix=fix_namespace,
    ),
    Need(probe="mount_namespace", name="mount namespace", needed_for="own file system", fix=fix_namespace),
    Need(probe="pid_namespace", name="pid namespace", needed_for="own processes, killed whole", fix=fix_namespace),
    Need(probe="network_namespace", name="network namespace", needed_for="no network", fix=fix_namespace),
    Need(probe="ipc_namespace", name="ipc namespace", needed_for="own shared memory", fix=fix_namespace),
    Need(probe="uts_namespace", name="uts namespace", needed_for="own host name", fix=fix_namespace),
    Need(probe="cgroup_namespace", name="cgroup namespace", needed_for="hiding the host's cgroups", fix=fix_namespace),
    Need(probe="tmpfs", name="tmpfs", needed_for="private writable directories", fix=fix_namespace),
    Need(probe="proc", name="/proc of its own", needed_for="showing only its processes", fix=fix_proc),
    Need(probe="read_only_bind", name="read-only bind mount", needed_for="showing the interpreter", fix=fix_namespace),
    Need(probe="pivot_root", name="pivot_root", needed_for="hiding the host's files", fix=fix_namespace),
    Need(
        probe="no_new_privs",
        name="no_new_privs",
        needed_for="no setuid programs",
        fix=_kernel("no_new_privs (Linux 3.5)"),
    ),
    Need(
        probe="seccomp",
        name="seccomp filter",
        needed_for="fewer system calls",
        fix=_kernel("CONFIG_SECCOMP_FILTER=y"),
    ),
    Need(
        probe="parent_death_signal",
        name="PR_SET_PDEATHSIG",
        needed_for="leaving nothing behind",
        fix=_kernel("a working prctl"),
    ),
    Need(probe="close_range", name="close_range", needed_for="no leaked descriptors", fix=_kernel("Linux 5.9")),
    Need(probe="keyring", name="session keyring", needed_for="hiding the host's keys", fix=_kernel("CONFIG_KEYS=y")),
    Need(
        probe="rlimits",
        name="resource limits",
        needed_for="bounded guests",
        fix=_text("ulimit -n 1048576   (systemd: LimitNOFILE=1048576; docker: --ulimit nofile=1048576)"),
        layer="every level",
    ),
    Need(probe="pidfd", name="pidfd_open", needed_for="killing the right process", fix=_kernel("Linux 5.3")),
    Need(
        probe="landlock",
        name="Landlock",
        needed_for="a second wall around files and signals",
        fix=_kernel("CONFIG_SECURITY_LANDLOCK=y (Linux 5.13) and landlock in lsm="),
        layer=Layer.LANDLOCK,
    ),
    *(
        Need(
            probe=f"controller_{name}",
            name=f"{name} controller",
            needed_for=what,
            fix=fix_control_groups,
            layer=Layer.CONTROL_GROUPS,
            ours=True,
        )
        for name, what in _CONTROLLERS.items()
    ),
    Need(
        probe="control_groups",
        name="control groups",
        needed_for="limits of a whole sandbox",
        fix=fix_control_groups,
        layer=Layer.CONTROL_GROUPS,
        ours=True,
    ),
    Need(
        probe="own_user",
        name="root's capabilities",
        needed_for="own host user per sandbox",
        fix=fix_own_user,
        layer=Layer.OWN_USER,
    ),
    Need(
        probe="user_ids",
        name="user ids",
        needed_for="own host user per sandbox",
        fix=fix_user_ids,
        layer="every level",
        ours=True,
    ),
    Need(
        probe="time_namespace",
        name="time namespace",
        needed_for="clocks that do not go on from the host's",
        fix=fix_time_namespace,
        layer="no level",
    ),
    Need(
        probe="pinned_memory",
        name="pinned memory",
        needed_for="sandboxes that are made a third faster",
        fix=fix_pinned_memory,
        layer="no level",
        ours=True,
    ),
)
