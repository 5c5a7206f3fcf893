"""Places for sandboxes: each has a host user id and a control group of its own, which no two live sandboxes share."""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .cgroups import ControlGroup, ControlGroups, GroupLimits

_RESIDUE_BYTES = 8 * 1024 * 1024
"""More than this in the group of a dead sandbox is memory that the kernel is still giving back."""
_COOLING_DELAYS_S = (0.01, 0.05, 0.2, 1.0)


class Slot:
    """One place. `on_oom` is called when its memory is used up, on kernels that don't end the sandbox themselves."""

    def __init__(self, number: int, uid: int) -> None:
        self.number = number
        self.uid = uid
        """The host user id; 0 if sandboxes run as the worker's own user."""
        self.group: ControlGroup | None = None
        self.on_oom: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Slot {self.number} uid={self.uid}>"

    def oom(self) -> None:
        """The kernel says that the memory is used up."""
        if self.on_oom is not None:
            self.on_oom()


class Slots:
    """All places of a worker for one profile. The lowest free one is handed out, so that few are ever made."""

    def __init__(
        self, count: int, *, first_uid: int, groups: ControlGroups | None, limits: GroupLimits, first: int = 0
    ) -> None:
        numbers = range(first, first + count)  # no other's of this worker
        self._slots = {number: Slot(number, first_uid + number if first_uid else 0) for number in numbers}
        self._free = list(numbers)  # a heap
        self._groups = groups
        self._limits = limits
        self._cooling: dict[int, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"<Slots free={len(self._free)} of {len(self._slots)} cooling={len(self._cooling)}>"

    def take(self) -> Slot | None:
        """Return a free slot, ready for a new sandbox; None if all are taken.

        Raises:
            OSError: its control group can't be made.
        """
        if not self._free:
            return None
        slot = self._slots[self._free[0]]
        if self._groups is not None:
            group = self._groups.group(slot.number, self._limits)
            if slot.group is not group:
                group.watch_oom(asyncio.get_running_loop(), slot.oom)
                slot.group = group
        heapq.heappop(self._free)
        return slot

    def release(self, slot: Slot, on_free: Callable[[], None]) -> None:
        """A slot's sandbox is gone. Calls `on_free` when it can be taken again: mostly at once.

        The kernel gives back the pages of a large sandbox after its last process is gone. The next one must not be
        charged for them.
        """
        slot.on_oom = None
        self._cool(slot, on_free, 0)

    def close(self) -> None:
        """Stop waiting for memory to come back."""
        for timer in self._cooling.values():
            timer.cancel()
        self._cooling.clear()

    def _cool(self, slot: Slot, on_free: Callable[[], None], attempt: int) -> None:
        self._cooling.pop(slot.number, None)
        group = slot.group
        if group is not None and attempt < len(_COOLING_DELAYS_S) and _held_bytes(group) > _RESIDUE_BYTES:
            loop = asyncio.get_running_loop()
            delay_s = _COOLING_DELAYS_S[attempt]
            self._cooling[slot.number] = loop.call_later(delay_s, self._cool, slot, on_free, attempt + 1)
            return
        if group is not None and not group.reusable:
            assert self._groups is not None, "it made the group"
            self._groups.discard(slot.number)
            slot.group = None
        heapq.heappush(self._free, slot.number)
        on_free()


def _held_bytes(group: ControlGroup) -> int:
    try:
        return group.held_bytes()
    except OSError:  # somebody removed it: it holds nothing, and is made again when it is needed
        return 0
