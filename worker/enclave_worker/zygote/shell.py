"""Guests in the shell's language: a script that `/bin/sh` runs.

Theory of operation. The shell is a child of the driver, which stays the sandbox's first process: it adopts and reaps
what the script leaves behind, and tells how the script ended. The script is an argument, not a file or standard input:
the working directory holds nothing that the session did not bring, and what the script reads is empty. An exit code is
a result, whatever it is: scripts ask each other with them, and only who wrote one knows which of them mean failure.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as in `main`
import os
import sys

from . import driver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .frames import Message

LANGUAGE = "shell"
SHELL = "/bin/sh"
NAME = "main.sh"
_PYTHON_IGNORES = (_signal.SIGPIPE, _signal.SIGXFSZ)


def run(request: Message) -> bytes:
    """Run a script to its end; return the frame that tells how it ended."""
    try:
        driver.limit_address_space(request)
        driver.give(request)
        status = _run(request["code"])
    except (OSError, ValueError, MemoryError) as error:
        return driver.error(driver.code_of(error), f"{SHELL} cannot be run: {error}", name=type(error).__name__)
    return driver.result(b'{"exitCode":%d}' % _exit_code(status), request["maxResultBytes"])


def _run(script: str) -> int:
    """Return the wait status of a shell that ran `script`."""
    os.environ.setdefault("HOME", os.getcwd())
    os.environ.setdefault("PATH", f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin")
    shell = os.posix_spawn(
        SHELL,
        ["sh", "-c", script, NAME],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_CLOSE, driver.CONTROL_FD)],
        setsigdef=_PYTHON_IGNORES,
    )
    while True:
        pid, status = os.wait()
        if pid == shell:
            return status


def _exit_code(status: int) -> int:
    """Return the exit code of a wait status, as shells say it: 128 and the number for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
