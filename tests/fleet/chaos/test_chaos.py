"""A short chaos run in the ordinary suite; `make chaos` runs the long one."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.support import PATIENCE_S

from .faults import SHARES, schedule
from .fleet import ROOT
from .leftovers import Held, leftovers
from .work import work

if TYPE_CHECKING:
    from pathlib import Path


def test_a_seed_gives_the_same_sessions_and_faults_and_another_seed_others() -> None:
    def drawn(seed: int) -> list[object]:
        faults = itertools.islice(schedule(seed, tuple(SHARES), 1.0), 50)
        return [*faults, *(work(seed, number) for number in range(50))]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


async def test_what_a_run_leaves_is_said(tmp_path: Path) -> None:
    gc.collect()  # what other tests have left is not to close while we count
    before = Held.now()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    (tmp_path / "forgotten").touch()
    try:
        found = await leftovers(before, [], tmp_path, settle_s=0)
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()

    assert any(line.startswith(f"process {child.pid}: ") for line in found)
    assert f"file {tmp_path / 'forgotten'}" in found
    assert any(line.startswith("descriptors: ") for line in found)


async def test_a_short_run_with_cuts_and_deaths_loses_doubles_and_leaves_nothing() -> None:
    sizes = {"sessions": "60", "at-once": "16", "workers": "2", "vanishing": "0", "dialling": "0", "every-s": "1"}
    options = itertools.chain(*((f"--{name}", size) for name, size in sizes.items()))
    names = ("cut", "kill worker", "kill broker", "kill guest")
    faults = itertools.chain(*(("--only", name) for name in names))
    pipe = asyncio.subprocess.PIPE
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    command = [sys.executable, "-m", "tests.fleet.chaos", *options, *faults]
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=env, cwd=ROOT)

    async with asyncio.timeout(3 * PATIENCE_S):
        out, err = await process.communicate()

    said = out.decode()
    assert (process.returncode, err) == (0, b""), said
    assert "sessions 60, finals 60, lost 0, doubled 0, out of order 0, late 0\n" in said
    assert said.endswith("all is well\n")
