"""Reports as lines for people and for programs."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from enclave_worker.zygote.kernel import acts_as_root

from .judge import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .judge import Report


def introduction(count: int) -> str:
    """Say what is about to be attacked, and as whom."""
    if acts_as_root():
        who = "root: each sandbox runs as a host user of its own"
    elif os.geteuid() == 0:
        who = "root without its capabilities: as an ordinary user, all sandboxes run as one host user"
    else:
        who = f"an ordinary user (id {os.geteuid()}): all sandboxes run as this one host user"
    return f"{count} attacks on the sandboxes of a worker started as {who}"


def as_text(report: Report) -> str:
    """Return a report as a line to read."""
    return f"{report.verdict:<14}{report.case:<32}{report.layer}" + (
        "" if report.verdict is Verdict.HELD else f"\n{'':14}{report.reason}"
    )


def as_json(report: Report) -> str:
    """Return a report as a line of JSON."""
    return msgspec.json.encode(report).decode()


def summary(reports: Iterable[Report]) -> str:
    """Return the last line: how many of each, and what it means."""
    counts = Counter(report.verdict for report in reports)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    if counts[Verdict.BREACH]:
        return f"{said}. The sandbox does not hold here: please report it as a vulnerability, with this output."
    if counts[Verdict.NOT_ATTEMPTED]:
        return f"{said}. What was not attempted proves nothing: run it again, and report it if it stays so."
    return f"{said}. Everything that applies here holds."
