"""The fleet of a chaos run: programs that are killed and come back, each behind a proxy or in a host of its own.

Theory of operation. A `Member` owns one program, from `start` to `stop`: a task of its own waits for the program's
death and starts it again on its old port, after the delay that whoever killed it has chosen. While a program is dead
its proxy refuses connections, as its host would. A death that nobody has chosen is a finding. Ports are outside of the
range from which the kernel gives them to connections, or one of those could have a dead program's port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_client.fleet import READY, START_TIMEOUT_S, ask_ready, worker_environment
from enclave_client.program import Program, ProgramDiedError

from .broker_tools import RUNS_FILE
from .namespaces import Namespace
from .proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ROOT = Path(__file__).parents[3]
_PORTS = range(20_000, 32_000)
_STOP_S = 30.0
_TRIES = 20


class Member:
    """One program that comes back when it dies.

    Args:
        program: not started yet, with the arguments of every start.
        proxy: that stands before it; None if nothing does.
        say: told of deaths and returns.
        address: where a broker finds it; empty if none is to.
        namespace: the host that it is on; None for ours.
    """

    def __init__(
        self,
        program: Program,
        proxy: Proxy | None,
        say: Callable[[str], None],
        *,
        address: str = "",
        namespace: Namespace | None = None,
    ) -> None:
        self.program = program
        self.address = address
        self.proxy = proxy
        self.namespace = namespace
        self.busy = False
        """Whether something is being done to it."""
        self.pids: list[int] = []
        """Of every start."""
        self.deaths: list[str] = []
        """Those that nobody has chosen."""
        self._say = say
        self._chosen = False
        self._delay_s = 0.0
        self._back = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.program.name

    async def start(self) -> None:
        """Start it, and wait until it listens. Raises ProgramDiedError."""
        await self._start()
        self._keeper = asyncio.create_task(self._keep())

    async def wait_ready(self) -> None:
        """Wait until it says that it is ready."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while (said := await ask_ready(self.program.url)) != READY:
                del said
                await asyncio.sleep(0.02)

    async def die(self, number: signal.Signals, delay_s: float) -> None:
        """End it by a signal, and wait until it has died, and is back after a delay."""
        self._chosen, self._delay_s = True, delay_s
        self._back.clear()
        self.send(number)
        await self._back.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.program.pid is not None and not self.program.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.program.pid, number)

    async def stop(self) -> None:
        """End it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self.program.stop(_STOP_S)
        if self.proxy is not None:
            await self.proxy.close()

    async def _start(self) -> None:
        await self.program.start()
        self.pids.append(self.program.pid or 0)
        await self.program.wait_listening(START_TIMEOUT_S)
        if self.proxy is not None:
            await self.proxy.up()

    async def _keep(self) -> None:
        while True:
            how = await self.program.wait_exit()
            if self.proxy is not None:
                await self.proxy.down()
            if not self._chosen:
                self.deaths.append(f"{self.name} died by itself ({how})")
                self._say(self.deaths[-1])
            self._chosen = False
            await asyncio.sleep(self._delay_s)
            await self._start_again()
            self._back.set()

    async def _start_again(self) -> None:
        for _ in range(_TRIES):
            try:
                await self._start()
            except ProgramDiedError as error:  # a store on a full disk, say
                self._say(f"{error}: {' | '.join(list(error.program.kept_lines)[-2:])}")
                await self.program.stop(0)
                await asyncio.sleep(0.5)
            else:
                return
        raise AssertionError(f"{self.name} does not start any more")


class Fleet:
    """A broker behind the clients' proxy, and workers.

    Args:
        directory: for the programs' logs and temporary files, and the file of `chaos_once`.
        say: told of deaths and returns.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._ports = free_ports()
        self._logs: dict[str, int] = {}
        self.tracebacks: list[str] = []
        """Exceptions that nothing caught, by program."""
        self.runs_file = directory / "runs"
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.workers: list[Member] = []
        self.broker: Member
        self.door: Proxy
        """Where clients connect."""

    @property
    def members(self) -> list[Member]:
        """Everything that runs, in the order of stopping."""
        return [self.broker, *self.workers]

    async def start(
        self, *, workers: int, vanishing: int, dialling: int, worker_options: list[str], broker_options: list[str]
    ) -> None:
        """Start everything.

        Args:
            workers: how many.
            vanishing: of these, so many first ones are in hosts of their own,
            dialling: and so many last ones dial in to the broker.
            worker_options: for each of them.
            broker_options: for the broker.

        Raises:
            ProgramDiedError: something does not start.
            RuntimeError: there cannot be a network namespace.
        """
        port = next(self._ports)
        self.door = Proxy(next(self._ports), port)
        options = ["--host", "127.0.0.1", "--port", str(port), *broker_options]
        for number in range(workers):
            if number < vanishing:
                worker = await self._vanishing(number, worker_options)
            elif number >= workers - dialling:
                worker = self._dialling(number, port, worker_options)
            else:
                worker = self._listening(number, worker_options)
            self.workers.append(worker)
            if worker.address:
                options += ["--worker", worker.address]
        if dialling:
            options.append("--accept-workers")
        self.broker = Member(self._program("broker", "enclave_broker.cli", options), self.door, self._say)
        await asyncio.gather(*(member.start() for member in self.members))
        await asyncio.gather(*(member.wait_ready() for member in self.members))

    def _listening(self, number: int, options: list[str]) -> Member:
        """Return a worker that the broker finds behind a proxy."""
        port = next(self._ports)
        proxy = Proxy(next(self._ports), port)
        address = f"ws://127.0.0.1:{proxy.port}/ws"
        return Member(self._worker(number, "127.0.0.1", port, options), proxy, self._say, address=address)

    def _dialling(self, number: int, broker_port: int, options: list[str]) -> Member:
        """Return a worker that finds the broker behind a proxy."""
        proxy = Proxy(next(self._ports), broker_port)
        options = [*options, "--dial", f"ws://127.0.0.1:{proxy.port}/workers"]
        return Member(self._worker(number, "127.0.0.1", next(self._ports), options), proxy, self._say)

    async def _vanishing(self, number: int, options: list[str]) -> Member:
        """Return a worker on a host of its own."""
        namespace = Namespace(number)
        await namespace.make()
        port = next(self._ports)
        program = self._worker(number, namespace.address, port, options, namespace)
        address = f"ws://{namespace.address}:{port}/ws"
        return Member(program, None, self._say, address=address, namespace=namespace)

    def _worker(
        self, number: int, host: str, port: int, options: list[str], namespace: Namespace | None = None
    ) -> Program:
        name = f"worker-{number + 1}"
        options = ["--host", host, "--port", str(port), "--worker-id", name, *options]
        if namespace is None:
            return self._program(name, "enclave_worker.cli", options)
        return self._program(name, "tests.fleet.chaos.namespaces", [namespace.name, *options])

    async def stop(self) -> None:
        """Stop everything; no process is left of what was started."""
        started = [*([self.broker] if hasattr(self, "broker") else []), *self.workers]
        for member in started:
            member.send(signal.SIGCONT)
            await member.stop()
        for worker in self.workers:
            if worker.namespace:
                await worker.namespace.remove()
        for fd in self._logs.values():
            os.close(fd)

    def _program(self, name: str, module: str, arguments: list[str]) -> Program:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ENCLAVE_")}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            "ENCLAVE_WORKER_TOKEN": "chaos-" + "0" * 40,
            RUNS_FILE: str(self.runs_file),
        }
        self._logs[name] = os.open(self._directory / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return Program(
            name, module, arguments, lambda line: self._log(name, line), environment=worker_environment(environment)
        )

    def _log(self, name: str, line: str) -> None:
        os.write(self._logs[name], line.encode() + b"\n")
        if "Traceback (most recent call last)" in line:
            self.tracebacks.append(name)


def free_ports() -> Iterator[int]:
    """Yield ports of loopback that nobody listens on."""
    first = os.getpid() * 37 % len(_PORTS)
    for port in (*_PORTS[first:], *_PORTS[:first]):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


@contextlib.asynccontextmanager
async def running(directory: Path, say: Callable[[str], None], **how: object) -> AsyncIterator[Fleet]:
    """Run a fleet for the length of a `with` block; see `Fleet.start`."""
    fleet = Fleet(directory, say)
    try:
        await fleet.start(**how)  # type: ignore[arg-type]
        yield fleet
    finally:
        await fleet.stop()
