"""The gate: from what a request shows to who calls.

Theory of operation. `caller` is one pure step over the keys as they are now, and costs a hash (key) or a
signature (token); nothing is remembered between requests, so what is revoked is revoked at once. Callers that stay, on
a WebSocket, are held against the keys again by `allow` before each thing that they do. `reload` exchanges the whole
book in one assignment; sessions belong to tenants, not to keys, and live on.

Without keys there is nobody to tell apart: everybody is `LOCAL`, who may do everything.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from msgspec import UNSET

from enclave_protocol.credentials import bearer
from enclave_protocol.logs import about

from .caller import LOCAL, SESSION_SCOPES, Caller, Denied, Scope
from .keys import PREFIX, Book
from .quotas import Ledger
from .tokens import Claims, Signer, unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

log = logging.getLogger("enclave.broker.access")

BEARER = "enclave.bearer."
"""How a browser, which can set no headers on a WebSocket, sends its token: as a subprotocol that begins so."""
IN_URL = b"access_token="
MAX_FIELDS = 20
SAME_ORIGIN = "same-origin"

_STREAM = re.compile(r"/sessions/[^/]+/stream")


class Gate:
    """Who may call.

    Args:
        book: the keys; None lets everybody in.
        signer: makes and reads session tokens.
        clock: seconds since the epoch.
    """

    def __init__(self, book: Book | None, signer: Signer, *, clock: Callable[[], float] = time.time) -> None:
        self.ledger = Ledger()
        self._book = book
        self._signer = signer
        self._clock = clock
        self._configure()

    @property
    def closed(self) -> bool:
        """Whether callers have to show a key or a token."""
        return self._book is not None

    @property
    def tenants(self) -> frozenset[str]:
        """Every tenant there is, by a key or by an entry of its own."""
        if self._book is None:
            return frozenset({LOCAL.tenant})
        return frozenset(self._book.tenants) | {entry.tenant for entry in self._book.keys.values()} | {LOCAL.tenant}

    def reload(self, book: Book) -> None:
        """Exchange the keys and the quotas."""
        self._book = book
        self._configure()

    def caller(self, scope: Mapping[str, Any]) -> Caller:
        """Return who makes a request, by its ASGI scope, HTTP's or a WebSocket's; raises Denied."""
        if self._book is None:
            return LOCAL
        return self._authenticate(self._book, read_shown(scope))

    def allow(self, caller: Caller, scope: Scope) -> None:
        """Raise Denied unless a caller who was let in earlier still is, and may do this."""
        if self._book is not None:
            entry = self._book.keys.get(caller.key_id)
            if entry is None or entry.tenant != caller.tenant or scope not in entry.scopes:
                raise unauthenticated("the key is not good for this any more")
            if caller.expires_at is not None and caller.expires_at <= self._clock():
                raise Denied(401, "TOKEN_EXPIRED", "the token has ended: connect again with another one")
        caller.require(scope)

    def mint(
        self,
        caller: Caller,
        *,
        life_s: int,
        scopes: Iterable[Scope] | None = None,
        origins: list[str] | None = None,
        session_id: str | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> tuple[str, Claims]:
        """Return a token for somebody who may do less than the caller; raises Denied."""
        if caller.expires_at is not None:
            raise Denied(403, "INSUFFICIENT_SCOPE", "a token makes no tokens: this needs a key")
        caller.require(Scope.MINT)
        wanted = frozenset(scopes) if scopes is not None else SESSION_SCOPES & caller.scopes
        if not wanted or not wanted <= caller.scopes - {Scope.MINT}:
            choices = " ".join(sorted(caller.scopes - {Scope.MINT})) or "none"
            raise Denied(403, "INSUFFICIENT_SCOPE", f"the token would have scopes that the key can't give: {choices}")
        now = int(self._clock())
        claims = Claims(
            iss="enclave",
            aud="enclave",
            sub=caller.tenant,
            key=caller.key_id,
            jti=secrets.token_hex(8),
            iat=now,
            exp=now + life_s,
            scope=" ".join(sorted(wanted)),
            origins=origins or UNSET,
            sid=session_id or UNSET,
            limits=dict(limits) if limits else UNSET,
        )
        log.info("key %s made token %s for %d s", caller.key_id, claims.jti, life_s, extra=about(tenant=caller.tenant))
        return self._signer.sign(claims), claims

    def _configure(self) -> None:
        tenants = {} if self._book is None else self._book.tenants
        self.ledger.configure({name: entry.quotas for name, entry in tenants.items()})

    def _authenticate(self, book: Book, shown: Shown) -> Caller:
        if shown.credential is None:
            raise unauthenticated("this needs a key or a token: Authorization: Bearer …")
        if shown.credential.startswith(PREFIX):
            return _by_key(book, shown.credential)
        claims = self._signer.read(shown.credential, self._clock())
        caller = _by_token(book, claims)
        _check_origin(claims, shown)
        return caller


def _by_key(book: Book, key: str) -> Caller:
    found = book.find(key)
    if found is None:
        raise unauthenticated()
    key_id, entry = found
    return Caller(tenant=entry.tenant, scopes=entry.scopes, key_id=key_id, limits=_limits(book, entry.tenant))


def _by_token(book: Book, claims: Claims) -> Caller:
    entry = book.keys.get(claims.key)
    if entry is None or entry.tenant != claims.sub:
        raise unauthenticated("the key that made this token is gone")
    named = frozenset(scope for scope in Scope if scope in claims.scope.split(" "))
    limits = dict(_limits(book, entry.tenant))
    for name, value in ({} if claims.limits is UNSET else claims.limits).items():
        limits[name] = min(value, limits.get(name, value))
    return Caller(
        tenant=entry.tenant,
        scopes=named & entry.scopes - {Scope.MINT},
        key_id=claims.key,
        session_id=None if claims.sid is UNSET else claims.sid,
        limits=limits,
        expires_at=claims.exp,
    )


def _check_origin(claims: Claims, shown: Shown) -> None:
    if claims.origins is UNSET or (shown.origin is None and shown.site == SAME_ORIGIN):
        return  # of pages of our own origin, browsers say no Origin when they GET
    if shown.origin not in claims.origins:
        raise Denied(403, "FORBIDDEN_ORIGIN", "the token is for pages of other origins")


def _limits(book: Book, tenant: str) -> Mapping[str, int]:
    entry = book.tenants.get(tenant)
    return {} if entry is None else entry.limits


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows of its caller. Its text must never be logged."""

    credential: str | None = field(repr=False)
    """A key or a token; None if there was none."""
    origin: str | None = None
    """The page's site, as its browser says (`Origin`); None if it does not."""
    site: str | None = None
    """How the page's site and ours are related, as its browser says (`Sec-Fetch-Site`)."""


