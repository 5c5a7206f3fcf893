"""The codec: every spelling of the wire becomes one form, and every refusal says where, what is allowed and whose."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from enclave_protocol import (
    Attach,
    Cancel,
    CatalogNotice,
    Execute,
    Ping,
    Rejection,
    RemoteProtocolError,
    ToolResult,
    decode_broker_message,
    decode_client_message,
    decode_event,
    decode_worker_message,
    encode,
    peek,
)
from enclave_protocol.events import CatalogChangedPayload, ErrorPayload
from tests.protocol import strategies

if TYPE_CHECKING:
    from enclave_protocol import Event
    from enclave_protocol.messages import ClientMessage, Message, WorkerMessage

S = {"sessionId": "s_1"}
SC = {"sessionId": "s_1", "callId": "c_1"}


def read(message: Any) -> ClientMessage:
    return decode_client_message(json.dumps(message))


def refusal(data: bytes | str) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_client_message(data)
    return caught.value


@pytest.mark.parametrize(
    "message",
    [
        {"type": "tool_result", **SC, "success": True, "value": [1, None]},
        {"type": "tool_result", **SC, "success": True, "value": [1, None], "error": None},
        {"type": "tool_result", **SC, "result": [1, None]},
        {"type": "tool_result", **S, "payload": {"callId": "c_1", "result": [1, None], "error": None}},
        {"type": "tool_result", "payload": {**SC, "result": [1, None]}},
        {
            "type": "tool_result_submit",
            "protocolVersion": 2,
            **S,
            "payload": {"callId": "c_1", "ok": True, "result": [1, None]},
        },
        {"type": "tool_result_submit", **S, "payload": {"callId": "c_1", "ok": True, "result": [1, None]}},
    ],
)
def test_every_spelling_of_a_tool_result_means_the_same(message: Any) -> None:
    found = read(message)
    assert isinstance(found, ToolResult)
    assert (found.session_id, found.call_id, found.success, found.error) == ("s_1", "c_1", True, UNSET)
    assert isinstance(found.value, Raw)
    assert json.loads(bytes(found.value)) == [1, None]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "tool_result", **SC, "success": False, "error": {"code": "E", "message": "no"}},
        {"type": "tool_result", **SC, "error": {"code": "E", "message": "no"}},
        {"type": "tool_result", **S, "payload": {"callId": "c_1", "error": {"code": "E", "message": "no"}}},
        {
            "type": "tool_result_submit",
            "protocolVersion": 2,
            **S,
            "payload": {"callId": "c_1", "ok": False, "error": {"message": "no", "code": "E", "stack": "at x"}},
        },
    ],
)
def test_every_spelling_of_a_failed_tool_means_the_same(message: Any) -> None:
    found = read(message)
    assert isinstance(found, ToolResult)
    assert (found.success, found.value) == (False, UNSET)
    assert found.error is not UNSET
    assert (found.error.code, found.error.message) == ("E", "no")


@pytest.mark.parametrize("error", [{}, {"error": None}, {"error": {}}])
def test_a_tool_that_failed_without_a_reason_still_has_a_message(error: dict[str, Any]) -> None:
    found = read({"type": "tool_result", **SC, "success": False, **error})
    assert isinstance(found, ToolResult)
    assert found.error is not UNSET
    assert found.error.message


def test_a_tool_that_returned_nothing_returned_null() -> None:
    found = read({"type": "tool_result", **SC, "success": True})
    assert isinstance(found, ToolResult)
    assert found.value == Raw(b"null")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "cancel", **S}, UNSET),
        ({"type": "cancel", **S, "reason": None}, UNSET),
        ({"type": "cancel", **S, "reason": "why"}, "why"),
        ({"type": "cancel", "protocolVersion": 2, **S, "payload": {}}, UNSET),
        ({"type": "cancel", "protocolVersion": 2, **S, "payload": {"reason": "why"}}, "why"),
        ({"type": "cancel", "payload": {**S, "reason": "why"}}, "why"),
    ],
)
def test_every_spelling_of_cancel_means_the_same(message: Any, reason: Any) -> None:
    assert read(message) == Cancel(session_id="s_1", reason=reason)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "type"),
        ({"type": 5}, "type"),
        ({"type": "start"}, "type"),
        ({"type": "execute"}, "code"),
        ({"type": "execute", "code": 5}, "code"),
        ({"type": "execute", "code": None}, "code"),
        ({"type": "execute", "code": "", "limits": []}, "limits"),
        ({"type": "execute", "code": "", "language": 1}, "language"),
        ({"type": "execute", "code": "", "profile": ""}, "profile"),
        ({"type": "execute", "code": "", "profile": "p" * 129}, "profile"),
        ({"type": "execute", "code": "", "firstSeq": 0}, "firstSeq"),
        ({"type": "execute", "code": "", "firstSeq": 1.5}, "firstSeq"),
        ({"type": "execute", "code": "", "queueMs": -1}, "queueMs"),
        ({"type": "cancel", "reason": 5}, "reason"),
        ({"type": "cancel", "reason": "x" * 1001}, "reason"),
        ({"type": "cancel", "payload": "now"}, "payload"),
        ({"type": "cancel", "payload": {"reason": 5}}, "payload.reason"),
        ({"type": "cancel", "payload": {"sessionId": "s_2"}}, "payload.sessionId"),
        ({"type": "tool_result"}, "callId"),
        ({"type": "tool_result", "callId": "call_1"}, "callId"),
        ({"type": "tool_result", "callId": 7}, "callId"),
        ({"type": "tool_result", "callId": "c_1", "success": "yes"}, "success"),
        ({"type": "tool_result", "callId": "c_1", "success": True, "ok": False}, "ok"),
        ({"type": "tool_result", "callId": "c_1", "success": True, "error": {"message": "no"}}, "error"),
        ({"type": "tool_result", "callId": "c_1", "error": "no"}, "error"),
        ({"type": "tool_result", "callId": "c_1", "error": {"message": 5}}, "error.message"),
        ({"type": "tool_result", "callId": "c_1", "error": {"code": 5}}, "error.code"),
        ({"type": "tool_result_submit"}, "payload"),
        ({"type": "tool_result_submit", "payload": {"callId": "c_1", "ok": 1}}, "payload.ok"),
        ({"type": "tool_result_submit", "payload": {"callId": "c_1"}, "protocolVersion": 3}, "protocolVersion"),
        ({"type": "ping", "timestamp": "now"}, "timestamp"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_allowed_and_carries_the_session_id(message: Any, field: str) -> None:
    error = refusal(json.dumps({**S, **message}))
    assert error.field == field
    assert error.reason
    assert error.allowed
    assert error.session_id == "s_1"


@pytest.mark.parametrize("session_id", ["", "s_", "weird id", "ses_1", "s_a/b", "s_" + "x" * 129, 7, None])
@pytest.mark.parametrize("rest", [{"type": "cancel"}, {"type": "execute", "code": ""}, {"type": "tool_result"}])
def test_an_id_of_the_wrong_form_is_refused_and_not_repeated_as_an_id(session_id: Any, rest: dict[str, Any]) -> None:
    error = refusal(json.dumps({**rest, "sessionId": session_id}))
    assert error.field == "sessionId"
    assert "s_" in error.allowed
    assert error.session_id is None


@pytest.mark.parametrize("rest", [{"type": "cancel"}, {"type": "tool_result", "callId": "c_1"}])
def test_a_message_about_a_session_must_name_one(rest: dict[str, Any]) -> None:
    assert refusal(json.dumps(rest)).field == "sessionId"


def test_the_session_id_is_found_in_the_payload_too() -> None:
    assert refusal(json.dumps({"type": "cancel", "payload": {**S, "reason": 5}})).session_id == "s_1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b"[]",
        b"5",
        b'"text"',
        b"\xff",
        b'\xef\xbb\xbf{"type":"ping"}',
        b'{"type":"ping"} {"type":"ping"}',
        b'{"type":"ping","timestamp":NaN}',
        b'{"type":"execute","code":"\xff"}',
        b'{"type":"execute","code":"\\ud800"}',
        b'{"type":"tool_result","sessionId":"s_1","callId":"c_1","value":"\xff"}',
        b'{"type":"tool_result","sessionId":"s_1","callId":"c_1","value":NaN}',
        b'{"type":"ping","unknown":"\xff"}',
        '{"type":"execute","code":"\ud800"}',
        b'{"type":"execute","code":"","limits":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"type":"tool_result","sessionId":"s_1","callId":"c_1","value":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_what_is_not_a_json_object_in_utf8_is_refused(data: bytes | str) -> None:
    assert refusal(data).allowed


def test_a_refusal_quotes_only_the_beginning_of_what_it_refuses() -> None:
    assert len(str(refusal(json.dumps({"type": "x" * 100_000})))) < 1000


@pytest.mark.parametrize(
    ("message", "from_seq"),
    [
        ({**S}, 1),
        ({**S, "fromSeq": 7}, 7),
        ({**S, "fromSeq": 0}, 1),
        ({**S, "fromSeq": None}, 1),
        ({**S, "payload": {"fromSeq": 7}}, 7),
        ({"payload": {**S, "fromSeq": 7}}, 7),
        ({**S, "fromSeq": 7, "payload": {**S, "fromSeq": 7}}, 7),
    ],
)
def test_every_spelling_of_an_attach_means_the_same(message: dict[str, Any], from_seq: int) -> None:
    assert read({"type": "attach", **message}) == Attach(session_id="s_1", from_seq=from_seq)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "sessionId"),
        ({"sessionId": "one"}, "sessionId"),
        ({**S, "payload": {"sessionId": "s_2"}}, "payload.sessionId"),
        ({**S, "fromSeq": -1}, "fromSeq"),
        ({**S, "fromSeq": "7"}, "fromSeq"),
        ({**S, "fromSeq": 2**60}, "fromSeq"),
        ({**S, "fromSeq": 7, "payload": {"fromSeq": 8}}, "payload.fromSeq"),
    ],
)
def test_an_attach_that_makes_no_sense_is_told_which_field(message: dict[str, Any], field: str) -> None:
    refused = refusal(json.dumps({"type": "attach", **message}))
    assert refused.field == field
    assert refused.allowed


def test_unknown_fields_are_ignored() -> None:
    assert read({"type": "ping", "timestamp": 5, "extra": {"a": [1]}}) == Ping(timestamp=5)


def test_an_execute_without_a_session_id_is_accepted() -> None:
    assert read({"type": "execute", "code": "return 1"}) == Execute(code="return 1")


def test_a_kept_value_does_not_keep_its_frame() -> None:
    found = read({"type": "tool_result", **SC, "value": 1, "padding": "x" * 1000})
    assert isinstance(found, ToolResult)
    assert isinstance(found.value, Raw)
    assert len(memoryview(found.value).obj) < 100  # type: ignore[arg-type]  # the Raw's own bytes


def test_a_rejection_is_told_from_an_error_event_by_its_missing_seq() -> None:
    assert peek(encode(Rejection(payload=ErrorPayload(message="no")))).seq is UNSET


def test_peek_reads_the_envelope_of_any_event() -> None:
    found = peek(b'{"type":"new_type","sessionId":"s_1","seq":7,"payload":{"x":1}}')
    assert (found.type, found.session_id, found.seq) == ("new_type", "s_1", 7)


@given(strategies.events)
def test_every_event_survives_the_wire(event: Event) -> None:
    line = encode(event)
    assert decode_event(line) == event
    assert peek(line).seq == event.seq


@given(strategies.client_messages)
def test_every_client_message_survives_the_wire(message: Message) -> None:
    assert decode_client_message(encode(message)) == message


@given(strategies.client_messages)
def test_a_worker_reads_whatever_a_client_may_say(message: Message) -> None:
    assert decode_broker_message(encode(message)) == message


def test_only_a_worker_reads_word_of_changed_tools() -> None:
    change = CatalogChangedPayload(version="v", added_actions=["a"], removed_actions=[])
    notice = CatalogNotice(session_id="s_1", payload=change)
    assert decode_broker_message(encode(notice)) == notice
    assert refusal(encode(notice)).field == "type"
    for message in ('{"type":"catalog_changed","sessionId":"s_1"}', '{"type":"nonsense"}', "{", '{"type":"execute"}'):
        with pytest.raises(RemoteProtocolError):
            decode_broker_message(message)


@given(strategies.worker_messages)
def test_every_worker_message_survives_the_wire(message: WorkerMessage) -> None:
    assert decode_worker_message(encode(message)) == message


_KEYS = [
    "sessionId",
    "callId",
    "code",
    "limits",
    "payload",
    "success",
    "ok",
    "value",
    "result",
    "error",
    "reason",
    "fromSeq",
]
_TYPES = ["execute", "attach", "cancel", "tool_result", "tool_result_submit", "ping"]
_plausible = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(_TYPES) | strategies.json_values,
        **dict.fromkeys(_KEYS, strategies.json_values | st.sampled_from(["s_1", "c_1", SC])),
    },
).map(lambda message: json.dumps(message).encode())


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A valid message with a few bytes cut out or replaced."""
    line = bytearray(encode(draw(strategies.client_messages)))
    start = draw(st.integers(0, len(line)))
    line[start : start + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(line)


@given(st.binary() | _plausible | _damaged())
def test_any_bytes_give_a_message_or_a_refusal_and_nothing_else(data: bytes) -> None:
    try:
        message = decode_client_message(data)
    except RemoteProtocolError as error:
        refused = error
    else:
        assert decode_client_message(encode(message)) == message
        return
    assert refused.reason
    assert refused.allowed
