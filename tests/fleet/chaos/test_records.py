"""The judge of the chaos run finds what is wrong with a stream: whatever is changed about a good one."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from .records import Expected, Reading, Record, judge
from .report import Tally
from .work import text

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 6
SESSION = "s_1"


def line(seq: int, kind: str, **payload: Any) -> bytes:
    return json.dumps({"sessionId": SESSION, "seq": seq, "type": kind, "payload": payload}).encode()


def stream() -> list[bytes]:
    lines = text("k", COUNT, 5).splitlines(keepends=True)
    outputs = [line(seq, "stdout", chunk=chunk) for seq, chunk in enumerate(lines, 2)]
    return [line(1, "session_init"), *outputs, line(COUNT + 2, "final", ok=True, result=[COUNT])]


def good() -> Record:
    """A session that was cut twice, resumed, and read again."""
    events = stream()
    return Record(
        session_id=SESSION,
        kind="test",
        expected=Expected(stdout=text("k", COUNT, 5), results=[COUNT]),
        began_s=100.0,
        allowed_s=10.0,
        ended_s=105.0,
        readings=[
            Reading(1, lines=events[:3]),
            Reading(4),
            Reading(4, lines=events[3:5]),
            Reading(6, whole=True, lines=events[5:]),
            Reading(1, whole=True, lines=list(events)),
        ],
    )


def test_nothing_is_wrong_with_a_session_that_was_cut_and_resumed() -> None:
    verdict = judge(good())

    assert verdict.code == "OK"
    assert not any(verdict.faults.values()), verdict


def test_a_session_that_failed_may_have_written_less_and_is_well_with_its_one_final() -> None:
    record = good()
    lost = line(4, "final", ok=False, error={"code": "WORKER_LOST", "message": "it is lost"})
    record.readings = [Reading(1, whole=True, lines=[*stream()[:3], lost])]

    verdict = judge(record)

    assert verdict.code == "WORKER_LOST"
    assert not any(verdict.faults.values()), verdict


def lose_one(record: Record) -> None:
    del record.readings[-1].lines[3]


def lose_one_everywhere(record: Record) -> None:
    del record.readings[0].lines[2]
    del record.readings[-1].lines[2]


def lose_the_end_of_a_replay(record: Record) -> None:
    record.readings[-1].lines.pop()


def lose_every_final(record: Record) -> None:
    record.readings[-1].lines.pop()
    record.readings[-2].lines.pop()
    record.ended_s = float("inf")
    record.gone = "404"


def lose_output_before_it_is_numbered(record: Record) -> None:
    record.expected = Expected(stdout=text("k", COUNT + 1, 5), results=[COUNT])


def lose_the_result(record: Record) -> None:
    record.expected = Expected(stdout=record.expected.stdout, results=[COUNT + 1])


def double_one(record: Record) -> None:
    record.readings[0].lines.append(record.readings[0].lines[-1])


def double_the_final(record: Record) -> None:
    record.readings[-1].lines.append(record.readings[-1].lines[-1])


def add_another_final(record: Record) -> None:
    record.readings[-1].lines.append(line(COUNT + 3, "final", ok=True, result=[COUNT]))


def follow_the_final(record: Record) -> None:
    record.readings[-2].lines.append(line(COUNT + 3, "stdout", chunk="more"))


def change_a_replay(record: Record) -> None:
    record.readings[-1].lines[0] = record.readings[-1].lines[0].replace(b": ", b":", 1)


def mix_in_another_session(record: Record) -> None:
    record.readings[0].lines[1] = record.readings[0].lines[1].replace(b"s_1", b"s_2")


def run_a_call_twice(record: Record) -> None:
    record.runs["k 1"] = 2


def swap_two(record: Record) -> None:
    lines = record.readings[-1].lines
    lines[2], lines[3] = lines[3], lines[2]


def swap_the_final(record: Record) -> None:
    lines = record.readings[-2].lines
    lines[-1], lines[-2] = lines[-2], lines[-1]


def end_late(record: Record) -> None:
    record.ended_s = record.began_s + record.allowed_s + 0.01


@pytest.mark.parametrize(
    ("mutate", "fault"),
    [
        *((mutate, "lost") for mutate in (lose_one, lose_one_everywhere, lose_the_end_of_a_replay, lose_every_final)),
        *((mutate, "lost") for mutate in (lose_output_before_it_is_numbered, lose_the_result)),
        *((mutate, "doubled") for mutate in (double_one, double_the_final, add_another_final, follow_the_final)),
        *((mutate, "doubled") for mutate in (change_a_replay, mix_in_another_session, run_a_call_twice)),
        *((mutate, "out of order") for mutate in (swap_two, swap_the_final)),
        (end_late, "late"),
    ],
)
def test_what_is_changed_about_a_session_is_found_and_counted(mutate: Callable[[Record], None], fault: str) -> None:
    record = good()
    mutate(record)
    tally = Tally()

    verdict = tally.add(record)

    assert verdict.faults[fault], verdict
    assert tally.faulty[fault] == 1
    assert not tally.well
    assert f"{fault}: {SESSION} (test): " in tally.table()


@pytest.mark.parametrize("seed", range(50))
def test_no_event_of_any_reading_can_be_lost_doubled_or_moved_without_notice(seed: int) -> None:
    chance = random.Random(seed)
    record = good()
    lines = chance.choice([reading.lines for reading in record.readings if len(reading.lines) > 1])
    at = chance.randrange(len(lines) - 1)
    what = chance.choice(["lost", "doubled", "moved"])
    if what == "lost":
        del lines[at]
    elif what == "doubled":
        lines.insert(chance.randrange(len(lines)), lines[at])
    else:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]

    assert any(judge(record).faults.values()), (what, at)
