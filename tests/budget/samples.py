"""What one session cost, and what of several is typical: plain data."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from enclave_worker.sandbox.syscalls import AARCH64, X86_64

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

UNCOUNTED = frozenset(
    {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6", "futex", "restart_syscall"}
    | {"getpid"}
)
"""How often somebody waits depends on what comes together, and so on how busy the machine is; and Python 3.11's event
loop asks for its process whenever it is asked for itself."""

_TABLE = {"x86_64": X86_64, "aarch64": AARCH64}.get(os.uname().machine, {})
_names = {number: name for name, number in _TABLE.items()}


Sample = dict[str, Counter[str]]
"""What happened from one rest to the next: by what was counted (`worker calls`), and by the name of the system call, if
it is one."""


def name_of(number: int) -> str:
    """Return the name of a system call."""
    return _names.get(number, f"call {number}")


def sample(answer: dict[str, Any], others: dict[str, int]) -> Sample:
    """Make one of the tracer's answer, and other counts."""
    counts = {f"{role} calls": _by_name(calls) for role, calls in answer["calls"].items()}
    for what, count in others.items():
        counts[what] = Counter({"": count})
    for ended in answer["ended"]:
        counts.setdefault(f"{ended['role']} life", Counter()).update(_by_name(ended["calls"]))
        counts.setdefault(f"{ended['role']} faults", Counter()).update({"": ended["minor_faults"]})
    return counts


def typical(
    samples: Sequence[Sample], what: str, of_several: Callable[[Iterable[int]], float] = statistics.median
) -> Counter[str]:
    """Return what is typical of sessions: of each name, the median or another choice."""
    names = {name for each in samples for name in each.get(what, ())}
    found = {name: round(of_several(each.get(what, Counter())[name] for each in samples)) for name in names}
    return +Counter(found)


def _by_name(calls: dict[str, int]) -> Counter[str]:
    named = ((name_of(int(number)), count) for number, count in calls.items())
    return Counter({name: count for name, count in named if name not in UNCOUNTED})
