"""An event loop in a thread of the library's own, for callers that have none.

Theory of operation. The loop's thread is a daemon: a program that ends without `close` is not kept. A caller waits in
its own thread for a coroutine in the loop; interrupted by Ctrl-C, it cancels the coroutine, which ends its session, and
waits a little for that to happen.

A process that is forked has the memory of this but not the thread, and its copies of the loop's descriptors are the
parent's connections. So a child must touch none of it, not even by collecting it as garbage: `_after_fork_in_child`
keeps what it inherited out of reach for good, and the child's first use starts a thread of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")

INTERRUPT_GRACE_S = 2.0
"""How long an interrupted wait stays, so that the session can be told to end."""
_CHECK_S = 1.0
"""How often a waiting thread makes sure that the loop still runs."""


class LoopThread:
    """A loop in a daemon thread, from the first `call` to `close`, or until nobody has this any more.

    Args:
        on_forgotten: called in a forked process, which has to begin anew.
    """

    def __init__(self, *, on_forgotten: weakref.WeakMethod[Callable[[], None]]) -> None:
        self._on_forgotten = on_forgotten
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        _ALL.add(self)

    def call(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in the loop, and wait for it here. Interrupted, it cancels that and waits for it.

        Raises:
            RuntimeError: the loop was closed, or this is its own thread, which would wait for itself.
        """
        # Its coroutine is made in the loop: Ctrl-C may come between any two steps here, and would leave one unawaited.
        loop = self._started()
        call = _Call(loop, functools.partial(function, *args, **kwargs))
        try:
            call.start()
            while not concurrent.futures.wait([call.outcome], timeout=_CHECK_S).done and not loop.is_closed():
                pass
        except BaseException:
            call.cancel()
            concurrent.futures.wait([call.outcome], timeout=INTERRUPT_GRACE_S)
            raise
        if not call.outcome.done() or call.outcome.cancelled():
            raise RuntimeError(_CLOSED)
        return call.outcome.result()

    def close(self) -> None:
        """End the loop and its thread; what still runs there is cancelled. Safe to call again."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            _stop(loop)
            thread.join()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def running(self) -> bool:
        """Whether there is a thread."""
        return self._loop is not None

    def forget(self) -> None:
        """Let go of a thread that this process does not have."""
        self._lock = threading.Lock()
        if self._loop is None:
            return
        keep_for_ever((self._loop, self._thread))
        self._loop = self._thread = None
        renew = self._on_forgotten()
        if renew is not None:
            renew()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError(_CLOSED)
            if threading.current_thread() is self._thread:
                raise RuntimeError("a blocking call in an async tool would wait for itself: use AsyncClient there")
            if self._loop is None:
                self._loop = loop = uvloop.new_event_loop()
                self._thread = threading.Thread(target=_serve, args=(loop,), name="enclave-client", daemon=True)
                self._thread.start()
                weakref.finalize(self, _stop, loop).atexit = False
            return self._loop


class _Call(Generic[T]):
    """An async function on its way through another thread's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = loop
        self._function = function
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        """Have it run in a copy of this thread's context."""
        try:
            self._loop.call_soon_threadsafe(self._start)
        except RuntimeError:
            raise RuntimeError(_CLOSED) from None

    def cancel(self) -> None:
        """Cancel it; `outcome` is there when it has ended, which a cancelled future would not wait for."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:  # the loop is closed, with all that ran there
            self._ended_early()

    def _start(self) -> None:
        self._task = self._loop.create_task(self._function())
        self._task.add_done_callback(self._ended)

    def _cancel(self) -> None:
        if self._task is None:  # its caller was interrupted before it could begin
            self._ended_early()
        else:
            self._task.cancel()

    def _ended_early(self) -> None:
        self.outcome.cancel()
        self.outcome.set_running_or_notify_cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._ended_early()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(loop.stop)


def keep_for_ever(inherited: object) -> None:
    """Keep what a forked process must neither use nor collect."""
    _INHERITED.append(inherited)


_CLOSED = "this client was closed"
_ALL: weakref.WeakSet[LoopThread] = weakref.WeakSet()
_INHERITED: list[object] = []


def _after_fork_in_child() -> None:
    for thread in list(_ALL):
        thread.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
