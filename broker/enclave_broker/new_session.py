"""What is asked for when a session is, and why it may be refused before anything is placed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from enclave_protocol import MAX_CODE_BYTES, EnclaveError, Limits, RemoteProtocolError

from .placement import DEFAULT_PROFILE

if TYPE_CHECKING:
    from enclave_protocol import ClientTools
    from enclave_protocol.encryption import Channel
    from enclave_protocol.languages import Language
    from enclave_protocol.messages import Retry
    from enclave_protocol.trace_context import TraceContext

MAX_PROFILE_CHARS = 128


class DuplicateSession(EnclaveError):  # noqa: N818 - the wire's word
    """The id belongs to a session that has not ended."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} has not ended: choose another id, or leave it out to be given one")


class CodeTooLarge(RemoteProtocolError):  # noqa: N818 - a fact about the request
    """`code` is larger than anything may be."""

    def __init__(self, size_bytes: int, *, session_id: str | None = None) -> None:
        self.size_bytes = size_bytes
        reason = f"{size_bytes} bytes of UTF-8; the limit is {MAX_CODE_BYTES}"
        super().__init__(reason, field="code", allowed=f"at most {MAX_CODE_BYTES} bytes", session_id=session_id)


class NewSession(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request for a session."""

    code: str
    session_id: str | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    language: Language | None = None
    """None leaves it to the profile."""
    profile: str = DEFAULT_PROFILE
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment variables, checked."""
    files: dict[str, Any] = msgspec.field(default_factory=dict)
    """Files by path, checked."""
    client_tools: ClientTools | None = msgspec.field(default_factory=dict)
    """The tools that its client answers for, by name; None: every one that the broker does not have."""
    channel: Channel | None = None
    """What seals its events. It is made for one session id, so that must be given too."""
    retry: Retry = "never"
    """Whether it may run once more if its worker is lost before its first event: `safe`."""
    trace: TraceContext | None = None
    """Where in a distributed trace it belongs."""
    fingerprint: bytes = b""
    """Tells the request from others, so that one that is made again is recognised."""

    def __post_init__(self) -> None:
        """Refuse what no worker can run; raises RemoteProtocolError naming the field."""
        size_bytes = len(self.code) if self.code.isascii() else len(self.code.encode("utf-8", "surrogatepass"))
        if size_bytes > MAX_CODE_BYTES:
            raise CodeTooLarge(size_bytes, session_id=self.session_id)
        if not 1 <= len(self.profile) <= MAX_PROFILE_CHARS:
            allowed = f"text of 1 to {MAX_PROFILE_CHARS} characters"
            raise RemoteProtocolError("no name", field="profile", allowed=allowed, session_id=self.session_id)
