"""Runs the corpus where the only processes and mounts are its own: it counts them, and others of the host come and go.

    python alone.py DIRECTORY COMMAND...

Afterwards it ends the fleet whose process id `one_fleet` left in DIRECTORY. It is the first process of the namespace,
so whoever loses a parent becomes its child: it returns when every process is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from enclave_worker.zygote import kernel

_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def _reap_until(pid: int) -> int:
    """Wait for a process, and reap whoever else ends; return its exit code."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _first_process(directory: Path, command: list[str]) -> int:
    kernel.mount(None, b"/", None, _MS_REC | _MS_PRIVATE)
    kernel.mount(b"proc", b"/proc", b"proc", 0)
    code = _reap_until(subprocess.Popen(command).pid)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((directory / "pid").read_text()), signal.SIGTERM)
    with contextlib.suppress(ChildProcessError):
        _reap_until(0)
    return code


def main() -> None:
    """Be the program."""
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)
    pid = os.fork()
    if not pid:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        os._exit(_first_process(Path(sys.argv[1]), sys.argv[2:]) & 0xFF)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)


if __name__ == "__main__":
    main()
