"""The abuse corpus that lies beside the checkout, run against `enclave run`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import USER, children_of, ordinary_user, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "attacks"
FLEET = Path(__file__).with_name("one_fleet.py")
LONGEST_S = 300

LEFT_OUT = {
    "070": "memory_bomb_bytes is judged by the host's free memory, which others change",
    "072": "memory_shared_mappings: the same",
}
"""Left out, each for this reason. tests/attacks/test_limits.py holds the same by what the control group counts."""


@pytest.fixture
def fleet_directory() -> Iterator[Path]:
    """Where `one_fleet` leaves its process id, whoever it runs as; the fleet, if one was started, is ended."""
    with tempfile.TemporaryDirectory() as name:  # not pytest's own, which only its user can enter
        directory = Path(name)
        directory.chmod(0o777)
        yield directory
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int((directory / "pid").read_text())
            with watched([pid, *children_of(pid)]) as wait_gone:
                os.kill(pid, signal.SIGTERM)
                wait_gone()


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the abuse corpus (../shared/attacks) is not beside this checkout")
@pytest.mark.skipif(os.geteuid() != 0, reason="the abuse corpus plants what only root can")
@pytest.mark.parametrize("who", ["root", "user"])
def test_the_corpus_of_abuse_gets_nothing(fleet_directory: Path, who: str) -> None:
    # What it plants is always root's; the fleet that it attacks may be anybody's.
    fleet = [sys.executable, str(FLEET), str(fleet_directory)]
    report = fleet_directory / "report.json"
    command = [sys.executable, "run_local.py", "-q", "--json", str(report)]
    command += ["--cmd", shlex.join([sys.executable, "adapters/enclave.py"])]
    command += ["--only=" + ",".join(f"-{number}" for number in LEFT_OUT)]
    environment = {
        **os.environ,
        "ENCLAVE": shlex.join(fleet if who == "root" else ordinary_user(fleet)),
        "ENCLAVE_ARGS": "--timeout-ms 3000",
    }

    done = subprocess.run(
        command, cwd=CORPUS, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )

    assert report.exists(), done.stderr[-2000:]
    if who == "user":
        owner = (fleet_directory / "url").stat().st_uid
        assert owner == USER, "the fleet really was an ordinary user's"
    failed = [
        f"{case['id']} {case['name']}: {'; '.join(case['problems'] or case['notes'])}"
        for case in json.loads(report.read_text())["results"]
        if case["verdict"] not in {"pass", "NOTE"}
    ]
    assert not failed, "\n".join(failed)
