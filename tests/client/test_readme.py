"""What the README shows is what happens."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
RUNS = re.findall(r"^\$ (echo .* \| \.venv/bin/enclave run .*)\n((?:(?![$`…]).*\n)+)", README, re.MULTILINE)
[TOOLS] = re.findall(r"```python\n(# fruit\.py\n.*?)```", README, re.DOTALL)


def test_the_readme_has_examples() -> None:
    assert len(RUNS) >= 2


@pytest.mark.parametrize(("command", "output"), RUNS)
async def test_an_example_prints_what_the_readme_says(command: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "fruit.py").write_text(TOOLS)
    line = command.replace(".venv/bin/enclave", f"{sys.executable} -P -m enclave_client.cli")
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVE_")}
    pipe = asyncio.subprocess.PIPE
    shell = await asyncio.create_subprocess_shell(line, stdout=pipe, stderr=pipe, cwd=tmp_path, env=env)

    out, err = await shell.communicate()

    assert (out.decode(), err.decode()) == (output, "")


async def test_the_demo_ends_as_it_should() -> None:
    demo = Path(__file__).parents[2] / "examples" / "demo.py"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(demo), stdout=pipe, stderr=pipe)

    out, err = await process.communicate()

    assert (process.returncode, err) == (0, b""), out.decode()
    assert out.decode().splitlines()[-1] == "All ended as they should."
    assert {f"worker-{n}" in out.decode() for n in (1, 2)} == {True}
