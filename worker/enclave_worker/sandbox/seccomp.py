"""The system call filter, compiled from a policy that is data.

Theory of operation. The kernel runs the filter on every call, and once for every call number when it is loaded (it
caches the plain allows), so the program is a binary tree over ranges of numbers, about eight comparisons deep, not a
list. A call is refused with an errno that programs understand: EPERM for policy, ENOSYS where a library probes and
falls back (`clone3`, `io_uring_setup`, everything newer than our tables). Only a foreign calling convention kills:
32-bit entry would reach other calls under the same numbers.

Pointers are never looked at: memory can change after the check. Only the low 32 bits of an argument count wherever
the kernel itself reads an int, or a caller could hide bits in the upper half (CVE-2019-10063).
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from .syscalls import AARCH64, X86_64

DENIED: dict[str, str] = {
    "Mounts and roots: the file system view is what isolates.": """mount umount2 pivot_root chroot mount_setattr
        move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick quotactl quotactl_fd swapon swapoff acct
        listmount statmount sysfs ustat""",
    "Namespaces: a new user namespace opens most of the kernel's privileged surface.": "unshare setns",
    "Other processes: our own pid 1, and memory that is not the caller's.": """ptrace process_vm_readv
        process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp migrate_pages move_pages""",
    "Keyrings and handles are not namespaced.": """add_key request_key keyctl open_by_handle_at name_to_handle_at""",
    "Kernel programs and machinery with a history of holes.": """bpf perf_event_open userfaultfd io_uring_setup
        io_uring_enter io_uring_register io_setup io_submit io_destroy io_cancel io_getevents io_pgetevents
        fanotify_init fanotify_mark lookup_dcookie vmsplice splice tee remap_file_pages memfd_secret modify_ldt uselib
        seccomp lsm_set_self_attr lsm_get_self_attr lsm_list_modules map_shadow_stack""",
    "Landlock: a guest could only forbid itself more, for kernel memory that is copied sixteen layers deep.": """
        landlock_create_ruleset landlock_add_rule landlock_restrict_self""",
    "Modules, kexec, power, consoles, raw I/O.": """init_module finit_module delete_module create_module query_module
        get_kernel_syms kexec_load kexec_file_load reboot ioperm iopl vhangup syslog _sysctl nfsservctl afs_syscall
        getpmsg putpmsg security tuxcall vserver""",
    "Clocks and names of the machine.": "settimeofday clock_settime clock_adjtime adjtimex setdomainname sethostname",
    "Identities: a sandbox has one.": """setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid
        setgroups capset chown fchown lchown fchownat""",
    "Watching files: those we show are the host's, and so is what others do with them, by name.": """inotify_init
        inotify_init1 inotify_add_watch""",
    "Work for the host's disks: a sandbox has none of its own.": "sync syncfs",
    "Memory that cannot be swapped or is placed by node.": """mlockall mlock2 mbind set_mempolicy get_mempolicy
        set_mempolicy_home_node""",
}
"""Why, and which calls. Every other call of `syscalls` is allowed; every call beyond it gets ENOSYS."""

UNCOUNTED: dict[str, str] = {
    "Without control groups: memory that RLIMIT_AS does not see, for it stays when nothing maps it.": """shmget
        memfd_create msgget semget"""
}
"""Refused as well where nothing but address space is limited."""

PROBED = frozenset(
    {
        *("clone3", "io_uring_setup", "userfaultfd", "bpf", "perf_event_open", "open_tree", "fsopen"),
        *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
        *("inotify_init", "inotify_init1"),
    }
)
"""Refused with ENOSYS: libraries try these and fall back. glibc turns EPERM from clone3 into a failed thread."""

NEW_NAMESPACE_FLAGS = 0x7E020080
"""CLONE_NEW*; with them clone is unshare."""
SOCKET_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: all three are private to the sandbox's network namespace. AF_VSOCK would reach the
hypervisor; netlink, packet, XDP and ALG open kernel code that a guest has no use for."""
INTERNET_PROTOCOLS = (0, 6, 17)
"""The type's own, TCP, UDP. Any other number (MPTCP, SCTP, SMC, UDP-Lite, L2TP) opens a further protocol's code, and
where that is a module has the kernel load it."""
INTERNET_TYPES = (1, 2)
"""SOCK_STREAM, SOCK_DGRAM. Types stand for protocols, too: SOCK_SEQPACKET is SCTP, 6 is DCCP."""
TTY_INJECTION = (0x5412, 0x541C)
"""ioctl TIOCSTI and TIOCLINUX: typing into somebody's terminal."""
FCNTL_DENIED = (1024, 1026)
"""F_SETLEASE, which makes others wait for us to write to a file that they own, and F_NOTIFY, an older inotify."""
PRCTL_DENIED = (1, 4, 28, 35, 59, 67)
"""PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECUREBITS, PR_SET_MM, PR_SET_SYSCALL_USER_DISPATCH, and
PR_SET_MEMORY_MERGE, by which one guest could time what pages another has."""
UNHEARD_SIGNALS = (9, 19)
"""SIGKILL and SIGSTOP, which the kernel keeps from a namespace's pid 1 without a word. A guest that stops or kills
itself is told, so that it does not go on as if it had."""
PERSONALITIES = (0, 0xFFFFFFFF)
"""Plain Linux, and asking. The others switch ASLR off or change what calls mean."""

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_EPERM = 0x00050000 | errno.EPERM
_ENOSYS = 0x00050000 | errno.ENOSYS
_EAFNOSUPPORT = 0x00050000 | errno.EAFNOSUPPORT
_EPROTONOSUPPORT = 0x00050000 | errno.EPROTONOSUPPORT

