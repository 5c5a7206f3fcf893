"""Shows frames on a terminal until somebody presses q.

By curses, of the standard library: the frame is lines of text that `frame` has laid out already, so all that is left is
to paint them, to hear keys and to notice another size, and a library for terminals would be a dependency of several
megabytes for that. Nothing runs beside it: it waits for a key, for as long as the interval, and then looks.
"""

from __future__ import annotations

import contextlib
import curses
import time
from typing import TYPE_CHECKING

from .frame import View, render
from .sample import between, restarted
from .source import NoAnswer

if TYPE_CHECKING:
    from .source import Source

_QUIT = {ord("q"), ord("Q"), 27}
_BOLD_LINES = ("enclave top", "! ", "LATENCY", "WORKER ", "TENANT ")
MIN_WAIT_MS = 20


class Watcher:
    """Looks at a broker again and again, and remembers what it takes to compare.

    Args:
        source: whom to ask.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lost_at = ""
        self._restarted = ""
        self.view = View(source.url)

    def look(self) -> View:
        """Ask, and return what there is to show now; raises Refused."""
        before = self.view.sample
        try:
            sample = self._source.sample()
        except NoAnswer as error:
            self._lost_at = self._lost_at or _now()
            notice = f"no answer since {self._lost_at} ({error}); trying again. What follows is old"
            self.view = View(self._source.url, before, self.view.between, notice)
            return self.view
        self._lost_at = ""
        if before is not None and restarted(before, sample):
            self._restarted, before = f"the broker was started again, seen at {_now()}", None
        happened = None if before is None else between(before, sample)
        self.view = View(self._source.url, sample, happened, self._restarted)
        return self.view


def show(watcher: Watcher, interval_s: float) -> None:
    """Show frames until q is pressed; raises Refused, and curses.error where the terminal can't."""
    with contextlib.suppress(KeyboardInterrupt):
        curses.wrapper(_show, watcher, interval_s)


def _show(window: curses.window, watcher: Watcher, interval_s: float) -> None:
    with contextlib.suppress(curses.error):  # a terminal whose cursor can't be hidden
        curses.curs_set(0)
    while True:
        due_s = time.monotonic() + interval_s
        watcher.look()
        _paint(window, watcher.view)
        while (left_s := due_s - time.monotonic()) > 0:
            window.timeout(max(MIN_WAIT_MS, round(left_s * 1000)))
            key = window.getch()
            if key in _QUIT:
                return
            if key == curses.KEY_RESIZE:
                _paint(window, watcher.view)


def _paint(window: curses.window, view: View) -> None:
    height, width = window.getmaxyx()
    window.erase()
    # Not to the last column: to write the last cell of a window moves its cursor out of it, which is an error.
    for number, line in enumerate(render(view, width - 1)[:height]):
        window.addnstr(number, 0, line, width - 1, curses.A_BOLD if line.startswith(_BOLD_LINES) else curses.A_NORMAL)
    window.refresh()


def _now() -> str:
    return time.strftime("%H:%M:%S")
