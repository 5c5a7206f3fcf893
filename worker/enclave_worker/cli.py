"""The `enclave-runtime` command."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, cast

import click
import uvloop

from enclave_protocol import SandboxError, __version__
from enclave_protocol.credentials import WORKER_TOKEN_VARIABLE
from enclave_protocol.logs import LOG_FORMATS, make_formatter

from .config import RuntimeConfig
from .door import AccessError
from .profiles import MIN_MEMORY_BYTES, ProfileError
from .runtime import RuntimeWorker, create_runtime_worker
from .sandbox.levels import BEST, DEFAULT_LEVEL, LEVELS

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from enclave_protocol.logs import LogFormat

_DEFAULTS = RuntimeConfig()
_LISTEN_HINTS = {
    errno.EADDRINUSE: "another program listens there: choose another --port",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
}


@click.command(context_settings={"auto_envvar_prefix": "ENCLAVE", "help_option_names": ["-h", "--help"]})
@click.option("--host", default=_DEFAULTS.host, show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=_DEFAULTS.port, show_default=True, type=click.IntRange(0, 65535), help="0: any free one."
)
@click.option(
    "--max-sessions", default=_DEFAULTS.max_sessions, show_default=True, type=click.IntRange(1, 10000), help="Slots."
)
@click.option(
    "--pool-size",
    default=_DEFAULTS.pool_size,
    show_default=True,
    type=click.IntRange(0, 10000),
    help="Warm sandboxes of each kind; 0: each is made when it is asked for, a few milliseconds later.",
)
@click.option(
    "--zygote-forks",
    default=_DEFAULTS.zygote_forks,
    show_default=True,
    type=click.IntRange(1),
    help="Sandboxes after which the process that they are forked from is replaced.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    envvar="ENCLAVE_PROFILE",
    help="Offer this profile, and no other that is not named too.  [default: python, and those of --profiles]",
)
@click.option(
    "--profiles",
    "profiles_file",
    default="",
    metavar="FILE",
    envvar="ENCLAVE_PROFILES",
    help="A TOML file of profiles.",
)
@click.option(
    "--first-uid",
    default=_DEFAULTS.first_uid,
    show_default=True,
    type=click.IntRange(1000),
    help="Started as root: first host user id of sandboxes.",
)
@click.option(
    "--level",
    default=DEFAULT_LEVEL,
    show_default=True,
    type=click.Choice([*LEVELS, BEST]),
    help="Security level: which layers must hold, and the limits below. BEST: SECURE if possible, else STANDARD.",
)
@click.option(
    "--memory-limit-bytes",
    type=click.IntRange(MIN_MEMORY_BYTES),
    help="Memory of a sandbox, files included; and address space of each process in it [default: the level's].",
)
@click.option("--cpu-time-ms", type=click.IntRange(1), help="Processor time of a sandbox [default: the level's].")
@click.option(
    "--cpus",
    type=click.FloatRange(0),
    help="Processors that a sandbox may keep busy at a time; 0: all [default: the level's].",
)
@click.option("--processes", type=click.IntRange(2), help="Processes and threads of a sandbox [default: the level's].")
@click.option(
    "--dial",
    multiple=True,
    metavar="URL",
    envvar="ENCLAVE_DIAL",
    help="Dial in to this broker, such as wss://broker:3000/workers; repeat it for several.",
)
@click.option("--no-listen", is_flag=True, help="Open no port: with --dial.")
@click.option(
    "--worker-token-file",
    default="",
    metavar="FILE",
    help="The secret that brokers must show, and that we show with --dial. Or ENCLAVE_WORKER_TOKEN has it.",
)
@click.option("--tls-cert", default="", metavar="FILE", help="Our certificate: wss:// instead of ws://.")
@click.option("--tls-key", default="", metavar="FILE", help="Its key.")
@click.option(
    "--tls-ca", default="", metavar="FILE", help="Authorities of brokers' certificates; given, they must show one."
)
@click.option("--insecure", is_flag=True, help="Listen beyond loopback even if everybody may connect.")
@click.option("--worker-id", default="", help="Name in logs and metrics [default: host name and process id].")
@click.option(
    "--grace-s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="On SIGTERM: seconds for live sessions to finish; a second SIGTERM ends them.",
)
@click.option(
    "--lease-s",
    default=_DEFAULTS.lease_s,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds that sessions live on when their broker's connection was cut.",
)
@click.option(
    "--broker-silence-s",
    default=_DEFAULTS.broker_silence_s,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds without a sign of life after which a broker's connection is closed.",
)
@click.option("--debug", is_flag=True, help="Log every session's start and end.")
@click.option(
    "--log-format",
    default="pretty",
    show_default=True,
    type=click.Choice(LOG_FORMATS),
    help="`pretty` for people, `json` for programs: one object a line.",
)
@click.version_option(__version__)
def main(**options: object) -> None:
    """Run a worker: a WebSocket server that runs each session's code in a fresh sandbox."""
    log_format = cast("LogFormat", options.pop("log_format"))
    grace_s = options.pop("grace_s")
    assert isinstance(grace_s, float)
    if not math.isfinite(grace_s):
        raise click.UsageError(f"--grace-s: {grace_s} is not a finite number")
    options["listen"] = not options.pop("no_listen")
    if not (options["listen"] or options["dial"]):
        raise click.UsageError("--no-listen without --dial: nobody could reach the worker")
    try:
        config = RuntimeConfig(**options)  # type: ignore[arg-type]  # click has converted each to its field's type
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    worker = create_runtime_worker(config)
    _start_logging(log_format, worker.worker_id)
    _raise_descriptor_limit()
    uvloop.run(_run(worker, grace_s))


def _raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: the usual 1,024 are those of a hundred sandboxes.

    What sandboxes may have is a step of theirs.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _start_logging(log_format: LogFormat, worker_id: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(log_format, worker_id=worker_id))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("websockets").setLevel(logging.WARNING)


async def _run(worker: RuntimeWorker, grace_s: float) -> None:
    config = worker.config
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    try:
        await worker.start()
        os.environ.pop(WORKER_TOKEN_VARIABLE, None)  # read; what we start must not inherit it
    except AccessError as error:
        raise click.UsageError(str(error)) from error
    except ProfileError as error:
        _exit(str(error))
    except SandboxError as error:
        _exit(f"{error}. `enclave doctor` shows what this host lacks and how to mend it")
    except OSError as error:
        hint = _LISTEN_HINTS.get(error.errno or 0, "check --host and --port")
        _exit(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}; {hint}")
    # All that is there now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    # The one line that a script waits for.
    where = f"listening on {worker.url}" if config.listen else f"dialling {','.join(config.dial)}"
    _say(f"enclave-runtime {where} at level {worker.level}")
    await _wait_any(stop.wait(), worker.wait_drained())
    worker.drain("the worker stops")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await _wait_any(hurry.wait(), worker.wait_drained())
    await worker.stop()


def _say(line: str) -> None:
    """Print a line; if nobody can be told, go on: a full disk or a reader that has left is no reason not to serve."""
    try:
        print(line, flush=True)  # noqa: T201
    except OSError as error:
        logging.getLogger("enclave.worker").warning("cannot write to standard output: %s; it said: %s", error, line)
        # The line waits in a buffer, and would fail again at the end: with an exit code that tells of something else.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


async def _wait_any(*waits: Coroutine[object, object, object]) -> None:
    """Return when one of them has."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _exit(message: str) -> None:
    print(f"enclave-runtime: {message}", file=sys.stderr)  # noqa: T201 - one line that says what to do
    sys.exit(1)


if __name__ == "__main__":
    main()
