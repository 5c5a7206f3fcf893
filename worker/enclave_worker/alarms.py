"""Timers of one owner, of which the loop has only the earliest.

Most of what a session waits for never comes: it ends long before its deadline, its next sign of life and the next look
at its processor time. So the loop is told of one moment, and what was set and dropped before it costs a dictionary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable


_DROPPED: tuple[float, Callable[..., None], tuple[object, ...]] = (math.inf, lambda: None, ())


class Alarms:
    """Calls back at set times, each once. Every alarm has a name, by which it is set anew or dropped."""

    __slots__ = ("_alarms", "_loop", "_next_s", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._alarms: dict[Hashable, tuple[float, Callable[..., None], tuple[object, ...]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = 0.0  # when the timer strikes, by the loop's clock; no alarm is due before

    def __repr__(self) -> str:
        return f"<Alarms {list(self._alarms)}>"

    def set(self, name: Hashable, delay_s: float, callback: Callable[..., None], *arguments: object) -> None:
        """Call back after this long."""
        due_s = self._loop.time() + delay_s
        self._alarms[name] = due_s, callback, arguments
        if self._timer is None or due_s < self._next_s:
            self._arm(due_s)

    def drop(self, name: Hashable) -> None:
        """Don't call back. Safe to call for one that is not set."""
        self._alarms.pop(name, None)

    def clear(self) -> None:
        """Don't call back at all."""
        self._alarms.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_s = due_s
        self._timer = self._loop.call_at(due_s, self._strike)

    def _strike(self) -> None:
        self._timer = None
        struck_s = self._next_s  # what it was set for, not the time: a loop may strike up to its resolution early
        due = [name for name, (due_s, *_) in self._alarms.items() if due_s <= struck_s]
        try:
            for name in due:
                due_s, callback, arguments = self._alarms.get(name, _DROPPED)
                if due_s <= struck_s:  # else an alarm before it has dropped it, or set it anew
                    del self._alarms[name]
                    callback(*arguments)
        finally:
            # One that was set meanwhile has armed the timer for itself, and others may be due before it.
            first_s = min((due_s for due_s, *_ in self._alarms.values()), default=math.inf)
            if first_s < (math.inf if self._timer is None else self._next_s):
                self._arm(first_s)
