"""`enclave bench` measures a real fleet. What the figures are is nobody's promise here: only that they are there."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from enclave_client.bench import neighbours, report
from enclave_client.bench.alive import Alive, NotAliveError
from enclave_client.bench.figures import Figure, at_least, at_most, percentile
from enclave_client.bench.footprint import Held
from enclave_client.bench.load import Load
from enclave_client.bench.run import leaks
from enclave_client.cli import main
from tests.client.fake_broker import FakeBroker, Stream
from tests.support import ordinary_user

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = {
    "broker_rss",
    "worker_rss",
    "warm_sandbox_pss",
    "one_at_a_time_p50",
    "one_at_a_time_p99",
    "after_a_pause_p50",
    "after_a_pause_p99",
    "javascript_p50",
    "in_flight_rate",
    "in_flight_cpu",
    "in_flight_50_p99",
    "burst_100",
    "cold_p50",
    "tool_call_p50",
    "client_tool_p50",
    "cancel_p50",
    "cancel_p99",
    "neighbours_p50",
    "neighbours_p99",
    "long_run_rate",
    "growth_p50",
    "growth_cpu",
    "workers_4_p50",
    "workers_4_cpu",
    "stream_rate",
    "stream_broker_growth",
    "stream_worker_growth",
    "stalled_broker_growth",
    "stalled_worker_growth",
    "ws_client_memory",
    "http_client_memory",
    "broker_alone_rate",
    "broker_alone_ws_rate",
    "broker_alone_growth",
    "density_made",
    "density_pss",
    "density_importing_pss",
    "density_next_p50",
    "data_p50",
    "data_pss",
}
RIVALS = {"bare", "ipykernel", "bwrap", "gvisor"}
HELD = Held(processes=1, zombies=0, broker_fds=2, worker_fds=3, zygote_fds=4, mounts=5, cgroups=6)


async def test_a_tiny_run_measures_everything_and_finds_no_failure_and_no_leak(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, "-P", "-m", "enclave_client.cli", "bench", "--rounds", "1", "--sessions", "20"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, "--json", str(file), stdout=pipe, stderr=pipe, env=env)

    out, err = await process.communicate()

    assert (process.returncode, err) == (0, b""), out.decode()
    assert "\nfailed: 0\n" in out.decode()
    assert out.decode().endswith("\nleaked: nothing\n")
    told: dict[str, Any] = json.loads(file.read_bytes())
    # The kernel shows the memory of sandboxes to root only.
    unseen = set() if os.geteuid() == 0 else {"warm_sandbox_pss", "density_pss", "density_importing_pss", "data_pss"}
    names = {figure["name"] for figure in told["figures"]}
    compared = {name for name in RIVALS if f"{name}_p50" in names}
    assert names == (FIGURES - unseen) | {f"{name}_{what}" for name in compared for what in ("p50", "rate")}
    # Each of the others is told to be left out, and nothing else is.
    assert "bare" in compared
    assert len(compared) + len(told["left_out"]) == len(RIVALS)
    assert len(told["curves"]) == 1 + len(compared)
    assert file.with_suffix(".svg").read_text(encoding="utf-8").startswith("<svg ")
    assert all(figure["unit"] for figure in told["figures"])
    # Memory may well not grow, and what grew in one test may be used in the next. A client that a busy machine put
    # aside was cut off, and had no rate.
    unmeasured = [
        f["name"] for f in told["figures"] if f["value"] <= 0 and "were cut off" not in f.get("compared_with", "")
    ]
    assert [name for name in unmeasured if not name.endswith(("_growth", "_memory"))] == []
    assert (told["failed"], told["failures"], told["leaks"]) == (0, [], {})
    assert told["settings"] == {"rounds": 1, "sessions": 20, "workers": 1}
    assert {"kernel", "cpu", "cores", "python"} <= told["machine"].keys()


async def test_an_ordinary_user_can_measure_too() -> None:
    command = [sys.executable, "-P", "-m", "enclave_client.cli", "bench", "--rounds", "1", "--sessions", "10"]
    # All that looks at what is somebody else's, or runs what root runs in another way.
    for name in ("latency", "rivals", "streaming", "density", "data"):
        command += ["--only", name]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*ordinary_user(command), stdout=pipe, stderr=pipe)

    out, err = await process.communicate()

    assert (process.returncode, err) == (0, b""), out.decode()
    assert "\nfailed: 0\n" in out.decode()
    assert out.decode().endswith("\nleaked: nothing\n")


def test_what_cannot_be_measured_is_told_with_all_that_can() -> None:
    done = CliRunner().invoke(main, ["bench", "--only", "latency", "--only", "beauty"])

    assert done.exit_code == 2
    assert "'beauty' is not one of latency, languages, " in done.output


def test_a_percentile_is_one_of_the_samples() -> None:
    samples = [float(number) for number in range(100, 0, -1)]

    assert [percentile(samples, percent) for percent in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_a_missed_target_is_shown_and_is_no_failure() -> None:
    slow = at_most("p50", "p50", 3.0, "ms", 2.0, compared_with="a snail: 9 ms")
    fast = at_least("rate", "rate", 400.0, "sessions/s", 300.0)
    told = report.Report(machine={}, settings={}, figures=[slow, fast], failures=[], failed=0, leaks={})

    assert report.line(slow).splitlines()[0].endswith("at most 2 ms                  MISSED")
    assert report.line(slow).splitlines()[1] == "    a snail: 9 ms"
    assert report.line(fast).endswith(" met")
    assert report.line(Figure(name="n", title="no target", value=1.5, unit="ms")).endswith("1.50 ms")
    assert told.ok


def test_a_leak_or_a_failed_session_is_a_failure_and_says_what() -> None:
    more = Held(processes=2, zombies=0, broker_fds=2, worker_fds=3, zygote_fds=9, mounts=4, cgroups=6)
    empty: dict[str, Any] = {"machine": {}, "settings": {}, "figures": []}
    leaking = report.Report(**empty, failures=[], failed=0, leaks=leaks(HELD, more))
    failing = report.Report(**empty, failures=["no answer"], failed=3, leaks=leaks(HELD, HELD))

    assert (leaking.ok, failing.ok) == (False, False)
    assert report.ending(leaking) == "failed: 0\nleaked: processes +1, zygote_fds +5"
    assert report.ending(failing) == "failed: 3\n  no answer\nleaked: nothing"


async def test_a_session_with_another_ending_or_none_counts_as_failed_and_the_rest_goes_on() -> None:
    async def script(broker: FakeBroker, stream: Stream) -> None:
        broker.cut = len(broker.requests) == 1
        if not broker.cut:
            await stream.event(1, "final", ok=False, error={"message": "no luck", "code": "INTERNAL_ERROR"})

    async with FakeBroker(script).serving() as broker:
        load = Load(broker.url)
        await load.in_flight(["return 1 + 1"] * 2, 1)

    assert (load.sessions, load.failed) == (2, 2)
    assert load.failures[0].startswith("Connection")
    assert "INTERNAL_ERROR" in load.failures[1]


async def test_a_session_that_ends_instead_of_waiting_is_told_and_nothing_is_measured_of_the_others() -> None:
    async def script(_: FakeBroker, stream: Stream) -> None:
        await stream.event(1, "final", ok=False, error={"message": "no luck", "code": "INTERNAL_ERROR"})

    async with FakeBroker(script).serving() as broker:
        load = Load(broker.url)
        with pytest.raises(NotAliveError):
            async with Alive(load, os.getpid()) as sessions:
                await sessions.make(2)

    assert load.failed >= 1
    assert "INTERNAL_ERROR" in load.failures[0]


async def test_a_connection_that_breaks_while_many_are_made_is_an_error_by_itself() -> None:
    async def script(broker: FakeBroker, _: Stream) -> None:
        broker.cut = True

    async with FakeBroker(script).serving() as broker:
        # No group of them: what measures reports an OSError and goes on, and a group is none.
        with pytest.raises(OSError, match="hung up"):
            async with Alive(Load(broker.url), os.getpid()) as sessions:
                await sessions.make(2)


async def test_what_breaks_beside_hostile_neighbours_is_an_error_by_itself() -> None:
    async def script(broker: FakeBroker, _: Stream) -> None:
        broker.cut = True

    async with FakeBroker(script).serving() as broker:
        load = Load(broker.url)
        with pytest.raises(OSError, match="hung up"):
            async with neighbours._neighbours(load):
                await load.one_by_one(b"{}", 1)

    assert load.failures[0].startswith("a neighbour: Connection")
