"""One call of a tool, without a broker around it."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_broker import Secrets, Tool
from enclave_broker.tools import Call, FunctionTool, ToolPolicy, ToolRunner
from enclave_broker.tools.references import References

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from enclave_broker.tools import ApprovalHook
    from enclave_protocol import ToolResult


@contextlib.contextmanager
def running(
    *, secrets: Mapping[str, str] | None = None, approve: ApprovalHook | None = None, ref_bytes: int = 1000
) -> Iterator[ToolRunner]:
    """A runner for the length of a `with` block."""
    stored = References(session_bytes=ref_bytes, total_bytes=2 * ref_bytes)
    runner = ToolRunner(Secrets(secrets), stored, approve, threads=2)
    try:
        yield runner
    finally:
        runner.close()


def new_call(tool: Any, args: Any = None, *, max_bytes: int = 1000, time_s: float = 60, **policy: Any) -> Call:
    """Return a call of a tool, or of a function, by the policy given."""
    if not isinstance(tool, Tool):
        tool = FunctionTool(tool, name="t", policy=ToolPolicy(**policy))
    deadline = time.monotonic() + time_s
    return Call(tool=tool, args=args, session_id="s_1", call_id="c_1", max_result_bytes=max_bytes, deadline=deadline)


def outcome(result: ToolResult) -> Any:
    """Return a call's value, or (code, message)."""
    if result.success:
        return json.loads(bytes(result.value))  # type: ignore[arg-type]
    error = msgspec.to_builtins(result.error)
    return error["code"], error["message"]


async def call(tool: Any, args: Any = None, *, max_bytes: int = 1000, **policy: Any) -> Any:
    """Run one call; returns its value, or (code, message)."""
    with running() as runner:
        return outcome(await runner.run(new_call(tool, args, max_bytes=max_bytes, **policy)))
