"""A tool that keeps its caller waiting, so that any number of sessions can be alive at once, and all end together."""

from __future__ import annotations

import asyncio

from enclave_broker import tool


class _Gate:
    """Where calls wait; opened, it lets all of them through, and the next ones wait again."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    async def wait(self) -> None:
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()
        self._opened = asyncio.Event()


_gate = _Gate()


@tool(description="Wait until bench_release is called.")
async def bench_hold() -> int:
    """Return 2, once it is let go."""
    await _gate.wait()
    return 2


@tool(description="Let go of all that bench_hold keeps waiting.")
async def bench_release() -> int:
    """Return 2."""
    _gate.open()
    return 2
