"""A terminal that a program can be run in, and whose screen can be read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pyte

from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

COLUMNS, ROWS = 160, 40
# In a session of its own, whose terminal is this one: else nobody would tell it of another size.
_LAUNCH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


class Terminal:
    """One terminal, with a program in it. Owns the descriptor of its own side."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def wait_shows(self, shows: Callable[[str], bool]) -> str:
        """Wait until the screen shows something, and return all of it."""
        until_s = time.monotonic() + PATIENCE_S
        while not shows(self.text):
            assert self._read(until_s - time.monotonic()), f"the program ended, or never showed it:\n{self.text}"
        return self.text

    def press(self, key: str) -> None:
        os.write(self._fd, key.encode())

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_ended(self) -> int:
        """Read what there is until the program has ended; returns its exit code."""
        until_s = time.monotonic() + PATIENCE_S
        while self._read(until_s - time.monotonic()):
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self, wait_s: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0.0, wait_s))
        if not ready:
            return False
        try:
            data = os.read(self._fd, 65_536)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self._stream.feed(data)
        return bool(data)


@contextlib.contextmanager
def terminal(*arguments: str, env: Mapping[str, str]) -> Iterator[Terminal]:
    """Run `python -m ARGUMENTS` in a terminal; kills it in the end, if it has not ended."""
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            env={**env, "TERM": "xterm"},
            start_new_session=True,
        )
    finally:
        os.close(its)
    with process:
        try:
            yield Terminal(process, own)
        finally:
            process.kill()
            os.close(own)
