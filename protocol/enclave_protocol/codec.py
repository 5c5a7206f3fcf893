"""JSON text to typed messages and back. Every failure names the field and what is allowed there."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from .declared_tools import TOOLS_FORM
from .errors import RemoteProtocolError
from .events import AnyEvent, Event
from .ids import CALL_ID_FORM, SESSION_ID_FORM, parse_call_id, parse_session_id
from .inputs import ENV_FORM, FILES_FORM
from .limits import split_path
from .messages import (
    Attach,
    BrokerMessage,
    Cancel,
    CatalogNotice,
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

CLIENT_TYPES = "execute, attach, cancel, tool_result, tool_result_submit, ping"

_BROKER_TYPES = frozenset({"catalog_changed", "welcome", "ack", "drain"})

ONE_OBJECT = "one JSON object per frame, in UTF-8"

# By the last name of the field's path. The two fields called `code` differ, so the text of one must fit the other.
_ALLOWED = {
    "": ONE_OBJECT,
    "type": CLIENT_TYPES,
    "sessionId": SESSION_ID_FORM,
    "callId": CALL_ID_FORM,
    "code": "text",
    "message": "text",
    "limits": "an object of limits, each at most 2^53 - 1",
    "language": "text of 1 to 128 characters",
    "profile": "text of 1 to 128 characters",
    "env": ENV_FORM,
    "files": FILES_FORM,
    "tools": TOOLS_FORM,
    "firstSeq": "a whole number, 1 or more",
    "fromSeq": "a whole number, 0 or more",
    "queueMs": "a number, 0 or more",
    "timestamp": "a number",
    "reason": "text of at most 1000 characters",
    "retry": "`safe` or `never`",
    "payload": "an object",
    "error": "an object {message, code?}",
    "success": "true or false",
    "ok": "true or false",
    "protocolVersion": "1 or 2",
}

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
        # The parser skips over text that it need not keep, raw values among it, without looking at its encoding.
        if not isinstance(data, str):
            data.decode()
        wire = _decode(_client_decoder, data)
        return (
            wire.normal() if isinstance(wire, _WireAttach | _WireCancel | _WireResult | _WireSubmit) else _checked(wire)
        )
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"malformed text: {error}", allowed=ONE_OBJECT) from error
    except RemoteProtocolError as error:
        if error.session_id is None:
            error.session_id = _session_id_of(data)
        raise


def decode_broker_message(data: bytes | str) -> ClientMessage | BrokerMessage:
    """Read a message that a worker is sent: a client's, or what only a broker says; raises RemoteProtocolError."""
    try:
        return decode_client_message(data)
    except RemoteProtocolError as error:
        if error.field != "type" or _type_of(data) not in _BROKER_TYPES:
            raise
    message = _decode(_broker_decoder, data)
    if isinstance(message, CatalogNotice):
        parse_session_id(message.session_id)
    return message


def _type_of(data: bytes | str) -> str:
    try:
        return peek(data).type
    except RemoteProtocolError:
        return ""


def decode_tool_result(data: bytes, session_id: str) -> ToolResult:
    """Read the answer to a tool call of a session, in any of the wire's spellings; the type may be left out.

    Raises:
        RemoteProtocolError: as `decode_client_message`, or the message names another session.
    """
    try:
        data.decode()
        wire = _decode(_answer_decoder, data)
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"malformed text: {error}", allowed=ONE_OBJECT) from error
    body = wire if wire.payload is UNSET else wire.payload
    for given, field in ((wire.session_id, "sessionId"), (body.session_id, "payload.sessionId")):
        if given not in {UNSET, session_id}:
            raise RemoteProtocolError("names another session than the URL", field=field, allowed=session_id)
    return _tool_result(session_id, body)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | str) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        allowed = _ALLOWED.get(field.rpartition(".")[2], "") if decoder in {_client_decoder, _answer_decoder} else ""
        raise RemoteProtocolError(reason, field=field, allowed=allowed) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RemoteProtocolError(f"malformed JSON: {error}", allowed=ONE_OBJECT) from error
    except RecursionError as error:
        raise RemoteProtocolError("nested too deeply", allowed="a few hundred levels of nesting") from error


class _Named(msgspec.Struct, rename="camel"):
    """As much of a refused message as may say whose it is; every other field may be wrong."""

    session_id: Any = UNSET
    payload: Raw | UnsetType = UNSET