_LOAD, _AND, _JUMP, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000
_SOCK_TYPE_MASK = 0xF
"""The rest of the argument is SOCK_CLOEXEC and SOCK_NONBLOCK."""


class Instruction(NamedTuple):
    """One `struct sock_filter`: jumps count instructions to skip."""

    code: int
    if_true: int
    if_false: int
    value: int


class Architecture(NamedTuple):
    """An architecture's AUDIT_ARCH value and call numbers."""

    audit: int
    numbers: dict[str, int]


ARCHITECTURES = {"x86_64": Architecture(0xC000003E, X86_64), "aarch64": Architecture(0xC00000B7, AARCH64)}


def compile_filter(machine: str, *, memory_is_counted: bool) -> bytes:
    """Return the filter as BPF.

    Args:
        machine: as `uname -m` says it.
        memory_is_counted: whether a control group counts all memory of the sandbox, mapped or not.

    Raises:
        KeyError: there is no table for this machine.
    """
    architecture = ARCHITECTURES[machine]
    head = [
        Instruction(_LOAD, 0, 0, _ARCH_OFFSET),
        Instruction(_EQUAL, 1, 0, architecture.audit),
        Instruction(_RETURN, 0, 0, _KILL),
        Instruction(_LOAD, 0, 0, _NUMBER_OFFSET),
        Instruction(_GREATER_EQUAL, 0, 1, _X32_BIT),
        Instruction(_RETURN, 0, 0, _ENOSYS),
    ]
    program = head + _tree(_ranges(_actions(architecture.numbers, DENIED if memory_is_counted else DENIED | UNCOUNTED)))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


_Action = int | str  # a return value, or the name of a call whose arguments decide


def _actions(numbers: dict[str, int], policy: dict[str, str]) -> dict[int, _Action]:
    denied = {name for names in policy.values() for name in names.split()}
    actions: dict[int, _Action] = {}
    for name, number in numbers.items():
        if name in _BY_ARGUMENT:
            actions[number] = name
        elif name in PROBED:
            actions[number] = _ENOSYS
        else:
            actions[number] = _EPERM if name in denied else _ALLOW
    return actions


