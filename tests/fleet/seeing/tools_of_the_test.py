"""Tools of the broker that these tests watch, one of which tells a secret."""

from __future__ import annotations

import logging

from enclave_broker import ToolContext, tool


@tool
def add(a: int, b: int) -> int:
    return a + b


@tool(secrets=["KEY"])
def tell(context: ToolContext) -> str:
    logging.getLogger("some.library").warning("it is %s", context.secrets["KEY"])
    return "told"


@tool(timeout_ms=50)
async def never() -> None:
    import asyncio  # noqa: PLC0415 - a tool's own

    await asyncio.Event().wait()
