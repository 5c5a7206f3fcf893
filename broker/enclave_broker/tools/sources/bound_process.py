"""Runs a command that ends with the broker, and that can't flood it: `bound_process.py PARENT MAX_LINE COMMAND ...`.

Theory of operation. The broker starts this as the leader of a new session and process group; it starts the command in
the same group. Standard input is the command's own. Its standard output is passed on in between, and a line longer than
MAX_LINE bytes ends everything: a reader of lines has to hold a whole one. The group is killed

- when the broker dies, however it does: the kernel then sends this process the signal that it asked for;
- when the command ends, so that nothing it started stays;
- when this process is told to end. The kernel kills the command with this process, should that be killed.

Only what leaves the process group on purpose escapes. Stdlib only, started with -I -S: a start costs 15 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1
CHUNK_BYTES = 65_536
EXIT_LINE_TOO_LONG = 120
EXIT_NOT_STARTED = 127

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Run the command to its end; returns its exit code."""
    parent, max_line_bytes, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    signal.signal(signal.SIGTERM, _end_all)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel was asked
        return EXIT_NOT_STARTED
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_die_with_parent)  # noqa: S603, PLW1509 - the operator's command; one thread
    except OSError as error:
        sys.stderr.write(f"can't start {command[0]}: {error.strerror}\n")
        return EXIT_NOT_STARTED
    os.close(0)  # the command alone is to see its end
    assert child.stdout is not None, "asked for"
    try:
        ended = [os.pidfd_open(child.pid)]
    except OSError:  # an old kernel, or none of Linux's own: the end of its output has to do
        ended = []
    whole = _pass_on(child.stdout.fileno(), ended, max_line_bytes)
    if not whole:
        sys.stderr.write(f"a line of more than {max_line_bytes} bytes\n")
        return EXIT_LINE_TOO_LONG
    return child.wait()


def _pass_on(source: int, ended: list[int], max_line_bytes: int) -> bool:
    """Copy lines until the command has ended and all it wrote is copied; False if one was too long."""
    line_bytes = 0
    while True:
        ready, _, _ = select.select([source, *ended], [], [])
        if source not in ready:
            return True
        data = os.read(source, CHUNK_BYTES)
        if not data:
            return True
        first, *_ = data.split(b"\n", 1)
        line_bytes = line_bytes + len(data) if len(first) == len(data) else len(data) - data.rfind(b"\n") - 1
        if line_bytes > max_line_bytes:
            return False
        while data:
            data = data[os.write(1, data) :]


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_all(*_: object) -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("the group was killed, this process with it")


if __name__ == "__main__":
    try:
        code = main()
    except BrokenPipeError:  # the broker reads no more
        code = 0
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    os._exit(code if code >= 0 else 128 - code)
