"""API keys: how one looks, and the file that says whose it is. Pure.

A key is `ek_<id>_<secret>`. The id is public: it names the key in logs, and finds its entry. The secret is 256 random
bits, and only the SHA-256 of the whole key is kept. That is enough, and a slow hash would gain nothing: slow hashes
make it costly to try a dictionary, and there is none of 2^256 words. It costs a microsecond for each request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from typing import Annotated, Any, TypeVar

import msgspec

from enclave_protocol.limits import split_path

from .caller import CAPPABLE, DEFAULT_KEY_SCOPES, Scope
from .quotas import Quotas

ID_BYTES = 6
SECRET_BYTES = 32
MAX_KEYS = 10_000
MAX_BOOK_BYTES = 4 * 1024 * 1024

PREFIX = "ek_"
_KEY = re.compile(r"ek_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[0-9a-f]{12}")
TENANT_FORM = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a number"
_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NO_HASH = "0" * 64

T = TypeVar("T")

Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Most = Annotated[int, msgspec.Meta(gt=0, le=2**53 - 1)]


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a key."""

    tenant: str
    """Whose it is."""
    sha256: Hash
    """Of the whole key, in hexadecimal."""
    scopes: frozenset[Scope] = DEFAULT_KEY_SCOPES
    """What it is good for."""


class TenantEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may do."""

    quotas: Quotas = Quotas()
    limits: dict[str, Most] = {}
    """The most that limits of its sessions may be, by name on the wire."""


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """The keys file, read."""

    keys: dict[str, KeyEntry] = {}
    tenants: dict[str, TenantEntry] = {}

    def find(self, key: str) -> tuple[str, KeyEntry] | None:
        """Return a key's id and entry, None if it is not one of ours."""
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        entry = self.keys.get(match[1])
        known = _NO_HASH if entry is None else entry.sha256
        same = hmac.compare_digest(hash_key(key), known)
        return (match[1], entry) if entry is not None and same else None


def new_key() -> tuple[str, str]:
    """Return a new key and its id."""
    key_id = secrets.token_hex(ID_BYTES)
    return f"{PREFIX}{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}", key_id


def hash_key(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_lines(key: str, key_id: str, tenant: str, scopes: frozenset[Scope]) -> str:
    """Return what the keys file says about a key. It can stand anywhere in it, so also at its end."""
    lines = [f"[keys.{key_id}]", f'tenant = "{tenant}"', f'sha256 = "{hash_key(key)}"']
    if scopes != DEFAULT_KEY_SCOPES:
        lines.append(f"scopes = [{', '.join(f'{chr(34)}{scope}{chr(34)}' for scope in sorted(scopes))}]")
    return "\n".join(lines) + "\n"


def parse_book(text: str) -> Book:
    """Read a keys file.

    Raises:
        ValueError: says where, what is wrong and what is allowed, and never quotes a value: it may be a secret.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {_unquoted(str(error))}") from None
    if unknown := document.keys() - {"keys", "tenants"}:
        raise ValueError(f"{len(unknown)} unknown tables (allowed: keys, tenants)")
    keys = {
        name: _convert(entry, KeyEntry, f"keys.{name}") for name, entry in _table(document, "keys", _ID, "a key's id")
    }
    tenants = {
        name: _convert(entry, TenantEntry, f"tenants.{name}")
        for name, entry in _table(document, "tenants", _TENANT, TENANT_FORM)
    }
    for name, key in keys.items():
        if not is_tenant(key.tenant):
            raise ValueError(f"keys.{name}.tenant: not a tenant's name (allowed: {TENANT_FORM})")
    for name, tenant in tenants.items():
        if tenant.limits.keys() - CAPPABLE:
            raise ValueError(f"tenants.{name}.limits: a name is not known (allowed: {', '.join(sorted(CAPPABLE))})")
    return Book(keys=keys, tenants=tenants)


def is_tenant(name: str) -> bool:
    """Whether a tenant can be called so."""
    return _TENANT.fullmatch(name) is not None


def _table(document: dict[str, Any], name: str, form: re.Pattern[str], allowed: str) -> list[tuple[str, Any]]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ValueError(f"{name}: not a table")  # noqa: TRY004 - of a file, not of a caller
    if len(table) > MAX_KEYS:
        raise ValueError(f"{name}: {len(table)} of them (allowed: {MAX_KEYS})")
    for number, entry in enumerate(table, 1):
        if form.fullmatch(entry) is None:
            raise ValueError(f"{name}: the name of number {number} is not one (allowed: {allowed})")
    return list(table.items())


def _convert(raw: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        reason, field = split_path(str(error))
        raise ValueError(f"{where}{f'.{field}' if field else ''}: {_unquoted(reason)}") from None


def _unquoted(reason: str) -> str:
    """Leave out what a message quotes of a value; the types that it names stay."""
    return re.sub(r"'[^']*'|`[^`]{33,}`", "…", reason)
