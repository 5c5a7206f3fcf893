"""The system call filter, compiled from a policy that is data (`policy`, and the rules about arguments here).

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

from . import policy
from .syscalls import AARCH64, X86_64

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
PR_SET_CHILD_SUBREAPER = 36
CONNECTED_TYPES = (1, 5)
"""SOCK_STREAM, SOCK_SEQPACKET."""
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


def compile_filter(machine: str, *, memory_is_counted: bool, own_network: bool = True) -> bytes:
    """Return the filter as BPF.

    Args:
        machine: as `uname -m` says it.
        memory_is_counted: whether a control group counts all memory of the sandbox, mapped or not.
        own_network: whether the sandbox has namespaces of its own; if not, it gets no sockets but pairs.

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
    denied = policy.DENIED if memory_is_counted else policy.DENIED | policy.UNCOUNTED
    actions = _actions(architecture.numbers, policy.names(denied))
    if not own_network:
        actions |= {architecture.numbers[name]: action for name, action in _WITHOUT_NAMESPACES.items()}
    program = head + _tree(_ranges(actions))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


_Action = int | str  # a return value, or the name of a call whose arguments decide


def _actions(numbers: dict[str, int], denied: set[str]) -> dict[int, _Action]:
    allowed = policy.names(policy.ALLOWED)
    actions: dict[int, _Action] = {}
    for name, number in numbers.items():
        if name in denied:
            actions[number] = _ENOSYS if name in policy.PROBED else _EPERM
        elif name in allowed:
            actions[number] = name if name in BY_ARGUMENT else _ALLOW
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
        return _RULES[action] if isinstance(action, str) else [Instruction(_RETURN, 0, 0, action)]
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


def _connected_pair() -> list[Instruction]:
    types = [
        _argument(1),
        Instruction(_AND, 0, 0, _SOCK_TYPE_MASK),
        *_given(CONNECTED_TYPES, [Instruction(_RETURN, 0, 0, _ALLOW)], otherwise=_EPROTONOSUPPORT),
    ]
    return [_argument(0), *_given(SOCKET_FAMILIES[:1], types, otherwise=_EAFNOSUPPORT)]


BY_ARGUMENT: dict[str, list[Instruction]] = {
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

_WITHOUT_NAMESPACES: dict[str, _Action] = {
    "socket": _EAFNOSUPPORT,
    "socketpair": "connected pair",
    "prctl": "prctl of a first process",
    "mq_open": _EPERM,
    "mq_unlink": _EPERM,
}
"""What is the host's where a sandbox has no namespaces: networks, message queues. A pair of streams is connected for
ever; one of datagrams could be turned to somebody's socket in the file system. Orphans fall to the first process."""
_FIRST_PROCESS_DENIED = (*PRCTL_DENIED, PR_SET_CHILD_SUBREAPER)
_RULES = {
    **BY_ARGUMENT,
    "connected pair": _connected_pair(),
    "prctl of a first process": _one_of(0, _FIRST_PROCESS_DENIED, matched=_EPERM, otherwise=_ALLOW),
}
