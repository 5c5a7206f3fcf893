"""What a sandbox has used, as the kernel counts it."""

from __future__ import annotations

import contextlib
import errno
import os
import time

import msgspec

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_PF_EXITING = 0x4  # include/linux/sched.h: "Getting shut down"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one sandbox, its set-up included."""

    cpu_ms: float = 0.0
    """CPU time. With control groups: of every process. Without: of the first one and of children it waited for."""
    peak_memory_bytes: int = 0
    """With control groups: most memory that all processes, files and buffers together held at any time. Without:
    largest resident size of the first process."""
    oom_kills: int = 0
    """Processes that the kernel killed because the sandbox's memory was used up."""
    refused_processes: int = 0
    """Forks and threads refused because the sandbox had as many as it may."""


class Exit(msgspec.Struct, frozen=True):
    """What the kernel said of a sandbox at its end."""

    status: int | None
    """As `waitpid` gives it; 0 if it had not ended yet, None if nobody was there to be told."""
    usage: Usage = Usage()
    lost: str = ""
    """Why the kernel could not be asked: our failure, not the guest's."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox of this worker may use, as far as a session has to know."""

    memory_bytes: int = 512 * 1024 * 1024
    cpu_time_ms: int = 15_000
    cpus: float = 1.0
    """Processors that it can keep busy at a time."""
    processes: int = 64
    spare_address_bytes: int = 0
    """How much more than its memory a process may map."""
    watched: bool = False
    """Whether nobody but us enforces memory: there are no control groups."""


def is_shortage(error: OSError) -> bool:
    """Whether a process could not be looked at for want of a descriptor or memory: that says nothing about it."""
    return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def first_process_usage(pid: int) -> Usage:
    """Return what a sandbox's first process, and the children it waited for, have used.

    Raises:
        OSError: there is no such process.
    """
    own_s = time.clock_gettime(_cpu_clock(pid))
    fields = read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    # At the start of a line: the first one has the guest's own name for itself, with its newlines escaped.
    peak = read_small(f"/proc/{pid}/status").partition(b"\nVmHWM:")[2].split(None, 1)
    children_s = (int(fields[13]) + int(fields[14])) / _TICKS_PER_S
    return Usage(cpu_ms=(own_s + children_s) * 1000, peak_memory_bytes=int(peak[0]) * 1024 if peak else 0)


def tree_memory_bytes(root: int, inherited_bytes: int = 0) -> int:
    """Return the anonymous memory of a process and all its descendants. What ends meanwhile counts for nothing.

    For hosts where the kernel does not count it for us. Pages that a fork shares with its parent count for each, so it
    errs towards too much; `inherited_bytes`, what every process has from the zygote, is taken off each.
    """
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            _, resident, shared, *_ = read_small(f"/proc/{pid}/statm").split()
            total += max(0, (int(resident) - int(shared)) * _PAGE_BYTES - inherited_bytes)
            for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - called often
                todo += _children(f"/proc/{pid}/task/{task}/children")
    return total


def _children(path: str) -> list[int]:
    # All of it: the numbers of a few hundred are more than a page.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        numbers = b""
        while more := os.read(fd, 4096):
            numbers += more
    finally:
        os.close(fd)
    return [int(pid) for pid in numbers.split()]


def pid_of(pidfd: int) -> int:
    """Return the number of a pidfd's process in our own namespace. 0 if it has ended; raises OSError."""
    return max(0, int(read_small(f"/proc/self/fdinfo/{pidfd}").partition(b"Pid:")[2].split(None, 1)[0]))


def is_dying(pidfd: int) -> bool:
    """Whether a pidfd's process has begun to end, or has. Raises OSError if nobody can tell."""
    pid = pid_of(pidfd)  # anew each time: once it is reaped, its number may be another's
    return not pid or is_exiting(pid)


def is_exiting(pid: int) -> bool:
    """Return whether a process has begun to end, or is gone. A dying one can take long: it gives its memory back.

    Raises:
        OSError: nobody can tell.
    """
    try:
        return bool(int(read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()[6]) & _PF_EXITING)
    except (FileNotFoundError, ProcessLookupError):
        return True


def read_small(path: str) -> bytes:
    """Read a small file of the kernel's: one look, no buffer, three calls."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _cpu_clock(pid: int) -> int:
    """Return the clock that counts a process's CPU time: the kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)."""
    return (~pid << 3) | 2
