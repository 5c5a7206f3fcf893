"""The options of `enclave-broker` that say where workers are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

NO_WORKER = (
    "no worker: give at least one --worker ws://HOST:PORT/ws (or ENCLAVE_WORKER), --workers-file or --accept-workers"
)


def finding_options(command: F) -> F:
    """Add the options; their values have the names of `BrokerConfig`'s fields."""
    options = [
        click.option(
            "--worker",
            "workers",
            multiple=True,
            envvar="ENCLAVE_WORKER",
            metavar="URL",
            help="A worker's ws:// URL; repeat it.",
        ),
        click.option(
            "--workers-file",
            default="",
            show_default=False,
            metavar="FILE",
            help="File with URLs of workers, one per line; read again when it changes.",
        ),
        click.option(
            "--accept-workers",
            is_flag=True,
            help="Let workers dial in (enclave-runtime --dial); they must show the workers' token.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
