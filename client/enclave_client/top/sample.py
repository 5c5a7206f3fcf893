"""What a broker said at one time, and what two such say of the time between them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Labels = frozenset[tuple[str, str]]

COUNTED = {
    "enclave_sessions_total",
    "enclave_sessions_active",
    "enclave_rejections_total",
    "enclave_tool_calls_total",
}
TIMED = {
    "enclave_session_duration_seconds": "session",
    "enclave_queue_wait_seconds": "queue wait",
    "enclave_session_start_seconds": "start",
    "enclave_tool_call_duration_seconds": "tool call",
}
"""Histograms of the broker, and what a person calls them."""


class Worker(msgspec.Struct, frozen=True, rename="camel"):
    """One worker, as `GET /fleet` has it."""

    name: str
    worker_id: str
    state: str
    slots: int
    used: int
    foreign: int
    version: str = ""
    level: str = ""


class Queue(msgspec.Struct, frozen=True, rename="camel"):
    """The queue."""

    waiting: int
    size: int


class Tenant(msgspec.Struct, frozen=True, rename="camel"):
    """A tenant with sessions."""

    tenant: str
    active: int
    waiting: int


class Fleet(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /fleet`, as far as it is shown."""

    version: str
    started_at: int
    """Milliseconds since the epoch."""
    now: int
    """The broker's clock, likewise."""
    active: int
    workers: list[Worker]
    queue: Queue
    tenants: list[Tenant]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Metrics:
    """What is shown of `/metrics`."""

    counts: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    """By metric and labels."""
    buckets: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    """By histogram and upper bound: how many observations were at most that."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was said at one time."""

    at_s: float
    """On this program's clock."""
    fleet: Fleet
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Latency:
    """Of what happened between two samples; None where nothing did."""

    name: str
    p50_s: float | None
    p99_s: float | None
    count: float


@dataclass(frozen=True, slots=True)
class Between:
    """What happened between two samples, per second."""

    started: float
    ended: Mapping[str, float]
    """By outcome, those that there were."""
    refused: Mapping[str, float]
    """By code."""
    tool_calls: float
    latencies: list[Latency]


def read_metrics(text: str) -> Metrics:
    """Read what is shown of an exposition; what is not there is left out."""
    counts: dict[str, dict[Labels, float]] = {}
    buckets: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in COUNTED:
                counts.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
            elif family.name in TIMED and sample.name == f"{family.name}_bucket":
                buckets.setdefault(family.name, {})[float(sample.labels["le"])] = sample.value
    return Metrics(counts, buckets)


def restarted(before: Sample, after: Sample) -> bool:
    """Say whether another broker answers than before: its counters began anew."""
    return before.fleet.started_at != after.fleet.started_at


def between(before: Sample, after: Sample) -> Between:
    """Return what happened between two samples of the same broker."""
    seconds = max(after.at_s - before.at_s, 1e-9)
    ended = _rates(before, after, "enclave_sessions_total", "outcome", seconds)
    refused = _rates(before, after, "enclave_rejections_total", "code", seconds)
    calls = _rates(before, after, "enclave_tool_calls_total", "outcome", seconds)
    more = (_total(after, "enclave_sessions_active") - _total(before, "enclave_sessions_active")) / seconds
    latencies = [_latency(name, before, after) for name in TIMED]
    return Between(max(0.0, sum(ended.values()) + more), ended, refused, sum(calls.values()), latencies)


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """Return the value below which this share lies, None of nothing.

    Within a bucket the observations are taken to be spread evenly, as Prometheus does; of the last, which has no upper
    bound, its lower one is returned.
    """
    bounds = sorted(buckets.items())
    total = bounds[-1][1] if bounds else 0.0
    if total <= 0:
        return None
    rank = share * total
    for (low, below), (high, count) in pairwise([(0.0, 0.0), *bounds]):
        if count >= rank and count > below:
            return low if high == float("inf") else low + (high - low) * (rank - below) / (count - below)
    raise AssertionError("the last bucket holds all")


def _rates(before: Sample, after: Sample, name: str, label: str, seconds: float) -> dict[str, float]:
    old = before.metrics.counts.get(name, {})
    found = {}
    for labels, value in after.metrics.counts.get(name, {}).items():
        grown = value - old.get(labels, 0.0)
        if grown > 0:
            found[dict(labels).get(label, "")] = grown / seconds
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _total(sample: Sample, name: str) -> float:
    values: Iterable[float] = sample.metrics.counts.get(name, {}).values()
    return sum(values)


def _latency(name: str, before: Sample, after: Sample) -> Latency:
    old = before.metrics.buckets.get(name, {})
    grown = {bound: count - old.get(bound, 0.0) for bound, count in after.metrics.buckets.get(name, {}).items()}
    count = grown.get(float("inf"), 0.0)
    return Latency(TIMED[name], quantile(0.5, grown), quantile(0.99, grown), count)
