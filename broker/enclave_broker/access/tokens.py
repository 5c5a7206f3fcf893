"""Session tokens: what a key's owner gives to a browser instead of the key. Pure: the time is passed in.

A token is a JWT with HS256, so that whoever gets one can look into it. Reading one is strict: a header that is, byte
for byte, that of one of our secrets (so there is no algorithm to choose, and nothing is parsed that we did not sign),
its signature, exactly our claims with their types, a life of at most a day. What it says is then held against the key
that made it, so a token ends with its key. A JWT library would read the header instead, and takes 120 µs where this
takes 10.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Annotated, Literal

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


class Signer:
    """Makes tokens and reads them.

    Args:
        shared: secrets, of which the first one signs and all are believed. Without any, one that ends with this object.
    """

    def __init__(self, shared: Sequence[str] = ()) -> None:
        values = shared or [secrets.token_urlsafe(32)]
        self._secrets = {_header(value): value.encode() for value in values}
        self._first = next(iter(self._secrets))

    def sign(self, claims: Claims) -> str:
        """Return a token."""
        signed = self._first + b"." + _encode(msgspec.json.encode(claims))
        return (signed + b"." + self._signature(self._first, signed)).decode()

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
        signed, _, signature = token.encode().rpartition(b".")
        header, _, payload = signed.partition(b".")
        if header not in self._secrets or not hmac.compare_digest(signature, self._signature(header, signed)):
            raise unauthenticated()
        try:
            return _claims.decode(_decode(payload))
        except (msgspec.MsgspecError, ValueError):
            raise unauthenticated() from None

    def _signature(self, header: bytes, signed: bytes) -> bytes:
        return _encode(hmac.digest(self._secrets[header], signed, "sha256"))


def _header(secret: str) -> bytes:
    """Return the header of the tokens that a secret signs.

    The id in it is made from the secret, so that nobody has to write one down; 48 bits of a hash tell nothing of it.
    """
    kid = hashlib.sha256(secret.encode()).hexdigest()[:12]
    return _encode(msgspec.json.encode({"alg": "HS256", "kid": kid, "typ": "JWT"}))


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


_claims = msgspec.json.Decoder(Claims)


def unauthenticated(reason: str = "this is no key or token of this broker") -> Denied:
    """Return the refusal of somebody we do not know. What was wrong with the credential is not told."""
    return Denied(401, "UNAUTHENTICATED", reason)
