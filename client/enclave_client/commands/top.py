"""`enclave top`: a live view of a fleet."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from enclave_client.top.source import Source

USAGE = 2
"""Exit code for a wrong command line, and for a broker that can't be reached or will not tell."""


@click.command(name="top")
@click.option(
    "--broker",
    "url",
    metavar="URL",
    envvar="ENCLAVE_BROKER",
    default="http://127.0.0.1:3000",
    show_default=True,
    help="The broker of the fleet. ENCLAVE_API_KEY holds a key with the scope metrics:read, where one is wanted.",
)
@click.option(
    "--interval-s",
    type=click.FloatRange(0.1, 3600),
    envvar="ENCLAVE_INTERVAL_S",
    default=2.0,
    show_default=True,
    help="Time between looks, which rates and latencies are of.",
)
@click.option("--once", is_flag=True, envvar="ENCLAVE_ONCE", help="Print one frame, after one interval, and end.")
def command(url: str, interval_s: float, once: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Watch a fleet: its workers, queue, rates, latencies and tenants.

    q quits. A broker that goes away is waited for. With --once, or where the output is no terminal: one frame, as text.
    """
    # Imported when the command line is known to be right.
    from enclave_client.top.source import NoAnswer, Refused, Source  # noqa: PLC0415 - not for --help

    try:
        source = Source(url, os.environ.get("ENCLAVE_API_KEY", "").strip())
    except ValueError as error:
        raise click.UsageError(f"--broker {error}") from error
    try:
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            _print_once(source, interval_s)
        else:
            _watch(source, interval_s)
    except (NoAnswer, Refused) as error:
        click.echo(f"enclave: {source.url}: {error}", err=True)
        sys.exit(USAGE)
    finally:
        source.close()


def _print_once(source: Source, interval_s: float) -> None:
    from enclave_client.top.frame import View, render  # noqa: PLC0415 - not for --help
    from enclave_client.top.sample import between, restarted  # noqa: PLC0415 - not for --help

    before = source.sample()
    time.sleep(interval_s)
    after = source.sample()
    happened = None if restarted(before, after) else between(before, after)
    # A file or a pipe has no width: nothing is cut.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    click.echo("\n".join(render(View(source.url, after, happened), width)))


def _watch(source: Source, interval_s: float) -> None:
    import curses  # noqa: PLC0415 - not for --help

    from enclave_client.top.screen import Watcher, show  # noqa: PLC0415 - not for --help

    try:
        show(Watcher(source), interval_s)
    except curses.error as error:
        raise click.ClickException(f"this terminal can't show it ({error}): try --once, or another TERM") from error
