"""Answers to tool calls, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclave_broker.api import REFUSALS, ApiError, error_body
from enclave_protocol import MAX_MESSAGE_BYTES, RemoteProtocolError, decode_tool_result
from enclave_protocol.encryption import sealed_payload

if TYPE_CHECKING:
    from enclave_broker.dispatcher import Dispatcher
    from enclave_broker.sessions import BrokerSession


def accept_answer(dispatcher: Dispatcher, session: BrokerSession, body: bytes) -> None:
    """Pass a client's answer on; raises ApiError.

    Args:
        dispatcher: of the session.
        session: whose call it is.
        body: a tool result in any of the wire's spellings; of an encrypted session, it may be sealed.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        message = f"the answer is larger than {MAX_MESSAGE_BYTES} bytes"
        raise ApiError(413, error_body("REQUEST_TOO_LARGE", message, limit=MAX_MESSAGE_BYTES, actual=len(body)))
    with REFUSALS:
        result = decode_tool_result(_opened(session, body), session.session_id)
        if not session.live:
            message = "the session has ended: nobody waits for an answer"
            raise ApiError(409, error_body("SESSION_ENDED", message))
        if result.call_id not in session.calls:
            message = f"the session made no call {result.call_id[:140]}"
            allowed = "the callId of a tool_call of this session"
            raise ApiError(404, error_body("NOT_FOUND", message, field="callId", allowed=allowed))
        if session.calls[result.call_id]:
            message = f"call {result.call_id[:140]} is answered: by the broker, or by an earlier result"
            raise ApiError(409, error_body("ALREADY_ANSWERED", message, field="callId"))
        dispatcher.answering.answer_call(session, result)


def _opened(session: BrokerSession, body: bytes) -> bytes:
    sealed = sealed_payload(body)
    if sealed is None:
        return body
    if session.channel is None:
        raise RemoteProtocolError("the session is not encrypted", field="type", allowed="tool_result")
    return session.channel.to_server.open_payload(sealed)
