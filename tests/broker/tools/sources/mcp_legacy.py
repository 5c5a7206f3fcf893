"""An MCP server as they were before 2026, by hand: it starts at once, and misbehaves when told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

TOOLS: list[dict[str, Any]] = [
    {"name": "echo", "description": "Say it again", "inputSchema": {"type": "object"}},
    {"name": "bad one", "inputSchema": {"type": "object", "properties": {"x": {"type": "moon"}}}},
]


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def call(number: object, arguments: dict[str, Any]) -> None:
    """Do what is asked for, and give the arguments back."""
    if "die" in arguments:
        sys.stderr.write("the last words, with " + os.environ.get("TOKEN", "no token"))
        sys.stderr.flush()
        os._exit(3)
    if "silence" in arguments:
        return
    if "hang" in arguments:
        time.sleep(600)
    if "flood" in arguments:
        while True:
            sys.stdout.write("x" * 65_536)
    if "noise" in arguments:
        sys.stdout.write("this is no JSON\n")
    if "learn" in arguments:
        TOOLS.append({"name": arguments["learn"], "inputSchema": {"type": "object"}})
        send({"method": "notifications/tools/list_changed"})
    if "child" in arguments:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        arguments = {"child": child.pid, "own": os.getpid(), "supervisor": os.getppid()}
    content = [{"type": "text", "text": json.dumps(arguments)}]
    if "image" in arguments:
        content.append({"type": "image", "data": "AAAA", "mimeType": "image/png"})
    send({"id": number, "result": {"content": content if "nothing" not in arguments else []}})


def main() -> None:
    if "--deaf" in sys.argv:
        time.sleep(600)
    for line in sys.stdin:
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        if method == "initialize":
            capabilities = {"tools": {"listChanged": True}}
            info = {"name": "legacy", "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": info}
            send({"id": number, "result": result})
        elif method == "tools/list":
            send({"id": number, "result": {"tools": TOOLS}})
        elif method == "tools/call":
            call(number, message["params"].get("arguments") or {})
        elif number is not None:
            send({"id": number, "error": {"code": -32601, "message": "no such method"}})


main()
