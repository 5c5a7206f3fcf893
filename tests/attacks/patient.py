"""The corpus's own runner, told to wait longer: a case is not lost because the machine is busy.

    python patient.py OPTIONS...

To be run in the corpus's directory. How long a session may take is for its deadline to say, not for the runner.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the corpus is not ours
sys.path.insert(0, str(Path.cwd()))

import run_local  # type: ignore[import-not-found]  # noqa: E402 - it lies where the path says now

LONGEST_S = 300


class PatientCase(run_local.Case):  # type: ignore[misc]
    """A case whose steps may take so long."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.expect["end_s"] = LONGEST_S


if __name__ == "__main__":
    run_local.Case = PatientCase
    run_local.main()
