"""The options of `enclave-broker` that say where tools come from, other than Python modules."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from enclave_broker.tools.secrets import ENVIRONMENT_PREFIX

from .build import Sources
from .tools_file import openapi_option, read_tools_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_broker.tools.secrets import Secrets
    from enclave_broker.tools.tool import ToolSource

log = logging.getLogger("enclave.broker.tools")

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS = [
    click.option(
        "--openapi",
        multiple=True,
        envvar="ENCLAVE_OPENAPI",
        metavar="NAME=URL",
        help="OpenAPI document, an address or a file, whose operations become tools NAME_...; repeat it.",
    ),
    click.option(
        "--tools-file",
        "tools_files",
        multiple=True,
        envvar="ENCLAVE_TOOLS_FILE",
        type=click.Path(path_type=Path),
        help="File of OpenAPI documents, HTTP endpoints and MCP servers, or an mcpServers JSON file; repeat it.",
    ),
]


def source_options(command: F) -> F:
    """Give a command these options: `openapi` and `tools_files`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load_sources(
    openapi: Iterable[str], files: Iterable[Path], secrets: Secrets, *, can_approve: bool = False
) -> list[ToolSource]:
    """Return the sources that the options name.

    Args:
        openapi: texts such as `pets=https://example.com/openapi.json`.
        files: of `--tools-file`.
        secrets: the broker's.
        can_approve: whether there is somebody to ask about tools that need approval.

    Raises:
        ValueError: an option or a file can't be right, what it needs is not installed, or needs approval and there is
            nobody to ask; says which and why.
    """
    sources = Sources()
    for text in openapi:
        sources.add_openapi(*openapi_option(text))
    for file in files:
        sources.add_file(read_tools_file(file))
    asking = sources.needing_approval()
    if asking and not can_approve:
        raise ValueError(f"tools of {asking[0]!r} need approval, and no approval hook is given (--approve)")
    for name in secrets.missing(sorted(sources.secrets())):
        log.warning("tools need the secret %s: set %s%s", name, ENVIRONMENT_PREFIX, name)
    return [*sources.make(secrets)]
