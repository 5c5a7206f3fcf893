"""Stream events: what a session tells its client.

Every event is one JSON object `{protocolVersion, sessionId, seq, type, payload}`. `seq` starts at 1 and is contiguous
for a session, whatever the type. An optional field that has no value is absent, never `null`: the existing JavaScript
client silently drops a line that says otherwise, and a dropped `final` leaves it waiting for ever.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

PROTOCOL_VERSION: Literal[2] = 2

Seq = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Millis = Annotated[float, Meta(ge=0)]
NonEmpty = Annotated[str, Meta(min_length=1)]
Level = Literal["debug", "info", "warn", "error"]


class Payload(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Base of every payload."""


class ServerHello(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A broker's half of the handshake."""

    protocol_version: Literal[1, 2] = PROTOCOL_VERSION
    server_ephemeral_pub_key_b64: NonEmpty = msgspec.field(name="serverEphemeralPubKeyB64")
    curve: str
    selected_algorithm: str
    kdf: str
    key_id: NonEmpty


class Encryption(Payload, frozen=True, kw_only=True):
    """Whether the events that follow are encrypted."""

    enabled: bool
    key_id: str | UnsetType = UNSET
    server_hello: ServerHello | UnsetType = UNSET
    """An extension: what the client needs to derive the keys."""


class SessionInitPayload(Payload, frozen=True, kw_only=True):
    """Where the session can be cancelled and replayed, and how long it may live."""

    cancel_url: str
    expires_at: str
    """ISO 8601 in UTC, ending in `Z`."""
    encryption: Encryption
    replay_url: str | UnsetType = UNSET


class ChunkPayload(Payload, frozen=True, kw_only=True):
    """Output as it was written; never cut inside a character."""

    chunk: str


class LogPayload(Payload, frozen=True, kw_only=True):
    """A line for people: ours (a limit struck) or the guest's."""

    level: Level
    message: str
    data: dict[str, Any] | UnsetType = UNSET


class ToolCallPayload(Payload, frozen=True, kw_only=True):
    """The guest called a tool and waits."""

    call_id: NonEmpty
    tool_name: NonEmpty
    args: Any
    """Any JSON value; the key is always there."""


class ToolResultAppliedPayload(Payload, frozen=True, kw_only=True):
    """The guest was given the result, or the error, of this call."""

    call_id: NonEmpty


class HeartbeatPayload(Payload, frozen=True, kw_only=True):
    """The stream is alive."""

    ts: str
    """ISO 8601 in UTC, ending in `Z`."""


class ErrorPayload(Payload, frozen=True, kw_only=True):
    """Something went wrong that does not end the session by itself; the `final` still follows."""

    message: str
    code: str | UnsetType = UNSET
    recoverable: bool | UnsetType = UNSET
    field: str | UnsetType = UNSET
    """In a rejection: dotted path of the offending field."""
    allowed: str | UnsetType = UNSET
    """In a rejection: what would have been accepted."""
    first_seq: Seq | UnsetType = UNSET
    """In the rejection of an `attach` to events that are gone: the oldest that can still be had."""


class DeadlineExceededPayload(Payload, frozen=True, kw_only=True):
    """The wall deadline struck; a `final` with the same code follows."""

    elapsed_ms: Millis
    budget_ms: Annotated[float, Meta(gt=0)]


class FinalError(Payload, frozen=True, kw_only=True):
    """Why a session failed."""

    message: str
    code: str | UnsetType = UNSET
    stack: str | UnsetType = UNSET
    """The traceback of the guest's own lines, as Python prints it."""
    name: str | UnsetType = UNSET
    """The exception's type, such as `ValueError`."""
    line: int | UnsetType = UNSET
    """The line of the guest's code, counted from 1."""
    retryable: bool | UnsetType = UNSET
    """Whether the same request can succeed later."""
    retry_after_ms: Count | UnsetType = UNSET
    """When it can, for all that is known: of a fleet that is full, and of a quota that is used up."""


class Stats(Payload, frozen=True, kw_only=True):
    """What the session used, measured by the worker and the kernel, never by the guest."""

    duration_ms: Millis = 0.0
    """From the worker's acceptance to the end."""
    tool_call_count: Count = 0
    stdout_bytes: Count = 0
    """Bytes the guest wrote to stdout, those beyond the cap included."""
    stderr_bytes: Count = 0
    cpu_ms: Millis = 0.0
    """CPU time of the sandbox, its set-up included. Without control groups: of its first process and of children that
    one waited for."""
    peak_memory_bytes: Count = 0
    """Most memory that the sandbox held at any time: processes, files and kernel buffers. Without control groups:
    largest resident size of its first process."""
    refused_processes: Count = 0
    """Forks and threads that the sandbox was refused because it had as many as it may."""
    oom_kills: Count = 0
    """Processes killed because the sandbox's memory was used up."""
    queue_ms: Millis = 0.0
    """Wait for a slot, in the broker."""
    start_ms: Millis = 0.0
    """Wait for a sandbox, in the worker."""
    truncated: bool = False
    """Whether output was cut at `maxStdoutBytes`."""


class FinalPayload(Payload, frozen=True, kw_only=True):
    """The end. Nothing follows."""

    ok: bool
    result: Any | UnsetType = UNSET
    error: FinalError | UnsetType = UNSET
    stats: Stats | UnsetType = UNSET


class StatusPayload(Payload, frozen=True, kw_only=True):
    """An extension: what the session waits for."""

    state: str
    queue_position: Count | UnsetType = UNSET


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", rename="camel"):
    """The envelope. A subclass per type names its payload."""

    protocol_version: Literal[1, 2] = PROTOCOL_VERSION
    session_id: NonEmpty
    seq: Seq


class SessionInit(Event, frozen=True, kw_only=True, tag="session_init"):
    """Always the first event."""

    payload: SessionInitPayload


class Stdout(Event, frozen=True, kw_only=True, tag="stdout"):
    """Something was written to file descriptor 1."""

    payload: ChunkPayload


class Stderr(Event, frozen=True, kw_only=True, tag="stderr"):
    """Something was written to file descriptor 2. An extension: the JavaScript client skips it."""

    payload: ChunkPayload


class Log(Event, frozen=True, kw_only=True, tag="log"):
    """A line for people."""

    payload: LogPayload


class ToolCall(Event, frozen=True, kw_only=True, tag="tool_call"):
    """The guest waits for a tool."""

    payload: ToolCallPayload


class ToolResultApplied(Event, frozen=True, kw_only=True, tag="tool_result_applied"):
    """The guest goes on."""

    payload: ToolResultAppliedPayload


class Heartbeat(Event, frozen=True, kw_only=True, tag="heartbeat"):
    """Nothing happened, and that is all right."""

    payload: HeartbeatPayload


class Error(Event, frozen=True, kw_only=True, tag="error"):
    """A failure that is told before, or instead of, ending the session."""

    payload: ErrorPayload


class DeadlineExceeded(Event, frozen=True, kw_only=True, tag="deadline_exceeded"):
    """The wall deadline struck."""

    payload: DeadlineExceededPayload


class Final(Event, frozen=True, kw_only=True, tag="final"):
    """Always the last event."""

    payload: FinalPayload


class Status(Event, frozen=True, kw_only=True, tag="status"):
    """What the session waits for."""

    payload: StatusPayload


class ToolProgressPayload(Payload, frozen=True, kw_only=True):
    """How far a tool call has come."""

    call_id: NonEmpty
    phase: Literal["connecting", "sending", "receiving", "processing"]
    elapsed_ms: Millis
    bytes_received: Count | UnsetType = UNSET
    total_bytes: Count | UnsetType = UNSET


class ToolProgress(Event, frozen=True, kw_only=True, tag="tool_progress"):
    """How far a tool call has come."""

    payload: ToolProgressPayload


class PartialError(Payload, frozen=True, kw_only=True):
    """The wire's ErrorPayload: an error inside a partial result."""

    code: str
    message: str
    path: list[str] | UnsetType = UNSET
    details: list[dict[str, Any]] | UnsetType = UNSET


class PartialResultPayload(Payload, frozen=True, kw_only=True):
    """A piece of the result, ahead of the rest."""

    path: list[str]
    data: Any | UnsetType = UNSET
    error: PartialError | UnsetType = UNSET
    has_next: bool


class PartialResult(Event, frozen=True, kw_only=True, tag="partial_result"):
    """A piece of the result, ahead of the rest."""

    payload: PartialResultPayload


class CatalogChangedPayload(Payload, frozen=True, kw_only=True):
    """Which tools came and went."""

    version: NonEmpty
    added_actions: list[str]
    removed_actions: list[str]


class CatalogChanged(Event, frozen=True, kw_only=True, tag="catalog_changed"):
    """The set of tools changed while the session runs."""

    payload: CatalogChangedPayload


class EncryptedPayload(Payload, frozen=True, kw_only=True):
    """An inner event, sealed."""

    kid: NonEmpty
    nonce_b64: Annotated[str, Meta(min_length=1)] = msgspec.field(name="nonceB64")
    ciphertext_b64: Annotated[str, Meta(min_length=1)] = msgspec.field(name="ciphertextB64")
    tag_b64: str | UnsetType = msgspec.field(name="tagB64", default=UNSET)


class Encrypted(Event, frozen=True, kw_only=True, tag="enc"):
    """An inner event, sealed."""

    payload: EncryptedPayload


AnyEvent = (
    SessionInit
    | Stdout
    | Stderr
    | Log
    | ToolCall
    | ToolProgress
    | ToolResultApplied
    | PartialResult
    | Heartbeat
    | Error
    | DeadlineExceeded
    | CatalogChanged
    | Final
    | Status
    | Encrypted
)

_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - UTC; with a zone, all that is done with it takes twice as long
_LAST_SECOND = 253_402_300_799  # of the year 9999: a limit may lie beyond what a date can say


def iso_time(wall_s: float) -> str:
    """Return seconds since the epoch as the wire wants them: ISO 8601 in UTC, ending in `Z`."""
    stamp = _EPOCH + dt.timedelta(seconds=min(wall_s, _LAST_SECOND))
    return f"{stamp.isoformat(timespec='milliseconds')}Z"
