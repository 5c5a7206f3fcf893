"""What small sessions cost beside guests who take all they can get: the figures of `neighbours`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from .figures import Figure, at_most, percentile, spread
from .hostile import NEIGHBOURS
from .load import SUM, create_body, first

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .load import Load
    from .phases import Plan

BLOCK_SESSIONS = 50
LIFE_MS = 2000
"""How long a neighbour lives; one that has ended is replaced by another."""
MAX_RATIO = 2.0
_BEGUN = b'"stdout"'


async def neighbours(load: Load, plan: Plan) -> list[Figure]:
    """Measure sessions one at a time, alone and beside all hostile neighbours at once, in turn."""
    alone_ms: list[float] = []
    beside_ms: list[float] = []
    body = create_body(SUM)
    for _ in range(max(1, plan.rounds // 4)):
        alone_ms += await load.one_by_one(body, BLOCK_SESSIONS)
        async with _neighbours(load):
            beside_ms += await load.one_by_one(body, BLOCK_SESSIONS)
    return _figures(alone_ms, beside_ms)


@contextlib.asynccontextmanager
async def _neighbours(load: Load) -> AsyncIterator[None]:
    """Keep every neighbour running; enters when all of them have begun, leaves when all have ended."""
    leave = asyncio.Event()
    begun = [asyncio.Event() for _ in NEIGHBOURS]
    try:
        async with asyncio.TaskGroup() as group:
            for code, event in zip(NEIGHBOURS.values(), begun, strict=True):
                group.create_task(_keep_running(load, code, event, leave))
            for event in begun:
                await event.wait()
            try:
                yield
            finally:
                leave.set()
    except BaseExceptionGroup as errors:  # of the block too
        raise first(errors) from None


async def _keep_running(load: Load, code: str, begun: asyncio.Event, leave: asyncio.Event) -> None:
    body = msgspec.json.encode({"code": code, "limits": {"deadlineMs": LIFE_MS}})
    try:
        while not leave.is_set():
            async with load.connection() as connection:
                await connection.post_until("/sessions", body, _BEGUN)
                begun.set()
                await connection.rest()
    except OSError as error:  # a timeout is one
        load.fail(f"a neighbour: {type(error).__name__} {error}")
    finally:
        begun.set()  # whoever waits for it must not wait for ever


def _figures(alone_ms: list[float], beside_ms: list[float]) -> list[Figure]:
    figures = []
    for percent in (50, 99):
        alone, beside = percentile(alone_ms, percent), percentile(beside_ms, percent)
        said = f"alone: {alone:.2f} ms, so {beside / alone:.1f} times that; {len(beside_ms)} sessions"
        name, title = f"neighbours_p{percent}", f"beside hostile neighbours, p{percent}"
        detail = {"ratioToAlone": round(beside / alone, 3), "alone": spread(alone_ms), "beside": spread(beside_ms)}
        if percent == 50:
            target = f"at most {MAX_RATIO:g} times alone = {MAX_RATIO * alone:.2f}"
            figures.append(
                at_most(name, title, beside, "ms", MAX_RATIO * alone, target=target, compared_with=said, detail=detail)
            )
        else:
            figures.append(Figure(name=name, title=title, value=beside, unit="ms", compared_with=said, detail=detail))
    return figures
