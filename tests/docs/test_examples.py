"""Every example in the README and in `docs/` does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import PAGES, RUN, Block, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS = [block for block in blocks() if block.language in RUN]
RUNNABLE = [block for block in BLOCKS if not block.why_not and not block.file_name]


def test_every_page_is_read_to_its_end() -> None:
    fences = sum(page.read_text(encoding="utf-8").count(f"```{name}\n") for page in PAGES for name in RUN)
    assert len(BLOCKS) == fences > 10


def test_a_block_that_is_not_run_says_why_and_there_are_few() -> None:
    excused = [block for block in BLOCKS if block.why_not is not None]
    assert all(len(block.why_not or "") > 20 for block in excused)
    assert len(excused) <= 6


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """The address of a fleet, for programs that are clients of one and say none."""
    command = [sys.executable, "-m", "enclave_client.cli", "up", "--workers", "1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as fleet:
        assert fleet.stdout is not None
        try:
            addresses = (re.match(r"\s+broker\s+(http://\S+)", line) for line in fleet.stdout)
            yield next(found[1] for found in addresses if found)
        finally:
            fleet.terminate()
            fleet.wait(60)


@pytest.mark.parametrize("block", [block for block in RUNNABLE if block.language == "python"], ids=str)
def test_a_program_prints_what_its_page_says(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert block.printed is not None, "a program is followed by what it prints, in a text block"
    environment = {}
    if "from enclave_client import" in block.text:
        environment["ENCLAVE_BROKER"] = request.getfixturevalue("broker")
    # Its sandboxes inherit its stderr, so the end of that is also the end of them.
    done = run([sys.executable, "-W", "error", "-c", block.text], tmp_path, **environment)
    assert (done.stdout, done.returncode) == (block.printed, 0), done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("block", [block for block in RUNNABLE if block.language == "console"], ids=str)
def test_commands_print_what_their_page_says(block: Block, tmp_path: Path) -> None:
    assert block.commands
    for name, text in block.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for command, printed in block.commands:
        done = run(["bash", "-c", command], tmp_path)
        pattern = re.escape(printed).replace("…", ".*")
        assert re.fullmatch(pattern, done.stdout + done.stderr), f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("block", [block for block in RUNNABLE if block.language == "bash"], ids=str)
def test_a_script_ends_well(block: Block, tmp_path: Path) -> None:
    done = run(["bash", "-euc", block.text], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def run(command: list[str], directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command where `.venv/bin` is what it is for a reader, and nothing else is configured."""
    programs = directory / ".venv" / "bin"
    if not programs.exists():
        programs.parent.symlink_to(Path(sys.executable).parent.parent)  # the whole of it, as a Python there wants
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    env |= environment
    env["PATH"] = f"{programs}:{env['PATH']}"
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=180, check=False)
