"""Tool calls answered by functions of the program that embeds a worker.

A tool is an async function, awaited on the worker's loop, or a plain one, run in a thread of its own. What a tool
raises reaches the guest as an error, never the worker. How arguments fit is said in `enclave_protocol.tool_calls`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from typing import TYPE_CHECKING, Any

from enclave_protocol import Code, RemoteProtocolError, tool_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from enclave_protocol import ToolResult
    from enclave_protocol.events import ToolCall

    from .sessions import Sessions

    Tools = Mapping[str, Callable[..., Any]]

log = logging.getLogger("enclave.worker")


async def answer(sessions: Sessions, call: ToolCall, tools: Tools) -> None:
    """Run the tool that `call` names, and give the guest its result or its error."""
    result = await _run(call, tools)
    try:
        sessions.tool_result(result)
    except RemoteProtocolError as error:
        log.debug("the result of tool %s came too late: %s", call.payload.tool_name, error)


async def _run(call: ToolCall, tools: Tools) -> ToolResult:
    name = call.payload.tool_name
    tool = tools.get(name)
    if tool is None:
        return _failed(call, Code.UNKNOWN_TOOL, f"no tool {name!r} (tools: {', '.join(sorted(tools)) or 'none'})")
    try:
        bound = tool_calls.bind(tool_calls.signature_of(tool), call.payload.args)
    except TypeError as error:
        return _failed(call, Code.VALIDATION_ERROR, f"{name}: {error}")
    try:
        if inspect.iscoroutinefunction(tool):
            value = await tool(*bound.args, **bound.kwargs)
        else:
            value = await _in_thread(lambda: tool(*bound.args, **bound.kwargs))
            if inspect.isawaitable(value):  # an async function in disguise, such as an object's __call__
                value = await value
    except asyncio.CancelledError:
        # Either the session ended, and this task was cancelled; or the tool let a cancellation of its own escape.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return _failed(call, Code.EXECUTION_ERROR, "CancelledError")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool may raise anything, and the guest is told
        return tool_calls.raised(call.session_id, call.payload.call_id, error)
    return tool_calls.succeeded(call.session_id, call.payload.call_id, name, value)


def _failed(call: ToolCall, code: str, message: str) -> ToolResult:
    return tool_calls.failed(call.session_id, call.payload.call_id, code, message)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Run a plain function in a daemon thread: at most `maxToolCalls` of them for one session.

    Not the loop's executor: that is joined when the loop closes, so one tool that never returns would keep the program
    from ending. Cancelled, it leaves the thread behind; a thread can't be stopped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def work() -> None:
        value, error = tool_calls.attempt(function)
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:
            log.debug("a tool returned after the worker's loop was closed")

    threading.Thread(target=work, name="enclave-tool", daemon=True).start()
    return await future
