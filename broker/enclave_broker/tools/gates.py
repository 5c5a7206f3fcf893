"""Caps on how many calls of one tool run at once; the others wait their turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from enclave_protocol import Code

from .tool import ToolFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .tool import Tool

MAX_WAITING = 1000
"""Calls of one tool that may wait for their turn."""


class Gates:
    """One gate per tool that has a cap, for as long as calls of it run or wait."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}

    @contextlib.asynccontextmanager
    async def entered(self, tool: Tool) -> AsyncIterator[None]:
        """Hold one of the tool's places, in the order of asking.

        By name: a tool that was replaced while calls of it run shares their places with its successor.

        Raises:
            ToolFailure: `NO_CAPACITY`, too many wait already.
        """
        cap = tool.policy.max_concurrency
        if cap is None:
            yield
            return
        gate = self._gates.setdefault(tool.name, _Gate())
        try:
            await gate.enter(cap, tool.name)
            try:
                yield
            finally:
                gate.leave()
        finally:
            if gate.idle and self._gates.get(tool.name) is gate:
                del self._gates[tool.name]


class _Gate:
    def __init__(self) -> None:
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    async def enter(self, cap: int, name: str) -> None:
        if self._running < cap and not self._waiting:
            self._running += 1
            return
        if len(self._waiting) >= MAX_WAITING:
            message = f"{name}: {cap} calls of it run, and {MAX_WAITING} wait"
            raise ToolFailure(Code.NO_CAPACITY, message, retryable=True)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the turn came and the cancellation with it: pass it on
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        # A turn is handed over: the count stays as it is, so that nobody can slip in between.
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1
