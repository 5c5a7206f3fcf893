"""What this machine must offer for a worker to start, whether it does, and what mends it.

Every check really tries the thing in a process of its own (see `doctor_probes`), as the current user. The last one
starts a worker, so that nothing is called well that is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OLDEST_LINUX = (5, 12)
MACHINES = ("x86_64", "aarch64")
PROBE_TIMEOUT_S = 15.0
WORKER_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was tried."""

    name: str
    needed_for: str
    ok: bool
    found: str
    """What there is, in words."""
    fix: str
    """The command or setting that mends it; empty if it is there."""
    required: bool = True
    """Whether no worker can start without it."""


class _Answer(msgspec.Struct):
    ok: bool
    found: str
    errno: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """What the choice of a fix depends on."""

    root: bool
    container: str
    """`docker`, `kubernetes`, `a container`, or empty."""
    sysctls: dict[str, str]
    """Those that exist, by their name below `/proc/sys`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Need:
    probe: str
    name: str
    needed_for: str
    fix: Callable[[Host, _Answer], str]
    required: bool = True


_DOCKER = (
    "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined …"
)
_KUBERNETES = (
    "in the pod: hostUsers: false, procMount: Unmasked, appArmorProfile: Unconfined, a seccompProfile that allows "
    "unshare, mount, umount2, pivot_root, setns and clone, and capabilities.add: [SYS_ADMIN, NET_ADMIN, "
    "SETUID, SETGID, SETPCAP, KILL]"
)
_SYSCTLS = (
    "user/max_user_namespaces",
    "user/max_mnt_namespaces",
    "user/max_net_namespaces",
    "user/max_pid_namespaces",
    "user/max_ipc_namespaces",
    "user/max_cgroup_namespaces",
    "user/max_uts_namespaces",
    "user/max_time_namespaces",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
)


def fix_namespace(host: Host, answer: _Answer) -> str:  # noqa: ARG001 - the sysctls say more than the errno
    """Return what opens namespaces: the first cause, from the most certain to the least."""
    for name, value in host.sysctls.items():
        dotted = name.replace("/", ".")
        if name.startswith("user/max_") and value == "0":
            return _sysctl(dotted, 15_000)
        if name == "kernel/unprivileged_userns_clone" and value == "0" and not host.root:
            return _sysctl(dotted, 1)
        if name == "kernel/apparmor_restrict_unprivileged_userns" and value == "1" and not host.root:
            return _sysctl(dotted, 0)
    return _container_fix(host) or _as_root(host)


def fix_proc(host: Host, answer: _Answer) -> str:
    """Return what lets a new /proc be mounted."""
    return _container_fix(host) or fix_namespace(host, answer)


def fix_time_namespace(host: Host, answer: _Answer) -> str:
    """Return what gives guests clocks of their own; never CAP_SYS_TIME, by which a container could set the host's."""
    if host.sysctls.get("user/max_time_namespaces") == "0":
        return _sysctl("user.max_time_namespaces", 15_000)
    if answer.errno in (errno.ENOENT, errno.EINVAL):
        return "boot a kernel with CONFIG_TIME_NS=y (Linux 5.6)"
    return "start the worker as an ordinary user: root would need CAP_SYS_TIME for it, which is worth more than this"


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


def _kernel(option: str) -> Callable[[Host, _Answer], str]:
    """Return a fix: what a container or a kernel's configuration has to allow."""
    return lambda host, _: _container_fix(host) or f"boot a kernel with {option}"


def _text(text: str) -> Callable[[Host, _Answer], str]:
    return lambda _host, _answer: text


