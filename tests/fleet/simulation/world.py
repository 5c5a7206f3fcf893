"""One run: a fleet is started, sessions run, things go wrong, everything is mended, and the books are checked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING
from unittest import mock

from enclave_broker.config import BrokerConfig
from enclave_broker.tools.functions import FunctionTool
from enclave_broker.tools.tool import ToolContext, ToolFailure, ToolPolicy
from enclave_client import connection as client_connection

from .clients import ClientHost, dial
from .hosts import BROKER, BrokerHost, WorkerHost
from .network import Network
from .plan import LAST_FAULT_S, Plan
from .truth import KILLED, Truth
from .virtual_time import VirtualLoop, clocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .guests import GuestRun
    from .network import End
    from .plan import Fault, SessionPlan

CHECK_EVERY_S = 0.25
HORIZON_S = 240.0
"""When every client has been told an end, at the latest."""
SETTLE_S = 3.0
"""How long the fleet is left alone after that, at least: until the word of every death is there,"""
LONGEST_SETTLE_S = 60.0
"""and before it has to be as empty as at first, at most: until a worker notices that nobody is at the other end."""

RESUMES = False
"""Whether a session survives that the link to its worker is cut: revision 2 of the link."""
CAN_RETRY = False
"""Whether clients can say that a session may be run again."""


class Report:
    """How a run went."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.violations: list[str] = []
        self.steps = 0
        self.virtual_s = 0.0
        self.story: list[str] = []
        self.digest = ""
        """Of what everybody was told, and when: the same whenever the seed is run."""