def _session_id_of(data: bytes | str) -> str | None:
    try:
        named = _named_decoder.decode(data)
        if named.session_id is UNSET and isinstance(named.payload, Raw):
            named = _named_decoder.decode(named.payload)
        return parse_session_id(named.session_id) if isinstance(named.session_id, str) else None
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
        reason = self.reason or body.reason
        return Cancel(session_id=_one_session_id(self.session_id, body.session_id), reason=reason or UNSET)


_FromSeq = Annotated[int, Meta(ge=0, le=2**53 - 1)] | UnsetType | None


class _AttachBody(msgspec.Struct, rename="camel"):
    session_id: str | UnsetType = UNSET
    from_seq: _FromSeq = UNSET


class _WireAttach(msgspec.Struct, tag_field="type", tag="attach", rename="camel"):
    """Flat, or with the number (and perhaps the session id) in `payload`. As over HTTP, 0 means from the start."""

    session_id: str | UnsetType = UNSET
    from_seq: _FromSeq = UNSET
    payload: _AttachBody | UnsetType = UNSET

    def normal(self) -> Attach:
        body = self.payload if self.payload is not UNSET else _AttachBody()
        session_id = _one_session_id(self.session_id, body.session_id)
        given = {seq for seq in (self.from_seq, body.from_seq) if isinstance(seq, int)}
        if len(given) > 1:
            raise RemoteProtocolError("says another number than fromSeq", field="payload.fromSeq", allowed="one number")
        return Attach(session_id=session_id, from_seq=max({1, *given}))


class _ResultBody(msgspec.Struct, rename="camel"):
    session_id: str | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    ok: bool | UnsetType = UNSET
    success: bool | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    value: Raw | UnsetType = UNSET
    error: _WireError | UnsetType | None = UNSET


class _WireResult(_ResultBody, tag_field="type", tag="tool_result", rename="camel"):
    """Flat, with `success`/`value` or `result`/`error`; or the same inside `payload`."""

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


class _WireAnswer(_ResultBody, rename="camel"):
    """Either of the two, where the place it was sent to says what it is."""

    type: Literal["tool_result", "tool_result_submit"] = "tool_result"
    payload: _ResultBody | UnsetType = UNSET


def _one_session_id(outer: str | UnsetType, inner: str | UnsetType) -> str:
    given = inner if outer is UNSET else outer
    if given is UNSET:
        raise RemoteProtocolError("missing", field="sessionId", allowed=SESSION_ID_FORM)
    session_id = parse_session_id(given)
    if inner not in {UNSET, session_id}:
        reason = "names another session than sessionId"
        raise RemoteProtocolError(reason, field="payload.sessionId", allowed=session_id, session_id=session_id)
    return session_id


def _tool_result(outer: str | UnsetType, body: _ResultBody) -> ToolResult:
    session_id = _one_session_id(outer, body.session_id)
    if body.call_id is UNSET:
        raise RemoteProtocolError("missing", field="callId", allowed=CALL_ID_FORM)
    parse_call_id(body.call_id)
    failed = isinstance(body.error, _WireError)
    said = body.success if body.success is not UNSET else body.ok
    if body.ok is not UNSET and body.ok is not said:
        raise RemoteProtocolError("contradicts success", field="ok", allowed="one of success and ok")
    if said is True and failed:
        raise RemoteProtocolError(
            "given although the call succeeded", field="error", allowed="success false, or no error"
        )
    if failed or said is False:
        wire = body.error if isinstance(body.error, _WireError) else _WireError()
        error = ToolError(message=wire.message, code=wire.code or UNSET)
        return ToolResult(session_id=session_id, call_id=body.call_id, success=False, error=error)
    value = body.value if body.value is not UNSET else body.result
    # A copy: a Raw that msgspec cut out of a frame would keep the whole frame alive.
    kept = Raw(b"null") if value is UNSET else value.copy()
    return ToolResult(session_id=session_id, call_id=body.call_id, success=True, value=kept)


_client_decoder = msgspec.json.Decoder(Execute | _WireAttach | _WireCancel | _WireResult | _WireSubmit | Ping)
_answer_decoder = msgspec.json.Decoder(_WireAnswer)
_worker_decoder: msgspec.json.Decoder[WorkerMessage] = msgspec.json.Decoder(WorkerMessage)
_broker_decoder: msgspec.json.Decoder[BrokerMessage] = msgspec.json.Decoder(BrokerMessage)
_event_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_envelope_decoder = msgspec.json.Decoder(Envelope)
_named_decoder = msgspec.json.Decoder(_Named)
