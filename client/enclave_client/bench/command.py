"""What the commands that measure do alike: run, write down what they found, and fail."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import uvloop

from enclave_client.fleet import FleetError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import BinaryIO

Found = TypeVar("Found")


def measured(measuring: Coroutine[Any, Any, Found]) -> Found:
    """Run a measurement and return what it found; that its fleet failed is said, and ends the program with 1."""
    try:
        return uvloop.run(measuring)
    except FleetError as error:
        click.echo(f"{error.detail}\nenclave: {error}".lstrip(), err=True)
        sys.exit(1)


def write_json(file: BinaryIO, report: msgspec.Struct) -> None:
    """Write a report where `--json` says."""
    file.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
