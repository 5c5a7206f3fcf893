"""`client.map`: one piece of code, many inputs.

The input travels inside the code, as `enclave_protocol.items` puts it there: as the broker's own batches do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enclave_protocol import RemoteProtocolError, items

from .errors import RequestRefused
from .request import SessionOptions, require_known

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .results import Result

DEFAULT_CONCURRENCY = 10


@dataclass(frozen=True, slots=True)
class MapItem:
    """What became of one input."""

    index: int
    """Its place among the inputs, from 0."""
    input: Any
    result: Result


def with_item(code: str, item: Any, language: str | None) -> str:
    """Return code that begins by assigning the item.

    Raises:
        RequestRefused: the item is no JSON value, or nobody knows how the language assigns.
    """
    try:
        return items.with_item(code, item, language or "python")
    except RemoteProtocolError as error:
        raise RequestRefused(error.reason, field=error.field, allowed=error.allowed) from error


class Fan:
    """The sessions of one `map` that run now. Owns a task for each.

    Args:
        run: runs one session.
        code: without its item.
        concurrency: sessions at once.
        options: for every session.

    Raises:
        RequestRefused: these make no sense.
        TypeError: there is no such option.
    """

    def __init__(
        self, run: Callable[..., Awaitable[Result]], code: str, concurrency: int, options: SessionOptions
    ) -> None:
        require_known(options, SessionOptions)
        if concurrency < 1:
            raise RequestRefused(f"concurrency: {concurrency}", field="concurrency", allowed="1 or more")
        if options.get("session_id") is not None:
            raise RequestRefused("session_id: every input has its own", field="session_id", allowed="nothing")
        self.tasks: set[asyncio.Task[MapItem]] = set()
        self._run = run
        self._code = code
        self._concurrency = concurrency
        self._options = options
        self._count = 0

    @property
    def has_room(self) -> bool:
        """Whether one more may run."""
        return len(self.tasks) < self._concurrency

    def add(self, item: Any) -> None:
        """Run the code for one more input."""
        self.tasks.add(asyncio.get_running_loop().create_task(self._one(self._count, item)))
        self._count += 1

    async def wait_one(self, beside: asyncio.Task[Any] | None = None) -> MapItem | None:
        """Wait for a session, or for the task `beside`; returns what became of one input, if one has ended.

        Raises:
            EnclaveError: what its `run` raised.
        """
        waited = self.tasks | {beside} if beside else self.tasks
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        ended = next((task for task in done if task is not beside), None)
        if ended is None:
            return None
        item: MapItem = ended.result()
        self.tasks.discard(ended)  # only now: `close` sees to one that raised
        return item

    async def close(self) -> None:
        """End what still runs."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _one(self, index: int, item: Any) -> MapItem:
        code = with_item(self._code, item, self._options.get("language"))
        return MapItem(index, item, await self._run(code, **self._options))


async def mapped(fan: Fan, inputs: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[MapItem]:
    """Yield what became of each input, in the order in which they end. An input is waited for beside what runs."""
    source = inputs if isinstance(inputs, AsyncIterable) else _asynchronous(inputs)
    items = aiter(source)
    fetching: asyncio.Task[Any] | None = None
    more = True
    try:
        while more or fan.tasks:
            if more and fan.has_room and fetching is None:
                fetching = asyncio.ensure_future(_next(items))
            ended = await fan.wait_one(fetching)
            if fetching is not None and fetching.done():
                more = (item := fetching.result()) is not _NO_MORE
                fetching = None
                if more:
                    fan.add(item)
            if ended is not None:
                yield ended
    finally:
        await fan.close()
        if fetching is not None:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)


_NO_MORE = object()


async def _next(items: AsyncIterator[Any]) -> Any:
    return await anext(items, _NO_MORE)  # no task can raise StopAsyncIteration


async def _asynchronous(inputs: Iterable[Any]) -> AsyncIterator[Any]:
    for item in inputs:
        yield item
