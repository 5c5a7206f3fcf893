"""The kernel calls that Python does not offer, one thin function each.

Every function raises OSError with the kernel's errno. Constants are those of the kernel's UAPI headers and equal on
x86-64 and aarch64 unless a table says otherwise.
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE on, KEEP_CAPS off, all four locked.
SECUREBITS_LOCKED = 0xEF

ROOT_CAPABILITIES = {"KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8, "NET_ADMIN": 12, "SYS_ADMIN": 21}
"""What a worker that is started as root uses. With fewer, as in many containers, root acts as an ordinary user."""

_ARCH = os.uname().machine
_NR = {
    "x86_64": {"pivot_root": 155, "keyctl": 250, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "keyctl": 219, "capset": 91, "seccomp": 277},
}.get(_ARCH, {})
_NR_MOUNT_SETATTR = 442
_NR_LANDLOCK_CREATE_RULESET = 444
_NR_LANDLOCK_ADD_RULE = 445
_NR_LANDLOCK_RESTRICT_SELF = 446
_NR_CLOSE_RANGE = 436
_NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SECCOMP_SET_MODE_FILTER = 1
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MNT_DETACH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_CAP_SYS_TIME = 25
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_M_ARENA_MAX = -8

# Made before any fork: to parse a format anew costs every sandbox more than to pack with it.
_landlock_ruleset_attr = struct.Struct("QQQ")
_landlock_path_beneath_attr = struct.Struct("=Qi")

_libc = ctypes.CDLL(None, use_errno=True)
_long, _ulong, _int, _char_p, _void_p = ctypes.c_long, ctypes.c_ulong, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
_libc.mount.argtypes = (_char_p, _char_p, _char_p, _ulong, _char_p)
_libc.umount2.argtypes = (_char_p, _int)
_libc.unshare.argtypes = (_int,)
_libc.setns.argtypes = (_int, _int)
_libc.prctl.argtypes = (_int, _ulong, _ulong, _ulong, _ulong)
_libc.sethostname.argtypes = (_char_p, ctypes.c_size_t)
_libc.syscall.restype = _long
_SECCOMP_FILTER, _NO_FLAGS = _long(_SECCOMP_SET_MODE_FILTER), _long(0)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _syscall(name: str | int, *args: object) -> int:
    number = _NR.get(name) if isinstance(name, str) else name
    if number is None:
        raise OSError(38, f"no system call numbers for {_ARCH}", name)
    return _check(_libc.syscall(_long(number), *args), str(name))


def call(number: int, *args: int | ctypes.Array[ctypes.c_char]) -> int:
    """Make a system call that has no function here; each number is taken for a long."""
    return _syscall(number, *(_long(arg) if isinstance(arg, int) else arg for arg in args))


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` for new ones."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind `fd`."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    """Mount `source` on `target`."""
    _check(_libc.mount(source, target, kind, flags, data), "mount")


def detached_proc() -> int:
    """Return a descriptor of a new /proc, of this process's pid namespace, that is mounted nowhere."""
    context = _syscall(_NR_FSOPEN, _char_p(b"proc"), _long(_FSOPEN_CLOEXEC))
    try:
        _syscall(_NR_FSCONFIG, _long(context), _long(_FSCONFIG_CMD_CREATE), None, None, _long(0))
        return _syscall(_NR_FSMOUNT, _long(context), _long(_FSMOUNT_CLOEXEC), _long(_NOSUID_NODEV_NOEXEC))
    finally:
        os.close(context)


def mount_attributes(target: bytes, flags: int, recursive: bool = True) -> None:  # noqa: FBT001, FBT002 - from a list
    """Set mount attributes on `target`, and on everything mounted below it; attributes that are set already stay.

    MOUNT_ATTR_* are 1 read-only, 2 nosuid, 4 nodev, 8 noexec.
    """
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)
    at = _long(_AT_RECURSIVE if recursive else 0)
    _syscall(_NR_MOUNT_SETATTR, _long(_AT_FDCWD), _char_p(target), at, attributes, _long(32))


def pivot_here() -> None:
    """Make the current directory the root, and let go of the old one."""
    _syscall("pivot_root", _char_p(b"."), _char_p(b"."))
    # "." now has the old root stacked on the new one: detach it.
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def unmount(target: bytes) -> None:
    """Let go of the mount at `target`; what is open in it stays until it is closed."""
    _check(_libc.umount2(target, _MNT_DETACH), "umount2")


