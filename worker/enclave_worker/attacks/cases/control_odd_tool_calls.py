# attempts: tool calls with odd names, arguments and numbers, and some that nobody waits for
# layer: frames checked and bounded
# category: control socket
# outcomes: OK
# evidence: names, arguments, unknown, abandoned, still served
# host: unchanged
import asyncio

for name in ("", "../../etc/passwd", "x" * 256, "__class__", "look", "\0", "echo\n"):
    try:
        await call_tool(name, {})
        breach("names", name)
    except (ToolError, TypeError, ValueError) as error:
        held("names", type(error).__name__)
for arguments in ([1] * 3, "text", {"self": 1, "tools": 2, "__class__": 3}, 10**40, {"": None}):
    try:
        held("arguments", repr(await call_tool("echo", arguments))[:80])
    except (ToolError, TypeError, ValueError) as error:
        held("arguments", type(error).__name__)
try:
    await call_tool("exec", {"code": "1"})
    breach("unknown", "it answered")
except ToolError as error:
    held("unknown", error.code)
tasks = [asyncio.ensure_future(call_tool("big", {"size": 1000})) for _ in range(10)]
await asyncio.sleep(0)
for task in tasks:
    task.cancel()
held("abandoned")
answer = await call_tool("echo", {"still": True})
(held if answer == {"still": True} else breach)("still served", answer)
