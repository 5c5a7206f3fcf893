"""`enclave doctor`: what the sandbox needs of this machine, whether it is there, and what mends it."""

from __future__ import annotations

import sys

import click


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
    default="BEST",
    show_default=True,
    envvar="ENCLAVE_LEVEL",
    help="With --attack: the worker's security level. BEST: SECURE if possible, else STANDARD.",
)
def command(attack: bool, only: tuple[str, ...], json_lines: bool, level: str) -> None:  # noqa: FBT001 - by name
    """Say whether sandboxes can run here, and what to mend.

    Tries out every kernel feature and permission that a worker needs, as the current user. Exits with 0 if and only if
    a worker can start here; with --attack, if and only if every attack was made and held.
    """
    from enclave_worker.doctor import checks, render  # noqa: PLC0415 - a client without a worker has no use for it

    if attack:
        sys.exit(_attack(only, level, json_lines=json_lines))
    if only or json_lines:
        raise click.UsageError("--only and --json-lines belong to --attack")
    found = checks()
    click.echo(render(found))
    sys.exit(0 if all(check.ok for check in found if check.required) else 1)


def _attack(only: tuple[str, ...], level: str, *, json_lines: bool) -> int:
    """Run the corpus; return the exit code."""
    import uvloop  # noqa: PLC0415 - as above

    from enclave_protocol import SandboxError  # noqa: PLC0415 - as above
    from enclave_worker.api import RuntimeConfig, create_runtime_worker  # noqa: PLC0415 - as above
    from enclave_worker.attacks import report as lines  # noqa: PLC0415 - as above
    from enclave_worker.attacks.corpus import load  # noqa: PLC0415 - as above
    from enclave_worker.attacks.judge import Report  # noqa: PLC0415, TC001 - as above
    from enclave_worker.attacks.runner import attack  # noqa: PLC0415 - as above

    cases = [case for case in load() if not only or case.name in only]
    if unknown := set(only) - {case.name for case in cases}:
        raise click.BadParameter(f"no case {', '.join(sorted(unknown))}", param_hint="--only")

    try:
        config = RuntimeConfig(pool_size=2, level=level)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--level") from error

    async def run() -> list[Report]:
        reports = []
        async for report in attack(create_runtime_worker(config), cases):
            click.echo(lines.as_json(report) if json_lines else lines.as_text(report))
            reports.append(report)
        return reports

    if not json_lines:
        click.echo(lines.introduction(len(cases)))
    try:
        reports = uvloop.run(run())
    except SandboxError as error:
        click.echo(f"{error}. Without --attack, `enclave doctor` says how to mend it", err=True)
        return 1
    if not json_lines:
        click.echo(lines.summary(reports))
    return 1 if any(report.verdict.fails for report in reports) else 0
