"""Two commits side by side: `make bench-compare BASE=main`.

Theory of operation. Both fleets run at the same time, each from its own tree, started in the same way by the commands
and variables that even old commits have. The load generator is this commit's for both. They are measured in short
blocks by turns, and which one goes first changes with every round, so that whatever else this machine does falls on
both; the other fleet, idle meanwhile, costs next to nothing. Only ratios are told: see `comparison`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import click
import msgspec

from enclave_client.fleet import READY, READY_POLL_S, START_TIMEOUT_S, STOP_GRACE_S, FleetError, ask_ready
from enclave_client.program import Program, ProgramDiedError

from . import footprint
from .command import measured, write_json
from .comparison import Comparison, compare, heading, line, single
from .figures import percentile
from .load import SUM, Load, create_body
from .report import describe_machine, machine_line
from .trees import Tree, TreeError, other_tree, working_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import BinaryIO

    from .http import Connection

WARM_UP_SESSIONS = 200
BLOCK_SESSIONS = 50
BLOCK_PAUSED = 12
BLOCK_IN_FLIGHT = 160
IN_FLIGHT = 16
THINK_S = 0.02
_BODY = create_body(SUM)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Comparing(msgspec.Struct, kw_only=True):
    """One run, as `--json` writes it."""

    machine: dict[str, Any]
    base: str
    new: str
    base_commit: str
    new_commit: str
    rounds: int
    comparisons: list[Comparison]
    sessions: int
    failed: int
    failures: list[str]


class Side:
    """One of the two: a broker and a worker of a tree. Use as an async context manager; raises FleetError."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.one_ms: list[list[float]] = []
        """How long sessions took one at a time, in each round."""
        self.paused_ms: list[list[float]] = []
        """The same after a pause before each."""
        self.rates: list[float] = []
        """Sessions in a second with `IN_FLIGHT` at once, in each round."""
        self.cpu_ms: list[dict[str, float]] = []
        """CPU time of each of those sessions, by part, in each round."""
        self.faults: list[float] = []
        """Page faults of each of those sessions, in each round: the one figure that other programs do not disturb."""
        self.broker, self.worker = self._program("broker"), self._program("worker")
        self.load = Load("")
        self._stack = contextlib.AsyncExitStack()
        self._connection: Connection

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._start(stack)
            except ProgramDiedError as error:
                raise FleetError(f"{self.tree.name}: {error}", "\n".join(error.program.kept_lines)) from error
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def one_at_a_time(self) -> None:
        """Measure a block of sessions, each after the last."""
        self.one_ms.append([await self.load.run(self._connection, _BODY) for _ in range(BLOCK_SESSIONS)])

    async def after_a_pause(self) -> None:
        """Measure a block of sessions on a fleet that idles between them."""
        took_ms = []
        for _ in range(BLOCK_PAUSED):
            await asyncio.sleep(THINK_S)
            took_ms.append(await self.load.run(self._connection, _BODY))
        self.paused_ms.append(took_ms)

    async def in_flight(self) -> None:
        """Measure a block of sessions, many at once, and the CPU time of each."""
        pids = self._pids()
        before_s, before = footprint.fleet_cpu_s(*pids), footprint.fleet_faults(*pids)
        took_s = await self.load.in_flight([SUM] * BLOCK_IN_FLIGHT, IN_FLIGHT)
        self.rates.append(BLOCK_IN_FLIGHT / took_s)
        used_s = footprint.fleet_cpu_s(*pids)
        self.cpu_ms.append({part: (used_s[part] - before_s[part]) * 1000 / BLOCK_IN_FLIGHT for part in used_s})
        self.faults.append((footprint.fleet_faults(*pids) - before) / BLOCK_IN_FLIGHT)

    def memory_mb(self) -> float:
        """Return the memory of all its processes, each shared page divided by those who share it; 0 if not shown."""
        broker, (worker,) = self._pids()
        total_mb = 0.0
        for pid in (broker, worker, *footprint.descendants(worker)):
            try:
                total_mb += footprint.proportional_mb(pid)
            except PermissionError:  # only root sees other users' memory
                return 0.0
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
        return total_mb

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        self.worker.arguments = ["--host", "127.0.0.1", "--port", "0", "--worker-id", "worker-1"]
        stack.push_async_callback(self.worker.stop, STOP_GRACE_S)
        await self.worker.start()
        url = await self.worker.wait_listening(START_TIMEOUT_S)
        await _wait_ready(self.worker)
        self.broker.arguments = ["--host", "127.0.0.1", "--port", "0", "--worker", url]
        stack.push_async_callback(self.broker.stop, STOP_GRACE_S)
        await self.broker.start()
        self.load.url = await self.broker.wait_listening(START_TIMEOUT_S)
        await _wait_ready(self.broker)
        self._connection = await stack.enter_async_context(self.load.connection())

    def _program(self, name: str) -> Program:
        # Variables and not options, which a commit that does not know them would refuse. The level is that of
        # `enclave up`: as much as this machine allows.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ENCLAVE_")}
        environment["ENCLAVE_LEVEL"] = "BEST"
        module = f"enclave_{name}.cli"
        return Program(name, module, [], lambda _: None, environment=environment, python=self.tree.python)

    def _pids(self) -> tuple[int, list[int]]:
        assert self.broker.pid, "a started side has a broker"
        assert self.worker.pid, "and a worker"
        return self.broker.pid, [self.worker.pid]


