"""The options of `enclave-broker` that say who may call. All of them name files: a command line is no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_FILES = {
    "--keys-file": "API keys, tenants, quotas; read again when it changes and on SIGHUP. Or ENCLAVE_KEYS has its text.",
    "--token-secrets-file": "Secrets that sign session tokens, one per line. Or ENCLAVE_TOKEN_SECRETS has them.",
    "--worker-token-file": "The secret that workers want. Or ENCLAVE_WORKER_TOKEN has it.",
    "--worker-tls-ca": "Authorities of wss:// workers' certificates.  [default: the system's]",
    "--worker-tls-cert": "Our certificate, for workers that want one.",
    "--worker-tls-key": "Its key.",
    "--tls-cert": "Our certificate, for clients: https:// and wss:// instead of http:// and ws://.",
    "--tls-key": "Its key.",
}


def access_options(command: F) -> F:
    """Add the options; their values have the names of `BrokerConfig`'s fields."""
    flags = {
        "--public-metrics": "Let everybody read /metrics, without a key.",
        "--insecure": "Listen beyond loopback even if everybody may call.",
    }
    for name, text in reversed(flags.items()):
        command = click.option(name, is_flag=True, help=text)(command)
    for name, text in reversed(_FILES.items()):
        command = click.option(name, default="", metavar="FILE", show_default=False, help=text)(command)
    return command