def _ranges(actions: dict[int, _Action]) -> list[tuple[int, _Action]]:
    """Return the first number of each run of equal actions; numbers without an action get ENOSYS."""
    ranges: list[tuple[int, _Action]] = []
    for number in range(max(actions) + 2):
        action = actions.get(number, _ENOSYS)
        if not ranges or ranges[-1][1] != action:
            ranges.append((number, action))
    return ranges


def _tree(ranges: list[tuple[int, _Action]]) -> list[Instruction]:
    if len(ranges) == 1:
        action = ranges[0][1]
        return _BY_ARGUMENT[action] if isinstance(action, str) else [Instruction(_RETURN, 0, 0, action)]
    middle = len(ranges) // 2
    low, high = _tree(ranges[:middle]), _tree(ranges[middle:])
    first_of_high = ranges[middle][0]
    if len(low) <= 255:  # a conditional jump's reach
        return [Instruction(_GREATER_EQUAL, len(low), 0, first_of_high), *low, *high]
    over = Instruction(_JUMP, 0, 0, len(low))
    return [Instruction(_GREATER_EQUAL, 0, 1, first_of_high), over, *low, *high]


def _argument(index: int) -> Instruction:
    return Instruction(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * index)  # the low half: both machines are little-endian


def _given(values: tuple[int, ...], then: list[Instruction], *, otherwise: int) -> list[Instruction]:
    tests = [Instruction(_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [*tests, Instruction(_RETURN, 0, 0, otherwise), *then]


def _one_of(index: int, values: tuple[int, ...], *, matched: int, otherwise: int) -> list[Instruction]:
    return [_argument(index), *_given(values, [Instruction(_RETURN, 0, 0, matched)], otherwise=otherwise)]


def _not_to_pid_1(pid_index: int, signal_index: int) -> list[Instruction]:
    kill, stop = UNHEARD_SIGNALS
    return [
        _argument(pid_index),
        Instruction(_EQUAL, 0, 3, 1),
        _argument(signal_index),
        Instruction(_EQUAL, 2, 0, kill),
        Instruction(_EQUAL, 1, 0, stop),
        Instruction(_RETURN, 0, 0, _ALLOW),
        Instruction(_RETURN, 0, 0, _EPERM),
    ]


def _socket() -> list[Instruction]:
    unix, *internet = SOCKET_FAMILIES
    types = [
        _argument(1),
        Instruction(_AND, 0, 0, _SOCK_TYPE_MASK),
        *_given(INTERNET_TYPES, [Instruction(_RETURN, 0, 0, _ALLOW)], otherwise=_EPROTONOSUPPORT),
    ]
    protocols = [_argument(2), *_given(INTERNET_PROTOCOLS, types, otherwise=_EPROTONOSUPPORT)]
    return [
        _argument(0),
        Instruction(_EQUAL, 0, 1, unix),
        Instruction(_RETURN, 0, 0, _ALLOW),
        *_given(tuple(internet), protocols, otherwise=_EAFNOSUPPORT),
    ]


_BY_ARGUMENT: dict[str, list[Instruction]] = {
    "clone": [
        _argument(0),
        Instruction(_ANY_BIT, 0, 1, NEW_NAMESPACE_FLAGS),
        Instruction(_RETURN, 0, 0, _EPERM),
        Instruction(_RETURN, 0, 0, _ALLOW),
    ],
    "fcntl": _one_of(1, FCNTL_DENIED, matched=_EPERM, otherwise=_ALLOW),
    "ioctl": _one_of(1, TTY_INJECTION, matched=_EPERM, otherwise=_ALLOW),
    "kill": _not_to_pid_1(0, 1),
    "personality": _one_of(0, PERSONALITIES, matched=_ALLOW, otherwise=_EPERM),
    "prctl": _one_of(0, PRCTL_DENIED, matched=_EPERM, otherwise=_ALLOW),
    "socket": _socket(),
    "socketpair": _socket(),
    "tgkill": _not_to_pid_1(1, 2),
    "tkill": _not_to_pid_1(0, 1),
}
