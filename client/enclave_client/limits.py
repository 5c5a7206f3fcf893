"""Limits of a session as the library's callers say them: seconds and megabytes, and only those that they mean."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one session may use. None leaves a limit to the profile and the broker."""

    timeout_s: float | None = None
    """Longest run of the code, tool calls included. At its end: `DEADLINE_EXCEEDED`."""
    memory_mb: float | None = None
    """Memory of the sandbox, in MiB; more than the worker's own limit cannot be had. At its end:
    `MEMORY_LIMIT_EXCEEDED`."""
    cpu_s: float | None = None
    """Processor time of the sandbox; the worker's own limit holds too. At its end: `CPU_LIMIT_EXCEEDED`."""
    max_tool_calls: int | None = None
    """The next one fails with `MAX_TOOL_CALLS_EXCEEDED`."""
    tool_timeout_s: float | None = None
    """Longest wait for one tool call. At its end the code gets `TOOL_TIMEOUT`."""
    max_stdout_bytes: int | None = None
    """Output that is passed on, and as much of stderr. The rest is cut and marked."""
    max_result_bytes: int | None = None
    """Largest result, as JSON text. A larger one: `RESULT_TOO_LARGE`."""
    max_tool_result_bytes: int | None = None
    """Largest value that a tool may return, as JSON text."""
    heartbeat_s: float | None = None
    """Time between `heartbeat` events; 0 sends none."""
    cancel_on_first_error: bool | None = None
    """Whether the first tool error also fails the calls that are still waiting."""

    def on_the_wire(self) -> dict[str, Any]:
        """Return those that are set, by their names on the wire, in its units."""
        wire: dict[str, Any] = {}
        for name, (targets, factor) in _WIRE.items():
            value = getattr(self, name)
            if value is not None:
                wire |= dict.fromkeys(targets, value if factor == 1 else _scaled(value, factor))
        return wire


def _scaled(value: object, factor: int) -> object:
    """Return the value in the wire's unit; what is no number is refused there, with the limit's name."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return round(value * factor)
    return str(value)


# A timeout sets both wall limits: the smaller of them holds, and either may have a default.
_WIRE: dict[str, tuple[tuple[str, ...], int]] = {
    "timeout_s": (("deadlineMs", "sessionTtlMs"), 1000),
    "memory_mb": (("memoryLimitBytes",), MIB),
    "cpu_s": (("cpuTimeMs",), 1000),
    "max_tool_calls": (("maxToolCalls",), 1),
    "tool_timeout_s": (("toolTimeoutMs", "perToolDeadlineMs"), 1000),
    "max_stdout_bytes": (("maxStdoutBytes",), 1),
    "max_result_bytes": (("maxResultBytes",), 1),
    "max_tool_result_bytes": (("maxToolResultBytes",), 1),
    "heartbeat_s": (("heartbeatIntervalMs",), 1000),
    "cancel_on_first_error": (("cancelOnFirstError",), 1),
}
assert list(_WIRE) == [field.name for field in dataclasses.fields(Limits)], "every limit has a name on the wire"
