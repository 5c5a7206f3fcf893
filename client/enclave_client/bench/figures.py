"""What was measured, as plain data, and the arithmetic on samples."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the report."""

    name: str
    """What was measured, for machines: `one_at_a_time_p50`."""
    title: str
    """The same for people."""
    value: float
    unit: str
    compared_with: str = ""
    """What was measured beside it, with its figure."""
    target: str = ""
    """The number to reach, in words; empty if there is none."""
    met: bool | None = None
    """Whether the target was reached; None if there is none, or nothing to compare with."""
    detail: dict[str, Any] = {}
    """Further numbers from the same measurement."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """How long requests took at one load."""

    asked: float
    """Requests in a second, on average."""
    served: float
    """Answers in a second while they were asked for: fewer than `asked` if it was too much."""
    requests: int
    refused: int
    failed: int
    p50_ms: float | None
    """Of the accepted requests, as the next three; None if there is none."""
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    late_p99_ms: float
    """How late the load generator itself asked, of all requests: what the machine adds to every time."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Latency against load, of one thing that was asked."""

    title: str
    capacity: float
    """Good answers in a second if each of a number of clients asks for the next one when it has one."""
    points: list[Point]
    """From the lowest load to the highest; none if there is no capacity to take shares of."""


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that `percent` of them do not exceed (nearest rank); raises ValueError on none."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread(samples_ms: Sequence[float]) -> dict[str, Any]:
    """Return the numbers that describe durations in milliseconds."""
    return {
        "n": len(samples_ms),
        "meanMs": round(statistics.fmean(samples_ms), 3),
        "p50Ms": round(percentile(samples_ms, 50), 3),
        "p90Ms": round(percentile(samples_ms, 90), 3),
        "p99Ms": round(percentile(samples_ms, 99), 3),
        "maxMs": round(max(samples_ms), 3),
    }


def at_most(name: str, title: str, value: float, unit: str, limit: float, **more: Any) -> Figure:
    """Return a figure that is met up to `limit`, which must be in the same unit."""
    target = more.pop("target", f"at most {limit:g} {unit}")
    return Figure(name=name, title=title, value=value, unit=unit, target=target, met=value <= limit, **more)


def at_least(name: str, title: str, value: float, unit: str, limit: float, **more: Any) -> Figure:
    """Return a figure that is met from `limit` on, which must be in the same unit."""
    target = more.pop("target", f"at least {limit:g} {unit}")
    return Figure(name=name, title=title, value=value, unit=unit, target=target, met=value >= limit, **more)
