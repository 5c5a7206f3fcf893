"""Who calls, and what they may do. Plain data; who finds it out is `gate`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from enclave_protocol import EnclaveError, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enclave_broker.sessions import BrokerSession

DEFAULT_TENANT = "default"
"""Who everybody is where no keys are configured."""


class Scope(enum.StrEnum):
    """One thing that a caller may do."""

    CREATE = "sessions:create"
    """Make sessions, and read the stream that making one returns."""
    READ = "sessions:read"
    """List, look at and stream the tenant's sessions; its usage; the catalogue of tools."""
    CONTROL = "sessions:control"
    """Cancel and delete sessions, and answer their tool calls."""
    MINT = "tokens:create"
    """Make session tokens. Keys only: a token makes no tokens."""
    METRICS = "metrics:read"
    """Read `/metrics` and `/fleet`, which are about every tenant."""
    OPERATE = "fleet:operate"
    """Drain the broker, or one of its workers."""


SESSION_SCOPES = frozenset({Scope.CREATE, Scope.READ, Scope.CONTROL})
DEFAULT_KEY_SCOPES = SESSION_SCOPES | {Scope.MINT}


class Denied(EnclaveError):  # noqa: N818 - what happened, in the words of HTTP
    """The caller is nobody we know (401), or may not do this (403). The text never holds a credential.

    Attributes:
        status: 401 or 403.
        code: `UNAUTHENTICATED`, `TOKEN_EXPIRED`, `FORBIDDEN_ORIGIN`, `INSUFFICIENT_SCOPE` or `FORBIDDEN_SESSION`.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who was let in."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: str = ""
    """The key that they showed, or that made their token; empty where no keys are configured."""
    session_id: str | None = None
    """The one session that they may have to do with, if they are bound to one."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """The most that limits of their sessions may be, by name on the wire."""
    expires_at: float | None = None
    """When their token ends, in seconds since the epoch; None for a key."""

    def require(self, scope: Scope) -> None:
        """Raise Denied unless they may do this."""
        if scope not in self.scopes:
            raise Denied(403, "INSUFFICIENT_SCOPE", f"this needs the scope {scope}, which the credential lacks")

    def require_session(self, session_id: str | None) -> None:
        """Raise Denied if they are bound to another session than this one. None, none in particular, is theirs."""
        if None not in {session_id, self.session_id} and session_id != self.session_id:
            raise Denied(403, "FORBIDDEN_SESSION", "the token is for another session")

    def sees(self, session: BrokerSession) -> bool:
        """Whether the session exists, as far as they are concerned."""
        return session.tenant == self.tenant and self.session_id in {None, session.session_id}


LOCAL = Caller(tenant=DEFAULT_TENANT, scopes=frozenset(Scope))
"""Who everybody is where no keys are configured, and who calls from inside the broker's own program."""

CAPPABLE = frozenset(
    {
        *("sessionTtlMs", "deadlineMs", "maxToolCalls", "maxStdoutBytes", "maxResultBytes", "maxToolResultBytes"),
        *("toolTimeoutMs", "perToolDeadlineMs", "memoryLimitBytes", "cpuTimeMs"),
    }
)
"""Limits of which a smaller value allows less, so that the most they may be can be said."""

_FIELDS = {f.encode_name: f.name for f in msgspec.structs.fields(Limits) if f.encode_name in CAPPABLE}


def capped(limits: Limits, most: Mapping[str, int]) -> Limits:
    """Return the limits, lowered where they are above the most that they may be. Unset and 0 mean "no limit"."""
    lower = {
        _FIELDS[name]: value for name, value in most.items() if not 0 < (getattr(limits, _FIELDS[name]) or 0) <= value
    }
    return msgspec.structs.replace(limits, **lower) if lower else limits
