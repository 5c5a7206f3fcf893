"""Run a module's `main` in a process that cannot outlive its parent.

Called as `python child.py PARENT_PID MODULE ARGUMENT…`, or by this module's name. With `--arguments-on-stdin` as the
only argument the module is imported at once and its arguments are the JSON list on the first line of standard input: a
broker can load while the workers whose addresses it needs are still starting.

Theory of operation. `enclave up` must leave nothing behind even when it is killed with SIGKILL, so the children have to
notice by themselves. The kernel's parent-death signal is the one mechanism that needs nobody alive and no cooperation
from the program: a pipe that the child watches would need a thread or a reader in every program we start, and is held
open by any grandchild that inherits it. The signal is set by the child itself, in this module, rather than between fork
and exec (`preexec_fn` may deadlock and forbids vfork); the race that leaves, a parent that died before, is closed
by comparing the parent's pid afterwards. SIGKILL, because a worker's sandboxes die with the worker by their own
mechanism and a program that hangs must go too. The signal is tied to the parent's *thread* that forked: start children
from the main thread.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
ARGUMENTS_ON_STDIN = "--arguments-on-stdin"


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process as soon as its parent is gone; exits at once if it already is.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit("enclave: the process that started this one is gone")


def main() -> None:
    """Become the program named on the command line."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    die_with_parent(parent_pid)
    arguments = sys.argv[3:]
    program = importlib.import_module(module)
    if arguments == [ARGUMENTS_ON_STDIN]:
        arguments = read_arguments()
    sys.argv[:] = [module, *arguments]
    program.main()


def read_arguments() -> list[str]:
    """Read the arguments, and leave the program an empty standard input."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)  # whoever started us has thought better of it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return [str(argument) for argument in json.loads(line)]


if __name__ == "__main__":
    main()
