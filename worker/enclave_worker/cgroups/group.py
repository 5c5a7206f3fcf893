"""One sandbox's control group: its limits, its counts, and word of an out-of-memory kill.

A group is made once and serves one sandbox after another: making and removing directories costs more than resetting
counters. Counters that cannot be reset are read when a sandbox begins and subtracted.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from enclave_worker.usage import Usage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

PERIOD_US = 100_000
"""Over which a processor quota is counted: the kernel's own default."""


class GroupLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox may use."""

    memory_bytes: int
    """Of everything: its processes, its files in tmpfs, the kernel's buffers on its behalf. No swap on top."""
    processes: int
    """Processes and threads."""
    cpus: float
    """Processors' worth of time per wall time; 0 for no limit."""


class Counts(NamedTuple):
    """What only ever grows, of all sandboxes that a group has served."""

    cpu_us: float
    oom_kills: int
    refused: int
    """Forks and threads."""


class ControlGroup:
    """A sandbox's directory in every hierarchy that counts. Owns the files it holds open until `close`."""

    reusable = True
    """Whether it can serve another sandbox: false where the kernel can't forget a peak."""

    def __init__(self, directories: dict[str, str], limits: GroupLimits) -> None:
        self._directories = directories
        self._limits = limits
        self._memory_bytes = 0
        self._files = contextlib.ExitStack()
        self._base = Counts(0.0, 0, 0)

    def begin(self) -> None:
        """Forget the last sandbox: nothing is used, and limits are what they were."""
        self.limit_memory(self._limits.memory_bytes)
        self._reset_peak()
        self._forget_oom()
        self._base = self._counts()

    def usage(self) -> Usage:
        """Return what the sandbox has used since `begin`."""
        now, base = self._counts(), self._base
        return Usage(
            cpu_ms=(now.cpu_us - base.cpu_us) / 1000,
            peak_memory_bytes=self._peak_bytes(),
            oom_kills=now.oom_kills - base.oom_kills,
            refused_processes=now.refused - base.refused,
        )

    def limit_memory(self, memory_bytes: int) -> None:
        """Lower (or restore) the memory limit for the sandbox at hand."""
        if memory_bytes != self._memory_bytes:
            self._set_memory(memory_bytes)
            self._memory_bytes = memory_bytes

    def held_bytes(self) -> int:
        """Return what is charged right now. Of a dead sandbox: what the kernel has not given back yet."""
        raise NotImplementedError

    def watch_oom(self, loop: asyncio.AbstractEventLoop, on_oom: Callable[[], None]) -> None:
        """Call `on_oom` whenever the memory is used up, for as long as the group is open."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files. The directories stay."""
        self._files.close()

    def _open(self, controller: str, name: str, flags: int = os.O_RDONLY) -> int:
        fd = os.open(f"{self._directories[controller]}/{name}", flags | os.O_CLOEXEC)
        self._files.callback(os.close, fd)
        return fd

    def _write(self, controller: str, name: str, value: str) -> None:
        write_control(f"{self._directories[controller]}/{name}", value)

    def _exists(self, controller: str, name: str) -> bool:
        return os.path.exists(f"{self._directories[controller]}/{name}")  # noqa: PTH110 - strings all along

    def _forget_oom(self) -> None:
        """Drop word of the last sandbox's end that nobody has heard yet: it must not end the next one."""

    def _set_memory(self, memory_bytes: int) -> None:
        raise NotImplementedError

    def _reset_peak(self) -> None:
        raise NotImplementedError

    def _peak_bytes(self) -> int:
        raise NotImplementedError

    def _counts(self) -> Counts:
        raise NotImplementedError