NEEDS = (
    _Need(
        probe="interpreter",
        name="Python for this user",
        needed_for="running guests",
        fix=_text("install Python where this user can read it, or: chmod o+rx on every directory above it"),
    ),
    _Need(
        probe="capabilities",
        name="root's capabilities",
        needed_for="building sandboxes as root",
        fix=lambda host, _: _container_fix(host) or "start the worker as an ordinary user, or as root with all of them",
    ),
    _Need(
        probe="user_namespace",
        name="user namespace",
        needed_for="building sandboxes without root",
        fix=fix_namespace,
    ),
    _Need(
        probe="guest_user_namespace",
        name="guest's user namespace",
        needed_for="a guest that is nobody outside",
        fix=fix_namespace,
    ),
    _Need(probe="mount_namespace", name="mount namespace", needed_for="own file system", fix=fix_namespace),
    _Need(probe="pid_namespace", name="pid namespace", needed_for="own processes, killed whole", fix=fix_namespace),
    _Need(probe="network_namespace", name="network namespace", needed_for="no network", fix=fix_namespace),
    _Need(probe="ipc_namespace", name="ipc namespace", needed_for="own shared memory", fix=fix_namespace),
    _Need(probe="uts_namespace", name="uts namespace", needed_for="own host name", fix=fix_namespace),
    _Need(probe="cgroup_namespace", name="cgroup namespace", needed_for="hiding the host's cgroups", fix=fix_namespace),
    _Need(probe="tmpfs", name="tmpfs", needed_for="private writable directories", fix=fix_namespace),
    _Need(probe="proc", name="/proc of its own", needed_for="showing only its processes", fix=fix_proc),
    _Need(probe="read_only_bind", name="read-only bind mount", needed_for="showing the interpreter", fix=fix_namespace),
    _Need(probe="pivot_root", name="pivot_root", needed_for="hiding the host's files", fix=fix_namespace),
    _Need(
        probe="no_new_privs",
        name="no_new_privs",
        needed_for="no setuid programs",
        fix=_kernel("no_new_privs (Linux 3.5)"),
    ),
    _Need(
        probe="seccomp",
        name="seccomp filter",
        needed_for="fewer system calls",
        fix=_kernel("CONFIG_SECCOMP_FILTER=y"),
    ),
    _Need(
        probe="parent_death_signal",
        name="PR_SET_PDEATHSIG",
        needed_for="leaving nothing behind",
        fix=_kernel("a working prctl"),
    ),
    _Need(probe="close_range", name="close_range", needed_for="no leaked descriptors", fix=_kernel("Linux 5.9")),
    _Need(probe="keyring", name="session keyring", needed_for="hiding the host's keys", fix=_kernel("CONFIG_KEYS=y")),
    _Need(
        probe="rlimits",
        name="resource limits",
        needed_for="bounded guests",
        fix=_text("ulimit -n 1048576   (systemd: LimitNOFILE=1048576; docker: --ulimit nofile=1048576)"),
    ),
    _Need(probe="pidfd", name="pidfd_open", needed_for="killing the right process", fix=_kernel("Linux 5.3")),
    _Need(
        probe="time_namespace",
        name="time namespace",
        needed_for="clocks that do not go on from the host's",
        fix=fix_time_namespace,
        required=False,
    ),
    _Need(
        probe="landlock",
        name="Landlock",
        needed_for="a second wall around files and signals",
        fix=_kernel("CONFIG_SECURITY_LANDLOCK=y and landlock in lsm="),
        required=False,
    ),
    _Need(
        probe="cgroups",
        name="writable cgroups",
        needed_for="memory and process limits per sandbox",
        fix=_text("systemd: Delegate=yes; docker: --cgroupns=private with a writable /sys/fs/cgroup; or run as root"),
        required=False,
    ),
)


def checks() -> list[Check]:
    """Try everything a worker needs, as the current user, and say what came of it."""
    host = look_at_host()
    found = [_linux(), _machine()]
    found += [_judge(need, host, probe(need.probe)) for need in NEEDS]
    return [*found, _worker_starts(all(check.ok for check in found if check.required))]


def probe(name: str) -> _Answer:
    """Run one probe in a process of its own."""
    script = Path(__file__).with_name("doctor_probes.py")
    command = [sys.executable, "-I", "-S", str(script), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)  # noqa: S603 - ours
        return msgspec.json.decode(done.stdout, type=_Answer)
    except subprocess.TimeoutExpired:
        return _Answer(ok=False, found=f"no answer within {PROBE_TIMEOUT_S:g} s")
    except OSError as error:
        return _Answer(ok=False, found=f"cannot start {sys.executable}: {error.strerror}")
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        return _Answer(ok=False, found=words[-1] if words else f"the probe ended with {done.returncode}")


