"""The HTTP API's own types: what a request may say, what an answer says, and the one shape of every error."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from enclave_protocol import (
    MAX_CODE_BYTES,
    NO_TOOLS,
    Limits,
    NoCapacity,
    RemoteProtocolError,
    new_session_id,
    parse_declared_tools,
    parse_env,
    parse_files,
    parse_limits,
    parse_session_id,
)
from enclave_protocol.declared_tools import TOOLS_FORM
from enclave_protocol.encryption import EncryptionError, accept_hello
from enclave_protocol.filters import InvalidFilter, parse_filter
from enclave_protocol.inputs import ENV_FORM, FILES_FORM
from enclave_protocol.limits import split_path
from enclave_protocol.messages import Retry  # noqa: TC001 - msgspec reads it

from .access import Denied, QuotaExceeded
from .languages import Unsaid
from .new_session import CodeTooLarge, NewSession
from .placement import DEFAULT_PROFILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from enclave_protocol.encryption import Channel
    from enclave_protocol.filters import EventFilter

    from .sessions import BrokerSession

CONFIG_NAMES = {
    "max_execution_ms": "sessionTtlMs",
    "max_tool_calls": "maxToolCalls",
    "heartbeat_interval_ms": "heartbeatIntervalMs",
}


class SessionConfig(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The JavaScript client's limits. `limits` has all of them, and wins."""

    max_execution_ms: int | UnsetType = UNSET
    max_tool_calls: int | UnsetType = UNSET
    heartbeat_interval_ms: int | UnsetType = UNSET


class EncryptionRequest(msgspec.Struct, rename="camel"):
    """Whether the client wants its events sealed: `optional`, if its hello can be used; `required`, or not at all."""

    mode: Literal["disabled", "optional", "required"] = "disabled"
    client_hello: Any = UNSET
    """`{protocolVersion, clientEphemeralPubKeyB64, curve: "P-256", supportedAlgorithms: ["AES-GCM-256"]}`."""


