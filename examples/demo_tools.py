"""The application's side of the demo: two tools that guest code may call.

Give them to a broker with `enclave up --tools demo_tools`, in this directory. They run in the broker: the key below is
theirs, and never enters a sandbox.
"""

from __future__ import annotations

import asyncio
import os

from enclave_broker import tool

API_KEY = os.environ.get("DEMO_KEY", "")
CENTS = {"apple": 40, "pear": 55, "plum": 15}


@tool(description="What one piece of fruit costs.")
async def price(item: str) -> dict[str, int]:
    """Look up a price; takes as long as a real service would."""
    await asyncio.sleep(0.2)
    return {"cents": CENTS[item]}


@tool(description="Place an order.")
def order(basket: dict[str, int], total_cents: int) -> dict[str, object]:
    """Place the order with the key that only the application has."""
    return {"number": 1001, "pieces": sum(basket.values()), "paid_cents": total_cents, "authorized": bool(API_KEY)}
