"""A whole fleet on one machine: workers and a broker as child processes on loopback.

Theory of operation. `running_fleet` starts every program, waits until each worker says where it listens, tells the
broker those addresses, and waits until all of them report ready. One supervising task per program then waits for its
death: a dead worker is started again on its old port (the broker knows it by that address) after a growing delay; a
dead broker ends the fleet, because its sessions and their events died with it, unless it keeps them in a file: then it
is started again too. On the way out the broker goes first, so that clients are told before their workers vanish. `stop`
returns when every process has been waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .program import Program, ProgramDiedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

START_TIMEOUT_S = 120.0
"""How long a program may take to listen, and then to be ready. One that dies is told at once: this is for one that
hangs, and must not be mistaken for one on a machine that is busy with something else."""
READY_POLL_S = 0.01
READY_TIMEOUT_S = 5.0
READY = "ready"
STOP_GRACE_S = 5.0
WORKER_PATIENCE_S = 1.0
"""How long workers may take to end in good order; the broker has gone before, so no session of them is for anybody."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
STABLE_S = 60.0
MAX_WORKERS = 64
BROKERS_OWN = ("ENCLAVE_SECRET_", "ENCLAVE_TOKEN_SECRETS", "ENCLAVE_KEYS", "OTEL_")
"""How variables begin that are for the broker alone."""

# Said, not left to the default: ENCLAVE_HOST in our environment must not open a loopback fleet to the world, nor have
# ENCLAVE_TLS_CERT it speak TLS, which whoever asks these programs whether they are ready does not.
ON_LOOPBACK = ("--host", "127.0.0.1", "--tls-cert", "", "--tls-key", "")


class FleetError(Exception):
    """The fleet could not start, or ended by itself.

    Attributes:
        detail: what the failing program wrote, empty if nothing.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        self.detail = detail
        super().__init__(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FleetSpec:
    """What to start."""

    workers: int = 2
    port: int = 0
    """The broker's port; 0 lets the kernel choose."""
    max_sessions: int | None = None
    """Slots of each worker; None leaves the worker's default."""
    pool_size: int | None = None
    """Warm sandboxes of each worker; None leaves the worker's default."""
    level: str = "BEST"
    """Security level of each worker."""
    profiles: tuple[str, ...] = ()
    """Profiles of each worker; empty leaves the worker's default."""
    profiles_file: str = ""
    """A file of profiles for the workers."""
    tools: tuple[str, ...] = ()
    """Modules with tools for the broker."""
    default_language: str = ""
    """What code is that nobody says the language of; the broker's own default if empty."""
    tools_files: tuple[str, ...] = ()
    """Files that say where more tools come from."""
    grace_s: float = 0.0
    """How long sessions are given to end when the fleet is stopped."""
    store: str = ""
    """Where the broker keeps sessions; its own default, memory, if empty."""
    broker_options: tuple[str, ...] = ()
    """Further options of the broker's command."""


def restart_delay_s(failures: int) -> float:
    """Return how long to wait before restarting a program that died `failures` times in a row (1 or more)."""
    return min(FIRST_DELAY_S * 2.0 ** (failures - 1), LONGEST_DELAY_S)


def worker_arguments(spec: FleetSpec, name: str, port: int) -> list[str]:
    """Return the command line of a worker that listens on `port`."""
    arguments = [*ON_LOOPBACK, "--tls-ca", "", "--port", str(port)]
    arguments += ["--worker-id", name, "--level", spec.level]
    if spec.max_sessions is not None:
        arguments += ["--max-sessions", str(spec.max_sessions)]
    if spec.pool_size is not None:
        arguments += ["--pool-size", str(spec.pool_size)]
    for profile in spec.profiles:
        arguments += ["--profile", profile]
    if spec.profiles_file:
        arguments += ["--profiles", spec.profiles_file]
    return arguments


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return our environment as workers get it: the secrets of tools, keys and what signs tokens are the broker's."""
    return {name: value for name, value in environ.items() if not name.startswith(BROKERS_OWN)}


def broker_arguments(spec: FleetSpec, worker_urls: list[str]) -> list[str]:
    """Return the command line of the broker in front of these workers."""
    arguments = [*ON_LOOPBACK, "--port", str(spec.port), "--grace-s", f"{spec.grace_s:g}"]
    for url in worker_urls:
        arguments += ["--worker", url]
    for module in spec.tools:
        arguments += ["--tools", module]
    for file in spec.tools_files:
        arguments += ["--tools-file", file]
    if spec.default_language:
        arguments += ["--default-language", spec.default_language]
    if spec.store:
        arguments += ["--store", spec.store]
    return [*arguments, *spec.broker_options]


