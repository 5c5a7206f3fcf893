"""Traces `counting_child` and prints what it counted: a program of its own, since who traces waits for any child."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

from .tracer import Tracer


def main() -> None:
    """Be the program."""
    pipe = subprocess.PIPE
    command = [sys.executable, str(Path(__file__).with_name("counting_child.py"))]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        tracer = Tracer({"parent": "child"})
        tracer.seize(process.pid, "parent")
        process.stdin.write(b"\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], 0)[0]:
            tracer.step()
        calls, ended = tracer.take()
        told = {"parent": calls["parent"], "ended": [(one.role, one.calls, one.minor_faults) for one in ended]}
        sys.stdout.write(json.dumps(told))
        process.stdin.close()
        while tracer.count("parent"):
            tracer.step()


main()
