"""A module as `--tools` takes it."""

from __future__ import annotations

from enclave_broker import tool


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@tool("greet", description="Greet somebody")
async def greet_somebody(name: str) -> str:
    return f"hello {name}"


def not_a_tool() -> None:
    """Not offered to guests."""
