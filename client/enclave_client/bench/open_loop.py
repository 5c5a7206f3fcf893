"""Asking at times that are fixed beforehand, whether earlier requests were answered or not.

Theory of operation. A client that waits for its answer before it asks again slows down with what it measures: while
that stalls, it asks for nothing, and the times of all that others would have asked for meanwhile are missing from its
figures ("coordinated omission"). Here requests are due at random times, independent of each other as those of many
clients are (a Poisson process), and nothing holds them up. A request's time counts from when it was due, so whatever
delays even the asking, a queue of our own or a load generator that was not woken, is part of it.
"""

from __future__ import annotations

import asyncio
import enum
import random
import re
from typing import TYPE_CHECKING, Protocol

from .load import ENDS_WELL, create_body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .http import Connection
    from .load import Load

SETTLE_S = 0.5
"""What is asked for in the beginning of each block is not counted: the load has to take hold."""
MAX_OPEN = 2000
"""Connections at once; an arrival that finds all of them taken fails."""
_REFUSED = b"HTTP/1.1 503 "
_RETRY_AFTER = re.compile(rb"(?i)\r\nretry-after: [1-9]")


class Answer(enum.Enum):
    """What became of one request."""

    ACCEPTED = enum.auto()
    """It was served, and well."""
    REFUSED = enum.auto()
    """It was told to come back later."""
    FAILED = enum.auto()


class Target(Protocol):
    """What can be asked to run `1 + 1`, or something like it, many times at once."""

    async def ask(self) -> Answer:
        """Ask once; return when all of the answer is there."""


class Outcome:
    """What became of the requests of some blocks."""

    def __init__(self) -> None:
        self.accepted_ms: list[float] = []
        self.refused_ms: list[float] = []
        self.late_ms: list[float] = []
        """How late the load generator itself asked, for each request: what the machine adds to every time."""
        self.failed = 0
        self.served = 0
        """How many well-served requests had their answer within the blocks, whenever they were due."""
        self.seconds = 0.0
        self.broker_cpu_s = 0.0
        """What the broker used meanwhile, where somebody counts it."""

    @property
    def rate(self) -> float:
        """Accepted requests in a second."""
        return len(self.accepted_ms) / self.seconds if self.seconds else 0.0

    @property
    def served_rate(self) -> float:
        """Answers in a second: less than was asked for when a queue grows."""
        return self.served / self.seconds if self.seconds else 0.0


def arrivals(rate: float, seconds: float, source: random.Random) -> Iterator[float]:
    """Yield when requests are due, in seconds from the beginning: `rate` in a second on average, for so long."""
    due_s = source.expovariate(rate)
    while due_s < seconds:
        yield due_s
        due_s += source.expovariate(rate)


class OpenLoop:
    """Asks one target at random times.

    Args:
        target: whom to ask.
        seed: of the times.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self._target = target
        self._random = random.Random(seed)  # noqa: S311 - arrivals that can be repeated

    async def run(self, rate: float, seconds: float, into: Outcome, *, settle_s: float = SETTLE_S) -> None:
        """Ask `rate` times in a second for so long, and for `settle_s` before, uncounted; wait for all answers."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        window = (begin + settle_s, begin + settle_s + seconds)
        async with asyncio.TaskGroup() as group:
            for due_s in arrivals(rate, settle_s + seconds, self._random):
                due = begin + due_s
                counted = into if due >= window[0] else Outcome()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                counted.late_ms.append(max(0.0, loop.time() - due) * 1000)  # overdue ones too, which sleep no more
                group.create_task(self._ask(due, counted, into, window))
        into.seconds += seconds

    async def _ask(self, due: float, counted: Outcome, served: Outcome, window: tuple[float, float]) -> None:
        answer = await self._target.ask()
        now = asyncio.get_running_loop().time()
        took_ms = (now - due) * 1000
        if answer is Answer.ACCEPTED:
            counted.accepted_ms.append(took_ms)
            served.served += window[0] <= now < window[1]
        elif answer is Answer.REFUSED:
            counted.refused_ms.append(took_ms)
        else:
            counted.failed += 1


async def closed_rate(target: Target, count: int, at_once: int) -> float:
    """Ask `count` times, `at_once` at a time, each next one when an answer is there; return good answers in a second.

    A failure takes no time, so a target that fails would otherwise be the fastest of all.
    """
    loop = asyncio.get_running_loop()
    left = iter(range(count))
    accepted = 0

    async def one_after_another() -> None:
        nonlocal accepted
        for _ in left:  # shared by all: each takes the next
            answer = await target.ask()
            accepted += answer is Answer.ACCEPTED

    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_another())
    return accepted / (loop.time() - started)


class Sessions:
    """A broker as a target: each request is a session, on a kept-alive connection that no other request uses.

    Args:
        load: counts what fails.
        code: of the sessions; it must return 2.
    """

    def __init__(self, load: Load, code: str) -> None:
        self._load = load
        self._body = create_body(code)
        self._idle: list[Connection] = []
        self._open = 0

    async def ask(self) -> Answer:
        """Run one session, to the last byte of its stream, or to the end of its refusal."""
        self._load.sessions += 1
        connection: Connection | None = None
        try:
            connection = await self._connection()
            answer = await connection.post("/sessions", self._body)
        except OSError as error:  # a timeout is one
            self._load.fail(f"{type(error).__name__} {error}")
            if connection is not None:
                connection.close()
            self._open -= 1
            return Answer.FAILED
        self._idle.append(connection)
        if ENDS_WELL in answer:
            return Answer.ACCEPTED
        if answer.startswith(_REFUSED) and _RETRY_AFTER.search(answer):
            return Answer.REFUSED
        self._load.fail(answer[-500:].decode(errors="replace"))
        return Answer.FAILED

    def close(self) -> None:
        """Hang up."""
        for connection in self._idle:
            connection.close()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._open -= 1
        self._open += 1
        if self._open > MAX_OPEN:
            raise ConnectionError(f"{MAX_OPEN} requests have no answer yet")
        connection = self._load.connection()
        await connection.open()
        return connection
