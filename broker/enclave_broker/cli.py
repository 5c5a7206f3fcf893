"""The `enclave-broker` command."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec
import uvloop

from enclave_protocol import Limits, ProtocolError, __version__, parse_limits
from enclave_protocol.languages import DEFAULT_LANGUAGE, LANGUAGES
from enclave_protocol.logs import LOG_FORMATS, make_formatter

from .access.files import SECRET_VARIABLES
from .access.options import access_options
from .broker import Broker
from .config import BrokerConfig
from .finding.options import NO_WORKER, finding_options
from .listening import PortInUse
from .server import raise_descriptor_limit
from .store import StoreError
from .store.options import store_options
from .tools.options import set_up, tool_options
from .tools.sources.options import load_sources, source_options
from .tracing.options import load_tracing

if TYPE_CHECKING:
    from pathlib import Path

    from enclave_protocol.languages import Language
    from enclave_protocol.logs import LineFormatter, LogFormat

MAX_TOOLS_SAID = 12
"""Names of tools in the line that says that the broker listens."""


@click.command(
    context_settings={"auto_envvar_prefix": "ENCLAVE", "show_default": True, "help_option_names": ["-h", "--help"]}
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=3000, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@finding_options
@tool_options
@source_options
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    envvar="ENCLAVE_CORS_ORIGIN",
    metavar="ORIGIN",
    help="Whose web pages may use the broker: https://HOST, `loopback`, or `*`; repeat it.  [default: `loopback` if "
    "the broker listens there, else nobody's]",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    envvar="ENCLAVE_LIMIT",
    metavar="NAME=VALUE",
    help="What a limit is for sessions that do not set it, such as maxToolCalls=100; repeat it.",
)
@click.option(
    "--default-language",
    default=DEFAULT_LANGUAGE,
    type=click.Choice(LANGUAGES),
    help="What code is if a request names neither a language nor a profile.",
)
@click.option("--queue-size", default=1000, type=click.IntRange(0), help="Sessions that may wait for a slot.")
@click.option("--queue-timeout-ms", default=30_000, type=click.IntRange(1), help="Longest wait for a slot.")
@click.option(
    "--queue-wait-ms",
    default=30_000,
    type=click.IntRange(0),
    help="Refuse at once what would wait longer for a slot, by all that is known.",
)
@store_options
@click.option(
    "--grace-s",
    default=10.0,
    type=click.FloatRange(0),
    help="On SIGTERM: seconds for sessions to finish; a second SIGTERM ends them.",
)
@click.option(
    "--disconnect-grace-s", default=10.0, type=click.FloatRange(0), help="Life of a session that nobody reads any more."
)
@click.option(
    "--request-timeout-s",
    default=30.0,
    type=click.FloatRange(0.01),
    help="Longest time for a request to be complete once it is begun; longer while enough of its body comes.",
)
@click.option("--ping-interval-s", default=1.0, type=click.FloatRange(0.01), help="Time between pings to a worker.")
@click.option("--dead-after-s", default=5.0, type=click.FloatRange(0.01), help="Silence after which a worker is dead.")
@click.option(
    "--resume-s",
    default=10.0,
    type=click.FloatRange(0),
    help="How long the sessions of a worker whose connection broke wait for it to come back.",
)
@click.option(
    "--refused-is-dead/--refused-is-not-dead",
    default=True,
    help="Whether they wait no longer once its address refuses connections: not so if that is a load balancer's, or a "
    "Kubernetes Service's.",
)
@access_options
@click.option(
    "--log-level",
    default="info",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Least important lines to log.",
)
@click.option(
    "--log-format",
    default="pretty",
    type=click.Choice(LOG_FORMATS),
    help="`pretty` for people, `json` for programs: one object a line.",
)
@click.version_option(__version__)
def main(  # noqa: PLR0917 - one parameter per option; click passes them by name
    host: str,
    port: int,
    modules: tuple[str, ...],
    secrets: Path | None,
    approve: str | None,
    audit_log: Path | None,
    openapi: tuple[str, ...],
    tools_files: tuple[Path, ...],
    cors_origins: tuple[str, ...],
    limits: tuple[str, ...],
    default_language: Language,
    queue_size: int,
    queue_timeout_ms: int,
    queue_wait_ms: int,
    disconnect_grace_s: float,
    ping_interval_s: float,
    dead_after_s: float,
    log_level: str,
    log_format: LogFormat,
    **more: Any,
) -> None:
    """Take sessions over HTTP and WebSocket and run them on a fleet of workers."""
    formatter = _start_logging(log_format, log_level)
    try:
        config = BrokerConfig(
            host=host,
            port=port,
            cors_origins=cors_origins,
            default_limits=read_limits(limits),
            default_language=default_language,
            queue_size=queue_size,
            queue_timeout_ms=queue_timeout_ms,
            queue_wait_ms=queue_wait_ms,
            disconnect_grace_s=disconnect_grace_s,
            ping_interval_s=ping_interval_s,
            dead_after_s=dead_after_s,
            **more,
        )
        tools, given, hook = set_up(modules, secrets, approve, audit_log, formatter)
        sources = load_sources(openapi, tools_files, given, can_approve=hook is not None)
        tracing = load_tracing(os.environ)
        broker = Broker(config, tools, secrets=given, approve=hook, sources=sources, tracing=tracing)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not (config.workers or config.workers_file or config.accept_workers):
        raise click.UsageError(NO_WORKER)
    raise_descriptor_limit()
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)
    try:
        uvloop.run(_serve(broker))
    except StoreError as error:
        raise click.ClickException(f"--store: {error}") from error
    except PortInUse as error:
        raise click.ClickException(error.args[0]) from error
    except OSError as error:
        raise click.ClickException(f"can't listen on {host} port {port}: {error.strerror or error}") from error


def read_limits(settings: tuple[str, ...]) -> Limits:
    """Read `NAME=VALUE` pairs; raises ValueError."""
    given = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            given[name] = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise ValueError(f"--limit {setting}: is not NAME=VALUE, such as maxToolCalls=100") from error
    try:
        return parse_limits(given)
    except ProtocolError as error:
        raise ValueError(f"--limit: {error}") from error


def _start_logging(log_format: LogFormat, level: str) -> LineFormatter:
    formatter = make_formatter(log_format)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("websockets").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return formatter


def _names(tools: list[str]) -> str:
    """Return a line's worth of names."""
    more = len(tools) - MAX_TOOLS_SAID
    return (", ".join(tools[:MAX_TOOLS_SAID]) or "none") + (f" and {more} more" if more > 0 else "")


async def _serve(broker: Broker) -> None:
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()

    def signalled() -> None:
        if broker.dispatcher.draining:
            hurry.set()
        broker.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    loop.add_signal_handler(signal.SIGHUP, broker.reload_keys)
    await broker.start()
    gc.collect()
    gc.freeze()  # what start-up made stays for good: no later collection needs to walk it
    names = _names(broker.tools.names())
    workers = len(broker.dispatcher.fleet.links)
    click.echo(f"enclave-broker listening on {broker.url} (workers: {workers}, tools: {names})")
    hurrying = asyncio.ensure_future(hurry.wait())
    stopped = asyncio.ensure_future(broker.wait_stopped())
    await asyncio.wait([hurrying, stopped], return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    await broker.stop()
    await stopped
    if broker.dispatcher.tool_calls.running:
        # Tools that ignore their cancellation: the loop would wait for them for ever.
        logging.shutdown()
        os._exit(0)


if __name__ == "__main__":
    main()
