"""The tracer counts what was done: no more, no less."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from enclave_worker.sandbox.syscalls import AARCH64, X86_64

NUMBERS = {"x86_64": X86_64, "aarch64": AARCH64}[os.uname().machine]


def test_each_system_call_is_counted_for_who_made_it() -> None:
    run = subprocess.run([sys.executable, "-m", "tests.budget.tracing"], capture_output=True, text=True, check=False)
    if "Operation not permitted" in run.stderr:
        pytest.skip("this machine lets nobody trace")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)

    assert told["parent"][str(NUMBERS["getppid"])] == 50
    assert str(NUMBERS["getuid"]) not in told["parent"]
    ((role, calls, faults),) = told["ended"]
    assert role == "child"
    assert calls[str(NUMBERS["getuid"])] == 20
    assert calls[str(NUMBERS["exit_group"])] == 1
    assert 10 < faults < 10_000
