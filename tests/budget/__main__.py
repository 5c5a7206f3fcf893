"""`python -m tests.budget`: what a session costs now, beside its budget."""

from __future__ import annotations

import json
import sys

import click

from . import table
from .service import CannotTraceError, measure

_CANNOT_TRACE = 3
_TIMES = 3


@click.command(name="budget")
@click.option("--write", is_flag=True, help=f"Count {_TIMES} times, and make that the budget, in budget.md.")
@click.option("--json", "as_json", is_flag=True, help="Print what was counted as JSON, and judge nothing.")
def command(*, write: bool, as_json: bool) -> None:
    """Run a fleet and some sessions, and count.

    Exits with 1 if something costs more than it may, and with 3 if the machine lets nobody trace.
    """
    try:
        found = _found(write=write)
    except CannotTraceError as error:
        click.echo(f"this machine lets nobody trace: {error}", err=True)
        sys.exit(_CANNOT_TRACE)
    if as_json:
        click.echo(json.dumps(found))
        return
    if write:
        table.write(found)
    sys.exit(1 if _show(found) else 0)


def _found(*, write: bool) -> table.Found:
    found = measure()
    for _ in range(_TIMES - 1):
        if write:
            found = table.pick(max, found, measure())
        elif any(table.complaints(found)):
            # What costs more now does so each time; what chance has put together does not.
            found = table.pick(min, found, measure())
    return found


def _show(found: table.Found) -> bool:
    """Print the figures; say whether one is too high."""
    for line in table.read().values():
        now = f"{sum(found[line.name].values()):7}" if line.name in found else "     --"
        click.echo(f"{line.name:28} {now} of {line.budget:7}, was {line.measured:7}  {table.why_not_held(line.name)}")
    complaints = table.complaints(found)
    for complaint in complaints:
        click.echo(f"TOO MUCH: {complaint}")
    return bool(complaints)


command(prog_name="python -m tests.budget")
