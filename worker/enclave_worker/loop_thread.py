"""An event loop in a thread of its own, for programs that have none.

The thread lives until `stop`: the kernel ends a worker's zygote with the thread that started it, so a thread that came
and went with each call would take every sandbox along. It is a daemon thread: a program that ends without `stop` is
not kept, and the kernel ends the sandboxes with it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from enclave_protocol import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_LOOP_CHECK_S = 1.0
"""How often a waiting thread makes sure that the loop it waits for still exists."""


class LoopThread:
    """Starts its thread at once; `stop` ends it."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="enclave-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop and its thread; what still runs there is cancelled."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.get_loop().run_forever()


def call_in(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in another thread's loop and wait for it here. Interrupted, it cancels the coroutine.

    Raises:
        RuntimeError: this thread runs that very loop, so the wait would never end.
        LocalProtocolError: the loop is closed, or was before the coroutine ended.
    """
    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("a blocking call in the worker's own event loop would wait for ever: await the async one")
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        raise _stopped() from None
    try:
        while not concurrent.futures.wait([future], timeout=_LOOP_CHECK_S).done:
            if loop.is_closed():
                raise _stopped()
        return future.result()
    except concurrent.futures.CancelledError:
        raise _stopped() from None
    finally:
        future.cancel()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _stopped() -> LocalProtocolError:
    return LocalProtocolError("the worker was stopped", field="state", allowed="start_sync() or start() first")