def look_at_host() -> Host:
    """Read what the choice of a fix depends on."""
    sysctls = {}
    for name in _SYSCTLS:
        with contextlib.suppress(OSError):
            sysctls[name] = Path("/proc/sys", name).read_text(encoding="ascii").strip()
    return Host(root=os.geteuid() == 0, container=_container(), sysctls=sysctls)


def _container() -> str:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if Path("/.dockerenv").exists():
        return "docker"
    return "a container" if Path("/run/.containerenv").exists() else ""


def _judge(need: _Need, host: Host, answer: _Answer) -> Check:
    fix = "" if answer.ok else need.fix(host, answer)
    return Check(
        name=need.name,
        needed_for=need.needed_for,
        ok=answer.ok,
        found=answer.found,
        fix=fix,
        required=need.required,
    )


def _linux() -> Check:
    release = platform.release()
    digits = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    ok = sys.platform == "linux" and tuple(digits) >= OLDEST_LINUX
    oldest = ".".join(map(str, OLDEST_LINUX))
    return Check(
        name=f"Linux {oldest} or newer",
        needed_for="mount attributes, /proc of processes only",
        ok=ok,
        found=f"{platform.system()} {release}",
        fix="" if ok else f"run a kernel of {oldest} or newer",
    )


def _machine() -> Check:
    machine = platform.machine()
    ok = machine in MACHINES and sys.maxsize > 2**32
    return Check(
        name="x86-64 or aarch64",
        needed_for="the system call filter",
        ok=ok,
        found=f"{machine}, {'64' if sys.maxsize > 2**32 else '32'}-bit Python",
        fix="" if ok else "run a 64-bit Python on one of these machines",
    )


def _worker_starts(worth_trying: bool) -> Check:  # noqa: FBT001 - one private call
    name, needed_for = "a worker", "everything"
    if not worth_trying:
        return Check(name=name, needed_for=needed_for, ok=False, found="not tried", fix="mend the above first")
    ok, found = _start_worker()
    fix = "" if ok else "mend what it says; if everything above is there, that is a bug of ours: please report it"
    return Check(name=name, needed_for=needed_for, ok=ok, found=found, fix=fix)


def _start_worker() -> tuple[bool, str]:
    """Start a worker on a free port and stop it; return whether it listened, and its last words if it did not."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "enclave_worker.cli",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--level",
        "BEST",
    ]
    started = time.monotonic()
    with tempfile.TemporaryFile() as words:
        worker = subprocess.Popen(  # noqa: S603 - ours
            [*command, "--pool-size", "1"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words
        )
        try:
            listens = worker.stdout is not None and _says_something(worker.stdout.fileno())
        finally:
            worker.terminate()
            _wait_or_kill(worker)
        if listens:
            return True, f"starts in {time.monotonic() - started:.1f} s"
        words.seek(0)
        said = words.read().decode(errors="replace").strip().splitlines()
    return False, said[-1] if said else f"exit code {worker.returncode} without a word"


def _says_something(fd: int) -> bool:
    ready, _, _ = select.select([fd], [], [], WORKER_TIMEOUT_S)
    return bool(ready) and os.read(fd, 4096).startswith(b"enclave-runtime listening on ")


def _wait_or_kill(worker: subprocess.Popen[bytes]) -> None:
    try:
        worker.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.communicate()


def render(found: Iterable[Check]) -> str:
    """Return the checks as a table, below it what to mend, and a last line with the verdict."""
    found = list(found)
    rows = [("", "what", "found", "needed for"), *(_row(check) for check in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows]
    for title, required in (("To mend:", True), ("To have what is optional:", False)):
        fixes = [f"  {check.name}: {check.fix}" for check in found if check.fix and check.required is required]
        lines += ["", title, *fixes] if fixes else []
    missing = sum(1 for check in found if check.required and not check.ok)
    verdict = f"A worker cannot start here: {missing} missing." if missing else "A worker can start here."
    return "\n".join([*lines, "", verdict])


def _row(check: Check) -> tuple[str, str, str, str]:
    mark = "ok" if check.ok else "MISSING" if check.required else "absent"
    needed_for = check.needed_for if check.required else f"{check.needed_for} (optional)"
    return mark, check.name, check.found, needed_for
