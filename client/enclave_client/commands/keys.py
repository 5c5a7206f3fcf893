"""`enclave keys`: make API keys, and the secrets that programs share."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enclave_broker.access import Scope

SECRET_BYTES = 32


@click.group(name="keys")
def command() -> None:
    """Make API keys and shared secrets.

    What they print is secret: send it to a file that only its reader can read.
    """


@command.command(name="new")
@click.option("--tenant", required=True, metavar="NAME", envvar="ENCLAVE_TENANT", help="Whose the key is.")
@click.option(
    "--scope",
    "scope_names",
    multiple=True,
    metavar="SCOPE",
    envvar="ENCLAVE_SCOPE",
    help="What it is good for. May be given several times.  [default: all but metrics:read]",
)
@click.option(
    "--keys-file",
    metavar="FILE",
    envvar="ENCLAVE_KEYS_FILE",
    help="Add the key's entry to this file, and print the key alone.  [default: print both]",
)
def new(tenant: str, scope_names: tuple[str, ...], keys_file: str | None) -> None:
    """Make an API key.

    The key itself is printed once and kept nowhere: the keys file of the broker has only its hash.
    """
    # Imported here, since it is the broker's and its operator's: others of our commands do without.
    from enclave_broker.access.keys import TENANT_FORM, is_tenant, key_lines, new_key  # noqa: PLC0415 - as said

    if not is_tenant(tenant):
        raise click.UsageError(f"--tenant: not a tenant's name (allowed: {TENANT_FORM})")
    key, key_id = new_key()
    lines = key_lines(key, key_id, tenant, _scopes(scope_names))
    if keys_file is None:
        click.echo(f"{key}\n\n{lines}", nl=False)
        return
    _append(keys_file, lines)
    click.echo(key)


@command.command(name="secret")
def secret() -> None:
    """Make a secret: one that workers want of brokers, or one that signs session tokens."""
    click.echo(secrets.token_urlsafe(SECRET_BYTES))


def _scopes(names: Iterable[str]) -> frozenset[Scope]:
    from enclave_broker.access import Scope  # noqa: PLC0415 - see above
    from enclave_broker.access.caller import DEFAULT_KEY_SCOPES  # noqa: PLC0415 - see above

    try:
        return frozenset(map(Scope, names)) or DEFAULT_KEY_SCOPES
    except ValueError as error:
        raise click.UsageError(f"--scope: no such scope (allowed: {', '.join(Scope)})") from error


def _append(keys_file: str, lines: str) -> None:
    try:
        with Path(keys_file).open("a", encoding="utf-8") as file:
            file.write(lines if file.tell() == 0 else f"\n{lines}")
    except OSError as error:
        raise click.ClickException(f"{keys_file}: {error.strerror}") from error
