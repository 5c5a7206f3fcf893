"""Performs a plan as a zygote would, but with mistakes, and attacks from within: what holds then is not the rest.

    python mistaken.py < {"plan", "directory", "abstract", "code"}

The mistakes: a descriptor of a host directory, `held`, is still open in the sandbox; a process outside of it,
`neighbour`, has its user and shares its pid namespace; somebody outside listens on the abstract socket `abstract`. A
plan may bring more. `code` is executed with these names; what it assigns to `result` is printed as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from enclave_worker.zygote import steps

if TYPE_CHECKING:
    from collections.abc import Callable

UID = 200_000
"""Who the sandbox is, if root starts it."""


def attempt(action: Callable[[], object]) -> str:
    """Return the name of the errno that refused it, or WORKED."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "WORKED"


def in_child(function: Callable[[], None]) -> int:
    """Call `function` in a forked child that ends with it; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function()
    finally:
        os._exit(0)


def zygote(request: dict[str, Any]) -> None:
    """Be pid 1 of the zygote's namespace: prepare, and fork the neighbour and the sandbox."""
    plan = request["plan"]
    held = os.open(request["directory"], os.O_RDONLY | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(request["abstract"])
    listener.listen()
    steps.perform(steps.compile_steps(plan["prepare"], {}))
    uid = UID if plan["privilege"] == "root" else 0
    reader, writer = os.pipe()

    def neighbour() -> None:
        if uid:
            os.setresuid(uid, uid, uid)
        os.close(writer)
        signal.pause()

    def sandbox() -> None:
        values = {"uid": uid, "proc": os.open("/proc", os.O_PATH), "seccomp": request["seccomp"]}
        steps.perform(steps.compile_steps(plan["enclose"], values))
        names = {"os": os, "socket": socket, "attempt": attempt}
        names |= {"held": held, "neighbour": neighbour_pid, "abstract": request["abstract"]}
        exec(request["code"], names)
        os.write(1, json.dumps(names["result"]).encode())

    neighbour_pid = in_child(neighbour)
    os.close(writer)
    os.read(reader, 1)  # until it has its user
    os.waitpid(in_child(sandbox), 0)


def main() -> None:
    """Be the launcher."""
    request = json.load(sys.stdin)
    request["seccomp"] = bytes.fromhex(request["plan"]["seccomp_hex"])
    request["abstract"] = "\0" + request["abstract"]
    steps.perform(steps.compile_steps(request["plan"]["launch"], {}))
    os.waitpid(in_child(lambda: zygote(request)), 0)


if __name__ == "__main__":
    main()
