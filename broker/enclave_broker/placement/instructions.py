"""What the placer says is to be done. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RefuseReason = Literal["queue_full", "long_wait", "deadline"]
"""`queue_full`: no more may wait. `long_wait`: it would wait longer than it may. `deadline`: it has."""
DEFAULT_PROFILE = "python"
"""What a session asks for that does not say."""


@dataclass(frozen=True, slots=True)
class Place:
    """Send this session to this worker: a slot of it is already taken."""

    session_id: str
    worker: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The session waits for a slot; `position` is 1 for the first in line."""

    session_id: str
    position: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The session gets no slot. Trying again after `retry_after_s` can help."""

    session_id: str
    reason: RefuseReason
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Lose:
    """The session was on a worker that is gone."""

    session_id: str
    worker: str


Submitted = Place | Wait | Refuse