async def _wait_ready(program: Program) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while (answer := await ask_ready(program.url)) != READY:
        if program.ended or time.monotonic() > deadline:
            raise ProgramDiedError(program, f"was not ready: {answer}")
        await asyncio.sleep(READY_POLL_S)


async def measure(base: Side, new: Side, rounds: int) -> list[Comparison]:
    """Measure both by turns, and return what was measured."""
    for side in (base, new):
        await side.load.in_flight([SUM] * WARM_UP_SESSIONS, IN_FLIGHT)
    for number in range(rounds):
        sides = (base, new) if number % 2 else (new, base)
        for block in (Side.one_at_a_time, Side.after_a_pause, Side.in_flight):
            for side in sides:
                await block(side)
    return comparisons(base, new)


def comparisons(base: Side, new: Side) -> list[Comparison]:
    """Return what both have measured, as ratios."""
    found = []
    for name, title, samples in (
        ("one_at_a_time", "one at a time", (base.one_ms, new.one_ms)),
        ("after_a_pause", f"after {THINK_S * 1000:g} ms of pause", (base.paused_ms, new.paused_ms)),
    ):
        rounds = list(zip(*samples, strict=True))
        found += [
            compare(f"{name}_p50", f"{title}, p50", "ms", rounds, _p50),
            compare(f"{name}_p99", f"{title}, p99", "ms", rounds, _p99),
        ]
    rates = [([one], [other]) for one, other in zip(base.rates, new.rates, strict=True)]
    found.append(compare("in_flight_rate", f"{IN_FLIGHT} in flight", "/s", rates, statistics.median))
    for part in (*base.cpu_ms[0], ""):
        cpu_ms = [(_part(one, part), _part(other, part)) for one, other in zip(base.cpu_ms, new.cpu_ms, strict=True)]
        title = f"CPU time of a session, {part or 'all of these'}"
        # The kernel counts in hundredths of a second: a part that is nearly nothing has no ratio.
        if min(sum(each[0][0] for each in cpu_ms), sum(each[1][0] for each in cpu_ms)) > 0:
            found.append(compare(f"cpu_{part or 'all'}", title, "ms", cpu_ms, statistics.fmean))
    faults = [([one], [other]) for one, other in zip(base.faults, new.faults, strict=True)]
    found.append(compare("faults", "page faults of a session", "", faults, statistics.fmean))
    held = base.memory_mb(), new.memory_mb()
    if all(held):
        found.append(single("memory", "memory of all processes, PSS", "MB", *held))
    return found


def _p50(samples: list[float]) -> float:
    return percentile(samples, 50)


def _p99(samples: list[float]) -> float:
    return percentile(samples, 99)


def _part(cpu_ms: dict[str, float], part: str) -> list[float]:
    return [cpu_ms[part] if part else sum(cpu_ms.values())]


async def run(base_ref: str, new_ref: str, rounds: int, say: Callable[[str], None]) -> Comparing:
    """Compare two commits; an empty `new_ref` is our own tree, as it is. Raises FleetError and TreeError."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, _this_task().cancel)
    machine = describe_machine()
    say(machine_line(machine))
    with tempfile.TemporaryDirectory(prefix="enclave-compare-") as directory:
        trees = [
            await to_the_end(other_tree, ref, Path(directory, name)) if ref else working_tree()
            for name, ref in (("base", base_ref), ("new", new_ref))
        ]
        async with Side(trees[0]) as base, Side(trees[1]) as new:
            found = await measure(base, new, rounds)
        sides = (base, new)
    say(f"\n{heading(*(tree.commit for tree in trees))}")
    for comparison in found:
        say(line(comparison))
    comparing = Comparing(
        machine=machine,
        base=trees[0].name,
        new=trees[1].name,
        base_commit=trees[0].commit,
        new_commit=trees[1].commit,
        rounds=rounds,
        comparisons=found,
        sessions=sum(side.load.sessions for side in sides),
        failed=sum(side.load.failed for side in sides),
        failures=[f"{side.tree.name}: {failure}" for side in sides for failure in side.load.failures],
    )
    say(f"\n{rounds} rounds, {comparing.sessions} sessions; failed: {comparing.failed}")
    for failure in comparing.failures:
        say(f"  {failure}")
    return comparing


async def to_the_end(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do some work in a thread. Who is cancelled meanwhile is so when it is done: nothing can stop a thread.

    It writes below a directory that its caller removes, which must not happen under its hands.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        working.exception()  # nobody wants to know any more
        raise cancelled
    return working.result()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    return task


@click.command(name="compare", context_settings={"show_default": True})
@click.argument("base")
@click.option("--new", default="", help="The other commit  [default: this tree as it is]")
@click.option("--rounds", type=click.IntRange(min=1), default=20, help="Blocks of each measurement, of each of both.")
@click.option("--json", "file", type=click.File("wb"), help="Write everything measured there.")
def command(base: str, new: str, rounds: int, file: BinaryIO | None) -> None:
    """Measure this tree beside commit BASE of its repository, in one run.

    Prints both values of each figure, their ratio, and how far apart the ratios of runs like this one would lie. Exits
    with 0 unless a session failed: what is slower is only shown.
    """
    try:
        comparing = measured(run(base, new, rounds, click.echo))
    except TreeError as error:
        click.echo(f"enclave: {error}", err=True)
        sys.exit(1)
    except asyncio.CancelledError:  # by SIGTERM or SIGHUP; everything is stopped and removed
        sys.exit(128 + signal.SIGTERM)
    if file is not None:
        write_json(file, comparing)
    sys.exit(1 if comparing.failed else 0)


if __name__ == "__main__":
    command()