def sethostname(name: bytes) -> None:
    """Name this UTS namespace."""
    _check(_libc.sethostname(name, len(name)), "sethostname")


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Change or ask something about this process; return what the kernel returned."""
    return _check(_libc.prctl(option, first, second, 0, 0), "prctl")


def join_new_session_keyring() -> None:
    """Leave the session keyring, which namespaces do not separate, for a new anonymous one."""
    _syscall("keyctl", _long(_KEYCTL_JOIN_SESSION_KEYRING), _long(0))


def capability_sets(permitted: int) -> tuple[bytes, bytes]:
    """Return what `set_capabilities` takes: `permitted` (a bit mask) as the permitted and effective set, no other."""
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    return struct.pack("Ii", _CAPABILITY_VERSION_3, 0), struct.pack("IIIIII", low, low, 0, high, high, 0)


def set_capabilities(header: bytes, sets: bytes) -> None:
    """Set the capability sets of this thread to those that `capability_sets` made."""
    _syscall("capset", header, sets)


def drop_bounding_set() -> None:
    """Empty the capability bounding set of the current user namespace."""
    drop = _libc.prctl
    for capability in range(64):
        if drop(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == 22:  # EINVAL: past the last capability this kernel knows
                return
            _check(-1, "PR_CAPBSET_DROP")


def close_range(first: int, last: int) -> None:
    """Close the descriptors from `first` to `last`."""
    _check(_libc.syscall(_long(_NR_CLOSE_RANGE), _ulong(first), _ulong(last), _long(0)), "close_range")


def filter_program(program: bytes) -> tuple[bytes, object]:
    """Return what `load_seccomp` takes for a BPF program (`struct sock_filter` records)."""
    code = ctypes.create_string_buffer(program, len(program))
    return struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), code


def load_seccomp(header: bytes, code: object) -> None:
    """Load a filter that `filter_program` made on this thread. Needs no_new_privs."""
    del code  # the header points into it
    _syscall("seccomp", _SECCOMP_FILTER, _NO_FLAGS, header)


def share_malloc_arenas() -> None:
    """Have all threads of this process and its forks allocate from two arenas.

    glibc gives each thread its own, eight per processor at most, and reserves 64 MiB of address space for each: with a
    limit of address space a few threads would be all there can be. Elsewhere than in glibc there is nothing to do.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def landlock_abi() -> int:
    """Return the version of Landlock's ABI; 0 if there is none: not built, not started with it, or filtered."""
    try:
        version = _long(_LANDLOCK_CREATE_RULESET_VERSION)
        return _syscall(_NR_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), version)
    except OSError:
        return 0


def landlock(handled: int, scoped: int, flags: int, *rules: bytes | int) -> None:
    """Forbid this process and its children every access in `handled` but where a rule gives it back, for ever.

    Args:
        handled: LANDLOCK_ACCESS_FS_* bits.
        scoped: LANDLOCK_SCOPE_* bits: what may not reach beyond this process and those it makes.
        flags: LANDLOCK_RESTRICT_SELF_* bits.
        rules: a path and the accesses allowed on and beneath it, by turns. Rules hold for the directory itself,
            whatever its path comes to mean.
    """
    # A kernel that knows fewer fields takes a larger structure as long as the rest is zero.
    attributes = _landlock_ruleset_attr.pack(handled, 0, scoped)
    ruleset = _syscall(_NR_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), _long(0))
    try:
        for path, access in zip(rules[::2], rules[1::2], strict=True):
            _landlock_rule(ruleset, path, access)  # type: ignore[arg-type]  # one of each, by turns
        _syscall(_NR_LANDLOCK_RESTRICT_SELF, _long(ruleset), _long(flags))
    finally:
        os.close(ruleset)


def _landlock_rule(ruleset: int, path: bytes, access: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _landlock_path_beneath_attr.pack(access, beneath)
        _syscall(_NR_LANDLOCK_ADD_RULE, _long(ruleset), _long(_LANDLOCK_RULE_PATH_BENEATH), rule, _long(0))
    finally:
        os.close(beneath)


def raise_loopback() -> None:
    """Bring up `lo` of this network namespace."""
    # The socket module is too large to import for one ioctl.
    fd = _check(_libc.socket(2, 2, 0), "socket")
    try:
        request = ctypes.create_string_buffer(struct.pack("16sh22x", b"lo", _IFF_UP))
        _check(_libc.ioctl(fd, _ulong(_SIOCSIFFLAGS), request), "SIOCSIFFLAGS lo")
    finally:
        os.close(fd)


def _effective_capabilities() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def lacking_capabilities() -> list[str]:
    """Return the names of those of `ROOT_CAPABILITIES` that this process does not have."""
    effective = _effective_capabilities()
    return [name for name, bit in ROOT_CAPABILITIES.items() if not effective >> bit & 1]


def acts_as_root() -> bool:
    """Whether a worker uses root's privileges."""
    return os.geteuid() == 0 and not lacking_capabilities()


def can_set_clocks() -> bool:
    """Whether sandboxes can have clocks of their own.

    The kernel must have time namespaces, and whoever makes one needs CAP_SYS_TIME over it to set its offsets: an
    ordinary user has that in the user namespace it starts with, root only if nobody took it away.
    """
    try:
        with open("/proc/sys/user/max_time_namespaces") as file:
            allowed = int(file.read()) > 0
    except OSError:  # CONFIG_TIME_NS is off, or somebody hides it
        return False
    return allowed and (not acts_as_root() or bool(_effective_capabilities() >> _CAP_SYS_TIME & 1))
