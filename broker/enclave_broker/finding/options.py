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
            help="A worker's ws:// URL, or a name in DNS for any number of them, dns+ws://NAME:PORT/ws for its "
            "addresses or srv+ws://_SERVICE._tcp.NAME/ws for its SRV records; repeat it.",
        ),
        click.option(
            "--workers-file",
            default="",
            show_default=False,
            metavar="FILE",
            help="File with URLs of workers, one per line; read again when it changes.",
        ),
        click.option(
            "--dns-server",
            "dns_servers",
            multiple=True,
            envvar="ENCLAVE_DNS_SERVER",
            metavar="ADDRESS[:PORT]",
            help="Nameserver to ask about workers; repeat it.  [default: the system's]",
        ),
        click.option(
            "--dns-every-s",
            default=5.0,
            type=click.FloatRange(0.1),
            help="How often names of workers are resolved again.",
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
