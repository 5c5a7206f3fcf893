"""The abuse corpus that lies beside the checkout, run against `enclave run`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import USER, ordinary_user

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "attacks"
ALONE = Path(__file__).with_name("alone.py")
FLEET = Path(__file__).with_name("one_fleet.py")
LONGEST_S = 600
WHO = ["root", "user"]
ENDLESS = ["062", "064", "068", "092", "094"]
"""Cases whose sessions end with their deadline."""
PARTS = {"endless": (",".join(ENDLESS), 3000), "ending": (",".join(f"-{number}" for number in ENDLESS), 15_000)}
"""Which cases, and their sessions' deadline in ms: it is waited for, or not to be met on the busiest machine."""
NOT_COUNTED = {"--mem-mib": 1 << 20, "--disk-mib": 1 << 20}
"""What it can only count of the whole host, where others take and give back, too. What a sandbox takes of these, its
control group counts: see test_limits.py."""


class Ran(NamedTuple):
    """A run of a part of the corpus."""

    results: list[dict[str, Any]]
    owner: int
    """The user of the fleet that it attacked."""


def _run(who: str, part: str) -> Ran:
    only, timeout_ms = PARTS[part]
    with tempfile.TemporaryDirectory() as name:  # not pytest's own, which only its user can enter
        directory = Path(name)
        directory.chmod(0o777)
        # What it plants is always root's; the fleet that it attacks may be anybody's.
        fleet = [sys.executable, str(FLEET), name]
        environment = {
            **os.environ,
            "ENCLAVE": shlex.join(fleet if who == "root" else ordinary_user(fleet)),
            "ENCLAVE_ARGS": f"--timeout-ms {timeout_ms}",
        }
        report = directory / "report.json"
        command = [sys.executable, str(ALONE), name, sys.executable, "run_local.py", "-q", "--json", str(report)]
        command += [f"--only={only}", "--cmd", shlex.join([sys.executable, "adapters/enclave.py"])]
        command += [f"{option}={most}" for option, most in NOT_COUNTED.items()]
        done = subprocess.run(
            command, cwd=CORPUS, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        assert report.exists(), done.stderr[-2000:]
        return Ran(json.loads(report.read_text())["results"], (directory / "url").stat().st_uid)


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Ran]]:
    """Everybody's runs, at the same time: half of it is waiting."""
    with ThreadPoolExecutor() as threads:
        running = {who: [threads.submit(_run, who, part) for part in PARTS] for who in WHO}
        return {who: [run.result() for run in runs] for who, runs in running.items()}


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the abuse corpus (../shared/attacks) is not beside this checkout")
@pytest.mark.skipif(os.geteuid() != 0, reason="the abuse corpus plants what only root can")
@pytest.mark.parametrize("who", WHO)
def test_the_corpus_of_abuse_gets_nothing(who: str, request: pytest.FixtureRequest) -> None:
    runs: list[Ran] = request.getfixturevalue("runs")[who]

    assert {ran.owner for ran in runs} == {USER if who == "user" else 0}, "the fleets really were an ordinary user's"
    failed = [
        f"{case['id']} {case['name']}: {'; '.join(case['problems'] or case['notes'])}"
        for ran in runs
        for case in ran.results
        if case["verdict"] not in {"pass", "NOTE"}
    ]
    assert not failed, "\n".join(failed)
