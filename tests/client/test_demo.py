"""The demo, as `make demo` runs it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


async def test_the_demo_ends_as_it_should() -> None:
    demo = Path(__file__).parents[2] / "examples" / "demo.py"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(demo), stdout=pipe, stderr=pipe)

    out, err = await process.communicate()

    assert (process.returncode, err) == (0, b""), out.decode()
    assert out.decode().splitlines()[-1] == "All ended as they should."
    assert {f"worker-{n}" in out.decode() for n in (1, 2)} == {True}
