"""The threads in which blocking tools run: a bounded number, made when needed.

Theory of operation. A thread can't be stopped, so a tool that never returns keeps its thread. When the call it runs
for is given up (cancelled), the thread counts as abandoned and another may be made in its place, up to
`MAX_ABANDONED`; when its function returns after all, there may be one thread too many, and it ends. Beyond that number
calls wait for a thread, in a bounded queue, until their time is over: the broker is never held up, and its memory
never grows without bound.

Not concurrent.futures: its threads are joined when the interpreter ends, so one tool that never returns would keep the
whole program from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from enclave_protocol import Code, tool_calls

from .tool import ToolFailure

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_QUEUED_CALLS = 1000
"""Calls that may wait for a thread."""
MAX_ABANDONED = 64
"""Threads stuck in calls that were given up, for which others are made."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ThreadStatistics:
    """How many threads there are, and how many calls wait for one."""

    busy: int
    idle: int
    abandoned: int
    queued: int


@dataclass(slots=True, eq=False)
class _Job:
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    started: bool = field(default=False)
    abandoned: bool = field(default=False)


class Threads:
    """At most `limit` daemon threads, and `MAX_ABANDONED` more for those that are stuck.

    Args:
        limit: calls that run at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._idle = 0
        self._count = 0
        self._abandoned = 0
        self._closed = False

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread and return its value.

        Cancelled while it waits for a thread, it ends at once. Cancelled while the function runs, it ends when the
        function does, or when the threads are closed: until then, whoever counts running calls counts this one.

        Raises:
            ToolFailure: `NO_CAPACITY`, too many wait already.
        """
        job = _Job(function, asyncio.get_running_loop().create_future())
        with self._lock:
            if len(self._jobs) >= MAX_QUEUED_CALLS:
                message = f"{MAX_QUEUED_CALLS} tool calls wait for a thread already"
                raise ToolFailure(Code.NO_CAPACITY, message, retryable=True)
            self._jobs.append(job)
            self._find_thread()
        try:
            # The future is this call's alone; shielded, so that a cancellation does not look like its end.
            value: T = await asyncio.shield(job.future)
        except asyncio.CancelledError:
            if not job.future.done() and self._give_up(job):
                await asyncio.wait([job.future])
            raise
        return value

    def statistics(self) -> ThreadStatistics:
        """Return what they do."""
        with self._lock:
            busy = len(self._running) - self._abandoned
            return ThreadStatistics(busy, self._idle, self._abandoned, len(self._jobs))

    def close(self) -> None:
        """Let the threads go. One that is stuck is left behind: it keeps no program from ending."""
        with self._lock:
            self._closed = True
            waiting = [*self._jobs, *self._running]
            self._jobs.clear()
            self._lock.notify_all()
        for job in waiting:
            job.future.cancel()

    def _find_thread(self) -> None:
        if self._idle >= len(self._jobs):
            self._lock.notify()
        elif self._count < self._limit + min(self._abandoned, MAX_ABANDONED):
            self._count += 1
            threading.Thread(target=self._work, name="enclave-tool", daemon=True).start()

    def _give_up(self, job: _Job) -> bool:
        """Note that nobody wants the outcome; returns whether the function runs."""
        with self._lock:
            if not job.started:
                self._jobs.remove(job)
                return False
            job.abandoned = True
            self._abandoned += 1
            if self._jobs:
                self._find_thread()
            return True

    def _work(self) -> None:
        while (job := self._take()) is not None:
            value, error = tool_calls.attempt(job.function)
            surplus = self._finished(job)
            _settle(job.future, value, error)
            if surplus:
                return

    def _take(self) -> _Job | None:
        with self._lock:
            self._idle += 1
            while not self._jobs and not self._closed:
                self._lock.wait()
            self._idle -= 1
            if self._closed:
                self._count -= 1
                return None
            job = self._jobs.popleft()
            job.started = True
            self._running.add(job)
            return job

    def _finished(self, job: _Job) -> bool:
        """Note that the job is done; returns whether this thread is one too many."""
        with self._lock:
            self._running.discard(job)
            self._abandoned -= job.abandoned
            surplus = self._count > self._limit + min(self._abandoned, MAX_ABANDONED)
            self._count -= surplus
            return surplus


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    try:
        future.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more
