"""A frame says what is there, in lines that fit."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_client.top.frame import MAX_TENANTS, View, render
from enclave_client.top.sample import Between, Fleet, Latency, Metrics, Queue, Sample, Tenant, Worker

WORKER = Worker(
    name="ws://h:1/ws", worker_id="w-1", state="up", slots=8, used=3, foreign=1, version="1.2", level="STRICT"
)
FLEET = Fleet(
    version="1.2",
    started_at=1_795_252_938_000,
    now=1_795_252_938_000 + 3_723_000,
    active=5,
    workers=[WORKER],
    queue=Queue(2, 1000),
    tenants=[Tenant("acme", 4, 2), Tenant("zeta", 9, 0)],
)
HAPPENED = Between(
    started=12.34,
    ended={"ok": 10.0, "EXECUTION_ERROR": 1.0},
    refused={"NO_CAPACITY": 4.0},
    tool_calls=2.0,
    latencies=[Latency("session", 0.0123, 1.5, 22), Latency("tool call", None, None, 0)],
)


def frame(fleet: Fleet = FLEET, happened: Between | None = HAPPENED, notice: str = "", width: int = 200) -> str:
    return "\n".join(render(View("http://b:3000", Sample(0.0, fleet, Metrics()), happened, notice), width))


@pytest.mark.parametrize(
    "words",
    [
        "enclave top  http://b:3000  broker 1.2, up 1:02:03, 10:24:21Z",
        "workers  1 of 1 connected    slots 4 of 8 used",
        "sessions 5 active    queue 2 of 1000",
        "12.3/s started    11.0/s ended    4.0/s refused    2.0/s tool calls",
        "ok 10.0/s    EXECUTION_ERROR 1.0/s    refused NO_CAPACITY 4.0/s",
        "session    12.3 ms  1.5 s     22",
        "tool call        -      -      0",
        "w-1     up     [##########..........] 4/8  STRICT  1.2      ws://h:1/ws",
        "zeta         9        0\nacme         4        2",
    ],
)
def test_a_frame_says(words: str) -> None:
    assert words in frame()


def test_without_a_second_look_there_are_no_rates_yet() -> None:
    assert "rates    at the next look" in frame(happened=None)


@pytest.mark.parametrize("state", ["away", "disconnected", "failing"])
def test_a_worker_in_trouble_is_in_capitals_and_comes_first(state: str) -> None:
    troubled = msgspec.structs.replace(WORKER, worker_id="w-9", state=state)
    lines = frame(msgspec.structs.replace(FLEET, workers=[WORKER, troubled])).splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("WORKER"))
    assert lines[head + 1].split()[:2] == ["w-9", state.upper()]
    assert lines[head + 2].split()[:2] == ["w-1", "up"]


def test_slots_of_workers_that_are_not_there_do_not_count() -> None:
    gone = msgspec.structs.replace(WORKER, state="away", slots=100)
    assert "workers  1 of 2 connected    slots 4 of 8 used" in frame(
        msgspec.structs.replace(FLEET, workers=[WORKER, gone])
    )


def test_a_notice_stands_above_everything_and_the_last_frame_stays() -> None:
    lines = frame(notice="no answer since 10:00:00").splitlines()
    assert lines[1] == "! no answer since 10:00:00"
    assert any(line.startswith("w-1") for line in lines)


def test_a_broker_that_never_answered_has_a_frame_too() -> None:
    assert render(View("http://b:3000", notice="no answer"), 80) == ["enclave top  http://b:3000", "! no answer"]


def test_the_busiest_tenants_are_shown_and_the_others_counted() -> None:
    many = [Tenant(f"t{i}", i, 0) for i in range(MAX_TENANTS + 3)]
    lines = frame(msgspec.structs.replace(FLEET, tenants=many)).splitlines()
    assert lines[-1] == "and 3 more"
    assert lines[-2].startswith("t3 ")


def test_a_draining_broker_says_so() -> None:
    assert "broker 1.2, draining, up" in frame(msgspec.structs.replace(FLEET, draining=True))


@given(text=st.text(min_size=1), width=st.integers(1, 100))
def test_whatever_a_worker_calls_itself_no_line_is_too_long_or_moves_a_cursor(text: str, width: int) -> None:
    named = msgspec.structs.replace(WORKER, worker_id=text, level=text, version=text, name=text)
    fleet = msgspec.structs.replace(FLEET, workers=[named], tenants=[Tenant(text, 1, 1)])
    for line in render(View(text, Sample(0.0, fleet, Metrics()), HAPPENED, text), width):
        assert len(line) <= width
        assert line.isprintable()
