"""What we encode, the real client takes; and our copy of its rules draws the lines where the client draws them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from enclave_protocol import encode
from enclave_protocol.events import (
    Final,
    FinalError,
    FinalPayload,
    Heartbeat,
    HeartbeatPayload,
)
from tests.protocol import strategies
from tests.real_client import EXTENSIONS, PAYLOADS, check_line, check_stream

if TYPE_CHECKING:
    from enclave_protocol import Event

VALID: dict[str, dict[str, Any]] = {
    "session_init": {
        "cancelUrl": "/sessions/s_1/cancel",
        "expiresAt": "2026-01-02T03:04:05.678Z",
        "encryption": {"enabled": False},
    },
    "stdout": {"chunk": ""},
    "log": {"level": "warn", "message": "m"},
    "tool_call": {"callId": "c_1", "toolName": "t", "args": None},
    "tool_progress": {"callId": "c_1", "phase": "connecting", "elapsedMs": 0},
    "tool_result_applied": {"callId": "c_1"},
    "partial_result": {"path": ["a"], "hasNext": False, "error": {"code": "E", "message": "m", "details": []}},
    "heartbeat": {"ts": "2026-01-02T03:04:05Z"},
    "error": {"message": "m"},
    "deadline_exceeded": {"elapsedMs": 1.5, "budgetMs": 1},
    "catalog_changed": {"version": "v", "addedActions": [], "removedActions": ["a"]},
    "final": {"ok": True, "result": None, "stats": {"durationMs": 0.5, "toolCallCount": 0, "stdoutBytes": 1.0}},
    "enc": {"kid": "k", "nonceB64": "n", "ciphertextB64": "c"},
}


def line(_kind: str, _payload: Any, **envelope: Any) -> bytes:
    event = {"protocolVersion": 2, "sessionId": "s_1", "seq": 1, "type": _kind, "payload": _payload} | envelope
    return json.dumps(event).encode()


@given(strategies.events)
def test_every_event_we_can_encode_is_accepted(event: Event) -> None:
    check_line(encode(event))


def test_every_type_the_client_knows_is_one_of_ours_and_every_other_one_of_ours_is_an_extension() -> None:
    ours = {cls.__struct_config__.tag for cls in strategies.EVENT_TYPES}
    assert set(PAYLOADS) <= ours <= set(PAYLOADS) | EXTENSIONS


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_valid_payload_is_accepted_also_with_more_in_it(kind: str) -> None:
    check_line(line(kind, VALID[kind]))
    check_line(line(kind, VALID[kind] | {"extra": {"more": None}}))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, payload in VALID.items() for name in payload if name != "result"]
)
def test_a_field_set_to_null_is_dropped_by_the_client_except_where_any_value_fits(kind: str, name: str) -> None:
    if (kind, name) != ("tool_call", "args"):
        with pytest.raises(AssertionError, match=name):
            check_line(line(kind, VALID[kind] | {name: None}))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("final", {"error": None}),
        ("final", {"errors": None}),
        ("final", {"stats": None}),
        ("final", {"stats": {"durationMs": 1, "toolCallCount": 0}}),
        ("final", {"stats": {"durationMs": 1, "toolCallCount": 0.5, "stdoutBytes": 0}}),
        ("final", {"stats": {"durationMs": -1, "toolCallCount": 0, "stdoutBytes": 0}}),
        ("final", {"error": {"message": "m", "code": None}}),
        ("final", {"error": {"message": "m", "code": 500}}),
        ("final", {"error": {"code": "E"}}),
        ("final", {"ok": "true"}),
        ("final", {"result": float("nan")}),
        ("final", {"result": [float("-inf")]}),
        ("log", {"data": None}),
        ("log", {"level": "warning"}),
        ("session_init", {"encryption": {"enabled": False, "keyId": None}}),
        ("session_init", {"replayUrl": None}),
        ("session_init", {"expiresAt": "2026-01-02T03:04:05+00:00"}),
        ("session_init", {"expiresAt": "2026-01-02T03:04:05"}),
        ("session_init", {"expiresAt": "2026-02-30T03:04:05Z"}),
        ("session_init", {"expiresAt": 1_700_000_000_000}),
        ("heartbeat", {"ts": None}),
        ("tool_progress", {"bytesReceived": None}),
        ("tool_progress", {"phase": "waiting"}),
        ("tool_call", {"callId": "call_1"}),
        ("tool_call", {"callId": "c_"}),
        ("tool_call", {"toolName": ""}),
        ("error", {"recoverable": None}),
        ("partial_result", {"error": None}),
        ("partial_result", {"error": {"code": "E", "message": "m", "details": [{"type": "other"}]}}),
        ("enc", {"tagB64": None}),
        ("deadline_exceeded", {"budgetMs": 0}),
    ],
)
def test_what_the_client_was_seen_to_reject_is_rejected(kind: str, change: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_line(line(kind, VALID[kind] | change))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("session_init", "cancelUrl"),
        ("session_init", "encryption"),
        ("heartbeat", "ts"),
        ("tool_call", "args"),
        ("final", "ok"),
        ("stdout", "chunk"),
    ],
)
def test_a_missing_field_is_rejected(kind: str, name: str) -> None:
    payload = {key: value for key, value in VALID[kind].items() if key != name}
    with pytest.raises(AssertionError, match=f"{name}: missing"):
        check_line(line(kind, payload))


@pytest.mark.parametrize(
    "envelope",
    [
        {"protocolVersion": 3},
        {"protocolVersion": "1.0"},
        {"protocolVersion": True},
        {"sessionId": "ses_1"},
        {"sessionId": "s_"},
        {"seq": -1},
        {"seq": 1.5},
        {"seq": 10**400},
        {"type": "unheard_of"},
        {"type": None},
        {"payload": None},
    ],
)
def test_a_wrong_envelope_is_rejected(envelope: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_line(line("stdout", VALID["stdout"], **envelope))


@pytest.mark.parametrize("envelope", [{"protocolVersion": 1}, {"seq": 0}, {"seq": 1.0}, {"extra": None}])
def test_an_unusual_envelope_that_the_client_takes_is_accepted(envelope: dict[str, Any]) -> None:
    check_line(line("stdout", VALID["stdout"], **envelope))


def test_both_line_ends_and_microseconds_are_accepted() -> None:
    check_line(line("heartbeat", {"ts": "2026-01-02T03:04:05.123456Z"}) + b"\r\n")
    check_line(line("heartbeat", {"ts": "2026-01-02T03:04:05.1Z"}) + b"\n")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":\n1}'])
def test_what_is_no_event_line_is_rejected(data: bytes) -> None:
    with pytest.raises(AssertionError):
        check_line(data)


def stream(*kinds: str, seqs: list[int] | None = None) -> list[bytes]:
    numbers = seqs or range(1, len(kinds) + 1)
    return [line(kind, VALID[kind], seq=seq) for kind, seq in zip(kinds, numbers, strict=True)]


def test_a_whole_session_is_accepted() -> None:
    check_stream([*stream("session_init", "stdout", "heartbeat", "final"), b"\n"])


def test_the_part_that_a_worker_adds_is_accepted() -> None:
    check_stream(stream("stdout", "final", seqs=[2, 3]), first_seq=2)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        stream("session_init"),
        stream("session_init", "final", "final"),
        stream("session_init", "final", "heartbeat"),
        stream("heartbeat", "session_init", "final"),
        stream("final"),
        stream("session_init", "session_init", "final"),
        stream("session_init", "stdout", "final", seqs=[0, 1, 2]),
        stream("session_init", "stdout", "final", seqs=[1, 3, 4]),
        stream("session_init", "stdout", "final", seqs=[1, 2, 2]),
        [*stream("session_init"), line("final", VALID["final"], seq=2, sessionId="s_2")],
        [*stream("session_init"), b'{"type":"stderr"}', *stream("final", seqs=[2])],
    ],
)
def test_a_session_without_its_one_ending_in_order_is_rejected(lines: list[bytes]) -> None:
    with pytest.raises(AssertionError):
        check_stream(lines)


def test_an_absent_field_is_absent_from_the_line() -> None:
    final = Final(session_id="s_1", seq=2, payload=FinalPayload(ok=False, error=FinalError(message="m")))
    assert json.loads(encode(final))["payload"] == {"ok": False, "error": {"message": "m"}}


def test_an_event_is_one_line_whatever_its_text() -> None:
    text = "a\nb\r\u2028\u0085\x00"
    encoded = encode(Final(session_id="s_1", seq=2, payload=FinalPayload(ok=True, result=text)))
    assert b"\n" not in encoded
    assert b"\r" not in encoded
    assert json.loads(encoded)["payload"]["result"] == text


def test_our_copy_of_the_rules_rejects_our_own_event_with_a_wrong_time() -> None:
    with pytest.raises(AssertionError, match="ts"):
        check_line(encode(Heartbeat(session_id="s_1", seq=2, payload=HeartbeatPayload(ts="2026-01-01T00:00:00"))))
