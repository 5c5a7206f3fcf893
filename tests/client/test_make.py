"""What the Makefile makes of what is typed. The programs are not run: a stand-in writes down its arguments."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from enclave_client.bench.trees import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (ROOT / "Makefile").exists(), reason="make, and a checkout's Makefile"
)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment that has everything, with a stand-in for its interpreter."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{tmp_path}/arguments\n! grep -q fails {tmp_path}/arguments\n')
    python.chmod(0o755)
    for name in (".pip", ".installed", ".bench", ".test", ".lint"):
        (venv / name).touch()
    return venv


def make(venv: Path, *arguments: str) -> list[str]:
    """Run make; return what the program was given."""
    told = venv.parent / "arguments"
    told.unlink(missing_ok=True)
    command = ["make", "--no-print-directory", "-C", str(ROOT), f"VENV={venv}", *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return told.read_text().splitlines()


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("bench", "enclave_client.bench --sessions 2000"),
        ("bench SESSIONS=5 JSON=a.json", "enclave_client.bench --sessions 5 --json=a.json"),
        ("bench-compare BASE=main", "enclave_client.bench.compare --rounds 20 -- main"),
        (
            "bench-compare BASE=v1 NEW=v2 ROUNDS=3 JSON=a",
            "enclave_client.bench.compare --new=v2 --rounds 3 --json=a -- v1",
        ),
        ("overload", "enclave_client.bench.overload"),
        ("overload JSON=a", "enclave_client.bench.overload --json=a"),
        ("soak", "enclave_client.bench.soak --sessions 50000"),
        ("simulate", "tests.fleet.simulation.run --seeds 5000"),
        ("simulate SEED=7", "tests.fleet.simulation.run --seeds 5000 --seed=7"),
        ("chaos SEED=7", "tests.fleet.chaos --sessions 2000 --seed=7"),
    ],
)
def test_what_is_typed_becomes_options(typed: str, given: str, venv: Path) -> None:
    assert make(venv, *typed.split()) == ["-m", *given.split()]


def test_a_name_is_no_command_for_make_or_the_shell(venv: Path) -> None:
    harm = venv.parent / "harm"
    odd = f"a b\"'`touch {harm}`;touch {harm};$(touch {harm})$(shell touch {harm})|$HOME"

    for target in ("bench", "bench-compare", "overload", "soak", "simulate", "chaos"):
        given = make(venv, target, *(f"{name}={odd}" for name in ("NEW", "JSON", "ROUNDS", "SESSIONS", "SEED", "BASE")))
        for each in given[2:]:
            assert each in {"--sessions", "--rounds", "--seeds", "--", "5000"} or each.endswith(odd)
    assert not harm.exists()


def test_what_cannot_be_installed_to_compare_with_is_tried_once(venv: Path) -> None:
    (venv / ".bench").unlink()
    command = ["make", "--no-print-directory", "-C", str(ROOT), f"VENV={venv}", f"PIP={venv}/bin/python fails", "bench"]

    first, second = (subprocess.run(command, check=False, capture_output=True, text=True) for _ in range(2))

    told = (venv.parent / "arguments").read_text().splitlines()
    assert told.count("fails") == 1
    assert "could not be installed" in first.stderr
    assert "could not be installed" not in second.stderr
