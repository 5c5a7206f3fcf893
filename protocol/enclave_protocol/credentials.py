"""Shared secrets between programs: how they are written down, sent, and compared. And which addresses need one."""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MIN_SECRET_CHARS = 32
"""Shortest secret. They are made by machines, so length costs nobody anything, and guessing one is hopeless."""
MAX_SECRET_CHARS = 512
MAX_SECRETS = 16
MAX_AUTHORIZATION_CHARS = 4096
"""Longest `Authorization` header that is looked at."""

WORKER_TOKEN_VARIABLE = "ENCLAVE_WORKER_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable that holds the secret between brokers and workers, if no file does."""


def parse_secrets(text: str) -> tuple[str, ...]:
    """Read secrets, one per line; blank lines and lines that begin with `#` are skipped.

    The first one is sent, all of them are accepted: a secret is replaced by putting the new one beside the old.

    Raises:
        ValueError: there is none, or one is too short, too long or not printable ASCII. It never says the secret.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        secret = line.strip()
        if not secret or secret.startswith("#"):
            continue
        if not MIN_SECRET_CHARS <= len(secret) <= MAX_SECRET_CHARS:
            allowed = f"{MIN_SECRET_CHARS} to {MAX_SECRET_CHARS} characters"
            raise ValueError(f"line {number}: a secret of {len(secret)} characters (allowed: {allowed})")
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise ValueError(f"line {number}: a secret is printable ASCII without spaces")
        found.append(secret)
    if not 1 <= len(found) <= MAX_SECRETS:
        raise ValueError(f"{len(found)} secrets (allowed: 1 to {MAX_SECRETS}, one per line)")
    return tuple(found)


def bearer(authorization: str) -> str | None:
    """Return the credential of an `Authorization: Bearer …` header, None if it is not one or too long to be ours."""
    if len(authorization) > MAX_AUTHORIZATION_CHARS:
        return None
    scheme, _, credential = authorization.strip().partition(" ")
    credential = credential.strip()
    return credential if credential and scheme.lower() == "bearer" else None


def is_one_of(given: str, secrets: Iterable[str]) -> bool:
    """Whether `given` is one of the secrets, in a time that does not depend on which characters are right."""
    encoded = given.encode(errors="surrogateescape")
    found = False
    for secret in secrets:
        found |= hmac.compare_digest(encoded, secret.encode())
    return found


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a port on `host`: of names, only `localhost` is known to be."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
