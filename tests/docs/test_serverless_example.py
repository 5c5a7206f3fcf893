"""The serverless example, in a process of its own as a platform runs it: one instance, several requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PLATFORM = """
import json, sys
from serverless_handler import handler, worker

class Context:
    def __init__(self, remaining_ms):
        self.remaining_ms = remaining_ms

    def get_remaining_time_in_millis(self):
        return self.remaining_ms

for line in sys.stdin:
    event, remaining_ms = json.loads(line)
    print(json.dumps(handler(event, Context(remaining_ms))))
print(worker().get_stats().total_executions)
"""


def test_requests_share_a_worker_and_each_outcome_has_its_status() -> None:
    requests: list[tuple[str, int]] = [
        (json.dumps({"code": "print('hi')\nreturn [await call_tool('price', {'article': 'pear'})]"}), 60_000),
        (json.dumps({"code": "return 1 / 0"}), 60_000),
        (json.dumps({"code": "while True: pass"}), 600),
        (json.dumps({"code": "return 'not harmed'"}), 60_000),
        (json.dumps({"kode": "return 1"}), 60_000),
        ("{", 60_000),
        (json.dumps({"code": 5}), 60_000),
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLATFORM],
        cwd=Path(__file__).parents[2] / "examples" / "library",
        input="".join(json.dumps([{"body": body}, remaining_ms]) + "\n" for body, remaining_ms in requests),
        capture_output=True,  # to the end of stderr, which the sandboxes inherit: none of them is left
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *answers, executions = [json.loads(line) for line in done.stdout.splitlines()]
    statuses = [answer["statusCode"] for answer in answers]
    bodies: list[dict[str, Any]] = [json.loads(answer["body"]) for answer in answers]
    assert statuses == [200, 422, 422, 200, 400, 400, 400]
    assert (bodies[0]["result"], bodies[0]["stdout"]) == ([0.75], "hi\n")
    assert [body.get("error", {}).get("code") for body in bodies[1:4]] == [
        "EXECUTION_ERROR",
        "DEADLINE_EXCEEDED",
        None,
    ]
    assert bodies[3]["result"] == "not harmed"
    assert executions == 4
