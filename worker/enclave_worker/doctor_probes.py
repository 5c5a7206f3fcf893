"""Try one thing that the sandbox needs, and print what came of it as JSON: `{"ok", "found", "errno"}`.

Called as `python -I -S doctor_probes.py NAME`.

Theory of operation. A probe really does what a worker would do, with the same kernel calls (`zygote/kernel.py`), in a
process of its own: whatever it changes is gone with it. It imports no more than that, so that it also runs where our
dependencies are missing. A probe returns what it found, or raises.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "zygote"))  # noqa: PTH100, PTH118, PTH120 - as in zygote/
kernel: Any = __import__("kernel")

MOUNT_PRIVATE_RECURSIVE = (1 << 18) | 16384
BIND_RECURSIVE = 4096 | 16384
NOSUID_NODEV = 2 | 4
READ_ONLY_NOSUID_NODEV_NOEXEC = 15
UNPRIVILEGED_UID = 20_000
DEATH_TIMEOUT_S = 5.0
CAP_SYS_ADMIN = kernel.ROOT_CAPABILITIES["SYS_ADMIN"]
LANDLOCK_READ_FILE = 1 << 2
LANDLOCK_ABIS = {1: "files", 3: "truncation", 5: "device controls", 6: "abstract sockets, signals"}
"""From which ABI on it guards what; `sandbox/landlock.py` has the bits. 2 allows more, 4 and 7 guard nothing for us."""
GETPPID = {"x86_64": 110, "aarch64": 173}


class Missing(Exception):  # noqa: N818 - said of what is probed
    """The kernel allowed the call, but what it should have done did not happen."""


def write(path: str, text: str) -> None:
    """Write a file of `/proc`."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def enter_user_namespace() -> None:
    """Become root of a user namespace of our own, as the zygote's launcher does for an ordinary user."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {uid} 1")
    write("/proc/self/gid_map", f"0 {gid} 1")


def be_privileged() -> None:
    """Have the privileges that the zygote has: root's own, or those over a user namespace."""
    if not kernel.acts_as_root():
        enter_user_namespace()


def in_child(function: Callable[[], str]) -> str:
    """Call `function` in a forked child and return, or raise, what it did."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(attempt(function), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    answer = json.loads(said or '{"ok": false, "found": "the probe died", "errno": 0}')
    if answer["ok"]:
        return str(answer["found"])
    if answer["errno"]:
        raise OSError(answer["errno"], answer["found"])
    raise Missing(answer["found"])


def own_mounts() -> None:
    """Enter a mount namespace from which nothing propagates to the host, with an empty tmpfs at the returned place."""
    be_privileged()
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, b"/", None, MOUNT_PRIVATE_RECURSIVE, None)


def stage() -> bytes:
    """Return a directory with an empty tmpfs on it, in a mount namespace of our own."""
    own_mounts()
    place = b"/tmp"  # a mount point that only we see
    kernel.mount(b"root", place, b"tmpfs", NOSUID_NODEV, b"size=1m,mode=0755")
    return place


def user_namespace() -> str:
    """The launcher's, for an ordinary user."""
    if kernel.acts_as_root():
        in_child(lambda: kernel.unshare(kernel.CLONE_NEWUSER) or "")
        return "as root"
    enter_user_namespace()
    return "as an ordinary user"


