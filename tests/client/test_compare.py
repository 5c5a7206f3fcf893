"""`make bench-compare`: its arithmetic, other commits' trees, and a real run. Whose figures are better is not asked."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from enclave_client.bench.compare import Comparing, to_the_end
from enclave_client.bench.comparison import Comparison, compare, line, single
from enclave_client.bench.trees import ROOT, TreeError, other_tree, requirements, working_tree
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "one_at_a_time_p50",
    "one_at_a_time_p99",
    "after_a_pause_p50",
    "after_a_pause_p99",
    "in_flight_rate",
    "cpu_all",
    "faults",
}

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="other commits are in a checkout's repository")


def rounds(factor: float, *, noise: float, count: int = 20) -> list[tuple[list[float], list[float]]]:
    """Two series on a machine whose speed changes from round to round by up to four times."""
    source = random.Random(3)
    found = []
    for _ in range(count):
        speed = source.uniform(1, 4)
        base = [speed * source.uniform(1, 1 + noise) for _ in range(20)]
        found.append((base, [factor * speed * source.uniform(1, 1 + noise) for _ in range(20)]))
    return found


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "no difference seen"), (1.05, "more"), (0.95, "less")])
def test_a_difference_is_told_if_it_is_larger_than_what_other_rounds_would_differ_by(
    factor: float, verdict: str
) -> None:
    found = compare("x", "x", "ms", rounds(factor, noise=0.1), statistics.fmean)

    assert found.verdict == verdict
    assert found.ratio == found.new / found.base == pytest.approx(factor, rel=0.02)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.ratio <= found.high


def test_the_same_samples_give_the_same_answer() -> None:
    assert compare("x", "x", "ms", rounds(1.1, noise=1), max) == compare("x", "x", "ms", rounds(1.1, noise=1), max)


def test_few_rounds_or_a_single_figure_have_no_verdict() -> None:
    few = compare("x", "x", "ms", rounds(5.0, noise=0.1, count=3), statistics.fmean)

    assert (few.low, few.high, few.verdict) == (None, None, "")
    assert single("x", "x", "MB", 2.0, 3.0) == Comparison(name="x", title="x", unit="MB", base=2, new=3, ratio=1.5)
    with pytest.raises(ValueError, match="nothing in the base"):
        single("x", "x", "MB", 0.0, 3.0)


def test_a_line_has_both_values_and_their_ratio() -> None:
    found = Comparison(name="x", title="one at a time", unit="ms", base=2.0, new=1.5, ratio=0.75, low=0.7, high=0.8)

    assert " ".join(line(found).split()) == "one at a time 2.00 1.50 ms 0.750 0.700 to 0.800 less"


def test_another_commits_tree_runs_its_own_code_with_our_dependencies(tmp_path: Path) -> None:
    tree = other_tree("HEAD", tmp_path / "base")

    where = "import enclave_broker, msgspec; print(enclave_broker.__file__); print(msgspec.__file__)"
    ours, theirs = subprocess.run([tree.python, "-c", where], check=True, capture_output=True, text=True).stdout.split()
    assert ours.startswith(f"{tmp_path}/base/tree/broker/")
    assert theirs == msgspec.__file__
    assert working_tree().commit.rstrip("+") == tree.commit


def test_a_commit_that_is_none_is_told_and_no_option_of_git(tmp_path: Path) -> None:
    for ref in ("no-such-commit", "--all", "HEAD:README.md"):
        with pytest.raises(TreeError, match=r"fatal|error"):
            other_tree(ref, tmp_path / "base")


def test_what_only_lint_and_tests_need_is_no_reason_to_install_anything(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["a>=1"]\n[project.optional-dependencies]\nbroker = ["b"]\ndata = ["c"]\n'
        '[dependency-groups]\ntest = ["d"]\n'
    )

    assert requirements(project) == {"a>=1", "b"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no pyproject.toml"),
        ("[tool.ruff]\n", "does not say what its programs depend on: no 'project'"),
        ("[project]\nname = 'x'\n", "does not say what its programs depend on: no 'dependencies'"),
        ("[project\n", "cannot be read"),
    ],
)
def test_a_commit_that_does_not_say_what_it_depends_on_is_told(text: str | None, said: str, tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    if text is not None:
        project.write_text(text)

    with pytest.raises(TreeError, match=said):
        requirements(project)


async def test_who_is_cancelled_waits_for_what_a_thread_does(tmp_path: Path) -> None:
    loop, begun, leave = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        leave.wait(PATIENCE_S)
        (tmp_path / "written").touch()

    working = asyncio.create_task(to_the_end(work))
    await begun.wait()
    for _ in range(2):  # the second signal is as patient as the first
        working.cancel()
        assert not (await asyncio.wait([working], timeout=0))[0]
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert (tmp_path / "written").exists()


@pytest.mark.parametrize("name", ["TERM", "HUP"])
async def test_a_signal_while_a_tree_is_made_leaves_nothing(name: str, tmp_path: Path) -> None:
    scratch, tar = tmp_path / "scratch", tmp_path / "bin" / "tar"
    scratch.mkdir()
    tar.parent.mkdir()
    # What unpacks the tree, or as much of it as says what it needs, tells its parent to end; the parent's thread goes
    # on, and makes an environment beside it.
    tar.write_text(f'#!/bin/sh\n{shutil.which("tar")} "$@" pyproject.toml\nkill -{name} $PPID\n')
    tar.chmod(0o755)
    command = [sys.executable, "-P", "-m", "enclave_client.bench.compare", "HEAD", "--rounds", "1"]
    environment = {**os.environ, "TMPDIR": str(scratch), "PATH": f"{tar.parent}:{os.environ['PATH']}"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
    async with asyncio.timeout(2 * PATIENCE_S):
        _, err = await process.communicate()

    assert (process.returncode, err) == (128 + signal.SIGTERM, b"")
    assert list(scratch.iterdir()) == []


async def test_two_fleets_are_measured_in_turns_and_nothing_is_left(tmp_path: Path) -> None:
    file, scratch = tmp_path / "compared.json", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-P", "-m", "enclave_client.bench.compare", "HEAD", "--rounds", "1", "--json", str(file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    environment["TMPDIR"] = str(scratch)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
    async with asyncio.timeout(5 * PATIENCE_S):
        out, err = await process.communicate()

    assert (process.returncode, err) == (0, b""), out.decode()
    told = msgspec.json.decode(file.read_bytes(), type=Comparing)
    assert {each.name for each in told.comparisons} >= NAMES
    assert all(each.base > 0 and each.new > 0 for each in told.comparisons)
    assert (told.failed, told.failures, told.base) == (0, [], "HEAD")
    assert told.new_commit.rstrip("+") == told.base_commit
    assert list(scratch.iterdir()) == []
