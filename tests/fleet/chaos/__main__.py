"""The chaos run: `python -m tests.fleet.chaos`, which `make chaos` runs."""

from __future__ import annotations

import sys
from typing import Any

import click
import uvloop

from .faults import SHARES
from .run import Plan, run


@click.command(name="chaos", context_settings={"show_default": True})
@click.option("--sessions", type=click.IntRange(min=1), default=2000, help="How many are run.")
@click.option("--at-once", type=click.IntRange(1, 200), default=48, help="How many of them at once.")
@click.option("--workers", type=click.IntRange(1, 16), default=4, help="Each has 16 slots.")
@click.option("--vanishing", type=click.IntRange(0, 16), default=1, help="Workers in network namespaces; needs root.")
@click.option("--dialling", type=click.IntRange(0, 16), default=1, help="Workers that dial in to the broker.")
@click.option("--every-s", type=click.FloatRange(min=0.05), default=1.5, help="Between two faults, on average.")
@click.option("--store", type=click.Choice(["sqlite", "memory"]), default="sqlite", help="Memory: brokers stay alive.")
@click.option("--only", "faults", multiple=True, type=click.Choice(list(SHARES)), help="Only these faults; repeat it.")
@click.option("--seed", type=int, default=1, help="Of the sessions and the faults.")
@click.option("--keep", type=click.Path(file_okay=False), default="", help="Directory for the programs' logs.")
def command(faults: tuple[str, ...], **options: Any) -> None:
    """Run sessions while workers, brokers, hosts, links, sandboxes and disks fail, and see what clients get.

    Exits with 0 if nothing was lost, doubled, out of order or late, no program died by itself, and nothing was left.
    """
    well = uvloop.run(run(Plan(**options, faults=faults or tuple(SHARES)), click.echo))
    sys.exit(0 if well else 1)


command(prog_name="python -m tests.fleet.chaos")
