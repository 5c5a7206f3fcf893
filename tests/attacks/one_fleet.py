"""The `enclave` command for the corpus: every `enclave run` goes to one fleet, and is the fork of one that is ready.

    python -I -S one_fleet.py DIRECTORY run - --events ...

Theory of operation. The first to be called becomes two: one starts the host (`one_fleet_host.py`), which starts the
fleet: from here, for the corpus plants secrets in the environment and the descriptors of the command that it runs. The
host imports what `enclave run` needs once, and forks for each call, which hands over its arguments and its first three
descriptors by a socket in DIRECTORY, and ends with the code that comes back. The fleet's process id is left in
DIRECTORY, for whoever ends it; the host ends with it.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def _start_host(directory: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{directory}/socket")
    listener.listen()  # who calls before there is a fleet waits
    if os.fork():
        listener.close()
        return
    os.setsid()
    null, log = os.open(os.devnull, os.O_RDWR), os.open(f"{directory}/log", os.O_CREAT | os.O_WRONLY, 0o600)
    for descriptor, number in ((null, 0), (null, 1), (log, 2)):
        os.dup2(descriptor, number)
    os.set_inheritable(listener.fileno(), True)
    host = __file__.replace(".py", "_host.py")
    os.execv(sys.executable, [sys.executable, host, directory, str(listener.fileno())])


def main() -> None:
    """Be the program."""
    directory, *arguments = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as host:
        try:
            host.connect(f"{directory}/socket")
        except FileNotFoundError:
            _start_host(directory)
            host.connect(f"{directory}/socket")
        socket.send_fds(host, [json.dumps(arguments).encode()], [0, 1, 2])
        code = host.recv(1)
    if not code:
        log = os.open(f"{directory}/log", os.O_RDONLY)
        sys.exit(f"no fleet, or no end of a run: {os.read(log, 10_000).decode(errors='replace')}")
    os._exit(code[0])


if __name__ == "__main__":
    main()
