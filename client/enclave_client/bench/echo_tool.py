"""The tool whose round trip is measured: it does nothing, so that only the way there and back is left."""

from __future__ import annotations

from enclave_broker import tool


@tool(description="Answer with what was sent.")
async def bench_echo(value: int) -> int:
    """Return `value`."""
    return value
