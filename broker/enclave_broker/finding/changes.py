"""Which links to start, drain and stop. Pure: names in, names out."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Present(enum.Enum):
    """What a link is doing, as far as this decision needs it."""

    KEPT = "kept"
    """It is wanted, and may be up or down."""
    RETIRED_BUSY = "retired, busy"
    """Its worker left the list, takes no new sessions, and has some of ours."""
    RETIRED_IDLE = "retired, idle"
    """The same without sessions."""
    STOPPING = "stopping"
    """It is told to end and has not yet. One that is wanted again is started when it has."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do, each in the order of the names."""

    start: tuple[str, ...] = ()
    retire: tuple[str, ...] = ()
    """Their workers get no new sessions."""
    take_back: tuple[str, ...] = ()
    """Retired ones that are wanted again."""
    stop: tuple[str, ...] = ()
    """Retired ones whose sessions have ended."""


def compare(wanted: Iterable[str], present: Mapping[str, Present]) -> Changes:
    """Return what leads from the links that there are to those that are wanted.

    A link that is not wanted is retired first, and stopped by a later comparison, once it is idle.
    """
    names = set(wanted)

    def those(states: set[Present], *, are_wanted: bool) -> tuple[str, ...]:
        return tuple(
            sorted(name for name, state in present.items() if state in states and (name in names) == are_wanted)
        )

    return Changes(
        start=tuple(sorted(names - present.keys())),
        retire=those({Present.KEPT}, are_wanted=False),
        take_back=those({Present.RETIRED_BUSY, Present.RETIRED_IDLE}, are_wanted=True),
        stop=those({Present.RETIRED_IDLE}, are_wanted=False),
    )
