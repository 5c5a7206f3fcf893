"""A real MCP server, made with the official library: a program (over its pipes) and an application (over HTTP)."""

from __future__ import annotations

import os

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("modern")


@server.tool()
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@server.tool(structured_output=False)
def say(text: str) -> str:
    """Say it."""
    return text


@server.tool()
def fail() -> str:
    raise ValueError("nothing works")


@server.tool()
def environment() -> dict[str, str]:
    return dict(os.environ)


@server.tool()
async def learn(context: Context) -> str:
    """Offer another tool from now on."""

    def learned() -> str:
        return "learned"

    server.add_tool(learned)
    await context.notify_tools_changed()
    return "ok"


@server.tool(structured_output=False)
def talk(megabytes: int) -> str:
    return "x" * (megabytes * 1024 * 1024)


if __name__ == "__main__":
    server.run()
