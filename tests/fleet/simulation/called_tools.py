"""What guests of a run call: tools that answer at once, slowly, with an error, or the second time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclave_broker.tools.functions import FunctionTool
from enclave_broker.tools.tool import ToolContext, ToolFailure, ToolPolicy

if TYPE_CHECKING:
    from .world import World

the_world: list[World] = []
"""The one that runs: tools are made once, and belong to all."""


async def _echo(context: ToolContext, number: int) -> int:
    _called("echo", context)
    return number


async def _slow(context: ToolContext, number: int) -> int:
    _called("slow", context)
    await asyncio.sleep(the_world[-1].rng.choice((0.05, 0.5, 2.0)))
    return number


async def _fails(context: ToolContext, number: int) -> int:
    _called("fails", context)
    raise ToolFailure("NOT_TODAY", f"no {number}")


async def _again(context: ToolContext, number: int) -> int:
    _called("again", context)
    if the_world[-1].rng.random() < 0.5:
        raise ToolFailure("LATER", "try again", retryable=True)
    return number


async def _extra() -> int:
    return 0


def _called(name: str, context: ToolContext) -> None:
    world = the_world[-1]
    world.truth.tool_calls[name, context.call_id] += 1


_FUNCTIONS = {"echo": _echo, "slow": _slow, "fails": _fails, "again": _again}
TOOLS = [
    FunctionTool(function, name=name, policy=ToolPolicy(retryable=name == "again"))
    for name, function in _FUNCTIONS.items()
]
EXTRA = FunctionTool(_extra, name="extra")