class CreateSession(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A request for a session that runs `code` once."""

    code: str
    """The body of an async function, 1 MiB of UTF-8 at most."""
    session_id: str | UnsetType = UNSET
    """`s_…`; a new one if left out."""
    language: str | UnsetType = UNSET
    profile: str | UnsetType = UNSET
    """A named environment that a worker offers; `python` if left out."""
    env: dict[str, Any] | UnsetType = UNSET
    """Environment variables of the code: at most 64, 64 KiB in all."""
    files: dict[str, Any] | UnsetType = UNSET
    """Files in its working directory, by relative path, each text or `{"base64": text}`: at most 100, 1 MiB in all."""
    limits: dict[str, Any] | UnsetType = UNSET
    config: SessionConfig | UnsetType = UNSET
    tools: list[Any] | UnsetType = UNSET
    """Tools that the client answers calls of, by `/sessions/{id}/tool-result`: each a name, or
    `{name, description?, inputSchema?, timeoutMs?}`."""
    retry: Retry | UnsetType = UNSET
    """`safe`: it may run again elsewhere if its worker is lost before its first event; `never` if left out."""
    encryption: EncryptionRequest | UnsetType = UNSET
    filter: Any = UNSET
    """Which events are sent: `{mode, rules, alwaysAllow?}`; all if left out."""
    protocol_version: Literal[1, 2] = 2


class AnswerCall(msgspec.Struct, rename="camel"):
    """The answer to a tool call, as it is simplest said. All that a WebSocket takes is taken here too."""

    call_id: str
    result: Any = UNSET
    error: dict[str, Any] | UnsetType = UNSET
    """`{message, code?}`: the call failed."""


class CancelSession(msgspec.Struct, rename="camel"):
    """A request to end a session. The body may be left out altogether."""

    reason: str | UnsetType | None = UNSET


class SessionStats(msgspec.Struct, rename="camel"):
    """What a session used so far."""

    duration: float
    """Milliseconds from its acceptance, to its end or to now."""
    tool_call_count: int


class SessionInfo(msgspec.Struct, rename="camel", omit_defaults=True):
    """A session, as asked for."""

    session_id: str
    state: str
    created_at: int
    """Milliseconds since the epoch."""
    expires_at: int
    """Milliseconds since the epoch."""
    stats: SessionStats
    last_seq: int
    """Number of its newest event."""
    worker: str | UnsetType = UNSET
    """Which worker runs it, or ran it."""
    outcome: str | UnsetType = UNSET
    """How it ended: `ok`, or the code of its error."""


class SessionList(msgspec.Struct):
    """Every session that has not ended, and those that are retained."""

    sessions: list[SessionInfo]
    total: int


class Done(msgspec.Struct, rename="camel"):
    """It was done."""

    success: bool
    session_id: str


class Health(msgspec.Struct, rename="camel"):
    """How the broker is."""

    status: Literal["ok", "draining", "no workers"]
    workers: int
    """Workers that are connected."""
    free_slots: int
    waiting: int
    """Sessions that wait for a slot."""
    store: Literal["memory", "durable", "failing"]
    """Whether sessions outlive the broker. `failing`: they should, but their file can't be written at the moment."""


class ErrorDetails(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a refusal was about, as far as there is something to say."""

    field: str | UnsetType = UNSET
    """Dotted path of the offending field, or the name of the header or parameter."""
    allowed: str | UnsetType = UNSET
    """What would have been accepted."""
    limit: int | UnsetType = UNSET
    """For something too large: the most it may be, in bytes,"""
    actual: int | UnsetType = UNSET
    """and what it was."""
    quota: str | UnsetType = UNSET
    """For a quota that is used up: which one (`limit` says how much it is),"""
    used: int | UnsetType = UNSET
    """and how much of it is used."""
    first_seq: int | UnsetType = UNSET
    """For events that are gone: the oldest that can still be had."""
    retry_after_ms: int | UnsetType = UNSET
    """For what there is no room for now: when to ask again, more exactly than the header `Retry-After` says."""


class ErrorBody(msgspec.Struct):
    """Why a request was refused."""

    code: str
    message: str
    details: ErrorDetails | UnsetType = UNSET

    @property
    def field(self) -> str:
        """The offending field; empty if there is none."""
        return "" if self.details is UNSET else self.details.field or ""

    def move_below(self, place: str) -> None:
        """Name the field by where it stands in a larger request."""
        if self.details is UNSET:
            self.details = ErrorDetails()
        self.details.field = f"{place}.{self.field}".rstrip(".")


def error_body(
    code: str,
    message: str,
    *,
    field: str | UnsetType = UNSET,
    allowed: str | UnsetType = UNSET,
    limit: int | UnsetType = UNSET,
    actual: int | UnsetType = UNSET,
    quota: str | UnsetType = UNSET,
    used: int | UnsetType = UNSET,
    first_seq: int | UnsetType = UNSET,
    retry_after_ms: int | UnsetType = UNSET,
) -> ErrorBody:
    """Return the body of a refusal: see `ErrorDetails`."""
    details = ErrorDetails(field, allowed, limit, actual, quota, used, first_seq, retry_after_ms)
    return ErrorBody(code, message, UNSET if details == ErrorDetails() else details)


class ApiError(Exception):
    """A refusal with its HTTP status."""

    def __init__(self, status: int, body: ErrorBody, *, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.body = body
        self.headers = headers or {}
        super().__init__(body.message)


def invalid(message: str, *, field: str = "", allowed: str = "") -> ApiError:
    """Return the refusal of a bad request."""
    return ApiError(400, error_body("INVALID_REQUEST", message, field=field or UNSET, allowed=allowed or UNSET))


def not_found(session_id: str) -> ApiError:
    """Return the refusal of an unknown session."""
    return ApiError(404, error_body("NOT_FOUND", f"no session {session_id[:140]!r}: it never was, or is forgotten"))


def refusal(error: Denied | QuotaExceeded) -> ApiError:
    """Return the answer to somebody who may not."""
    if isinstance(error, Denied):
        challenge = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return ApiError(error.status, error_body(error.code, str(error)), headers=challenge)
    body = error_body(
        "QUOTA_EXCEEDED",
        str(error),
        quota=error.quota,
        limit=error.limit,
        used=error.used,
        retry_after_ms=math.ceil(error.retry_after_s * 1000),
    )
    return ApiError(429, body, headers=_retry_after(error.retry_after_s))


def full(error: NoCapacity) -> ApiError:
    """Return the answer to somebody for whose session there is no room."""
    body = error_body("NO_CAPACITY", str(error), retry_after_ms=math.ceil(error.retry_after_s * 1000))
    return ApiError(503, body, headers=_retry_after(error.retry_after_s))


def _retry_after(wait_s: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}


def decode_body(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Read a JSON body; raises ApiError naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        if "unknown field" in reason:
            field = ".".join(part for part in (field, reason.split("`")[1]) if part)
            raise invalid(reason, field=field, allowed="the fields that /docs lists") from error
        if "missing required field" in reason:
            field = ".".join(part for part in (field, reason.split("`")[1]) if part)
        raise invalid(reason, field=field, allowed=_allowed(field)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}", allowed="one JSON object") from error


_create_decoder = msgspec.json.Decoder(CreateSession)
_cancel_decoder = msgspec.json.Decoder(CancelSession)


def decode_cancel(body: bytes) -> str:
    """Read the body of a cancel, whatever its content type; returns the reason, empty if none."""
    return (decode_body(_cancel_decoder, body).reason or "") if body.strip() else ""


def decode_create(
    data: bytes,
    default_limits: Callable[[str], Limits],
    unsaid: Unsaid = Unsaid(),  # noqa: B008 - frozen
) -> tuple[NewSession, EventFilter | None]:
    """Read and check a request for a session; returns it, and which of its events the client wants.

    Args:
        data: the body.
        default_limits: what limits start from, by profile.
        unsaid: what the language is if the body does not say.

    Raises:
        ApiError: names the field.
    """
    request: CreateSession = decode_body(_create_decoder, data)
    wanted = None
    if request.filter is not UNSET and request.filter is not None:
        with REFUSALS:
            wanted = parse_filter(request.filter)
    # Only who has chosen the id can make the same request again.
    fingerprint = b"" if request.session_id is UNSET else _fingerprint(data, unsaid.header)
    new = new_session(request, default_limits, unsaid, fingerprint=fingerprint)
    if wanted is not None and new.channel is not None:
        with REFUSALS:
            raise unfilterable()
    return new, wanted


def _fingerprint(data: bytes, header: str | None) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=(header or "").encode()[:64]).digest()


def new_session(
    request: CreateSession, default_limits: Callable[[str], Limits], unsaid: Unsaid, *, fingerprint: bytes = b""
) -> NewSession:
    """Check a request for a session; raises ApiError naming the field."""
    profile = DEFAULT_PROFILE if request.profile is UNSET else request.profile
    with REFUSALS:
        session_id = None if request.session_id is UNSET else parse_session_id(request.session_id)
        channel = None
        if request.encryption is not UNSET and request.encryption.mode != "disabled":
            session_id = session_id or new_session_id()
            channel = _channel(request.encryption, session_id)
        return NewSession(
            code=request.code,
            session_id=session_id,
            limits=_limits(request, default_limits(profile)),
            language=unsaid.language(
                None if request.language is UNSET else request.language,
                None if request.profile is UNSET else request.profile,
            ),
            profile=profile,
            env={} if request.env is UNSET else parse_env(request.env),
            files={} if request.files is UNSET else parse_files(request.files),
            client_tools=NO_TOOLS if request.tools is UNSET else parse_declared_tools(request.tools),
            channel=channel,
            retry=request.retry or "never",
            fingerprint=fingerprint,
        )


class Refusals:
    """Turns what a request can have wrong, raised in a `with` block, into ApiErrors.

    A class, because every request passes through some: a generator costs five times as much.
    """

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the refusal, if there is something to refuse."""
        if isinstance(error, RemoteProtocolError):
            raise _refusal(error) from error


REFUSALS = Refusals()


def _refusal(error: RemoteProtocolError) -> ApiError:
    if isinstance(error, CodeTooLarge):
        body = error_body("CODE_TOO_LARGE", str(error), field="code", limit=MAX_CODE_BYTES, actual=error.size_bytes)
        return ApiError(413, body)
    code = "INVALID_REQUEST"
    if isinstance(error, InvalidFilter):
        code = "INVALID_FILTER"
    elif isinstance(error, EncryptionError):
        code = error.code
    return ApiError(400, error_body(code, error.reason, field=error.field or UNSET, allowed=error.allowed or UNSET))


def unfilterable() -> InvalidFilter:
    """Return the refusal of a filter for an encrypted session.

    Whoever may choose a filter and sees which events pass learns what is in them, without any key.
    """
    return InvalidFilter("events of an encrypted session are not filtered", field="filter", allowed="absent")


def _channel(request: EncryptionRequest, session_id: str) -> Channel | None:
    try:
        return accept_hello(None if request.client_hello is UNSET else request.client_hello, session_id)
    except EncryptionError as error:
        if request.mode == "optional":
            return None
        error.field = ".".join(part for part in ("encryption.clientHello", error.field) if part)
        raise


def session_info(session: BrokerSession, now: float) -> SessionInfo:
    """Describe a session."""
    tool_calls = session.tool_call_count if session.stats is None else session.stats.tool_call_count
    return SessionInfo(
        session_id=session.session_id,
        state=session.state.value,
        created_at=round(session.created_at * 1000),
        expires_at=round(session.expires_at * 1000),
        stats=SessionStats(duration=session.duration_ms(now), tool_call_count=tool_calls),
        last_seq=session.log.end_seq - 1,
        worker=session.worker_name or UNSET,
        outcome=session.outcome or UNSET,
    )


def _limits(request: CreateSession, defaults: Limits) -> Limits:
    if request.limits is UNSET and request.config is UNSET:
        return defaults
    given: dict[str, Any] = {}
    if request.config is not UNSET:
        values = ((name, getattr(request.config, field)) for field, name in CONFIG_NAMES.items())
        given = {name: value for name, value in values if value is not UNSET}
        try:
            parse_limits(given)
        except RemoteProtocolError as error:
            # Told by the name that the client used.
            theirs = {
                f"limits.{name}": msgspec.structs.fields(SessionConfig)[i].encode_name
                for i, name in enumerate(CONFIG_NAMES.values())
            }
            field = f"config.{theirs.get(error.field, error.field)}"
            raise RemoteProtocolError(error.reason, field=field, allowed=error.allowed) from error
    return parse_limits(given | (request.limits or {}), defaults=defaults)


def _allowed(field: str) -> str:
    known = {
        "code": "text",
        "sessionId": "text",
        "env": ENV_FORM,
        "files": FILES_FORM,
        "limits": "an object of limits",
        "config": "an object with maxExecutionMs, maxToolCalls, heartbeatIntervalMs",
        "tools": TOOLS_FORM,
        "encryption": "an object {mode: disabled, optional or required, clientHello?}",
        "encryption.mode": "disabled, optional, required",
        "protocolVersion": "1, 2",
        "": "a JSON object with at least `code`",
    }
    return known.get(field, "a whole number" if field.startswith("config.") else "")