class Fleet:
    """A started fleet; made by `running_fleet`."""

    def __init__(self, spec: FleetSpec, log: Callable[[str, str], None], hurry: asyncio.Event | None = None) -> None:
        self._spec = spec
        self._log = log
        names = [f"worker-{n}" for n in range(1, spec.workers + 1)]
        environment = worker_environment(os.environ)
        self.workers = [
            self._program(name, "enclave_worker.cli", worker_arguments(spec, name, 0), environment) for name in names
        ]
        self.broker = self._program("broker", "enclave_broker.cli", None)
        self._failure: asyncio.Future[FleetError] = asyncio.get_running_loop().create_future()
        self._supervisors: list[asyncio.Task[None]] = []
        self._hurry = hurry

    @property
    def url(self) -> str:
        """The broker's base address."""
        return self.broker.url

    @property
    def programs(self) -> list[Program]:
        """Everything that runs, in the order of stopping."""
        return [self.broker, *self.workers]

    async def wait_failed(self) -> FleetError:
        """Wait until the fleet ends by itself, and return why."""
        return await asyncio.shield(self._failure)

    async def start(self) -> None:
        """Start all programs and wait until every one is ready; raises FleetError."""
        try:
            await asyncio.gather(*(program.start() for program in self.programs))
            urls = [await worker.wait_listening(START_TIMEOUT_S) for worker in self.workers]
            await self.broker.give_arguments(broker_arguments(self._spec, urls))
            await self.broker.wait_listening(START_TIMEOUT_S)
            for program in (*self.workers, self.broker):
                await self._wait_ready(program)
        except ProgramDiedError as error:
            raise self._start_failure(error) from error
        for worker in self.workers:
            worker.arguments = worker_arguments(self._spec, worker.name, urlsplit(worker.url).port or 0)
        self._supervisors = [asyncio.create_task(self._restart_for_ever(worker)) for worker in self.workers]
        if self._spec.store in {"", "memory"}:
            self._supervisors.append(asyncio.create_task(self._watch_broker()))
        else:
            port = urlsplit(self.broker.url).port or 0
            self.broker.arguments = broker_arguments(dataclasses.replace(self._spec, port=port), urls)
            self._supervisors.append(asyncio.create_task(self._restart_for_ever(self.broker)))

    async def stop(self) -> None:
        """Drain the broker, stop everything; returns when no process of the fleet is left."""
        for task in self._supervisors:
            task.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        await self.broker.stop(STOP_GRACE_S, patience_s=self._spec.grace_s, hurry=self._hurry)
        stops = (worker.stop(STOP_GRACE_S, patience_s=WORKER_PATIENCE_S, hurry=self._hurry) for worker in self.workers)
        await asyncio.gather(*stops)

    def _program(
        self, name: str, module: str, arguments: list[str] | None, environment: Mapping[str, str] | None = None
    ) -> Program:
        return Program(name, module, arguments, lambda line: self._log(name, line), environment=environment)

    async def _wait_ready(self, program: Program) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        answer = "no answer"
        while time.monotonic() < deadline:
            if program.ended:
                raise ProgramDiedError(program, f"died while starting ({await program.wait_exit()})")
            answer = await ask_ready(program.url)
            if answer == READY:
                return
            await asyncio.sleep(READY_POLL_S)
        raise ProgramDiedError(program, f"was not ready within {START_TIMEOUT_S:g} s: {answer}")

    def _start_failure(self, error: ProgramDiedError) -> FleetError:
        detail = "\n".join(error.program.kept_lines)
        if error.program is self.broker:
            advice = "choose another --port if it is in use, or mend what it says above"
        else:
            advice = "`enclave doctor` says what this machine lacks and how to mend it"
        return FleetError(f"{error}; {advice}", detail)

    async def _restart_for_ever(self, program: Program) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            how = await program.wait_exit()
            failures = 1 if time.monotonic() - started > STABLE_S else failures + 1
            delay_s = restart_delay_s(failures)
            self._log(program.name, f"died ({how}); starting it again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            await program.start()
            try:
                self._log(program.name, f"is back at {await program.wait_listening(START_TIMEOUT_S)}")
            except ProgramDiedError as error:
                self._log(program.name, str(error))
                await program.stop(0)

    async def _watch_broker(self) -> None:
        how = await self.broker.wait_exit()
        self._failure.set_result(FleetError(f"the broker died ({how}); its last words are above", ""))


async def ask_ready(url: str) -> str:
    """Ask a program that listens at `url` (http or ws) whether it is ready: READY, or what it says instead."""
    where = urlsplit(url)
    # By hand: an HTTP client takes longer to load than the programs take to answer.
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            try:
                writer.write(f"GET /readyz HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n\r\n".encode())
                status = (await reader.readline()).decode(errors="replace").strip()
            finally:
                writer.close()
    except (OSError, ValueError) as error:  # a timeout is an OSError, an endless line a ValueError
        return f"no answer: {type(error).__name__} {error}"
    return READY if status.split()[1:2] == ["200"] else status


@contextlib.asynccontextmanager
async def running_fleet(
    spec: FleetSpec, log: Callable[[str, str], None], *, hurry: asyncio.Event | None = None
) -> AsyncIterator[Fleet]:
    """Run a fleet for the length of a `with` block.

    Args:
        spec: what to start.
        log: called with (program, line) for everything the programs write and for deaths and restarts.
        hurry: set when nobody waits for sessions to end any more.

    Raises:
        FleetError: a program did not start; everything that had started is stopped again.
    """
    fleet = Fleet(spec, log, hurry)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()
