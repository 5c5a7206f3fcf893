"""A time limit for what is mostly done at once: it costs nothing unless there is something to wait for."""

from __future__ import annotations

import asyncio
import functools
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator


async def within(timeout_s: float, step: Awaitable[None]) -> None:
    """Await something for so long; raises TimeoutError, and what it raises.

    Nearly every write to a client is taken at once, and a timer for each is a good part of what it costs. So the step
    is begun here, and the timer set only if it stops to wait.
    """
    begun = step.__await__()
    try:
        awaited = next(begun)
    except StopIteration:
        return
    async with asyncio.timeout(timeout_s):
        await _rest(begun, awaited)


@types.coroutine
def _rest(begun: Generator[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """Go on with what waits for `awaited`, as `yield from` would if it had not been begun."""
    while True:
        try:
            sent = yield awaited
        except BaseException as error:  # noqa: BLE001 - a cancellation is for whoever waits
            going_on = functools.partial(begun.throw, error)
        else:
            going_on = functools.partial(begun.send, sent)
        try:
            awaited = going_on()
        except StopIteration:
            return