class World:
    """Everything in one run."""

    def __init__(self, plan: Plan, loop: VirtualLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.rng = random.Random(f"world {plan.seed}")
        self.network = Network(loop, self.rng, plan.delay_s)
        self.truth = Truth(self)
        self.story: list[str] = []
        self.sessions = {session.session_id: session for session in plan.sessions}
        self.can_retry = CAN_RETRY
        self.forgets = False
        """Whether a broker lost its memory, and with it what it had accepted."""
        self.config = BrokerConfig(
            ping_interval_s=0.5,
            dead_after_s=2.0,
            hello_timeout_s=2.0,
            reconnect_max_s=1.0,
            queue_size=plan.queue_size,
            queue_timeout_ms=8000,
            disconnect_grace_s=6.0,
            final_grace_s=3.0,
            cancel_grace_s=3.0,
            write_timeout_s=10.0,
            retain_s=3600.0,
        )
        self.workers: dict[str, WorkerHost] = {}
        for i, slots in enumerate(plan.slots):
            self.workers[f"worker{i}"] = WorkerHost(self, f"worker{i}", slots)
        self.broker = BrokerHost(self, self.config, self._tools())
        self.clients = [ClientHost(self, i) for i in range(plan.clients)]

    def tell(self, what: str) -> None:
        """Add to the story, which is printed when something is wrong."""
        self.story.append(f"[{self.loop.time():.4f}] {what}")

    async def run(self) -> None:
        """Run it all."""
        for worker in self.workers.values():
            worker.start()
        self.broker.start()
        await asyncio.sleep(1.0)
        begin_s = self.loop.time()
        for session in self.plan.sessions:
            self.clients[session.client].begin(session)
        checking = asyncio.ensure_future(self._check_often())
        for fault in self.plan.faults:
            await asyncio.sleep(max(0.0, begin_s + fault.at_s - self.loop.time()))
            self.tell(str(fault))
            getattr(self, f"_{fault.kind}")(fault)
        await asyncio.sleep(max(0.0, begin_s + LAST_FAULT_S - self.loop.time()))
        self.network.join_all()
        await self._wait_clients()
        await self._settle()
        checking.cancel()
        self.truth.check_now()
        self.truth.check_end()
        for client in self.clients:
            if client.process.alive:
                await client.process.spawn(client.close())

    async def _wait_clients(self) -> None:
        tasks = [task for client in self.clients if client.process.alive for task in client.tasks]
        if tasks:
            done, _ = await asyncio.wait(tasks, timeout=HORIZON_S)
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    self.truth.violation("no program breaks", f"a client: {error!r}")
        for client in self.clients:
            if not client.process.alive:
                for reading in self.truth.readings:
                    if reading.who.startswith(client.name):
                        reading.over, reading.lost = True, KILLED
        await self._until(lambda: not self.broker.dispatcher.directory.live, HORIZON_S)

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE_S)
        await self._until(lambda: not any(worker.pools.live for worker in self.workers.values()), LONGEST_SETTLE_S)
        await asyncio.sleep(2 * self.config.ping_interval_s)  # and the broker was told

    async def _until(self, done: Callable[[], bool], at_most_s: float) -> None:
        give_up_s = self.loop.time() + at_most_s
        while not done() and self.loop.time() < give_up_s:  # noqa: ASYNC110 - on this clock, waiting costs nothing
            await asyncio.sleep(CHECK_EVERY_S)

    async def _check_often(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            self.truth.check_now()

    # What is allowed, given what went wrong

    def may_lose_worker(self, plan: SessionPlan, begin: float, end: float) -> bool:
        """Return whether the worker of a session that lived then can count as lost."""
        del plan
        return any(
            begin - 10.0 <= until and at_s <= end and kind in {"killed", "unreachable"} and who in self.workers
            for at_s, until, kind, who in self.truth.notes
        )

    def outlives_s(self, run: GuestRun) -> float:
        """Return how long a guest may be there after its session has ended."""
        worst = 4.0
        for at_s, until, _, who in self.truth.notes:
            if who in {run.worker.partition("#")[0], BROKER}:
                worst = max(worst, 45.0 + until - at_s)  # until the WebSocket library's own pings find out
        return worst

    # What goes wrong

    def _links(self, fault: Fault) -> list[End]:
        return self.network.between(BROKER, f"worker{fault.who}")

    def _sockets(self, fault: Fault) -> list[End]:
        return self.network.between(f"client{fault.who}", BROKER)

    def _cut_client(self, fault: Fault) -> None:
        for end in self._sockets(fault):
            self.network.cut(end)
        self.truth.note("cut", f"client{fault.who}")

    def _stall_client(self, fault: Fault) -> None:
        for end in self._sockets(fault):
            self.network.stall(end, fault.for_s)
        self.truth.note("stalled", f"client{fault.who}", fault.for_s)

    def _half_open_client(self, fault: Fault) -> None:
        ends = self._sockets(fault)
        for end in ends:
            self._silence(end, fault.way)
        if ends:
            self.truth.note("silent", f"client{fault.who}", 20.0)

    def _part_client(self, fault: Fault) -> None:
        self._part(f"client{fault.who}", fault.for_s)
        self.truth.note("silent", f"client{fault.who}", 20.0 + fault.for_s)

    def _kill_client(self, fault: Fault) -> None:
        client = self.clients[fault.who]
        if client.process.alive:
            client.kill()
            self.truth.note("killed", client.name)

    def _cut_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            self.network.cut(end)
        self.truth.note("unreachable", f"worker{fault.who}", 1.0)

    def _half_open_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            self._silence(end, fault.way)
        self.truth.note("unreachable", f"worker{fault.who}", 4.0)

    def _stall_worker(self, fault: Fault) -> None:
        for end in self._links(fault):
            if not self.network.stalled(end):  # two in a row could be taken for a death
                self.network.stall(end, fault.for_s)

    def _stall_worker_long(self, fault: Fault) -> None:
        for end in self._links(fault):
            self.network.stall(end, fault.for_s)
        self.truth.note("unreachable", f"worker{fault.who}", fault.for_s + 4.0)

    def _part_worker(self, fault: Fault) -> None:
        self._part(f"worker{fault.who}", fault.for_s)
        self.truth.note("unreachable", f"worker{fault.who}", fault.for_s + 4.0)

    def _part(self, who: str, for_s: float) -> None:
        self.network.part(BROKER, who)
        self.loop.call_later(for_s, self.network.join, BROKER, who)

    def _kill_worker(self, fault: Fault) -> None:
        self._take_down(fault, vanish=False)

    def _vanish_worker(self, fault: Fault) -> None:
        self._take_down(fault, vanish=True)

    def _take_down(self, fault: Fault, *, vanish: bool) -> None:
        worker = self.workers[f"worker{fault.who}"]
        if worker.alive:
            worker.kill(vanish=vanish)
            self.truth.note("killed", worker.name, fault.for_s)
            self.loop.call_later(fault.for_s, worker.start)

    def _freeze_broker(self, fault: Fault) -> None:
        if self.broker.alive and not self.broker.process.frozen:
            self.broker.process.freeze()
            self.loop.call_later(fault.for_s, self.broker.process.thaw)
            self.truth.note("freeze", BROKER, fault.for_s)

    def _freeze_worker(self, fault: Fault) -> None:
        worker = self.workers[f"worker{fault.who}"]
        if worker.alive and not worker.process.frozen:
            worker.process.freeze()
            self.loop.call_later(fault.for_s, worker.process.thaw)
            self.truth.note("unreachable", worker.name, fault.for_s + 4.0)

    def _drain_worker(self, fault: Fault) -> None:
        sessions = self.workers[f"worker{fault.who}"].sessions
        sessions.draining = True
        self.loop.call_later(fault.for_s, setattr, sessions, "draining", False)

    def _catalog(self, fault: Fault) -> None:
        if self.broker.alive and not self.broker.process.frozen:
            registry = self.broker.registry
            tools = [] if "extra" in registry.names() else [_EXTRA]
            self.broker.process.run(registry.replace_source, "plan", tools)

    def _silence(self, end: End, way: int) -> None:
        if way == 2:
            self.network.silence(end, both=True)
        else:
            self.network.silence(end if way else end.peer)

    # What guests call

    def _tools(self) -> list[FunctionTool]:
        return [_tool(name) for name in _FUNCTIONS]


_world: list[World] = []
"""The one that runs: tools are made once, and belong to all."""


async def _echo(context: ToolContext, number: int) -> int:
    _called(context)
    return number


async def _slow(context: ToolContext, number: int) -> int:
    _called(context)
    await asyncio.sleep(_world[-1].rng.choice((0.05, 0.5, 2.0)))
    return number


async def _fails(context: ToolContext, number: int) -> int:
    _called(context)
    raise ToolFailure("NOT_TODAY", f"no {number}")


async def _again(context: ToolContext, number: int) -> int:
    _called(context)
    if _world[-1].rng.random() < 0.5:
        raise ToolFailure("LATER", "try again", retryable=True)
    return number


async def _extra() -> int:
    return 0


def _called(context: ToolContext) -> None:
    world = _world[-1]
    world.truth.tool_calls[context.call_id].append(world.broker.process.name)


_FUNCTIONS = {"echo": _echo, "slow": _slow, "fails": _fails, "again": _again}
_TOOLS: dict[str, FunctionTool] = {}
_EXTRA = FunctionTool(_extra, name="extra")


def _tool(name: str) -> FunctionTool:
    if name not in _TOOLS:
        policy = ToolPolicy(retryable=name == "again")
        _TOOLS[name] = FunctionTool(_FUNCTIONS[name], name=name, policy=policy)
    return _TOOLS[name]


class _Complaints(logging.Handler):
    """Collects what the programs log about faults of their own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    handler = _Complaints()
    loggers = [logging.getLogger("enclave"), logging.getLogger("asyncio")]
    kept = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        yield handler.found
    finally:
        for logger, level, propagate in kept:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def simulate(plan: Plan, sabotage: Callable[[World], None] | None = None, *, trace: bool = False) -> Report:
    """Run a plan, and report.

    Args:
        plan: what happens.
        sabotage: called before it begins, with what is to be broken: for the tests of the checker.
        trace: whether the story has every message.
    """
    report = Report(plan)
    loop = VirtualLoop()
    with clocks(loop, plan.seed), _complaints() as complaints:
        world = World(plan, loop)
        _world.append(world)
        try:
            if sabotage is not None:
                sabotage(world)
            if trace:
                world.network.overheard = world.tell
            with mock.patch.object(client_connection, "_Dial", lambda *_, **__: dial(world)):  # noqa: PT008 - one each
                loop.run(world.run())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            world.truth.violation("no program breaks", f"{type(error).__name__}: {error}")
        finally:
            _world.pop()
    report.violations = world.truth.violations
    report.violations += [f"no program breaks: {what}" for what in (*loop.faults, *complaints)]
    report.steps, report.virtual_s, report.story = loop.steps, loop.time(), world.story
    report.digest = f"{world.truth.digest()} {loop.steps}"
    return report
