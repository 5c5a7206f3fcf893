"""Alarms strike in their order and at their time, whatever is set and dropped meanwhile. On a clock of the test's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclave_worker.alarms import Alarms
from tests.fleet.simulation.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Alarms on a loop whose time is counted from 0, and what struck when."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.alarms = Alarms(loop)
        self.struck: list[tuple[str, float]] = []
        self._start_s = loop.time()

    def note(self, name: str) -> None:
        self.struck.append((name, round(self.loop.time() - self._start_s, 6)))

    def set(self, name: str, delay_s: float) -> None:
        self.alarms.set(name, delay_s, self.note, name)


def struck_by(scenario: Callable[[Clock], None], *, until_s: float = 100) -> list[tuple[str, float]]:
    loop = VirtualLoop()

    async def main() -> list[tuple[str, float]]:
        clock = Clock(loop)
        scenario(clock)
        await asyncio.sleep(until_s)
        return clock.struck

    return loop.run(main())


def test_each_strikes_once_at_its_time_however_they_were_set() -> None:
    def scenario(clock: Clock) -> None:
        for name, delay_s in (("b", 2), ("c", 3), ("a", 1), ("c2", 3)):
            clock.set(name, delay_s)

    assert struck_by(scenario) == [("a", 1), ("b", 2), ("c", 3), ("c2", 3)]


def test_one_that_is_set_again_strikes_at_the_later_time_only() -> None:
    def scenario(clock: Clock) -> None:
        clock.set("a", 1)
        clock.set("a", 5)
        clock.set("b", 2)

    assert struck_by(scenario) == [("b", 2), ("a", 5)]


def test_what_is_dropped_or_cleared_does_not_strike() -> None:
    def dropped(clock: Clock) -> None:
        clock.set("a", 1)
        clock.set("b", 2)
        clock.alarms.drop("a")
        clock.alarms.drop("never set")

    def cleared(clock: Clock) -> None:
        clock.set("a", 1)
        clock.alarms.clear()
        clock.set("b", 2)

    assert struck_by(dropped) == [("b", 2)]
    assert struck_by(cleared) == [("b", 2)]


def test_one_that_strikes_may_set_itself_again_and_drop_another() -> None:
    def scenario(clock: Clock) -> None:
        def again() -> None:
            clock.note("again")
            clock.alarms.drop("same moment")
            if len(clock.struck) < 3:
                clock.alarms.set("again", 1, again)

        clock.alarms.set("again", 1, again)
        clock.set("same moment", 1)

    assert struck_by(scenario) == [("again", 1), ("again", 2), ("again", 3)]


def test_one_that_sets_itself_again_puts_off_no_other() -> None:
    def scenario(clock: Clock) -> None:
        def beat() -> None:
            clock.note("beat")
            clock.alarms.set("beat", 2, clock.note, "beat")

        clock.alarms.set("beat", 1, beat)
        clock.set("deadline", 2)

    assert struck_by(scenario) == [("beat", 1), ("deadline", 2), ("beat", 3)]


def test_one_that_another_of_the_same_moment_sets_anew_waits_for_its_new_time() -> None:
    def scenario(clock: Clock) -> None:
        def put_off() -> None:
            clock.note("first")
            clock.set("second", 5)

        clock.alarms.set("first", 1, put_off)
        clock.set("second", 1)

    assert struck_by(scenario) == [("first", 1), ("second", 6)]


def test_one_that_fails_does_not_keep_the_others_from_striking() -> None:
    def scenario(clock: Clock) -> None:
        def fail() -> None:
            clock.note("failed")
            clock.loop.set_exception_handler(lambda *_: None)
            raise ValueError("a bug")

        clock.alarms.set("fails", 1, fail)
        clock.set("same moment", 1)
        clock.set("later", 2)

    assert struck_by(scenario) == [("failed", 1), ("same moment", 1), ("later", 2)]
