"""The host of `one_fleet`: starts the fleet, and forks for each `enclave run`.

It is called with DIRECTORY and the number of the listening socket.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import enclave_client.runner  # noqa: F401 - once, and not in each fork
from enclave_client.cli import main as enclave

_MAX_ARGUMENTS_BYTES = 1 << 16


def _start_fleet(directory: Path, listener: socket.socket) -> tuple[subprocess.Popen[str], str]:
    """Start it with all that was inherited; return it and its broker's address."""
    numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    inherited = [number for number in numbers if number > 2 and number != listener.fileno()]
    command = [sys.executable, "-m", "enclave_client.cli", "up", "--workers", "1", "--port", "0"]
    fleet = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=inherited, text=True)
    (directory / "pid").write_text(str(fleet.pid))
    assert fleet.stdout is not None
    for line in fleet.stdout:
        if found := re.match(r"\s+broker\s+(http://\S+)", line):
            return fleet, found[1]
    raise SystemExit("the fleet did not start")


def _run(call: socket.socket, url: str) -> NoReturn:
    """Be one `enclave run`, with the descriptors of whoever calls."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    arguments, descriptors, _, _ = socket.recv_fds(call, _MAX_ARGUMENTS_BYTES, 3)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    code: object = 1
    try:
        enclave([*json.loads(arguments), "--broker", url])
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    call.send(bytes([code if isinstance(code, int) else bool(code)]))
    os._exit(0)


def main() -> None:
    """Be the program."""
    directory, listener = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    fleet, url = _start_fleet(directory, listener)
    (directory / "url").write_text(url)
    ended, waiting = os.pidfd_open(fleet.pid), listener.fileno()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while ended not in select.select([waiting, ended], [], [])[0]:
        call, _ = listener.accept()
        if not os.fork():
            listener.close()
            _run(call, url)
        call.close()


if __name__ == "__main__":
    main()
