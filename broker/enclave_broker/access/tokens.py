"""Session tokens: what a key's owner gives to a browser instead of the key. Pure: the time is passed in.

A token is a JWT, so that whoever gets one can look into it. Reading one is strict: exactly our header and HS256, a
signature by one of our secrets, exactly our claims with their types, a life of at most a day. What it says is then held
against the key that made it, so a token ends with its key.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jwt
import msgspec
from msgspec import UNSET, Meta, UnsetType

from .caller import Denied

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LIFE_S = 24 * 3600
DEFAULT_LIFE_S = 15 * 60
CLOCK_SKEW_S = 60
"""How far ahead the clock of the broker that made a token may be."""
MAX_TOKEN_CHARS = 3072
MAX_ORIGINS = 16
ORIGIN = re.compile(r"https?://[a-z0-9.\-\[\]:]{1,253}")
"""What a browser sends as `Origin`: scheme, host, and port unless it is the scheme's own; no path, no slash."""

Text = Annotated[str, Meta(max_length=200)]


class Claims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a token says."""

    iss: Literal["enclave"]
    aud: Literal["enclave"]
    sub: Text
    """The tenant."""
    key: Text
    """The key that made it."""
    jti: Text
    """Its name in the log."""
    iat: int
    """Made when, in seconds since the epoch."""
    exp: int
    """Ends when."""
    scope: Text
    """Scopes, separated by spaces."""
    origins: Annotated[list[Text], Meta(max_length=MAX_ORIGINS)] | UnsetType = UNSET
    """Pages of which sites may use it."""
    sid: Text | UnsetType = UNSET
    """The one session that it is about."""
    limits: Annotated[dict[Text, int], Meta(max_length=16)] | UnsetType = UNSET
    """The most that limits of its sessions may be."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: Literal["HS256"]
    typ: Literal["JWT"]
    kid: Text


@dataclass(frozen=True, slots=True)
class _Secret:
    kid: str
    value: str


class Signer:
    """Makes tokens and reads them.

    Args:
        shared: secrets, of which the first one signs and all are believed. Without any, one that ends with this object.
    """

    def __init__(self, shared: Sequence[str] = ()) -> None:
        # The id is made from the secret, so that nobody has to write it down beside it; 48 bits tell nothing of it.
        values = shared or [secrets.token_urlsafe(32)]
        self._secrets = [_Secret(hashlib.sha256(value.encode()).hexdigest()[:12], value) for value in values]
        self._by_id = {secret.kid: secret for secret in self._secrets}
        self._jws = jwt.PyJWS(algorithms=["HS256"])

    def __repr__(self) -> str:
        return f"<Signer {' '.join(self._by_id)}>"

    def sign(self, claims: Claims) -> str:
        """Return a token."""
        first = self._secrets[0]
        return self._jws.encode(
            msgspec.json.encode(claims), first.value, algorithm="HS256", headers={"typ": "JWT", "kid": first.kid}
        )

    def read(self, token: str, now: float) -> Claims:
        """Return what a token of ours says; raises Denied for anything else.

        Args:
            token: what the caller sent.
            now: seconds since the epoch.
        """
        claims = self._believe(token)
        if claims.exp <= now:
            raise Denied(401, "TOKEN_EXPIRED", f"the token ended {round(now - claims.exp)} s ago: get another one")
        if claims.iat > now + CLOCK_SKEW_S or claims.exp - claims.iat > MAX_LIFE_S:
            raise unauthenticated()
        return claims

    def _believe(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise unauthenticated()
        try:
            header = msgspec.convert(jwt.get_unverified_header(token), _Header)
            secret = self._by_id.get(header.kid)
            if secret is None:
                raise unauthenticated()
            payload: Any = self._jws.decode(token, secret.value, algorithms=["HS256"])
            return _claims.decode(payload)
        except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, RecursionError):
            raise unauthenticated() from None


_claims = msgspec.json.Decoder(Claims)


def unauthenticated(reason: str = "this is no key or token of this broker") -> Denied:
    """Return the refusal of somebody we do not know. What was wrong with the credential is not told."""
    return Denied(401, "UNAUTHENTICATED", reason)
