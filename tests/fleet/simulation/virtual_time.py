"""An event loop on a clock that nobody waits for, and processes on it that can be killed.

Theory of operation. `VirtualLoop` runs what is ready and then jumps to the next timer: nothing sleeps, nothing polls,
there is no thread and no descriptor. `clocks` has `time.monotonic` and `time.time` tell its time, and every source of
randomness draw from one seed, so that a run is a function of its seed.

Each program of the simulated fleet is a `Process`: whatever it started, tasks and timers alike, carries it in its
context. A process that is killed is never run again, not even its `finally` blocks, which is what SIGKILL means; one
that is frozen (SIGSTOP) runs later what it missed. Both programs' real code is none the wiser.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import heapq
import os
import random
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")

EPOCH_S = 1_800_000_000.0
"""What `time.time` says when a run begins."""

current: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Stuck(AssertionError):  # noqa: N818 - a fact about whoever waits
    """Whoever still waits waits for ever."""


class Process:
    """A program: what it started runs only while it lives.

    Attributes:
        name: for people, with the number of its incarnation.
    """

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self._loop = loop
        self._shelf: list[asyncio.Handle] = []
        self._context = contextvars.copy_context()
        self._context.run(current.set, self)

    def __repr__(self) -> str:
        return f"<Process {self.name}{'' if self.alive else ' dead'}>"

    def context(self) -> contextvars.Context:
        """Return a context in which what is done is done by this program."""
        return self._context.copy()

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function as this program."""
        return self.context().run(function, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task of this program."""
        return self._loop.create_task(coroutine, context=self.context())

    def kill(self) -> None:
        """End it as SIGKILL does. Nothing of it runs again."""
        self.alive = False
        self._shelf.clear()

    def freeze(self) -> None:
        """Stop it as SIGSTOP does."""
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on with everything that it missed, in order."""
        self.frozen = False
        self._loop.put_ready(self._shelf)
        self._shelf = []

    def miss(self, handle: asyncio.Handle) -> None:
        """Keep what it would have run now."""
        self._shelf.append(handle)


class _Task(asyncio.Task[Any]):
    """Hashed by its number: a set of tasks has the same order in every run of a seed."""

    number = 0
    process: Process | None = None

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module's text. `steps` counts what was run."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.faults: list[str] = []
        """What a callback or a forgotten task raised."""
        self._clock_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._made = 0
        self.end_s = float("inf")
        """When a run that still goes on is stuck."""
        self.work_s: Callable[[], float] = lambda: 0.001
        """How long a thread takes for what it is given."""
        self.before_work: Callable[[object], None] = lambda _: None
        """Told what a thread is about to call; what it raises, that call does."""
        self._busy_until_s: dict[object, float] = {}
        self._tasks: list[_Task] = []  # kept to the end: a coroutine that is collected runs its `finally` blocks
        self._queue: Any = self._ready  # type: ignore[attr-defined]
        self.set_exception_handler(self._on_fault)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._clock_s

    def call_soon(  # type: ignore[override]  # of the same arguments, told more simply
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Run `callback` after what is ready now."""
        handle = asyncio.Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run `callback` at a time; of several at the same, whoever asked first is first."""
        self._made += 1
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, self._made, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run `callback` after `delay` seconds."""
        return self.call_at(self._clock_s + delay, callback, *args, context=context)

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        """Start a task."""
        task = _Task(coro, loop=self, name=name, context=context)
        task.number = len(self._tasks)
        task.process = current.get() if context is None else context.get(current)
        self._tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: object, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Have a thread of the process call `function`: one thing after the other, each in its time.

        When the process is killed, what was done stays done, and what was not never is.
        """
        future = self.create_future()
        at_s = max(self._busy_until_s.get(executor, 0.0), self._clock_s + self.work_s())
        self._busy_until_s[executor] = at_s
        self.call_at(at_s, self._work, future, functools.partial(function, *args))
        return future

    def _work(self, future: asyncio.Future[Any], function: functools.partial[Any]) -> None:
        told: Callable[[], None]
        try:
            self.before_work(function.func)
            told = functools.partial(_resolve, future, function(), None)
        except Exception as error:  # noqa: BLE001 - it is handed over
            told = functools.partial(_resolve, future, None, error)
        self.call_later(self.work_s() / 10, told)

    def put_ready(self, handles: list[asyncio.Handle]) -> None:
        """Run these after what is ready now."""
        self._queue.extend(handles)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end, and drop everything else; raises what it raises, and Stuck."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done():
                self._turn()
            result: T = task.result()
            return result
        finally:
            self._drop_all()
            asyncio._set_running_loop(None)
            self.close()

    def _turn(self) -> None:
        queue, timers = self._queue, self._timers
        if not queue:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("nothing is ready, and no timer is set")
            self._clock_s = max(self._clock_s, timers[0][0])
            if self._clock_s > self.end_s:
                raise Stuck(f"it goes on after {self.end_s:g} s")
        while timers and timers[0][0] <= self._clock_s:
            queue.append(heapq.heappop(timers)[2])
        for _ in range(len(queue)):
            handle = queue.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(current)
            if process is not None and (not process.alive or process.frozen):
                if process.alive:
                    process.miss(handle)
                continue
            self.steps += 1
            handle._run()

    def _on_fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(f"{context['message']}: {error!r}")

    def _drop_all(self) -> None:
        """Unwind what still waits. The dead run their `finally` blocks now, when nobody is left to notice."""
        for task in self._tasks:
            unseen = task._log_traceback and (task.process is None or task.process.alive)
            if task.done() and not task.cancelled() and (error := task.exception()) is not None and unseen:
                self.faults.append(f"a task failed: {error!r}")
        self.set_exception_handler(lambda *_: None)
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            if not task.done():
                coroutine: Any = task.get_coro()
                with contextlib.suppress(BaseException):
                    for _ in range(_MOST_AWAITS):  # `close` would complain of those who wait in a `finally`
                        coroutine.throw(_Unwound())
        self._tasks.clear()
        self._timers.clear()


def _resolve(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


class _Unwound(BaseException):
    """Unwinds a coroutine that nobody will run again."""


_MOST_AWAITS = 50
"""Of one coroutine while it is unwound."""


@contextlib.contextmanager
def clocks(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Have the clocks tell the loop's time, and everything random follow from the seed."""
    chaos = random.Random(f"os {seed}")
    kept = time.monotonic, time.time, os.urandom, random.getstate(), gc.isenabled()
    time.monotonic = loop.time
    time.time = lambda: EPOCH_S + loop.time()
    os.urandom = chaos.randbytes
    random.seed(seed)
    gc.disable()  # it costs a third of the time, and a run is short
    try:
        yield
    finally:
        time.monotonic, time.time, os.urandom = kept[:3]
        random.setstate(kept[3])
        if kept[4]:
            gc.enable()
