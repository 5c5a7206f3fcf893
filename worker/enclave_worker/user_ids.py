"""Which ids of our user namespace sandboxes may run as, each as one of its own. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LOWEST = 1000
"""Below are the system's own users."""
_PREFERRED = 20_000


def id_ranges(uid_map: str) -> list[range]:
    """Return the ids that exist inside, from the text of `/proc/self/uid_map`."""
    fields = ([int(word) for word in line.split()] for line in uid_map.splitlines())
    return [range(first, first + size) for first, _, size in fields]


def has_room(ranges: Sequence[range], first: int, count: int) -> bool:
    """Whether ids from `first` on exist for so many sandboxes."""
    return any(ids.start <= first and first + count <= ids.stop for ids in ranges)


def suggest_first(ranges: Sequence[range], count: int) -> int | None:
    """Return a first id with room for so many sandboxes above the system's users; None if there is none."""
    candidates = [_PREFERRED, *(max(ids.start, LOWEST) for ids in ranges)]
    return next((first for first in candidates if has_room(ranges, first, count)), None)


def describe(ranges: Sequence[range]) -> str:
    """Say which ids there are."""
    return ", ".join(f"{ids.start}-{ids.stop - 1}" for ids in ranges)
