"""What the real JavaScript client accepts, written again in Python from its schemas.

That client drops a line it does not accept without a word, and a dropped `final` leaves it waiting for ever. So every
live stream in the tests goes through here.

`check_line` holds one line to it, `check_stream` a whole session. Both raise AssertionError that names the field. They
are stricter than the client where leniency could only hide a mistake of ours: bytes that are not UTF-8, a type that
neither the client nor our extensions know, a sequence number that a JavaScript number cannot hold.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Check = Callable[[Any, str], None]

MAX_SAFE_INTEGER = 2**53 - 1

EXTENSIONS = frozenset({"stderr", "status", "display", "artifact"})
"""Types that the client does not know and skips: only the envelope has to be right."""

_ISO_Z = re.compile(r"(\d{4}-\d\d-\d\d)T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?Z")


def check_line(line: bytes) -> None:
    """Raise AssertionError unless the client would take this line (its newline included or not) as an event."""
    _check_event(_parse(line))


def check_stream(lines: Iterable[bytes], *, first_seq: int = 1) -> None:
    """Raise AssertionError unless the lines are one whole session.

    That is: every line an event of the same session, `session_init` first, `seq` contiguous from 1, exactly one
    `final`, and that last.

    Args:
        lines: the session's lines in the order they came; blank ones are skipped, as the client skips them.
        first_seq: the number of the first line. Above 1 it is the part that a worker adds to a session that a broker
            has begun, and the `session_init` is the broker's.
    """
    events = [_parse(line) for line in lines if line.strip()]
    for event in events:
        _check_event(event)
    types = [event["type"] for event in events]
    assert events, "no events at all"
    assert first_seq > 1 or types[0] == "session_init", f"the stream begins with {types[0]}"
    assert "session_init" not in types[1:], f"session_init is not the first event: {types}"
    seqs = [event["seq"] for event in events]
    assert seqs == list(range(first_seq, first_seq + len(events))), f"seq is not contiguous from {first_seq}: {seqs}"
    assert types.count("final") == 1, f"{types.count('final')} finals: {types}"
    assert types[-1] == "final", f"events after the final: {types}"
    ids = {event["sessionId"] for event in events}
    assert len(ids) == 1, f"several sessions in one stream: {ids}"


def _parse(line: bytes) -> Any:
    try:
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        assert "\n" not in text, f"a line break inside the line: {text[:200]!r}"
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:  # UnicodeDecodeError is one too
        raise AssertionError(f"not JSON in UTF-8: {error}: {line[:200]!r}") from error


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def _check_event(event: Any) -> None:
    _record(event, "event")
    kind = event.get("type")
    known = isinstance(kind, str) and (kind in PAYLOADS or kind in EXTENSIONS)
    assert known, f"type: unknown event type {kind!r}"
    _shape(ENVELOPE)(event, "event")
    assert "payload" in event, "event.payload: missing"
    PAYLOADS.get(kind, _record)(event["payload"], "payload")


# Checkers. Each takes a value and the path to it.


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that JavaScript reads as Infinity
        return False


def _string(value: Any, path: str) -> None:
    assert isinstance(value, str), f"{path}: expected a string, got {value!r}"


def _non_empty(value: Any, path: str) -> None:
    _string(value, path)
    assert value, f"{path}: empty"


def _boolean(value: Any, path: str) -> None:
    assert isinstance(value, bool), f"{path}: expected a boolean, got {value!r}"


def _anything(_value: Any, _path: str) -> None:
    """Any JSON value; that the key exists is what the shape checks."""


def _record(value: Any, path: str) -> None:
    assert isinstance(value, dict), f"{path}: expected an object, got {value!r}"


def _number(value: Any, path: str) -> None:
    assert _is_number(value), f"{path}: expected a finite number, got {value!r}"


def _not_negative(value: Any, path: str) -> None:
    _number(value, path)
    assert value >= 0, f"{path}: negative: {value!r}"


def _positive(value: Any, path: str) -> None:
    _number(value, path)
    assert value > 0, f"{path}: not above 0: {value!r}"


def _whole(value: Any, path: str) -> None:
    """A JavaScript integer, so that `1.0` is one."""
    _number(value, path)
    assert float(value).is_integer(), f"{path}: not a whole number: {value!r}"
    assert abs(value) <= MAX_SAFE_INTEGER, f"{path}: not a safe integer: {value!r}"


def _count(value: Any, path: str) -> None:
    _whole(value, path)
    _not_negative(value, path)


def _iso_z(value: Any, path: str) -> None:
    _string(value, path)
    found = _ISO_Z.fullmatch(value)
    assert found, f"{path}: not an ISO 8601 time in UTC that ends in Z: {value!r}"
    try:
        dt.date.fromisoformat(found[1])
    except ValueError as error:
        raise AssertionError(f"{path}: no such day: {value!r}") from error


def _version(value: Any, path: str) -> None:
    assert _is_number(value), f"{path}: expected 1 or 2, got {value!r}"
    assert value in {1, 2}, f"{path}: expected 1 or 2, got {value!r}"


def _prefixed(prefix: str) -> Check:
    def check(value: Any, path: str) -> None:
        _string(value, path)
        fits = value.startswith(prefix) and len(value) > len(prefix)
        assert fits, f"{path}: not {prefix!r} and at least one more character: {value!r}"

    return check


def _one_of(*allowed: str) -> Check:
    def check(value: Any, path: str) -> None:
        assert isinstance(value, str), f"{path}: expected a string, got {value!r}"
        assert value in allowed, f"{path}: {value!r} is none of {allowed}"

    return check


def _list_of(check_item: Check) -> Check:
    def check(value: Any, path: str) -> None:
        assert isinstance(value, list), f"{path}: expected an array, got {value!r}"
        for i, item in enumerate(value):
            check_item(item, f"{path}[{i}]")

    return check


def _shape(fields: Mapping[str, Check]) -> Check:
    """An object with these fields. A name that ends in `?` may be absent, but may not be null. Others are ignored."""

    def check(value: Any, path: str) -> None:
        _record(value, path)
        for spelled, check_field in fields.items():
            name = spelled.removesuffix("?")
            if name in value:
                check_field(value[name], f"{path}.{name}")
            else:
                assert spelled.endswith("?"), f"{path}.{name}: missing"

    return check


def _tagged(shapes: Mapping[str, Check]) -> Check:
    """An object whose `type` says which of the shapes it has."""

    def check(value: Any, path: str) -> None:
        _record(value, path)
        _one_of(*shapes)(value.get("type"), f"{path}.type")
        shapes[value["type"]](value, path)

    return check


_call_id = _prefixed("c_")
_strings = _list_of(_string)

_error_detail = _tagged(
    {
        "retry_info": _shape({"retryDelayMs": _number}),
        "upstream_info": _shape({"statusCode": _whole, "url": _string}),
        "validation_info": _shape({"field": _string, "reason": _string}),
        "quota_info": _shape({"limit": _number, "used": _number}),
    }
)
_error_payload = _shape({"code": _string, "message": _string, "path?": _strings, "details?": _list_of(_error_detail)})

ENVELOPE: Mapping[str, Check] = {
    "protocolVersion": _version,
    "sessionId": _prefixed("s_"),
    "seq": _count,
    "type": _string,
}

PAYLOADS: Mapping[str, Check] = {
    "session_init": _shape(
        {
            "cancelUrl": _string,
            "expiresAt": _iso_z,
            "encryption": _shape({"enabled": _boolean, "keyId?": _string}),
            "replayUrl?": _string,
        }
    ),
    "stdout": _shape({"chunk": _string}),
    "log": _shape({"level": _one_of("debug", "info", "warn", "error"), "message": _string, "data?": _record}),
    "tool_call": _shape({"callId": _call_id, "toolName": _non_empty, "args": _anything}),
    "tool_progress": _shape(
        {
            "callId": _call_id,
            "phase": _one_of("connecting", "sending", "receiving", "processing"),
            "elapsedMs": _not_negative,
            "bytesReceived?": _count,
            "totalBytes?": _count,
        }
    ),
    "tool_result_applied": _shape({"callId": _call_id}),
    "partial_result": _shape({"path": _strings, "data?": _anything, "error?": _error_payload, "hasNext": _boolean}),
    "heartbeat": _shape({"ts": _iso_z}),
    "error": _shape({"message": _string, "code?": _string, "recoverable?": _boolean}),
    "deadline_exceeded": _shape({"elapsedMs": _not_negative, "budgetMs": _positive}),
    "catalog_changed": _shape({"version": _non_empty, "addedActions": _strings, "removedActions": _strings}),
    "final": _shape(
        {
            "ok": _boolean,
            "result?": _anything,
            "error?": _shape({"message": _string, "code?": _string, "stack?": _string}),
            "errors?": _list_of(_error_payload),
            "stats?": _shape({"durationMs": _not_negative, "toolCallCount": _count, "stdoutBytes": _count}),
        }
    ),
    "enc": _shape({"kid": _non_empty, "nonceB64": _non_empty, "ciphertextB64": _non_empty, "tagB64?": _string}),
}
"""The types the client knows, and what it demands of their payloads."""
