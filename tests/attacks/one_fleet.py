"""The `enclave` command for the corpus: every `enclave run` goes to one fleet, started at the first of them.

    python one_fleet.py DIRECTORY run - --events ...

The fleet has to be started from here, for the corpus plants secrets in the environment of the command it runs. Its
process id is left in DIRECTORY, for whoever ends it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_ENCLAVE = [sys.executable, "-m", "enclave_client.cli"]


def _start(directory: Path) -> str:
    inherited = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if int(entry.name) > 2 and entry.exists()]
    log = directory / "fleet.log"
    with log.open("wb") as file:
        fleet = subprocess.Popen(
            [*_ENCLAVE, "up", "--workers", "1", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            pass_fds=inherited,
            start_new_session=True,
            text=True,
        )
    assert fleet.stdout is not None
    (directory / "pid").write_text(str(fleet.pid))
    for line in fleet.stdout:
        if found := re.match(r"\s+broker\s+(http://\S+)", line):
            return found[1]
    raise SystemExit(f"no fleet: {log.read_text()}")


def main() -> None:
    """Be the program."""
    directory = Path(sys.argv[1])
    known = directory / "url"
    if not known.exists():
        known.write_text(_start(directory))
    os.execv(_ENCLAVE[0], [*_ENCLAVE, *sys.argv[2:], "--broker", known.read_text()])


if __name__ == "__main__":
    main()
