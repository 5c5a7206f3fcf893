"""The pools of one profile: which of its zygotes a piece of code gets its sandbox from.

What a zygote has imported every one of its forks pays for, used or not: page tables to copy, pages to fault in. So
there are two. The *bare* one has next to nothing loaded and suits code that neither imports nor awaits, as much of what
agents send does not. The *full* one has what most other code needs, which then costs nothing to import. Choosing wrong
costs a few milliseconds, never a failure: either sandbox can run anything.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pool import Pool, Taker

_FULL_HINTS = ("import", "await", "async")
"""Any of these anywhere in the code, be it in a string, chooses the full pool: looking closer would be parsing."""


class Pools:
    """A bare and a full pool, started and stopped as one."""

    def __init__(self, bare: Pool, full: Pool) -> None:
        self._bare = bare
        self._full = full
        self._both = (bare, full)

    def __repr__(self) -> str:
        return f"<Pools bare={self._bare!r} full={self._full!r}>"

    @property
    def ready(self) -> bool:
        """Whether each pool has a warm sandbox."""
        return all(pool.warm for pool in self._both)

    @property
    def warm(self) -> int:
        """Sandboxes that wait for code."""
        return sum(pool.warm for pool in self._both)

    @property
    def live(self) -> int:
        """Sandboxes that exist, taken ones included."""
        return sum(pool.live for pool in self._both)

    @property
    def cold_starts(self) -> int:
        """Sandboxes that a session had to wait for."""
        return sum(pool.cold_starts for pool in self._both)

    async def start(self) -> None:
        """Start both; raises SandboxError naming the step that failed, with neither left running."""
        results = await asyncio.gather(*(pool.start() for pool in self._both), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            await self.stop()
            raise failures[0]

    async def stop(self) -> None:
        """End every sandbox; returns when they are gone."""
        await asyncio.gather(*(pool.stop() for pool in self._both))

    def take(self, taker: Taker, code: str) -> None:
        """Give `taker` a sandbox that suits `code`: at once if one is warm, else as soon as one is made."""
        full = any(hint in code for hint in _FULL_HINTS)
        (self._full if full else self._bare).take(taker)

    def forget(self, taker: Taker) -> None:
        """Stop looking for a sandbox for `taker`."""
        for pool in self._both:
            pool.forget(taker)
