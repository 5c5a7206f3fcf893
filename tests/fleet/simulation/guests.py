"""Sandboxes without a kernel: guests that follow a script, and keep book of what really happened to them.

A guest's code is its script: a JSON list of steps. `GuestRun` is the truth that streams are compared with: how often a
session's guest was started, what it wrote, what it was told, and when it was gone.
"""

from __future__ import annotations

import itertools
import signal
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from enclave_protocol import Limits
from enclave_worker.offers import Offer
from enclave_worker.profiles import Profile
from enclave_worker.usage import Allowance, Exit, Usage

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from enclave_worker.pool import Taker

    from .virtual_time import Process, VirtualLoop

LIE = 9_999
"""The number of a call that is made twice. If the first is answered before the second is read, both are calls."""
SLOW_DEATH_S = 3.0
"""More than a worker waits for the word of a death before it sends the final."""


@dataclass(slots=True, eq=False)
class GuestRun:
    """One run of one session's code."""

    session_id: str
    worker: str
    """Name and incarnation of the worker's process."""
    process: Process
    began_s: float
    printed: list[str] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    """The tools, in the order of the guest's own numbers."""
    answers: dict[int, list[Any]] = field(default_factory=dict)
    """By the guest's own number of a call: every answer that came."""
    said: str = ""
    """How it ended by itself: `result`, `error`, or nothing."""
    said_s: float = 0.0
    result: Any = None
    gone_s: float | None = None

    @property
    def alive(self) -> bool:
        """Whether its sandbox is there."""
        return self.gone_s is None and self.process.alive


OFFERS = {
    "python": Offer(
        profile=Profile(name="python"),
        footing=cast("Any", None),
        allowance=Allowance(),
        limits=Limits(),
        spec=cast("Any", None),
        languages=("python", "shell"),
    )
}


