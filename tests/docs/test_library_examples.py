"""Every example of `docs/library.md` is a program that runs, and prints what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
EXAMPLES = EXAMPLE.findall(PAGE.read_text())


def test_every_example_says_what_it_prints() -> None:
    assert len(EXAMPLES) == PAGE.read_text().count("```python\n")


@pytest.mark.parametrize(("program", "printed"), EXAMPLES)
def test_an_example_prints_what_the_page_says(program: str, printed: str, tmp_path: Path) -> None:
    # Its sandboxes inherit its stderr, so the end of that is also the end of them.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == (printed, 0), done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_the_page_names_everything_the_library_offers() -> None:
    """What is public is documented, one way or another; types that only travel as values are."""
    page = PAGE.read_text()
    offered = ("create_runtime_worker", "create_session_executor", "create_memory_channel_pair")
    for name in (*offered, "create_websocket_channel", "execute_sync", "get_stats", "get_state", "ExecutionResult"):
        assert name in page
