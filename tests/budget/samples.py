"""What one session cost, and what of several is typical: plain data."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from enclave_worker.sandbox.syscalls import AARCH64, X86_64

if TYPE_CHECKING:
    from collections.abc import Sequence

UNCOUNTED = frozenset(
    {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6", "futex", "restart_syscall"}
    | {"getpid"}
)
"""How often somebody waits depends on what comes together, and so on how busy the machine is; and Python 3.11's event
loop asks for its process whenever it is asked for itself."""

_TABLE = {"x86_64": X86_64, "aarch64": AARCH64}.get(os.uname().machine, {})
_names = {number: name for name, number in _TABLE.items()}


def name_of(number: int) -> str:
    """Return the name of a system call."""
    return _names.get(number, f"call {number}")


@dataclasses.dataclass(frozen=True)
class Sample:
    """What happened from one rest to the next."""

    elapsed_s: float
    counts: dict[str, Counter[str]]
    """By what was counted (`worker calls`), and by the name of the system call, if it is one."""

    @classmethod
    def of(cls, answer: dict[str, Any], elapsed_s: float, others: dict[str, int]) -> Sample:
        """Make one of the tracer's answer, and other counts."""
        counts = {f"{role} calls": _by_name(calls) for role, calls in answer["calls"].items()}
        for what, count in others.items():
            counts[what] = Counter({"": count})
        for ended in answer["ended"]:
            counts.setdefault(f"{ended['role']} life", Counter()).update(_by_name(ended["calls"]))
            counts.setdefault(f"{ended['role']} faults", Counter()).update({"": ended["minor_faults"]})
        return cls(elapsed_s, counts)

    @classmethod
    def sum(cls, samples: Sequence[Sample]) -> Sample:
        """Take several samples in a row for one."""
        counts: dict[str, Counter[str]] = {}
        for sample in samples:
            for what, counted in sample.counts.items():
                counts.setdefault(what, Counter()).update(counted)
        return cls(sum(sample.elapsed_s for sample in samples), counts)


def typical(samples: Sequence[Sample], what: str, idle: Sample) -> Counter[str]:
    """Return what is typical of sessions, without what is done in the same time when there are none."""
    per_s = {name: count / idle.elapsed_s for name, count in idle.counts.get(what, Counter()).items()}
    names = {name for sample in samples for name in sample.counts.get(what, ())}
    found = Counter[str]()
    for name in names:
        own = (
            sample.counts.get(what, Counter[str]())[name] - per_s.get(name, 0) * sample.elapsed_s for sample in samples
        )
        found[name] = max(0, round(statistics.median(own)))
    return +found


def _by_name(calls: dict[str, int]) -> Counter[str]:
    named = ((name_of(int(number)), count) for number, count in calls.items())
    return Counter({name: count for name, count in named if name not in UNCOUNTED})
