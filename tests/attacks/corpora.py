"""Runs of the two corpora: the one beside the checkout, on `enclave run`, and our own, by `enclave doctor --attack`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import ordinary_user

SHARED = Path(__file__).resolve().parents[3] / "shared" / "attacks"
ALONE, FLEET, PATIENT = (Path(__file__).with_name(name) for name in ("alone.py", "one_fleet.py", "patient.py"))
LONGEST_S = 1800
DOCTOR = [sys.executable, "-P", "-m", "enclave_client.cli", "doctor", "--attack"]
APPLIES = SHARED.is_dir() and os.geteuid() == 0
"""Whether the shared corpus can be run here: it plants what only root can."""
WHO = ("root", "user") if os.geteuid() == 0 else ("user",)
ENDLESS = ["062", "064", "068", "090", "092", "094"]
"""Cases whose sessions end with their deadline, for those who have no control groups if not for all."""
PARTS = {"endless": (",".join(ENDLESS), 3000), "ending": (",".join(f"-{number}" for number in ENDLESS), 60_000)}
"""Which cases, and their sessions' deadline in ms: it is waited for, or not to be met on the busiest machine."""
NOT_COUNTED = {"--mem-mib": 1 << 20, "--disk-mib": 1 << 20}
"""What it can only count of the whole host, where others take and give back, too. What a sandbox takes of these, its
control group counts: see test_limits.py."""
QUICK = [sys.executable, "-I", "-S"]
"""For programs that need nothing but Python's own library."""


class Ran(NamedTuple):
    """A run of a part of the shared corpus."""

    results: list[dict[str, Any]]
    owner: int
    """The user of the fleet that it attacked."""


def run_shared(who: str, part: str) -> Ran:
    """Run a part of the shared corpus on a fleet of root's or of an ordinary user's."""
    only, timeout_ms = PARTS[part]
    with tempfile.TemporaryDirectory() as name:  # not pytest's own, which only its user can enter
        directory = Path(name)
        directory.chmod(0o777)
        # What it plants is always root's; the fleet that it attacks may be anybody's.
        fleet = [*QUICK, str(FLEET), name]
        environment = {
            **os.environ,
            "ENCLAVE": shlex.join(fleet if who == "root" else ordinary_user(fleet)),
            "ENCLAVE_ARGS": f"--timeout-ms {timeout_ms}",
        }
        report = directory / "report.json"
        command = [sys.executable, str(ALONE), name, sys.executable, str(PATIENT), "-q", "--json", str(report)]
        command += [f"--only={only}", "--cmd", shlex.join([*QUICK, "adapters/enclave.py"])]
        command += [f"{option}={most}" for option, most in NOT_COUNTED.items()]
        done = subprocess.run(
            command, cwd=SHARED, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        assert report.exists(), done.stderr[-2000:]
        return Ran(json.loads(report.read_text())["results"], (directory / "url").stat().st_uid)


def run_own(who: str) -> subprocess.CompletedProcess[str]:
    """Run our own corpus as root or as an ordinary user."""
    command = [*DOCTOR, "--json-lines"]
    return subprocess.run(
        command if who == "root" else ordinary_user(command),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
