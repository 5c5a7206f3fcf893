"""`enclave doctor`: what the sandbox needs of this machine, whether it is there, and what mends it."""

from __future__ import annotations

import sys

import click


@click.command(name="doctor")
def command() -> None:
    """Say whether sandboxes can run here, and what to mend.

    Tries out every kernel feature and permission that a worker needs, as the current user. Exits with 0 if and only if
    a worker can start here.
    """
    from enclave_worker.doctor import checks, render  # noqa: PLC0415 - a client without a worker has no use for it

    found = checks()
    click.echo(render(found))
    sys.exit(0 if all(check.ok for check in found if check.required) else 1)
