"""`enclave up`: a broker and its workers on this machine, until somebody stops them."""

from __future__ import annotations

import asyncio
import signal
import sys

import click

from enclave_client.fleet import MAX_WORKERS, Fleet, FleetError, FleetSpec, running_fleet
from enclave_protocol.languages import LANGUAGES

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(name="up")
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=2,
    show_default=True,
    envvar="ENCLAVE_WORKERS",
    help="How many workers to start.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=3000,
    show_default=True,
    envvar="ENCLAVE_PORT",
    help="The broker's port on loopback; 0 lets the kernel choose.",
)
@click.option(
    "--max-sessions",
    type=click.IntRange(min=1),
    envvar="ENCLAVE_MAX_SESSIONS",
    help="Sessions that one worker runs at once.  [default: the worker's]",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    envvar="ENCLAVE_PROFILE",
    help="A profile that the workers offer. May be given several times.  [default: the worker's]",
)
@click.option(
    "--profiles",
    "profiles_file",
    default="",
    metavar="FILE",
    envvar="ENCLAVE_PROFILES",
    help="A TOML file of profiles for the workers.",
)
@click.option(
    "--level",
    default="BEST",
    show_default=True,
    envvar="ENCLAVE_LEVEL",
    help="Security level of each worker, as for enclave-runtime. BEST: SECURE if this machine gives it, else STANDARD.",
)
@click.option(
    "--default-language",
    type=click.Choice(LANGUAGES),
    envvar="ENCLAVE_DEFAULT_LANGUAGE",
    help="What code is if a request names neither a language nor a profile.  [default: python]",
)
@click.option(
    "--tools",
    multiple=True,
    metavar="MODULE",
    envvar="ENCLAVE_TOOLS",
    help="A Python module with tools for the code to call. May be given several times.",
)
@click.option(
    "--tools-file",
    "tools_files",
    multiple=True,
    metavar="FILE",
    envvar="ENCLAVE_TOOLS_FILE",
    help="A file of OpenAPI documents, HTTP endpoints and MCP servers with more tools. Repeat it.",
)
@click.option(
    "--grace-s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    envvar="ENCLAVE_GRACE_S",
    help="On Ctrl-C or SIGTERM: seconds for sessions to finish; a second one ends them.",
)
@click.option(
    "--store",
    default="",
    metavar="memory|sqlite:FILE",
    envvar="ENCLAVE_STORE",
    help="Where sessions are kept. In a file they outlive the broker, which is started again if it dies.  "
    "[default: memory]",
)
def command(  # noqa: PLR0917 - click passes by name
    workers: int,
    port: int,
    max_sessions: int | None,
    profiles: tuple[str, ...],
    profiles_file: str,
    level: str,
    default_language: str | None,
    tools: tuple[str, ...],
    tools_files: tuple[str, ...],
    grace_s: float,
    store: str,
) -> None:
    """Start a whole fleet on this machine.

    Starts workers and a broker on loopback, says where they are, and keeps them running: a worker that dies is started
    again. Ctrl-C stops everything.
    """
    spec = FleetSpec(
        workers=workers,
        port=port,
        max_sessions=max_sessions,
        profiles=profiles,
        profiles_file=profiles_file,
        level=level,
        tools=tools,
        default_language=default_language or "",
        tools_files=tools_files,
        grace_s=grace_s,
        store=store,
    )
    try:
        asyncio.run(serve(spec))
    except FleetError as error:
        click.echo(f"enclave: {error}", err=True)
        sys.exit(1)


async def serve(spec: FleetSpec) -> None:
    """Run the fleet until a signal stops it (returns) or it ends by itself (raises FleetError)."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in STOP_SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup means what it says
            loop.add_signal_handler(number, signalled)
    stopped = asyncio.create_task(stop.wait())
    running = asyncio.create_task(_run(spec, hurry))
    # A signal must also end a start that hangs, so the whole life of the fleet is one task that can be cancelled.
    await asyncio.wait({stopped, running}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not running.done():
        click.echo(f"stopping: sessions have {spec.grace_s:g} s to end, or until the next Ctrl-C", err=True)
        running.cancel()
    await asyncio.gather(stopped, running, return_exceptions=True)
    if not running.cancelled() and (error := running.exception()):
        raise error


async def _run(spec: FleetSpec, hurry: asyncio.Event) -> None:
    async with running_fleet(spec, _log, hurry=hurry) as fleet:
        click.echo(banner(fleet))
        raise await fleet.wait_failed()


def _log(name: str, line: str) -> None:
    click.echo(f"{name:9} | {line}", err=True)


def banner(fleet: Fleet) -> str:
    """Say where the fleet is and how to try it."""
    workers = [f"  {worker.name:9} {worker.url}    (security level {worker.level})" for worker in fleet.workers]
    body = r"""'{"code": "print(\"hello\"); return 1 + 1"}'"""
    return "\n".join(
        [
            "Enclave is up:",
            f"  {'broker':9} {fleet.url}    (its API: {fleet.url}/docs)",
            *workers,
            "",
            "Try it:",
            f"  curl -N {fleet.url}/sessions -H 'Content-Type: application/json' -d {body}",
            f"  echo 'return 6 * 7' | enclave run - --broker {fleet.url}",
            "",
            "Ctrl-C stops everything.",
        ]
    )
