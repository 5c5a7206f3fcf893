"""What a run has found, counted."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from .records import Verdict, judge

if TYPE_CHECKING:
    from .records import Record

FOUR = ("lost", "doubled", "out of order", "late")
_EXAMPLES = 10


class Tally:
    """Counts sessions as they end."""

    def __init__(self) -> None:
        self.sessions = 0
        self.finals = 0
        self.faulty = dict.fromkeys(FOUR, 0)
        """Sessions with at least one fault of that name."""
        self.codes: dict[str, collections.Counter[str]] = {}
        """By kind of session, how they ended."""
        self.examples: list[str] = []
        self.failed: list[tuple[str, Record]] = []
        """Sessions that did not end well, each with its code."""
        self.events = 0
        self.readings = 0
        self.slowest_s = 0.0

    def add(self, record: Record) -> Verdict:
        """Judge a session, and count it."""
        verdict = judge(record)
        self.sessions += 1
        self.finals += verdict.code != "none"
        self.codes.setdefault(record.kind, collections.Counter())[verdict.code] += 1
        if verdict.code not in {"OK", "none"}:
            self.failed.append((verdict.code, record))
        self.events += sum(len(reading.lines) for reading in record.readings)
        self.readings += len(record.readings)
        if verdict.code != "none":
            self.slowest_s = max(self.slowest_s, record.ended_s - record.began_s)
        for name, found in verdict.faults.items():
            self.faulty[name] += bool(found)
            if found and len(self.examples) < _EXAMPLES:
                self.examples.append(f"{name}: {record.session_id} ({record.kind}): {'; '.join(found)[:600]}")
                self.examples += [f"    {line}" for line in record.story]
        return verdict

    @property
    def well(self) -> bool:
        """Whether the four are zero."""
        return not any(self.faulty.values())

    def table(self) -> str:
        """Return everything in words."""
        all_codes: collections.Counter[str] = sum(self.codes.values(), collections.Counter())
        lines = [f"{'kind':16} {'sessions':>8}  endings"]
        for kind, counts in [*sorted(self.codes.items()), ("all", all_codes)]:
            said = ", ".join(f"{code} {count}" for code, count in counts.most_common())
            lines.append(f"{kind:16} {counts.total():8}  {said}")
        four = {"sessions": self.sessions, "finals": self.finals, **self.faulty}
        lines.append(f"events read: {self.events} in {self.readings} readings; slowest session {self.slowest_s:.1f} s")
        lines.append(", ".join(f"{name} {count}" for name, count in four.items()))
        return "\n".join([*lines, *(f"  {example}" for example in self.examples)])
