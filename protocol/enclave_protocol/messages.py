"""Messages on a WebSocket: what a client or the broker tells a worker, and the worker's answers beside the events.

The wire has several spellings of some of these; `codec` accepts all of them and hands out the one form here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from .errors import RemoteProtocolError
from .events import PROTOCOL_VERSION, CatalogChangedPayload, ErrorPayload, NonEmpty, Seq
from .limits import NotNegative, Positive
from .outcomes import Code

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Number = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Revision = Annotated[int, Meta(ge=1)]
Retry = Literal["never", "safe"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", rename="camel"):
    """Base of every message that is not an event."""


class Execute(Message, frozen=True, kw_only=True, tag="execute"):
    """Run `code` in a new session."""

    session_id: str | UnsetType = UNSET
    """Chosen by the sender; the receiver makes one when it is absent, and says it in `session_init`."""
    code: str
    limits: dict[str, Any] | UnsetType = UNSET
    """Read with `parse_limits`."""
    language: Name | UnsetType = UNSET
    profile: Name | UnsetType = UNSET
    env: dict[str, Any] | UnsetType = UNSET
    """Environment variables of the code. Read with `parse_env`."""
    files: dict[str, Any] | UnsetType = UNSET
    """Files in its working directory, by relative path. Read with `parse_files`."""
    tools: list[Any] | UnsetType = UNSET
    """Tools that the sender answers calls of, in place of every tool that a broker lacks. Read with
    `parse_declared_tools`."""
    first_seq: Number | UnsetType = UNSET
    """Number of the worker's first event. Given by a broker, which has sent the events before it (`session_init`
    among them), so that the worker's bytes pass through it unchanged. Absent: the worker starts at 1."""
    queue_ms: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    """Time the session waited in the broker, for `final.stats`."""
    traceparent: Any = UNSET
    """Where in a distributed trace the session belongs, as in the header that W3C calls so. Read with `parse_trace`,
    which takes what is none for none: such a message is not refused."""
    tracestate: Any = UNSET
    """And what tracing systems told each other about it. Brokers keep it to themselves."""
    retry: Retry | UnsetType = UNSET
    """What a broker may do with a session whose worker is lost before its first event: `safe` has it run again
    elsewhere, `never` (the default) ends it."""


class Attach(Message, frozen=True, kw_only=True, tag="attach"):
    """Send me a session's events too, from a number on; from then on I may answer its calls and cancel it.

    To a worker: send them to me alone. Whoever attaches last is the session's broker.
    """

    session_id: str
    from_seq: Number = 1
    """Number of the first event wanted."""


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """End a session now."""

    session_id: str
    reason: str | UnsetType = UNSET


class ToolError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a tool failed."""

    message: str
    code: str | UnsetType = UNSET


class ToolResult(Message, frozen=True, kw_only=True, tag="tool_result"):
    """The answer to one `tool_call`.

    Exactly one of `value` (raw JSON) and `error` is set.
    """

    session_id: str
    call_id: NonEmpty
    success: bool
    value: Raw | UnsetType = UNSET
    error: ToolError | UnsetType = UNSET


class Ping(Message, frozen=True, kw_only=True, tag="ping"):
    """Are you there? Answered by `pong` with the same timestamp."""

    timestamp: float = 0


class CatalogNotice(Message, frozen=True, kw_only=True, tag="catalog_changed"):
    """From a broker to a worker: put this event into the session's stream, with the number that is its turn.

    Only the worker can number it: its own events may be on their way. For a session that has ended it means nothing.
    """

    session_id: str
    payload: CatalogChangedPayload


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """A broker's answer to `hello`, and its first message: from here on, both speak this revision.

    A worker that offers only revision 1 is not sent it.
    """

    revision: Revision
    """One that the worker offered."""
    broker_id: NonEmpty
    """The same after a restart of a broker that keeps its sessions."""


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """From a broker to a worker: these events are kept here, so you need not keep them for me."""

    seqs: dict[str, Number]
    """By session id, the number of the last event that is kept."""


class Drain(Message, frozen=True, kw_only=True, tag="drain"):
    """From a worker: I take no new sessions. From a broker: take none, and end when yours have ended."""

    reason: str | UnsetType = UNSET


class Pong(Message, frozen=True, kw_only=True, tag="pong"):
    """Yes, and this is how busy I am."""

    timestamp: float
    """The ping's own."""
    active: NotNegative = 0
    """Sessions that hold a slot."""
    max_sessions: NotNegative = 0
    draining: bool = False


class KeptSession(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A session whose broker is gone and may come back, or whose last events nobody has acknowledged."""

    session_id: str
    first_seq: Number
    """Number of the oldest event that can still be had,"""
    last_seq: Annotated[int, Meta(ge=0)]
    """and of the newest; one less than `first_seq` if there is none."""


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """A worker's first message on every connection."""

    worker_id: NonEmpty
    instance: NonEmpty | UnsetType = UNSET
    """A new one at every start: sessions of another instance are lost. Absent in revision 1."""
    version: str
    protocol_version: int = PROTOCOL_VERSION
    min_revision: Revision = 1
    """Of what broker and worker say to each other beside events: the oldest that the worker speaks,"""
    max_revision: Revision = 1
    """and the newest. See `revisions`."""
    level: str
    """The security level its sandboxes hold."""
    missing_layers: list[str] | UnsetType = UNSET
    """Layers that its host cannot give and its level does not require; absent if there are none."""
    languages: list[str]
    """Those of all its profiles."""
    profiles: list[str]
    profile_languages: dict[str, list[str]] | UnsetType = UNSET
    """By a profile's name its languages, of which the first is what a session gets that names none. Absent: all."""
    profile_limits: dict[str, dict[str, Any]] | UnsetType = UNSET
    """Limits that a profile sets, by its name, for sessions that do not set them."""
    max_sessions: Positive
    """Its slots."""
    active: NotNegative
    """Slots taken, by this connection's sessions or another's."""
    draining: bool = False
    sessions: list[KeptSession] | UnsetType = UNSET
    """What a broker may attach to. Absent: nothing."""


class Rejection(Message, frozen=True, kw_only=True, tag="error"):
    """Your message was refused and changed nothing.

    It has the shape of an `error` event but no `seq`: it belongs to no stream.
    """

    protocol_version: int = PROTOCOL_VERSION
    session_id: str | UnsetType = UNSET
    payload: ErrorPayload

    @classmethod
    def of(cls, error: RemoteProtocolError) -> Rejection:
        """Return the answer to a message that could not be accepted."""
        payload = ErrorPayload(
            message=str(error),
            code=Code.VALIDATION_ERROR.value,
            recoverable=True,
            field=error.field or UNSET,
            allowed=error.allowed or UNSET,
        )
        return cls(session_id=error.session_id or UNSET, payload=payload)


ClientMessage = Execute | Attach | Cancel | ToolResult | Ping
BrokerMessage = CatalogNotice | Welcome | Ack | Drain
"""What only a broker says to a worker."""
WorkerMessage = Hello | Pong | Rejection | Drain


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """As much of an event or message as it takes to route it."""

    type: str
    session_id: str | UnsetType = UNSET
    seq: Seq | UnsetType = UNSET