class ControlGroupV1(ControlGroup):
    """A directory in each controller's own tree."""

    def __init__(self, directories: dict[str, str], limits: GroupLimits) -> None:
        super().__init__(directories, limits)
        self._event = -1
        self._has_memsw = self._exists("memory", "memory.memsw.limit_in_bytes")
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            if not self._has_memsw:
                self._write("memory", "memory.swappiness", "0")
            self._write("pids", "pids.max", str(limits.processes))
            self._write("cpu", "cpu.cfs_period_us", str(PERIOD_US))
            self._write("cpu", "cpu.cfs_quota_us", str(int(limits.cpus * PERIOD_US) if limits.cpus else -1))
            self._peak = self._open("memory", "memory.max_usage_in_bytes", os.O_RDWR)
            self._held = self._open("memory", "memory.usage_in_bytes")
            self._oom = self._open("memory", "memory.oom_control")
            self._pids = self._open("pids", "pids.events")
            self._cpu = self._open("cpuacct", "cpuacct.usage")
            on_failure.pop_all()

    def held_bytes(self) -> int:
        """See the base class."""
        return int(_read(self._held))

    def watch_oom(self, loop: asyncio.AbstractEventLoop, on_oom: Callable[[], None]) -> None:
        """See the base class. v1 has no way to kill a whole group: it kills one process, and tells us."""
        event = self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._files.callback(os.close, event)
        self._write("memory", "cgroup.event_control", f"{event} {self._oom}")

        def struck() -> None:
            if self._take_event():
                on_oom()

        loop.add_reader(event, struck)
        self._files.callback(loop.remove_reader, event)

    def _take_event(self) -> bool:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return False  # forgotten between the loop's look at it and its call of us
        return True

    def _forget_oom(self) -> None:
        if self._event >= 0:
            self._take_event()

    def _set_memory(self, memory_bytes: int) -> None:
        # Memory and swap together may never be limited to less than memory alone, on the way neither.
        order = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"][: 1 + self._has_memsw]
        for name in order if not self._memory_bytes or memory_bytes < self._memory_bytes else reversed(order):
            self._write("memory", name, str(memory_bytes))

    def _reset_peak(self) -> None:
        os.pwrite(self._peak, b"0", 0)

    def _peak_bytes(self) -> int:
        return int(_read(self._peak))

    def _counts(self) -> Counts:
        return Counts(
            int(_read(self._cpu)) / 1000, _field(_read(self._oom), b"oom_kill"), _field(_read(self._pids), b"max")
        )


class ControlGroupV2(ControlGroup):
    """One directory, all controllers."""

    def __init__(self, directories: dict[str, str], limits: GroupLimits) -> None:
        super().__init__(directories, limits)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            if self._exists("memory", "memory.swap.max"):
                self._write("memory", "memory.swap.max", "0")
            self._write("memory", "memory.oom.group", "1")
            self._write("pids", "pids.max", str(limits.processes))
            quota = str(int(limits.cpus * PERIOD_US)) if limits.cpus else "max"
            self._write("cpu", "cpu.max", f"{quota} {PERIOD_US}")
            self._held = self._open("memory", "memory.current")
            self._memory_events = self._open("memory", "memory.events")
            self._pids = self._open("pids", "pids.events")
            self._cpu = self._open("cpu", "cpu.stat")
            self._peak = self._open_peak()
            on_failure.pop_all()

    def _open_peak(self) -> int | None:
        """Open `memory.peak`: there since Linux 5.19; since 6.12 an opener can reset what it reads."""
        if not self._exists("memory", "memory.peak"):
            return None
        mode = os.stat(f"{self._directories['memory']}/memory.peak").st_mode  # noqa: PTH116 - strings all along
        # Root can open it for writing before 6.12, too, and is refused only when it writes: its mode tells.
        self.reusable = bool(mode & stat.S_IWUSR)
        return self._open("memory", "memory.peak", os.O_RDWR if self.reusable else os.O_RDONLY)

    def held_bytes(self) -> int:
        """See the base class."""
        return int(_read(self._held))

    def watch_oom(self, loop: asyncio.AbstractEventLoop, on_oom: Callable[[], None]) -> None:
        """See the base class. Nothing to do: `memory.oom.group` kills every process, and its exit is reported."""

    def _set_memory(self, memory_bytes: int) -> None:
        self._write("memory", "memory.max", str(memory_bytes))

    def _reset_peak(self) -> None:
        if self._peak is not None and self.reusable:
            os.pwrite(self._peak, b"0", 0)

    def _peak_bytes(self) -> int:
        return int(_read(self._peak)) if self._peak is not None else 0

    def _counts(self) -> Counts:
        return Counts(
            _field(_read(self._cpu), b"usage_usec"),
            _field(_read(self._memory_events), b"oom_kill"),
            _field(_read(self._pids), b"max"),
        )


def write_control(path: str, value: str) -> None:
    """Write a control file in one call, which is all that the kernel accepts."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {value})", path) from None
    finally:
        os.close(fd)


def _read(fd: int) -> bytes:
    return os.pread(fd, 4096, 0)


def _field(text: bytes, name: bytes) -> int:
    """Return the number behind `name` in lines of `name number`; 0 if there is none."""
    value = (b"\n" + text).partition(b"\n%b " % name)[2]
    return int(value.partition(b"\n")[0] or 0)
