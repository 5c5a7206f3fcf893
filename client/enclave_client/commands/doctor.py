"""`enclave doctor`: what the sandbox needs of this machine, whether it is there, and what mends it."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from enclave_worker.attacks.judge import Report
    from enclave_worker.doctor_verdict import Diagnosis

LEVELS = ("STRICT", "SECURE", "STANDARD", "PERMISSIVE", "BEST")
"""A worker's; not imported, because a client without one has this command too."""


@click.command(name="doctor")
@click.option(
    "--attack",
    is_flag=True,
    envvar="ENCLAVE_ATTACK",
    help="Attack this machine's sandboxes with all that we know, and say what held.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    envvar="ENCLAVE_ONLY",
    help="With --attack: only this case. May be given several times.",
)
@click.option(
    "--json-lines", is_flag=True, envvar="ENCLAVE_JSON_LINES", help="With --attack: one line of JSON for each case."
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    envvar="ENCLAVE_LEVEL",
    help="The security level to ask about. BEST: SECURE if possible, else STANDARD.  "
    "[default: SECURE; with --attack, the highest that there is]",
)
def command(attack: bool, only: tuple[str, ...], json_lines: bool, level: str | None) -> None:  # noqa: FBT001 - by name
    """Say which security level sandboxes can have here, and what to change for the next one.

    Tries out every kernel feature and permission that a worker needs, as the current user, then starts one. Exits with
    0 if and only if a worker can start here at the level asked about; with --attack, if and only if every attack was
    made and held.
    """
    if not attack and (only or json_lines):
        raise click.UsageError("--only and --json-lines belong to --attack")
    from enclave_client.printer import OutputError, discard_output  # noqa: PLC0415 - not for --help

    try:
        code = _attack(only, level, json_lines=json_lines) if attack else _diagnose(level or "SECURE")
    except BrokenPipeError:
        discard_output()
        code = 1
    except OutputError as error:
        discard_output()
        click.echo(f"enclave: {error}", err=True)
        code = 1
    sys.exit(code)


def _say(line: str) -> None:
    """Print a line; raises BrokenPipeError if nobody reads, OutputError if it cannot be written."""
    from enclave_client.printer import put  # noqa: PLC0415 - not for --help

    put(sys.stdout.buffer, f"{line}\n".encode())


def _diagnose(level: str) -> int:
    """Print what there is; return the exit code."""
    from enclave_worker.doctor import diagnose  # noqa: PLC0415 - a client without a worker has no use for it
    from enclave_worker.doctor_verdict import render  # noqa: PLC0415 - as above

    diagnosis: Diagnosis = diagnose(level)
    _say(render(diagnosis, level))
    return 0 if diagnosis.gives(level) else 1


def _attack(only: tuple[str, ...], level: str | None, *, json_lines: bool) -> int:
    """Run the corpus; return the exit code."""
    import uvloop  # noqa: PLC0415 - as above

    from enclave_protocol import SandboxError  # noqa: PLC0415 - as above
    from enclave_worker.api import RuntimeConfig, create_runtime_worker  # noqa: PLC0415 - as above
    from enclave_worker.attacks import report as lines  # noqa: PLC0415 - as above
    from enclave_worker.attacks.corpus import load  # noqa: PLC0415 - as above
    from enclave_worker.attacks.runner import attack  # noqa: PLC0415 - as above
    from enclave_worker.doctor_layers import usable_first_uid  # noqa: PLC0415 - as above

    cases = [case for case in load() if not only or case.name in only]
    if unknown := set(only) - {case.name for case in cases}:
        raise click.BadParameter(f"no case {', '.join(sorted(unknown))}", param_hint="--only")
    level = level or _highest_level()
    if level is None:
        click.echo("no worker can start here. Without --attack, `enclave doctor` says what to mend", err=True)
        return 1
    config = RuntimeConfig(pool_size=2, level=level, first_uid=usable_first_uid())

    async def run() -> list[Report]:
        reports = []
        async with aclosing(attack(create_runtime_worker(config), cases)) as found:
            async for report in found:
                _say(lines.as_json(report) if json_lines else lines.as_text(report))
                reports.append(report)
        return reports

    if not json_lines:
        _say(f"{lines.introduction(len(cases))}, at level {level}")
    try:
        reports = uvloop.run(run())
    except SandboxError as error:
        click.echo(f"{error}. Without --attack, `enclave doctor` says how to mend it", err=True)
        return 1
    if not json_lines:
        _say(lines.summary(reports))
    return 1 if any(report.verdict.fails for report in reports) else 0


def _highest_level() -> str | None:
    from enclave_worker.doctor import diagnose  # noqa: PLC0415 - as above

    highest = diagnose().level
    return None if highest is None else highest.name
