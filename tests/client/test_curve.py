"""Latency against load, what it is compared with, and its picture. How fast anything is, is not asked."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import msgspec
import pytest

from enclave_client.bench import kernel, rivals
from enclave_client.bench.curve import FEWER_SHARES, SHARES, CurveReport, curves, lines, part_of, point
from enclave_client.bench.figures import Point, Series
from enclave_client.bench.instead import instead
from enclave_client.bench.load import Load
from enclave_client.bench.open_loop import Answer, Outcome, closed_rate
from enclave_client.bench.phases import Plan
from enclave_client.bench.picture import draw, draw_beside
from tests.client.fake_broker import FakeBroker, Stream
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "cpu": "a <fast> one",
    "cores": 2,
    "memoryMb": 1,
    "kernel": "6",
    "python": "3",
    "root": True,
    "loadBefore": 0,
}


def at(asked: float, p50_ms: float, p99_ms: float) -> Point:
    some = {"served": asked, "requests": 100, "refused": 0, "failed": 0, "p90_ms": p99_ms, "max_ms": p99_ms}
    return Point(asked=asked, p50_ms=p50_ms, p99_ms=p99_ms, late_p99_ms=0.1, **some)  # type: ignore[arg-type]


OURS = Series(title="Ours & <all>", capacity=400.0, points=[at(10, 2, 5), at(100, 3, 9), at(500, 80, 300)])
OTHER = Series(title="Other", capacity=60.0, points=[at(5, 20, 40), at(50, 25, 90)])


def picture(*series: Series) -> ET.Element:
    return ET.fromstring(draw(series, "a machine"))


def entries(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def heights(path: ET.Element) -> list[float]:
    return [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]


def test_each_series_has_a_line_for_each_percentile_and_a_dot_for_each_load() -> None:
    drawn = picture(OURS, OTHER)

    for number, series in enumerate((OURS, OTHER)):
        for kind in ("p50", "p99"):
            paths = [path for path in drawn.iter(f"{SVG}path") if path.attrib["class"] == f"{kind} line{number}"]
            assert len(heights(paths[0])) == len(series.points)
        dots = [dot for dot in drawn.iter(f"{SVG}circle") if dot.attrib["class"] == f"dot{number}"]
        assert len(dots) == len(series.points) + 1  # one is the legend's
    texts = [text.text or "" for text in drawn.iter(f"{SVG}text")]
    assert {
        "Ours & <all>; 16 clients get 400/s",
        "Other; 16 clients get 60/s",
        "a machine",
        "16 clients get 400/s",
    } <= set(texts)


def test_what_takes_longer_is_higher_and_what_is_asked_more_often_is_further_right() -> None:
    drawn = picture(OURS)
    p50, p99 = (
        next(each for each in drawn.iter(f"{SVG}path") if kind in each.attrib["class"]) for kind in ("p50", "p99")
    )
    dots = [dot for dot in drawn.iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]
    across = [float(dot.attrib["cx"]) for dot in dots]

    assert heights(p50) == sorted(heights(p50), reverse=True)
    assert all(slow < usual for slow, usual in zip(heights(p99), heights(p50), strict=True))
    assert across == sorted(across)
    # Everything is on the paper, and a factor of ten is as far apart wherever it is.
    assert all(0 < x < 880 for x in across)
    assert across[1] - across[0] == pytest.approx((across[2] - across[1]) / 0.69897, abs=0.5)


def test_the_picture_is_readable_in_light_and_in_dark() -> None:
    style = picture(OURS).findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")

    for selector in ("text", ".dim", ".paper", ".grid", ".limit", *(f".line{number}" for number in range(5))):
        colours = [re.search(rf"{re.escape(selector)} {{[^}}]*(#\w+)", part) for part in (light, dark)]
        assert all(colours), selector
        assert len({found[1] for found in colours if found}) == 2, selector


def test_without_a_point_there_is_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text("{}")

    with pytest.raises(ValueError, match="no point"):
        draw([Series(title="x", capacity=1.0, points=[])], "a machine")
    draw_beside(str(file), [], MACHINE)
    draw_beside("<stdout>", [OURS], MACHINE)
    assert list(tmp_path.iterdir()) == [file]
    draw_beside(str(file), [OURS, Series(title="x", capacity=1.0, points=[])], MACHINE)
    assert "a &lt;fast&gt; one" in (tmp_path / "figures.svg").read_text(encoding="utf-8")


def test_a_point_says_what_became_of_all_that_was_asked() -> None:
    outcome = Outcome()
    outcome.accepted_ms, outcome.refused_ms = [float(ms) for ms in range(1, 101)], [0.5]
    outcome.failed, outcome.served, outcome.seconds = 2, 80, 2.0
    found = point(60.0, outcome)

    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms) == (50, 90, 99, 100)
    assert (found.requests, found.refused, found.failed, found.served) == (103, 1, 2, 40)
    assert lines([Series(title="x", capacity=50.0, points=[found])])[-1].endswith("103  1  2 FAILED")


def test_a_load_at_which_everything_failed_is_told_and_not_drawn() -> None:
    outcome = Outcome()
    outcome.failed, outcome.seconds = 3, 1.0
    lost = point(60.0, outcome)
    series = Series(title="x", capacity=50.0, points=[at(10, 2, 5), lost])

    assert (lost.requests, lost.failed, lost.p50_ms, lost.max_ms) == (3, 3, None, None)
    assert lines([series])[-1].endswith("-         -         3  0  3 FAILED")
    dots = [dot for dot in picture(series).iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]
    assert len(dots) == 1


async def test_what_only_fails_is_told_without_a_load_to_ask_it_for() -> None:
    class Failing:
        async def ask(self) -> Answer:
            return Answer.FAILED

    async def script(_: FakeBroker, stream: Stream) -> None:
        await stream.event(1, "final", ok=False, error={"message": "no luck", "code": "INTERNAL_ERROR"})

    rival = rivals.Rival(name="x", title="x", target=Failing(), one=1, many=1)
    async with FakeBroker(script).serving() as broker:
        load = Load(broker.url)
        found = await curves(load, part_of(1), [rival])
        figures = await instead(load, Plan(rounds=1, sessions=1), [rival])

    assert [(series.capacity, series.points) for series in found] == [(0, []), (0, [])]
    assert lines(found)[-2] == "x: 0.0/s with 16 in flight"
    assert figures[-1].value == 0
    assert figures[-1].compared_with.endswith("and none of its own was answered")
    assert load.failed > 0


def test_a_short_run_has_a_short_part_of_it() -> None:
    assert (part_of(1).rounds, part_of(20).rounds) == (1, 4)
    assert part_of(1).seconds < part_of(20).seconds == part_of(60).seconds


async def test_a_program_that_fails_is_no_answer() -> None:
    with ThreadPoolExecutor(2) as threads:
        assert await rivals.Program(["/bin/true"], threads).ask() is Answer.ACCEPTED
        assert await rivals.Program(["/bin/false"], threads).ask() is Answer.FAILED


async def test_what_is_not_installed_or_fails_here_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runsc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "runsc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    left_out: list[str] = []

    async with rivals.running(left_out) as found:
        assert [rival.name for rival in found] == ["bare"]

    assert left_out == [
        "warm ipykernel: not installed (pip install 'enclave[bench]')",
        "bwrap: not installed",
        "gVisor (runsc do): it is installed, and fails here",
    ]


async def test_a_program_that_cannot_be_started_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_bytes(b"\0 no program")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernel, "installed", lambda: False)
    left_out: list[str] = []

    async with rivals.running(left_out) as found:
        assert [rival.name for rival in found] == ["bare"]

    assert left_out[-1] == "bwrap: it is installed, and fails here"


@pytest.mark.skipif(not kernel.installed(), reason="the extra `bench` is not installed")
@pytest.mark.parametrize("kind", ["none", "not started"])
async def test_a_kernel_that_is_none_or_does_not_start_is_left_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.kernelspec import NoSuchKernel  # noqa: PLC0415 - not everybody has it
    from jupyter_client.manager import AsyncKernelManager  # noqa: PLC0415 - the same

    async def start(*_: object, **__: object) -> None:
        raise NoSuchKernel("python3") if kind == "none" else PermissionError(13, "no")

    monkeypatch.setattr(AsyncKernelManager, "start_kernel", start)
    left_out: list[str] = []

    async with rivals.running(left_out) as found:
        assert "ipykernel" not in [rival.name for rival in found]

    assert left_out[0].startswith("warm ipykernel: it does not start here: ")


class Mumbling:
    """The client of a kernel that says something without sense when it has been asked for twice, and then nothing."""

    def __init__(self) -> None:
        self.session = self.shell_channel = self.socket = self
        self._asked = 0
        self._twice = asyncio.Event()

    def msg(self, *_: object) -> dict[str, dict[str, str]]:
        return {"header": {"msg_id": str(self._asked)}}

    def serialize(self, message: object) -> object:
        return message

    async def send_multipart(self, _: object) -> None:
        self._asked += 1
        if self._asked == 2:
            self._twice.set()

    async def get_shell_msg(self) -> dict[str, object]:
        await self._twice.wait()
        return {}

    async def get_iopub_msg(self) -> dict[str, object]:
        await asyncio.Event().wait()
        raise AssertionError("nobody waits for ever")


async def test_whoever_asks_a_kernel_to_which_nobody_listens_fails_at_once() -> None:
    warm = kernel.Kernel(Mumbling())  # type: ignore[arg-type]
    listening = asyncio.create_task(warm.listen())

    async with asyncio.timeout(kernel.ANSWER_TIMEOUT_S / 2):
        assert set(await asyncio.gather(warm.ask(), warm.ask())) == {Answer.FAILED}
        with pytest.raises(ExceptionGroup):
            await listening
        assert await warm.ask() is Answer.FAILED


@pytest.mark.skipif(not kernel.installed(), reason="the extra `bench` is not installed")
async def test_a_warm_kernel_answers_many_at_once_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    async with asyncio.timeout(2 * PATIENCE_S), kernel.running_kernel() as warm:
        assert len(entries(tmp_path)) == 1
        assert await warm.ask() is Answer.ACCEPTED
        assert await closed_rate(warm, 200, 16) > 0
        monkeypatch.setitem(kernel._CONTENT, "code", "1 / 0")
        assert await warm.ask() is Answer.FAILED
    assert entries(tmp_path) == []


async def test_a_short_run_measures_each_load_and_draws_it(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    command = [sys.executable, "-P", "-m", "enclave_client.bench.curve", "--rounds", "1", "--seconds", "0.2"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, "--json", str(file), stdout=pipe, stderr=pipe, env=environment
    )
    async with asyncio.timeout(2 * PATIENCE_S):
        out, err = await process.communicate()

    assert (process.returncode, err) == (0, b""), out.decode()
    told = msgspec.json.decode(file.read_bytes(), type=CurveReport)
    assert (told.failed, told.failures) == (0, [])
    assert len(told.curves) + len(told.left_out) == 5
    for series, shares in zip(told.curves, [SHARES, *[FEWER_SHARES] * 4], strict=False):
        # At a low load nothing may have been due in so short a block, nor at any of what is slow.
        assert len(series.points) <= len(shares)
        assert series.capacity > 0
        assert [each.asked for each in series.points] == sorted(each.asked for each in series.points)
        for each in series.points:
            times_ms = [each.p50_ms or 0, each.p99_ms or 0, each.max_ms or 0]
            assert times_ms == sorted(times_ms)
            assert times_ms[0] > 0 or each.failed or each.refused  # where neighbours are busy, some may
    assert told.curves[0].points
    ET.fromstring(file.with_suffix(".svg").read_text(encoding="utf-8"))
