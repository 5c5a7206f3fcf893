"""How one call is run.

What a tool does wrong is a value here: an error the guest can catch. Nothing a tool raises reaches the broker.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from enclave_protocol import Code, tool_calls
from enclave_protocol.limits import MAX_VALUE_BYTES

from .threads import Threads
from .tool import ArgumentsRefused, ToolContext

if TYPE_CHECKING:
    from enclave_protocol import ToolResult

    from .registry import ToolRegistry


class ToolRunner:
    """Runs calls. Owns the threads for plain functions.

    Args:
        registry: the tools.
        threads: most plain functions that run at once.
    """

    def __init__(self, registry: ToolRegistry, *, threads: int) -> None:
        self.registry = registry
        self._threads = Threads(threads)

    async def run(self, name: str, args: object, context: ToolContext, *, max_bytes: int) -> ToolResult:
        """Run one call to its end and return what to tell the guest. Raises only CancelledError."""
        found = self.registry.get(name)
        if found is None:
            known = ", ".join(self.registry.names()) or "none"
            return failed(context, Code.UNKNOWN_TOOL, f"no tool {name!r} (tools: {known})")
        try:
            accepted = found.accept(args)
            value = await found.invoke(accepted, dataclasses.replace(context, threads=self._threads))
        except ArgumentsRefused as refused:
            return failed(context, refused.code, refused.message)
        except asyncio.CancelledError:
            # Either the session ended, and this task was cancelled; or the tool let a cancellation of its own escape.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return failed(context, Code.EXECUTION_ERROR, "CancelledError")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool may raise anything, and the guest is told
            return tool_calls.raised(context.session_id, context.call_id, error)
        most = min(max_bytes, MAX_VALUE_BYTES)  # configured limits, unlike requested ones, may be larger than a frame
        return tool_calls.succeeded(context.session_id, context.call_id, name, value, max_bytes=most)

    def close(self) -> None:
        """Let the threads go. One that is stuck in a tool is left behind; it keeps no program from ending."""
        self._threads.close()


def failed(context: ToolContext, code: str, message: str) -> ToolResult:
    """Return the failure of a call."""
    return tool_calls.failed(context.session_id, context.call_id, code, message)