def guest_user_namespace() -> str:
    """The guest's, entered last: without root by a nested one, as root after giving up root."""
    if kernel.acts_as_root():
        kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
        os.setresgid(UNPRIVILEGED_UID, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
        os.setresuid(UNPRIVILEGED_UID, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
        kernel.set_capabilities(*kernel.capability_sets(1 << CAP_SYS_ADMIN))
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        uid = UNPRIVILEGED_UID
    else:
        enter_user_namespace()
        uid = 0
    kernel.unshare(kernel.CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"1000 {uid} 1")
    if os.getuid() != 1000:
        raise Missing("the id map has no effect")
    return "maps one user"


def namespace(flag: int) -> Callable[[], str]:
    """Return a probe that enters a namespace of this kind."""

    def probe() -> str:
        be_privileged()
        kernel.unshare(flag)
        return "can be entered"

    return probe


def pid_namespace() -> str:
    """The first child must be pid 1."""
    be_privileged()
    kernel.unshare(kernel.CLONE_NEWPID)

    def first() -> str:
        if os.getpid() != 1:
            raise Missing(f"the first process is {os.getpid()}, not 1")
        return "first process is 1"

    return in_child(first)


def network_namespace() -> str:
    """A new one, with its loopback up."""
    be_privileged()
    kernel.unshare(kernel.CLONE_NEWNET)
    kernel.raise_loopback()
    return "loopback comes up"


def uts_namespace() -> str:
    """A new one, with a name of its own."""
    be_privileged()
    kernel.unshare(kernel.CLONE_NEWUTS)
    kernel.sethostname(b"sandbox")
    if os.uname().nodename != "sandbox":
        raise Missing("the name did not change")
    return "can be named"


def tmpfs() -> str:
    """One that can be written to."""
    place = stage()
    os.mkdir(place + b"/made")  # noqa: PTH102 - bytes
    return "can be mounted"


def proc() -> str:
    """One for a new pid namespace, which hides everything but processes. Containers that mask /proc forbid it."""
    own_mounts()
    kernel.unshare(kernel.CLONE_NEWPID)

    def mount() -> str:
        place = b"/tmp"  # a mount point that only we see
        kernel.mount(b"root", place, b"tmpfs", NOSUID_NODEV, b"size=1m,mode=0755")
        os.mkdir(place + b"/proc")  # noqa: PTH102 - bytes
        kernel.mount(b"proc", place + b"/proc", b"proc", READ_ONLY_NOSUID_NODEV_NOEXEC, b"subset=pid")
        processes = [name for name in os.listdir(place + b"/proc") if name.isdigit()]  # noqa: PTH208 - bytes
        if processes != [b"1"]:
            raise Missing(f"it shows {len(processes)} processes, not one")
        return "shows one process"

    return in_child(mount)


def read_only_bind() -> str:
    """A directory of the host's that can be read and not be written."""
    place = stage() + b"/usr"
    os.mkdir(place)  # noqa: PTH102 - bytes
    kernel.mount(b"/usr", place, None, BIND_RECURSIVE, None)
    kernel.mount_attributes(place, 1 | NOSUID_NODEV)
    try:
        os.close(os.open(place + b"/enclave-doctor", os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        if error.errno == errno.EROFS:
            return "writing is refused"
        raise
    raise Missing("the read-only bind can be written")


def pivot_root() -> str:
    """Into an empty root, letting go of the host's."""
    os.chdir(stage())
    kernel.pivot_here()
    left = os.listdir("/")  # noqa: PTH208 - the module is kept small
    if left:
        raise Missing(f"the new root shows {left[:3]}")
    return "nothing of the host is left"


def no_new_privs() -> str:
    """Set, and read back."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    with open("/proc/self/status") as file:  # noqa: PTH123 - the module is kept small
        if "NoNewPrivs:\t1" not in file.read():
            raise Missing("set, but not in effect")
    return "in effect"


def seccomp() -> str:
    """A filter that refuses one call must make that call fail, and no other."""
    no_new_privs()
    number = GETPPID[os.uname().machine]
    load, equal, give = 0x20, 0x15, 0x06
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    rules = ((load, 0, 0, 0), (equal, 0, 1, number), (give, 0, 0, refuse), (give, 0, 0, allow))
    kernel.load_seccomp(*kernel.filter_program(b"".join(struct.pack("HBBI", *rule) for rule in rules)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(number)) != -1 or ctypes.get_errno() != errno.EPERM:
        raise Missing("a filter was loaded and has no effect")
    return "filters in effect"


def parent_death_signal() -> str:
    """A process whose parent ends must be killed."""
    reader, writer = os.pipe()
    ready_reader, ready_writer = os.pipe()
    parent = os.fork()
    if not parent:
        if not os.fork():
            os.close(reader)
            kernel.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL))
            signal.alarm(int(2 * DEATH_TIMEOUT_S))  # it goes away even where the kernel fails the test
            os.write(ready_writer, b"1")
            signal.pause()
        os.read(ready_reader, 1)
        os._exit(0)
    os.close(writer)
    os.waitpid(parent, 0)
    # The orphan holds the pipe's other end for as long as it lives.
    if not select.select([reader], [], [], DEATH_TIMEOUT_S)[0]:
        raise Missing("a process outlived its parent")
    return "orphans are killed"


def pidfd() -> str:
    """One that kills the process it stands for."""
    pid = os.fork()
    if not pid:
        signal.alarm(int(2 * DEATH_TIMEOUT_S))  # it goes away even where the kernel fails the test
        signal.pause()
    signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise Missing("a process outlived SIGKILL")
    return "kills its process"


def close_range() -> str:
    """Closes a descriptor that is open."""
    fd = os.dup(2)
    kernel.close_range(fd, 0xFFFFFFFF)
    try:
        os.fstat(fd)
    except OSError:
        return "closes descriptors"
    raise Missing("descriptors stay open")


def keyring() -> str:
    """A new session keyring."""
    kernel.join_new_session_keyring()
    return "can be joined"


def own_user() -> str:
    """Root, and what it must still be able to do; containers take some away."""
    if os.geteuid() != 0:
        raise Missing("not started as root")
    if missing := kernel.lacking_capabilities():
        raise Missing(f"root here lacks {', '.join(missing)}")
    return "all there"


def rlimits() -> str:
    """Can be lowered, and leave room for a worker's own descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1024:
        raise Missing(f"at most {hard} open files")
    for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
        _, highest = resource.getrlimit(number)
        lowered = 1 << 30 if highest == resource.RLIM_INFINITY else highest
        resource.setrlimit(number, (lowered, lowered))
    return f"up to {hard} open files"


def interpreter() -> str:
    """The interpreter and its library, readable by this user all the way down."""
    real = os.path.realpath(sys.executable)
    library = os.path.dirname(os.__file__)  # noqa: PTH120 - the module is kept small
    for path in (real, library):
        if not os.access(path, os.R_OK | os.X_OK):
            raise Missing(f"cannot read {path}")
    return real


def landlock_adds(version: int) -> str:
    """Say what an ABI gives us, and which later one gives what it lacks."""
    has = [what for abi, what in LANDLOCK_ABIS.items() if abi <= version]
    lacks = [f"{what} (ABI {abi})" for abi, what in LANDLOCK_ABIS.items() if abi > version]
    return ", ".join(has) + (f"; not yet {', '.join(lacks)}" if lacks else "")


def landlock() -> str:
    """With everything forbidden, a file that could be read a moment ago cannot be opened."""
    if not (version := kernel.landlock_abi()):
        raise Missing("the kernel has none, was started without it, or a filter forbids it")
    no_new_privs()
    kernel.landlock(LANDLOCK_READ_FILE, 0, 0)
    try:
        os.close(os.open("/proc/self/status", os.O_RDONLY))
    except OSError as error:
        if error.errno == errno.EACCES:
            return f"ABI {version}: {landlock_adds(version)}"
        raise
    raise Missing("in force, but without effect")


def time_namespace() -> str:
    """One whose first process sees clocks that start anew."""
    be_privileged()
    kernel.unshare(kernel.CLONE_NEWTIME)
    monotonic, boottime = (int(time.clock_gettime(clock)) for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME))
    write("/proc/self/timens_offsets", f"monotonic -{monotonic} 0\nboottime -{boottime} 0\n")

    def first() -> str:
        if time.clock_gettime(time.CLOCK_BOOTTIME) > boottime:
            raise Missing("the clocks are the host's")
        return "clocks start anew"

    return in_child(first)


def attempt(function: Callable[[], str]) -> dict[str, Any]:
    """Call a probe and return its answer as data."""
    try:
        return {"ok": True, "found": function(), "errno": 0}
    except Missing as error:
        return {"ok": False, "found": str(error), "errno": 0}
    except OSError as error:
        return {"ok": False, "found": error.strerror or str(error), "errno": error.errno or 0}


PROBES: dict[str, Callable[[], str]] = {
    "user_namespace": user_namespace,
    "guest_user_namespace": guest_user_namespace,
    "mount_namespace": namespace(kernel.CLONE_NEWNS),
    "pid_namespace": pid_namespace,
    "network_namespace": network_namespace,
    "ipc_namespace": namespace(kernel.CLONE_NEWIPC),
    "cgroup_namespace": namespace(kernel.CLONE_NEWCGROUP),
    "uts_namespace": uts_namespace,
    "time_namespace": time_namespace,
    "tmpfs": tmpfs,
    "proc": proc,
    "read_only_bind": read_only_bind,
    "pivot_root": pivot_root,
    "no_new_privs": no_new_privs,
    "seccomp": seccomp,
    "parent_death_signal": parent_death_signal,
    "pidfd": pidfd,
    "close_range": close_range,
    "keyring": keyring,
    "own_user": own_user,
    "rlimits": rlimits,
    "interpreter": interpreter,
    "landlock": landlock,
}

if __name__ == "__main__":
    print(json.dumps(attempt(PROBES[sys.argv[1]])))  # noqa: T201 - its only output
