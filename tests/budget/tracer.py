"""Counts what processes ask of the kernel, by ptrace: every system call, and every page fault of those that end.

Theory of operation. One thread traces everything, because the kernel ties a tracee to the thread that seized it. Each
tracee stops at the entry and at the exit of every system call, and is let go on at once; what it forks is traced from
its first instruction on, and counted by the same role, or by the one that `Tracer.born` says. Nothing is written to a
tracee and nothing of its memory is read, so the counts are those of the untraced program, only slower ones.

When a figure is to be that of one session and no other, it matters where a session ends: when everybody is `asleep`,
and there have been no `doings` for longer than any timer of theirs runs.

Whoever traces waits for any child: its own children are not told apart from tracees.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import struct
from collections import Counter
from pathlib import Path

_GETEVENTMSG, _SEIZE, _INTERRUPT, _SYSCALL, _GET_SYSCALL_INFO = 0x4201, 0x4206, 0x4207, 24, 0x420E
_TRACESYSGOOD, _TRACEFORK, _TRACEVFORK, _TRACECLONE = 1, 2, 4, 8
_EVENT_STOP = 128
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_WALL = 0x40000000
_ENTRY = 1
_INFO = struct.Struct("=B3xI2Q7Q")
"""`struct ptrace_syscall_info` at an entry: what kind, architecture, two pointers, the number and six arguments."""

_IDLE = {"x86_64": {232, 281, 441, 7, 271, 39}, "aarch64": {22, 441, 73, 172}}
"""By number, what a program may do without anybody noticing: epoll_wait and its kin, poll and ppoll, and getpid, which
Python's event loop asks for whenever it is asked for itself. Timers that find nothing to do come to no more."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace of process {pid}")
    return result


@dataclasses.dataclass(slots=True)
class Tracee:
    """One thread that is traced."""

    tid: int
    role: str
    calls: Counter[int] = dataclasses.field(default_factory=Counter)
    """How often it made each system call, by number."""
    within: int = -1
    """The number of the call that it is in; -1 if in none."""
    order: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Its calls one after another, each with the page faults up to it; empty unless asked for."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that was traced from its first to its last instruction."""

    role: str
    calls: Counter[int]
    minor_faults: int
    """Pages that it touched and that the kernel had to give it, map for it, or copy."""
    order: list[tuple[int, int]]
    """See `Tracee`."""


class Tracer:
    """Traces processes; see above."""

    def __init__(self, born: dict[str, str], in_order: str = "") -> None:
        self._born = born
        """What roles children have, by their parent's role; the parent's own if it is not here."""
        self._in_order = in_order
        """Of whom to note the order of calls."""
        self._tracees: dict[int, Tracee] = {}
        self._early: set[int] = set()  # children that stopped before their parent told of them
        self._whole: set[int] = set()  # traced from their first instruction on
        self._calls: dict[str, Counter[int]] = {}
        self._ended: list[Ended] = []
        self._info = ctypes.create_string_buffer(_INFO.size)
        self.doings = 0
        """How often somebody did anything so far but go on waiting."""
        self._idle = _IDLE.get(os.uname().machine, set())

    def seize(self, pid: int, role: str) -> None:
        """Trace all threads of a process from now on. Raises OSError, most often since we may not."""
        options = _TRACESYSGOOD | _TRACEFORK | _TRACEVFORK | _TRACECLONE
        for task in Path(f"/proc/{pid}/task").iterdir():
            tid = int(task.name)
            _ptrace(_SEIZE, tid, 0, options)
            self._tracees[tid] = Tracee(tid, role)
            _ptrace(_INTERRUPT, tid)  # it stops, and goes on from system call to system call

    def count(self, role: str) -> int:
        """Return how many tracees have this role."""
        return sum(tracee.role == role for tracee in self._tracees.values())

    def take(self) -> tuple[dict[str, Counter[int]], list[Ended]]:
        """Return the system calls by role, and the processes that ended, since the last time."""
        for tracee in self._tracees.values():
            if tracee.tid not in self._whole:
                self._calls.setdefault(tracee.role, Counter()).update(tracee.calls)
                tracee.calls = Counter()
        calls, self._calls = self._calls, {}
        ended, self._ended = self._ended, []
        return calls, ended

    def step(self) -> None:
        """Let everybody go on who has stopped."""
        while self._tracees:
            try:
                tid, status, usage = os.wait4(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                return
            if not tid:
                return
            if os.WIFSTOPPED(status):
                with contextlib.suppress(ProcessLookupError):  # killed meanwhile
                    self._stopped(tid, status)
            else:
                self.doings += 1
                self._gone(tid, usage.ru_minflt)

    def asleep(self) -> bool:
        """Say whether everybody sleeps in a system call."""
        return all(each.within >= 0 and _state(each.tid) == "S" for each in self._tracees.values())

    def __repr__(self) -> str:
        busy = [f"{t.role} {t.tid} in {t.within}" for t in self._tracees.values()]
        return f"<Tracer {', '.join(busy)}>"

    def _stopped(self, tid: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        tracee = self._tracees.get(tid)
        if tracee is None:
            self._early.add(tid)  # a child: it waits for its parent's stop, which says whose it is
            return
        if number == _SYSCALL_STOP:
            self._at_call(tracee)
        elif event and event != _EVENT_STOP:
            self._parent_stopped(tracee)
        deliver = number if not event and number != _SYSCALL_STOP else 0
        _ptrace(_SYSCALL, tid, 0, deliver)

    def _at_call(self, tracee: Tracee) -> None:
        _ptrace(_GET_SYSCALL_INFO, tracee.tid, _INFO.size, ctypes.addressof(self._info))
        kind, _, _, _, number, *_ = _INFO.unpack(self._info.raw)
        if kind != _ENTRY:
            tracee.within = -1
            return
        tracee.calls[number] += 1
        tracee.within = number
        self.doings += number not in self._idle
        if tracee.role == self._in_order:
            tracee.order.append((number, minor_faults(tracee.tid)))

    def _parent_stopped(self, parent: Tracee) -> None:
        message = ctypes.c_ulong()
        _ptrace(_GETEVENTMSG, parent.tid, 0, ctypes.addressof(message))
        tid = message.value
        self._tracees[tid] = Tracee(tid, self._born.get(parent.role, parent.role))
        self._whole.add(tid)
        if tid in self._early:
            self._early.discard(tid)
            with contextlib.suppress(ProcessLookupError):  # killed meanwhile
                _ptrace(_SYSCALL, tid)

    def _gone(self, tid: int, faults: int) -> None:
        tracee = self._tracees.pop(tid, None)
        if tracee is None:
            self._early.discard(tid)
        elif tid in self._whole:
            self._whole.discard(tid)
            self._ended.append(Ended(tracee.role, tracee.calls, faults, tracee.order))
        else:
            self._calls.setdefault(tracee.role, Counter()).update(tracee.calls)


def minor_faults(tid: int) -> int:
    """Return how many pages a process has touched that the kernel had to give it, map for it, or copy."""
    return int(_stat(tid)[7])


def _state(tid: int) -> str:
    """Return the letter of what state a thread is in; none if it is gone."""
    try:
        return _stat(tid)[0]
    except OSError:
        return ""


def _stat(tid: int) -> list[str]:
    return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()
