"""One frame of `enclave top`, as lines of text. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclave_protocol.logs import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from .sample import Between, Fleet, Latency, Sample, Tenant, Worker

MAX_OUTCOMES = 6
"""Outcomes and codes with a rate of their own; the others are added up."""
MAX_TENANTS = 12
BAR_CHARS = 20
_ALARMING = {"away", "disconnected", "failing"}


@dataclass(frozen=True, slots=True)
class View:
    """What there is to show."""

    url: str
    sample: Sample | None = None
    """The newest."""
    between: Between | None = None
    """What happened since the one before it; None if there is none."""
    notice: str = ""
    """What has gone wrong, or has changed; empty for nothing."""


def render(view: View, width: int) -> list[str]:
    """Return the lines, none of them longer than `width`, and none with anything in it that moves a cursor."""
    lines = [f"enclave top  {view.url}"]
    if view.notice:
        lines.append(f"! {view.notice}")
    if view.sample is not None:
        fleet = view.sample.fleet
        lines[0] += (
            f"  broker {fleet.version}{', draining' if fleet.draining else ''}, up {_span(fleet)}, {_clock(fleet)}"
        )
        lines += ["", *_summary(fleet), *_rates(view.between), "", *_latencies(view.between)]
        lines += ["", *_workers(fleet.workers), "", *_tenants(fleet.tenants)]
    return [printable(line)[:width] for line in lines]


def _summary(fleet: Fleet) -> list[str]:
    up = [worker for worker in fleet.workers if worker.state not in {"away", "disconnected"}]
    slots, used = sum(worker.slots for worker in up), sum(worker.used + worker.foreign for worker in up)
    return [
        f"workers  {len(up)} of {len(fleet.workers)} connected    slots {used} of {slots} used",
        f"sessions {fleet.active} active    queue {fleet.queue.waiting} of {fleet.queue.size}",
    ]


def _rates(between: Between | None) -> list[str]:
    if between is None:
        return ["rates    at the next look", ""]
    ended = sum(between.ended.values())
    refused = sum(between.refused.values())
    head = f"rates    {_rate(between.started)} started    {_rate(ended)} ended    {_rate(refused)} refused"
    parts = [*_largest(between.ended), *(f"refused {part}" for part in _largest(between.refused))]
    return [f"{head}    {_rate(between.tool_calls)} tool calls", f"         {'    '.join(parts)}".rstrip()]


def _largest(rates: Mapping[str, float]) -> list[str]:
    named = list(rates.items())
    told = [f"{name} {_rate(rate)}" for name, rate in named[:MAX_OUTCOMES]]
    rest = sum(rate for _, rate in named[MAX_OUTCOMES:])
    return [*told, f"others {_rate(rest)}"] if rest else told


def _latencies(between: Between | None) -> list[str]:
    known: Iterable[Latency] = () if between is None else between.latencies
    rows = [(each.name, _time(each.p50_s), _time(each.p99_s), f"{each.count:g}") for each in known]
    return _table(("LATENCY", "P50", "P99", "COUNT"), rows, right={1, 2, 3})


def _workers(workers: Sequence[Worker]) -> list[str]:
    order = sorted(workers, key=lambda worker: (worker.state not in _ALARMING, worker.worker_id, worker.name))
    rows = [
        (
            worker.worker_id,
            worker.state.upper() if worker.state in _ALARMING else worker.state,
            _bar(worker),
            worker.level,
            worker.version,
            worker.name,
        )
        for worker in order
    ]
    return _table(("WORKER", "STATE", "SLOTS", "LEVEL", "VERSION", "WHERE"), rows)


def _bar(worker: Worker) -> str:
    taken = worker.used + worker.foreign
    filled = min(BAR_CHARS, round(BAR_CHARS * taken / worker.slots)) if worker.slots else 0
    return f"[{'#' * filled}{'.' * (BAR_CHARS - filled)}] {taken}/{worker.slots}"


def _tenants(tenants: Sequence[Tenant]) -> list[str]:
    busiest = sorted(tenants, key=lambda each: (-each.active, each.tenant))
    rows = [(each.tenant, str(each.active), str(each.waiting)) for each in busiest[:MAX_TENANTS]]
    more = len(busiest) - MAX_TENANTS
    return _table(("TENANT", "ACTIVE", "WAITING"), rows, right={1, 2}) + ([f"and {more} more"] if more > 0 else [])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, right: Collection[int] = ()) -> list[str]:
    shown = [tuple(printable(cell)[:60] for cell in row) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]


def _rate(value: float) -> str:
    return f"{value:.1f}/s"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _span(fleet: Fleet) -> str:
    seconds = max(0, (fleet.now - fleet.started_at) // 1000)
    return str(dt.timedelta(seconds=seconds))


def _clock(fleet: Fleet) -> str:
    return dt.datetime.fromtimestamp(fleet.now / 1000, dt.UTC).strftime("%H:%M:%SZ")
