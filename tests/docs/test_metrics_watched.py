"""Each metric in the documentation is one that some test sees move."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
METRICS = sorted(set(re.findall(r"^\| `(enclave_\w+)` \| (?:counter|gauge|histogram) ", PAGE, re.MULTILINE)))
# Not those that only say which names there are.
TESTS = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name not in {"deploy", "docs", "top"}]
WATCHED = "\n".join(path.read_text() for path in TESTS)


def test_the_tables_of_metrics_are_found() -> None:
    assert {"enclave_sessions_total", "enclave_executions_total"} <= set(METRICS)


@pytest.mark.parametrize("metric", METRICS)
def test_a_documented_metric_is_watched_by_a_test(metric: str) -> None:
    assert metric in WATCHED, (
        f"nobody sees {metric} move: see tests/broker/test_metrics.py, tests/worker/test_metrics.py"
    )
