"""`enclave bench`: measure a fleet on this machine, beside what it is compared with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from enclave_client.fleet import MAX_WORKERS

if TYPE_CHECKING:
    from typing import BinaryIO


@click.command(name="bench")
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    envvar="ENCLAVE_SESSIONS",
    help="Sessions of the long run that must neither fail nor leak.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    envvar="ENCLAVE_ROUNDS",
    help="Blocks of each measurement; fewer are faster and less sure.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=1,
    show_default=True,
    envvar="ENCLAVE_WORKERS",
    help="How many workers to start.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    envvar="ENCLAVE_ONLY",
    help="Measure only this, such as latency. May be given several times.  [default: everything]",
)
@click.option(
    "--json",
    "file",
    type=click.File("wb"),
    envvar="ENCLAVE_JSON",
    help="Write everything measured there; beside a file.json, file.svg is a picture of latency against load.",
)
def command(sessions: int, rounds: int, workers: int, only: tuple[str, ...], file: BinaryIO | None) -> None:
    """Measure a fleet on this machine.

    Starts a broker and a worker, and prints each figure beside what it is compared with in the same run. Exits with 0
    unless a session failed or something leaked: a target that was missed is only shown.
    """
    # Here, so that no other command pays for it.
    from enclave_client.bench.command import measured, write_json  # noqa: PLC0415
    from enclave_client.bench.phases import Plan  # noqa: PLC0415
    from enclave_client.bench.picture import draw_beside  # noqa: PLC0415
    from enclave_client.bench.run import NAMES, run  # noqa: PLC0415

    if strange := [name for name in only if name not in NAMES]:
        raise click.BadParameter(f"{strange[0]!r} is not one of {', '.join(NAMES)}", param_hint="--only")
    report = measured(run(Plan(rounds=rounds, sessions=sessions), workers, click.echo, only=only))
    if file is not None:
        write_json(file, report)
        draw_beside(file.name, report.curves, report.machine)
    sys.exit(0 if report.ok else 1)
