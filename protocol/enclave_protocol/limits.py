"""What one session may use. Names and defaults are the wire's; three aliases are the runtime documentation's."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .errors import RemoteProtocolError

Positive = Annotated[int, Meta(gt=0, le=2**53 - 1)]
NotNegative = Annotated[int, Meta(ge=0, le=2**53 - 1)]

MAX_VALUE_BYTES = 15 * 1024 * 1024
"""Largest result or tool result that can be asked for: it must fit one frame (`codec.MAX_MESSAGE_BYTES`)."""
ValueBytes = Annotated[int, Meta(gt=0, le=MAX_VALUE_BYTES)]

MAX_CODE_BYTES = 1024 * 1024
"""Largest `code`, in UTF-8 bytes. A program is larger only when it carries data, which belongs in a tool."""

ALIASES = {"timeout": "deadlineMs", "memoryLimit": "memoryLimitBytes"}
"""Names from the runtime documentation, and the limit each one sets. (`maxToolCalls` is both's.)"""


class Limits(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Limits of one session; a field left out keeps its default.

    Durations are milliseconds, sizes are bytes.
    """

    session_ttl_ms: Positive = 60_000
    """Longest life of the session, tool waits included. At its end: `DEADLINE_EXCEEDED`."""
    deadline_ms: NotNegative = 0
    """Wall deadline of the execution; 0 leaves it to `sessionTtlMs`. Alias: `timeout`."""
    max_tool_calls: Positive = 50
    """Tool calls in one session; the next one fails with `MAX_TOOL_CALLS_EXCEEDED`."""
    max_stdout_bytes: Positive = 262_144
    """Bytes of stdout that are passed on, and as many of stderr. The rest is cut and marked; nothing is killed."""
    max_result_bytes: ValueBytes = 5_242_880
    """Largest result, as JSON text. A larger one ends the session with `RESULT_TOO_LARGE`."""
    max_tool_result_bytes: ValueBytes = 5_242_880
    """Largest value a tool may return, as JSON text. A larger one reaches the guest as an error."""
    tool_timeout_ms: Positive = 30_000
    """Longest wait for one tool call. The smaller of this and `perToolDeadlineMs` holds: `TOOL_TIMEOUT`."""
    per_tool_deadline_ms: Positive = 30_000
    """See `toolTimeoutMs`."""
    heartbeat_interval_ms: NotNegative = 15_000
    """Time between `heartbeat` events; 0 sends none. The JavaScript client needs one every 30 s."""
    cancel_on_first_error: bool = False
    """Whether the first tool error also fails the other calls that are still waiting."""
    memory_limit_bytes: Positive | UnsetType = UNSET
    """Memory of the sandbox: all processes and files together, and the address space of each process. Unset leaves the
    worker's, which it can only lower. Alias: `memoryLimit`. At its end: `MEMORY_LIMIT_EXCEEDED`."""
    cpu_time_ms: Positive | UnsetType = UNSET
    """Processor time of the sandbox, all processes together. Unset leaves the worker's, which it can only lower. At its
    end: `CPU_LIMIT_EXCEEDED`."""

    @property
    def wall_ms(self) -> int:
        """The wall deadline that holds: the smaller of `sessionTtlMs` and, if set, `deadlineMs`."""
        return min(self.session_ttl_ms, self.deadline_ms) if self.deadline_ms else self.session_ttl_ms

    @property
    def tool_wait_ms(self) -> int:
        """The longest wait for one tool call that holds."""
        return min(self.tool_timeout_ms, self.per_tool_deadline_ms)

    def named(self) -> dict[str, Any]:
        """Return every limit by its name on the wire, those at their defaults too: the receiver's may be others."""
        values = {field.encode_name: getattr(self, field.name) for field in msgspec.structs.fields(self)}
        return {name: value for name, value in values.items() if value is not UNSET}


KNOWN = frozenset(field.encode_name for field in msgspec.structs.fields(Limits))


def parse_limits(raw: object, *, defaults: Limits | None = None) -> Limits:
    """Read the `limits` of a request.

    Args:
        raw: the decoded JSON value. Unknown names are refused: a limit that is not applied must not look as if it were.
        defaults: what fields left out take their values from; the wire's defaults if None.

    Raises:
        RemoteProtocolError: names the field (`limits.maxToolCalls`) and what is allowed.
    """
    if not isinstance(raw, dict):
        raise RemoteProtocolError("not an object", field="limits", allowed="an object of limits")
    values: dict[str, Any] = msgspec.to_builtins(defaults) if defaults is not None else {}
    values |= raw if raw.keys() <= KNOWN else _by_own_names(raw)
    try:
        return msgspec.convert(values, Limits)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        spelled = {ALIASES.get(name, name): name for name in raw}
        raise RemoteProtocolError(
            reason, field=f"limits.{spelled.get(field, field)}".rstrip("."), allowed=_allowed(field)
        ) from error


def _by_own_names(raw: dict[str, Any]) -> dict[str, Any]:
    """Return limits that are named by their aliases under their own names; raises what `parse_limits` raises."""
    values = {}
    for name, value in raw.items():
        target = ALIASES.get(name, name)
        if target not in KNOWN:
            known = ", ".join(sorted(KNOWN | set(ALIASES)))
            raise RemoteProtocolError("unknown limit", field=f"limits.{name}", allowed=known)
        if target != name and target in raw:
            raise RemoteProtocolError(
                f"is another name of {target}: give one of the two", field=f"limits.{name}", allowed=target
            )
        values[target] = value
    return values


_MISSING = "Object missing required field `"


def split_path(message: str) -> tuple[str, str]:
    """Split a validation message of msgspec's into (reason, dotted field).

    msgspec ends its messages with the place, as in ``Expected `int`, got `str` - at `$.limits.timeout` ``; of a field
    that is missing it says the place of the object.
    """
    # From the right: a reason may quote what the peer wrote, the place comes from our types.
    reason, found, place = message.rpartition(" - at `$")
    if not found:
        reason, place = message, ""
    field = place.rstrip("`").lstrip(".").replace("[...]", "")
    if reason.startswith(_MISSING):
        return "missing", f"{field}.{reason.removeprefix(_MISSING).rstrip('`')}".lstrip(".")
    return reason, field


def _allowed(field: str) -> str:
    if field == "cancelOnFirstError":
        return "true or false"
    if field in {"maxResultBytes", "maxToolResultBytes"}:
        return f"a whole number from 1 to {MAX_VALUE_BYTES}"
    return "a whole number, 0 or more" if field in {"deadlineMs", "heartbeatIntervalMs"} else "a whole number above 0"
