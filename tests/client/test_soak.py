"""The soak runs good and hostile sessions and says what they left; here a short one, and what it would complain of."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import msgspec
import pytest

from enclave_client.bench.footprint import Held
from enclave_client.bench.hostile import KINDS
from enclave_client.bench.soak import MIN_JUDGED, Errors, Look, Tally, differences, ending, table
from tests.support import PATIENCE_S

HELD = Held(processes=14, zombies=0, broker_fds=2, worker_fds=3, zygote_fds=4, mounts=5, cgroups=6)


def look(sessions: int, *, held: Held = HELD, broker_mb: float = 50.0, worker_mb: float = 40.0) -> Look:
    return Look(sessions=sessions, held=held, broker_mb=broker_mb, worker_mb=worker_mb)


BEFORE = look(100)
SUM = next(kind for kind in KINDS if kind.name == "sum")
SPIN = next(kind for kind in KINDS if kind.name == "spin loop")


def stream(*kinds: str, first_seq: int = 1, **final: Any) -> bytes:
    events = [
        {"type": kind, "seq": seq, "payload": final if kind == "final" else {}}
        for seq, kind in enumerate(kinds, first_seq)
    ]
    return b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(b"1f\r\n" + json.dumps(event).encode() + b"\n\r\n" for event in events)


async def test_a_short_soak_of_all_kinds_ends_well() -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "enclave_client.bench.soak",
        "--sessions",
        "60",
        "--warm-up",
        "60",
        "--looks",
        "1",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=env)

    async with asyncio.timeout(2 * PATIENCE_S):
        out, err = await process.communicate()

    assert (process.returncode, err) == (0, b""), out.decode()
    said = out.decode()
    assert said.endswith("differs: nothing\n")
    assert "sessions: 120 in " in said
    run = {line[:25].strip(): int(line[25:34]) for line in said.splitlines()[4 : 4 + len(KINDS)]}
    assert run.keys() == {kind.name for kind in KINDS}
    assert all(count >= 2 for count in run.values()), "each kind in the warm-up and after it"
    assert "without one final: 0; wrong: 0" in said


def test_the_kinds_are_shares_of_a_hundred_and_have_names_of_their_own() -> None:
    assert sum(kind.share for kind in KINDS) == 100
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (stream("session_init", "final", ok=True), ""),
        (stream("session_init", "stdout"), "0 finals"),
        (stream("session_init", "final", "final", ok=True), "2 finals"),
        (stream("session_init", "final", "stdout", ok=True), "1 finals"),
        (stream("session_init", "final", ok=True, first_seq=2), "a gap in the numbers"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "0 finals"),
        (b"ConnectionError the broker hung up", "0 finals"),
        (stream("session_init", "final", ok=True)[:-10], "an event cut short"),
    ],
)
def test_a_stream_is_well_if_it_is_numbered_and_ends_with_its_one_final(answer: bytes, fault: str) -> None:
    assert ending(answer)[1] == fault


def test_an_ending_that_its_kind_may_not_have_is_counted_and_shown() -> None:
    tally = Tally()
    tally.add(SUM, stream("session_init", "final", ok=True))
    tally.add(SUM, stream("session_init", "final", ok=False, error={"code": "WORKER_LOST"}))
    tally.add(SPIN, stream("session_init", "final", ok=False, error={"code": "DEADLINE_EXCEEDED"}))
    tally.add(SPIN, b"")

    assert (tally.sessions, tally.wrong, tally.without_final) == (4, 1, 1)
    assert tally.examples[0].startswith("sum: WORKER_LOST")
    assert "OK 1, WORKER_LOST 1" in table(tally, [BEFORE, look(200)])


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(Held)])
@pytest.mark.parametrize("change", [-1, 1])
def test_any_count_that_differs_is_said(name: str, change: int) -> None:
    other = msgspec.structs.replace(HELD, **{name: getattr(HELD, name) + change})
    looks = [BEFORE, BEFORE, look(200, held=other)]

    assert differences(looks) == [f"{name}: {getattr(HELD, name)} before, {getattr(other, name)} after"]


def test_a_count_that_is_as_it_was_in_the_end_is_no_leak() -> None:
    meanwhile = msgspec.structs.replace(HELD, processes=HELD.processes + 1)

    assert differences([BEFORE, look(200, held=meanwhile), look(300)]) == []


def test_memory_may_shrink_move_or_grow_a_little_but_not_by_a_twentieth_along_its_line() -> None:
    last = BEFORE.sessions + MIN_JUDGED
    assert differences([BEFORE, look(last, broker_mb=20.0, worker_mb=41.9)]) == []
    assert differences([BEFORE, look(last, worker_mb=42.0)]) == ["worker_mb: grew by 5.0%, at most 5%"]

    steady = [look(MIN_JUDGED * n, broker_mb=50.0 + n % 2 * 4) for n in range(1, 12)]
    assert differences(steady) == []
    rising = [look(MIN_JUDGED * n, broker_mb=50.0 + 0.5 * n + n % 2 * 4) for n in range(1, 11)]
    [found] = differences(rising)
    assert found.startswith("broker_mb: grew by ")


def test_memory_after_few_sessions_is_shown_and_said_not_to_be_judged() -> None:
    grown = [BEFORE, look(BEFORE.sessions + MIN_JUDGED - 1, worker_mb=60.0)]

    assert differences(grown) == []
    assert table(Tally(), grown).endswith("+50.0% by the line through all, not judged: fewer than 1000 sessions")
    assert "not judged" not in table(Tally(), [BEFORE, look(BEFORE.sessions + MIN_JUDGED)])


def test_an_exception_in_a_programs_log_is_counted_an_error_is_shown_and_the_rest_is_neither() -> None:
    errors = Errors()
    errors.read("worker-1", "2026-01-01 00:00:00 INFO enclave.worker started")
    errors.read("worker-1", "2026-01-01 00:00:00 ERROR asyncio Exception in callback")
    errors.read("worker-1", "    | Traceback (most recent call last):")
    errors.read("worker-1", "Traceback (most recent call last):")

    assert errors.tracebacks == 2
    assert errors.examples == [
        "worker-1: 2026-01-01 00:00:00 ERROR asyncio Exception in callback",
        "worker-1:     | Traceback (most recent call last):",
        "worker-1: Traceback (most recent call last):",
    ]
