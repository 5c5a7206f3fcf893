"""The broker's tools in the chaos run. One writes down each of its runs, for it may have only one of each call."""

from __future__ import annotations

import asyncio
import os

from enclave_broker import tool

from .work import answer

RUNS_FILE = "CHAOS_RUNS_FILE"
"""Variable with the file that gets a line for each run of `chaos_once`."""
TOOK_S = 0.05


@tool(retryable=True)
async def chaos_answer(key: str, n: int) -> str:
    """Answer after a while; running it twice harms nobody."""
    await asyncio.sleep(TOOK_S)
    return answer(key, n)


@tool
async def chaos_once(key: str, n: int) -> str:
    """Answer after a while; running it twice for one call would be a fault."""
    # One write of one short line: whole, or not there, also if the broker dies in this very moment.
    fd = os.open(os.environ[RUNS_FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, f"{key} {n}\n".encode())
    finally:
        os.close(fd)
    await asyncio.sleep(TOOK_S)
    return answer(key, n)
