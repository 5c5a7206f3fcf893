"""Where sessions are kept, and for how long: what an operator says, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Store

F = TypeVar("F", bound="Callable[..., Any]")

MEMORY = "memory"
SQLITE = "sqlite:"
STORE_FORM = "`memory`, or `sqlite:` and the path of a file"


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of finished sessions is kept, at most."""

    sessions: int
    size_bytes: int
    """Of their events."""
    age_s: float


RETENTION = {
    MEMORY: Retention(1000, 16 * 1024 * 1024, 60.0),
    SQLITE: Retention(20_000, 1024 * 1024 * 1024, 86_400.0),
}
"""What holds for what the operator does not say. In a file the number is bounded by memory: 2 KB of each stay there."""


def check_store(text: str) -> str:
    """Return a store's kind; raises ValueError for what is none."""
    if text == MEMORY:
        return MEMORY
    if text.startswith(SQLITE) and len(text) > len(SQLITE):
        return SQLITE
    raise ValueError(f"store {text!r}: is not {STORE_FORM}")


def make_store(text: str) -> Store:
    """Return a store, not open yet; raises ValueError."""
    if check_store(text) == MEMORY:
        return MemoryStore()
    from .sqlite import SqliteStore  # noqa: PLC0415 - whoever keeps sessions in memory needs no SQLite

    return SqliteStore(text.removeprefix(SQLITE))


def store_options(command: F) -> F:
    """Add the options; their values have the names of `BrokerConfig`'s fields."""
    options = [
        click.option(
            "--store",
            default=MEMORY,
            metavar="memory|sqlite:FILE",
            help="Where sessions are kept: in a file they outlive the broker.",
        ),
        click.option(
            "--retain-s",
            type=click.FloatRange(0),
            help="How long finished sessions can be replayed.  [default: 60; 86400 in a file]",
        ),
        click.option(
            "--retained-bytes",
            type=click.IntRange(0),
            help="Events of finished sessions that are kept, at most.  [default: 16 MiB; 1 GiB in a file]",
        ),
        click.option(
            "--retained-sessions",
            type=click.IntRange(0),
            help="Finished sessions that are kept, at most.  [default: 1000; 20000 in a file]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
