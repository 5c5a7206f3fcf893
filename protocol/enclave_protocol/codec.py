"""JSON text to typed messages and back. Every failure names the field and what is allowed there."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from .errors import RemoteProtocolError
from .events import AnyEvent, Event
from .ids import parse_call_id, parse_session_id
from .limits import split_path
from .messages import (
    Cancel,
    ClientMessage,
    Envelope,
    Execute,
    Message,
    Ping,
    ToolError,
    ToolResult,
    WorkerMessage,
)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest WebSocket frame either side accepts: a tool result or a result at its largest limit, twice escaped."""

CLIENT_TYPES = "execute, cancel, tool_result, tool_result_submit, ping"

T = TypeVar("T")

_encoder = msgspec.json.Encoder()


def encode(message: Event | Message) -> bytes:
    """Return the message as one line of JSON, without the newline."""
    return _encoder.encode(message)


def decode_event(data: bytes | str) -> AnyEvent:
    """Read one event; raises RemoteProtocolError."""
    return _decode(_event_decoder, data)


def decode_worker_message(data: bytes | str) -> WorkerMessage:
    """Read a message of a worker's that is not an event (`hello`, `pong`, a rejection); raises RemoteProtocolError."""
    return _decode(_worker_decoder, data)


def peek(data: bytes | str) -> Envelope:
    """Read only the type, session id and seq; raises RemoteProtocolError."""
    return _decode(_envelope_decoder, data)


def decode_client_message(data: bytes | str) -> ClientMessage:
    """Read a message that a client or a broker sent, in any of the wire's spellings.

    Raises:
        RemoteProtocolError: malformed JSON, an unknown type, a field of the wrong type or an id of the wrong form.
            It carries the session id whenever the message had a readable one.
    """
    try:
        wire = _decode(_client_decoder, data)
        return wire.normal() if isinstance(wire, _WireCancel | _WireResult | _WireSubmit) else _checked(wire)
    except RemoteProtocolError as error:
        if error.session_id is None:
            error.session_id = _session_id_of(data)
        raise


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | str) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        allowed = CLIENT_TYPES if field == "type" and decoder is _client_decoder else ""
        raise RemoteProtocolError(reason, field=field, allowed=allowed) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RemoteProtocolError(f"malformed JSON: {error}", allowed="one JSON object per frame") from error
    except RecursionError as error:
        raise RemoteProtocolError("nested too deeply") from error


def _session_id_of(data: bytes | str) -> str | None:
    try:
        session_id = _envelope_decoder.decode(data).session_id
        return None if session_id is UNSET else parse_session_id(session_id)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, RemoteProtocolError):
        return None


def _checked(message: Execute | Ping) -> Execute | Ping:
    if isinstance(message, Execute) and message.session_id is not UNSET:
        parse_session_id(message.session_id)
    return message


# The wire's spellings. `null` is accepted where an optional field has no value: documented senders write it.

_Reason = Annotated[str, Meta(max_length=1000)] | UnsetType | None


class _WireError(msgspec.Struct):
    message: str = "the tool failed without a message"
    code: str | UnsetType | None = UNSET


class _CancelBody(msgspec.Struct, rename="camel"):
    session_id: str | UnsetType = UNSET
    reason: _Reason = UNSET


class _WireCancel(msgspec.Struct, tag_field="type", tag="cancel", rename="camel"):
    """Flat, or with the reason (and perhaps the session id) in `payload`."""

    session_id: str | UnsetType = UNSET
    reason: _Reason = UNSET
    payload: _CancelBody | UnsetType = UNSET

    def normal(self) -> Cancel:
        body = self.payload if self.payload is not UNSET else _CancelBody()
        session_id = self.session_id if self.session_id is not UNSET else body.session_id
        if session_id is UNSET:
            raise RemoteProtocolError("missing", field="sessionId", allowed="the id of a session")
        reason = self.reason or body.reason
        return Cancel(session_id=parse_session_id(session_id), reason=reason or UNSET)


class _ResultBody(msgspec.Struct, rename="camel"):
    call_id: str | UnsetType = UNSET
    ok: bool | UnsetType = UNSET
    success: bool | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    value: Raw | UnsetType = UNSET
    error: _WireError | UnsetType | None = UNSET


class _WireResult(_ResultBody, tag_field="type", tag="tool_result", rename="camel"):
    """Flat, with `success`/`value` or `result`/`error`; or the same inside `payload`."""

    session_id: str | UnsetType = UNSET
    payload: _ResultBody | UnsetType = UNSET

    def normal(self) -> ToolResult:
        return _tool_result(self.session_id, self if self.payload is UNSET else self.payload)


class _WireSubmit(msgspec.Struct, tag_field="type", tag="tool_result_submit", rename="camel"):
    """The schema's form: everything but the session id in `payload`."""

    payload: _ResultBody
    session_id: str | UnsetType = UNSET
    protocol_version: Literal[1, 2] = 2

    def normal(self) -> ToolResult:
        return _tool_result(self.session_id, self.payload)


def _tool_result(session_id: str | UnsetType, body: _ResultBody) -> ToolResult:
    if session_id is UNSET:
        raise RemoteProtocolError("missing", field="sessionId", allowed="the id of the session that made the call")
    if body.call_id is UNSET:
        raise RemoteProtocolError("missing", field="callId", allowed="the callId of a tool_call", session_id=session_id)
    failed = isinstance(body.error, _WireError)
    said = body.success if body.success is not UNSET else body.ok
    if said is True and failed:
        raise RemoteProtocolError("given although the call succeeded", field="error", session_id=session_id)
    parse_session_id(session_id)
    parse_call_id(body.call_id)
    if failed or said is False:
        wire = body.error if isinstance(body.error, _WireError) else _WireError()
        error = ToolError(message=wire.message, code=wire.code or UNSET)
        return ToolResult(session_id=session_id, call_id=body.call_id, success=False, error=error)
    value = body.value if body.value is not UNSET else body.result
    # A copy: a Raw that msgspec cut out of a frame would keep the whole frame alive.
    kept = Raw(b"null") if value is UNSET else value.copy()
    return ToolResult(session_id=session_id, call_id=body.call_id, success=True, value=kept)


_client_decoder = msgspec.json.Decoder(Execute | _WireCancel | _WireResult | _WireSubmit | Ping)
_worker_decoder: msgspec.json.Decoder[WorkerMessage] = msgspec.json.Decoder(WorkerMessage)
_event_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_envelope_decoder = msgspec.json.Decoder(Envelope)