def read_shown(scope: Mapping[str, Any]) -> Shown:
    """Return what an ASGI scope shows; raises Denied.

    The credential is that of `Authorization: Bearer …`. Where browsers can set no headers it may come otherwise: as a
    WebSocket's subprotocol `enclave.bearer.…`; and, if it is a token, in the URL of a session's stream.
    """
    authorizations, origin, site = [], None, None
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorizations.append(bearer(value.decode("latin-1")) or "")
        elif name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"sec-fetch-site":
            site = value.decode("latin-1")
    protocols = scope.get("subprotocols") or ()
    offered = [name.removeprefix(BEARER) for name in protocols if name.startswith(BEARER)]
    credentials = authorizations + offered + _tokens_in_url(scope)
    if len(credentials) > 1:
        raise unauthenticated("several credentials: send one")
    return Shown(credentials[0] if credentials else None, origin, site)


def _tokens_in_url(scope: Mapping[str, Any]) -> list[str]:
    """Return the tokens in the URL of a session's stream: an `EventSource` can send one in no other way.

    No other route takes one there, and none takes a key, since others may keep URLs: proxies, histories, logs.
    """
    query: bytes = scope.get("query_string", b"")
    if IN_URL not in query or scope.get("method") != "GET" or _STREAM.fullmatch(scope["path"]) is None:
        return []
    try:
        found = parse_qs(query.decode("latin-1"), max_num_fields=MAX_FIELDS).get("access_token", [])
    except ValueError:
        raise unauthenticated("too many fields in the URL") from None
    if any(credential.startswith(PREFIX) for credential in found):
        raise unauthenticated("a key never belongs into a URL: make a token of it, and a new key")
    return found
