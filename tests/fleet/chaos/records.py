"""What a client has seen of a session, and what is wrong with it. The judge of the chaos run.

Theory of operation. A session is read in pieces, for connections break: each piece is a `Reading`, from a number that
its reader asked for. The readings of a session, its last replay among them, must be parts of one and the same stream:
numbered from 1 without a hole up to the one `final`, and each number one event, byte for byte, whoever reads it. What
the guest wrote and returned is compared too, for an event that was lost before it was numbered leaves no hole.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import time
from typing import Any

import msgspec

TOOL_FAILURES = frozenset({"TOOL_TIMEOUT", "INTERNAL_ERROR", "WORKER_LOST", "NO_CAPACITY", "BROKER_RESTARTED"})
"""How a call may fail for a guest through no fault of its tool."""


class Event(msgspec.Struct, frozen=True, rename="camel"):
    """As much of an event as the judge looks at."""

    session_id: str
    seq: int
    type: str
    payload: dict[str, Any]


@dataclasses.dataclass(slots=True)
class Reading:
    """What came of one request to read."""

    from_seq: int
    whole: bool = False
    """Whether it was read to an end that looked like one: it must have its `final` then."""
    lines: list[bytes] = dataclasses.field(default_factory=list)
    """Events as they came."""
    said: str = ""
    """What was said in place of a stream; empty if it was one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the session's code does when nothing hinders it."""

    stdout: str
    results: list[Any]
    """What it returns: an item may also be the code of a failed call."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Record:
    """One session."""

    session_id: str
    kind: str
    """Of the work, and how it was read: for people."""
    expected: Expected
    began_s: float
    allowed_s: float
    """From `began_s` on: its deadline, what it may wait before, and the grace."""
    ended_s: float = float("inf")
    """When its `final` had come."""
    gone: str = ""
    """Why its client gave it up; empty if it did not."""
    readings: list[Reading] = dataclasses.field(default_factory=list)
    story: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=25))
    """What its client last did, and what came of it: for whoever looks for a fault."""
    runs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """How often each of its calls was run by the tool, for tools that may run once at most."""

    def tell(self, what: str) -> None:
        """Add to its story."""
        self.story.append(f"{time.monotonic() - self.began_s:.2f} s {what}")


@dataclasses.dataclass(slots=True)
class Verdict:
    """What became of a session, and in words what is wrong with it, by kind of wrong."""

    code: str = "none"
    """The final's code, `OK`, or `none`."""
    lost: list[str] = dataclasses.field(default_factory=list)
    doubled: list[str] = dataclasses.field(default_factory=list)
    out_of_order: list[str] = dataclasses.field(default_factory=list)
    late: list[str] = dataclasses.field(default_factory=list)

    @property
    def faults(self) -> dict[str, list[str]]:
        """The four, by name."""
        return {"lost": self.lost, "doubled": self.doubled, "out of order": self.out_of_order, "late": self.late}


def judge(record: Record) -> Verdict:
    """Say what is wrong with a session; nothing, in a fleet that keeps its promises."""
    verdict = Verdict()
    stream: dict[int, bytes] = {}
    for number, reading in enumerate(record.readings, 1):
        _judge_reading(f"reading {number}", record.session_id, reading, stream, verdict)
    finals = [seq for seq, line in stream.items() if _event(line).type == "final"]
    if not finals:
        verdict.lost.append(f"no final: {record.gone or 'its reader has none'}")
    else:
        _judge_end(record, stream, finals, verdict)
    verdict.doubled += [f"call {key} was run {times} times" for key, times in record.runs.items() if times > 1]
    if record.ended_s - record.began_s > record.allowed_s:
        verdict.late.append(f"no final within {record.allowed_s:.1f} s")
    return verdict


def _judge_reading(name: str, session_id: str, reading: Reading, stream: dict[int, bytes], verdict: Verdict) -> None:
    """Compare a reading with itself and with what others have read, and add it to that."""
    seqs: list[int] = []
    last = ""
    for line in reading.lines:
        event = _event(line)
        if event.session_id != session_id:
            verdict.doubled.append(f"{name}: an event of {event.session_id}")
            continue
        seqs.append(event.seq)
        last = event.type
        if stream.setdefault(event.seq, line) != line:
            verdict.doubled.append(f"{name}: event {event.seq} is not what another reading had: {line[:200]!r}")
    different = list(dict.fromkeys(seqs))
    if len(different) < len(seqs):
        verdict.doubled.append(f"{name}: {_some(n for n, times in collections.Counter(seqs).items() if times > 1)}")
    if different != sorted(different):
        verdict.out_of_order.append(f"{name}: {_some(b for a, b in itertools.pairwise(different) if b < a)}")
    missing = set(range(reading.from_seq, max(seqs, default=reading.from_seq - 1) + 1)).difference(seqs)
    if missing:
        verdict.lost.append(f"{name}: from {reading.from_seq} on, without {_some(missing)}")
    if reading.whole and last != "final":
        verdict.lost.append(f"{name}: {reading.said or 'it ended as if complete after ' + (last or 'nothing')}")


def _judge_end(record: Record, stream: dict[int, bytes], finals: list[int], verdict: Verdict) -> None:
    if len(finals) > 1 or max(stream) > min(finals):
        verdict.doubled.append(f"events after the final: finals {finals}, the last event {max(stream)}")
    missing = set(range(1, max(stream) + 1)).difference(stream)
    if missing:
        verdict.lost.append(f"no reading has {_some(missing)}")
    final = _event(stream[min(finals)]).payload
    verdict.code = "OK" if final["ok"] else final["error"]["code"]
    wrote = "".join(event.payload["chunk"] for seq in sorted(stream) if (event := _event(stream[seq])).type == "stdout")
    if not record.expected.stdout.startswith(wrote) or (final["ok"] and wrote != record.expected.stdout):
        verdict.lost.append(f"its output is not what it wrote: {_difference(wrote, record.expected.stdout)}")
    if final["ok"] and not _returned(final.get("result"), record.expected.results):
        verdict.lost.append(f"it returned {str(final.get('result'))[:200]}, not {str(record.expected.results)[:200]}")


def _returned(result: Any, expected: list[Any]) -> bool:
    return (
        isinstance(result, list)
        and len(result) == len(expected)
        and all(got == wanted or got in TOOL_FAILURES for got, wanted in zip(result, expected, strict=True))
    )


def _difference(got: str, wanted: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    return f"{len(got)} of {len(wanted)} characters, {got[at : at + 40]!r} at {at}, not {wanted[at : at + 40]!r}"


def _event(line: bytes) -> Event:
    return msgspec.json.decode(line, type=Event)


def _some(numbers: Any) -> str:
    listed = sorted(numbers)
    return ", ".join(map(str, listed[:10])) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