class FakePools:
    """What a worker takes its sandboxes from.

    Args:
        loop: the clock.
        rng: whims.
        process: the worker's.
        runs: where to write down what is run.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, process: Process, runs: list[GuestRun]) -> None:
        self.offers = OFFERS
        self.cold_starts = 0
        self.ready = True
        self.warm = 4
        self.live = 0
        self.loop = loop
        self.rng = rng
        self.process = process
        self.runs = runs
        self.taken: dict[FakeSandbox, None] = {}
        self._takers: dict[Taker, None] = {}
        self._numbers = itertools.count(1)

    def take(self, taker: Taker, profile: str, language: str, code: str) -> None:
        """Give `taker` a sandbox, at once or later."""
        del profile, language, code
        if self.rng.random() < 0.6:
            self._give(taker)
        else:
            self._takers[taker] = None
            self.loop.call_later(self.rng.choice((0.001, 0.02, 0.5)), self._give_later, taker)

    def forget(self, taker: Taker) -> None:
        """Stop looking for a sandbox for `taker`."""
        self._takers.pop(taker, None)

    def released(self, sandbox: FakeSandbox) -> None:
        """A taken sandbox is gone."""
        self.live -= 1
        del self.taken[sandbox]

    def retire(self, sandbox: FakeSandbox) -> None:
        """Kill a sandbox that nobody listens to any more."""
        sandbox.owner = None
        sandbox.kill()

    def _give_later(self, taker: Taker) -> None:
        if taker in self._takers:
            del self._takers[taker]
            self._give(taker)

    def _give(self, taker: Taker) -> None:
        self.live += 1
        sandbox = FakeSandbox(next(self._numbers), self)
        self.taken[sandbox] = None
        taker.on_sandbox(cast("Any", sandbox))


class FakeSandbox:
    """A sandbox whose guest follows a script."""

    def __init__(self, number: int, home: FakePools) -> None:
        self.number = number
        self.home = home
        self.owner: Any = home
        self.max_frame_bytes = 1 << 20
        self.run: GuestRun | None = None
        self._loop = home.loop
        self._rng = home.rng
        self._steps: deque[list[Any]] = deque()
        self._paused = False
        self._held: list[Callable[[], object]] = []
        self._killed = False
        self._gone = False
        self._waits_for: set[int] = set()

    # What a session does with its sandbox

    def send(self, message: dict[str, Any]) -> None:
        """Take in a frame."""
        if self._gone:
            return
        if message["type"] == "execute":
            session_id = self.owner.session.session_id
            process = self.home.process
            self.run = GuestRun(session_id, process.name, process, self._loop.time())
            self.home.runs.append(self.run)
            self._steps.extend(msgspec.json.decode(message["code"]))
            self._go_on()
        elif self.run is not None:
            number = message["id"]
            answer = message.get("value") if message["ok"] else {"failed": message["code"]}
            answer = msgspec.json.decode(answer) if isinstance(answer, msgspec.Raw) else answer
            self.run.answers.setdefault(number, []).append(answer)
            if number in self._waits_for:
                self._waits_for.discard(number)
                if not self._waits_for:
                    self._go_on()

    def pause(self) -> None:
        """Read nothing of the guest's."""
        self._paused = True

    def resume(self) -> None:
        """Read again, from the next turn of the loop on."""
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._read_held)

    def _read_held(self) -> None:
        while self._held and not self._paused and not self._gone:
            self._held.pop(0)()

    def kill(self) -> None:
        """End it, a little later."""
        if not self._killed and not self._gone:
            self._killed = True
            slow = self._rng.random() < 0.03
            self._loop.call_later(SLOW_DEATH_S if slow else self._rng.uniform(0.0, 0.01), self._die, signal.SIGKILL)

    def usage(self) -> Usage:
        """Return what it has used."""
        return Usage(cpu_ms=1.0, peak_memory_bytes=1 << 20)

    def held_bytes(self) -> int:
        """Return what memory it holds."""
        return 1 << 20

    def limit_memory(self, memory_bytes: int) -> None:
        """Nothing to limit."""

    # The guest

    def _go_on(self) -> None:
        self._loop.call_later(self._rng.uniform(0.0, 0.02), self._step)

    def _step(self) -> None:
        run = self.run
        if run is None or self._killed or self._gone or not self._steps:
            return  # out of steps: it spins
        if self._held:
            self._loop.call_later(0.01, self._step)  # its pipes are full
            return
        step = self._steps.popleft()
        getattr(self, f"_do_{step[0]}")(run, *step[1:])

    def _say(self, say: Callable[[], object]) -> None:
        if self._paused or self._held:
            self._held.append(say)
        else:
            say()

    def _frame(self, message: dict[str, Any]) -> None:
        body = msgspec.json.encode(message)
        self._say(lambda: self.owner is not None and not self._gone and self.owner.on_frame(self, body))

    def _do_print(self, run: GuestRun, text: str) -> None:
        run.printed.append(text)
        self._say(
            lambda: self.owner is not None and not self._gone and self.owner.on_output(self, "stdout", text.encode())
        )
        self._go_on()

    def _do_sleep(self, run: GuestRun, delay_s: float) -> None:
        del run
        self._loop.call_later(delay_s, self._step)

    def _do_call(self, run: GuestRun, *tools: str) -> None:
        numbers = range(len(run.called) + 1, len(run.called) + 1 + len(tools))
        run.called += tools
        self._waits_for |= set(numbers)
        for number, name in zip(numbers, tools, strict=True):
            self._frame({"type": "tool_call", "id": number, "name": name, "args": {"number": number}})

    def _do_return(self, run: GuestRun) -> None:
        run.said, run.said_s = "result", self._loop.time()
        run.result = {"answers": [run.answers.get(number, [None])[0] for number in range(1, len(run.called) + 1)]}
        self._frame({"type": "result", "value": run.result})

    def _do_raise(self, run: GuestRun) -> None:
        run.said, run.said_s = "error", self._loop.time()
        self._frame({"type": "error", "code": "EXECUTION_ERROR", "name": "ValueError", "message": "on purpose"})

    def _do_spin(self, run: GuestRun) -> None:
        """Do nothing ever again."""

    def _do_die(self, run: GuestRun) -> None:
        del run
        if self.owner is not None:
            self.owner.on_hangup(self)
        self._loop.call_later(self._rng.uniform(0.0, 0.1), self._die, signal.SIGSEGV)

    def _do_lie(self, run: GuestRun, what: str) -> None:
        del run
        if what == "junk":
            self._say(lambda: self.owner is not None and self.owner.on_frame(self, b'{"type":"result","value":'))
        elif what == "twice":
            for _ in range(2):
                self._frame({"type": "tool_call", "id": LIE, "name": "echo", "args": {"number": 1}})
        else:
            self._say(lambda: self.owner is not None and self.owner.on_broken(self, "a frame of 4 GiB"))

    def _die(self, number: int) -> None:
        if self._gone:
            return
        self._paused = False
        self._read_held()  # what is left in its pipes
        self._gone = True
        if self.run is not None:
            self.run.gone_s = self._loop.time()
        if self.owner is None:
            self.home.released(self)
        else:
            self.owner.on_exit(self, Exit(number, self.usage()))
