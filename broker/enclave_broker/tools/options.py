"""The options of `enclave-broker` that are about tools."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .approval import load_hook
from .audit import log as audit_log
from .registry import ToolRegistry
from .secrets import Secrets, read_secrets, take_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_protocol.logs import LineFormatter

    from .approval import ApprovalHook

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS = [
    click.option(
        "--tools",
        "modules",
        multiple=True,
        envvar="ENCLAVE_TOOLS",
        metavar="MODULE",
        help="Module with @tool functions.",
    ),
    click.option(
        "--secrets",
        type=click.Path(path_type=Path),
        help="Secrets for tools: a JSON object in a file, or a directory with a file for each.",
    ),
    click.option(
        "--approve", metavar="MODULE:FUNCTION", help="Async function asked before tools that need approval run."
    ),
    click.option(
        "--audit-log", type=click.Path(path_type=Path), help="File for the line of each tool call. [default: log]"
    ),
]


def tool_options(command: F) -> F:
    """Give a command these options: `modules`, `secrets`, `approve` and `audit_log`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def set_up(
    modules: tuple[str, ...], secrets: Path | None, approve: str | None, audit: Path | None, formatter: LineFormatter
) -> tuple[ToolRegistry, Secrets, ApprovalHook | None]:
    """Load what the options name, and keep secrets out of the lines that `formatter` makes.

    Secrets are taken out of this process's environment: what tools start does not inherit them.

    Raises:
        ValueError: something can't be loaded, read or written; says which.
    """
    given = Secrets((read_secrets(secrets) if secrets else {}) | take_from_environment(os.environ))
    formatter.clean = given.scrubber.clean
    _open_audit_log(audit)
    # An installed command's path starts where the command is, not where the user's module is.
    sys.path.append(str(Path.cwd()))  # last: a file here must not stand in for an installed module
    registry = ToolRegistry()
    for module in modules:
        registry.load(module)
    return registry, given, load_hook(approve) if approve else None


def _open_audit_log(path: Path | None) -> None:
    audit_log.setLevel(logging.INFO)  # whatever the other loggers' level is
    if path is None:
        return
    try:
        handler = logging.FileHandler(path)
    except OSError as error:
        raise ValueError(f"audit log {path}: {error.strerror or type(error).__name__}") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    audit_log.addHandler(handler)
    audit_log.propagate = False
