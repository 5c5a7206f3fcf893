"""One run: a fleet is started, sessions run, things go wrong, everything is mended, and the books are checked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from enclave_broker.config import BrokerConfig
from enclave_client import connection as client_connection

from .called_tools import TOOLS, the_world
from .clients import ClientHost, dial
from .faults import Faults, Moments
from .hosts import RESUME_S, BrokerHost, WorkerHost
from .network import Network
from .plan import LAST_FAULT_S, Plan
from .truth import KILLED, Truth
from .verdict import Verdict
from .virtual_time import VirtualLoop, clocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


CHECK_EVERY_S = 0.25
HORIZON_S = 240.0
"""When every client has been told an end, at the latest."""
SETTLE_S = 3.0
"""How long the fleet is left alone after that, at least: until the word of every death is there,"""
LONGEST_SETTLE_S = 60.0
"""and before it has to be as empty as at first, at most: until a worker notices that nobody is at the other end."""


END_S = 1200.0
"""No run is longer."""
DISKS = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where brokers have their files."""


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

    def __init__(self, plan: Plan, loop: VirtualLoop, store: str) -> None:
        self.plan = plan
        self.loop = loop
        self.rng = random.Random(f"world {plan.seed}")
        self.network = Network(loop, self.rng, plan.delay_s)
        self.truth = Truth(self)
        self.story: list[str] = []
        self.sessions = {session.session_id: session for session in plan.sessions}
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
            resume_s=RESUME_S,
            store=store,
        )
        self.workers: dict[str, WorkerHost] = {}
        for i, slots in enumerate(plan.slots):
            self.workers[f"worker{i}"] = WorkerHost(self, f"worker{i}", slots, old=i in plan.old)
        self.broker = BrokerHost(self, self.config, TOOLS)
        self.faults = Faults(self)
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
        self.network.on_message = Moments(self).pass_by
        for fault in self.plan.faults:
            if fault.on:
                continue
            await asyncio.sleep(max(0.0, begin_s + fault.at_s - self.loop.time()))
            self.faults.strike(fault)
        await asyncio.sleep(max(0.0, begin_s + LAST_FAULT_S - self.loop.time()))
        self.network.on_message = None
        await self._wait_clients()
        await self._settle()
        checking.cancel()
        self.truth.check_now()
        await Verdict(self).check_end()
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
        await self._until(self._is_quiet, LONGEST_SETTLE_S)
        await asyncio.sleep(2 * self.config.ping_interval_s)  # and the broker was told

    def _is_quiet(self) -> bool:
        connected = self.broker.dispatcher.placer.statistics().workers == len(self.workers)
        return connected and all(worker.alive and not worker.pools.live for worker in self.workers.values())

    async def _until(self, done: Callable[[], bool], at_most_s: float) -> None:
        give_up_s = self.loop.time() + at_most_s
        while not done() and self.loop.time() < give_up_s:  # noqa: ASYNC110 - on this clock, waiting costs nothing
            await asyncio.sleep(CHECK_EVERY_S)

    async def _check_often(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            self.truth.check_now()


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


def _work_s(rng: random.Random) -> float:
    """Return how long a disk takes."""
    return rng.choice((0.0005, 0.0005, 0.002, 0.02, 0.2, 0.8))


def simulate(plan: Plan, sabotage: Callable[[World], None] | None = None, *, trace: bool = False) -> Report:
    """Run a plan, and report.

    Args:
        plan: what happens.
        sabotage: called before it begins, with what is to be broken: for the tests of the checker.
        trace: whether the story has every message.
    """
    report = Report(plan)
    loop = VirtualLoop()
    with clocks(loop, plan.seed), _complaints() as complaints, contextlib.ExitStack() as stack:
        loop.end_s = END_S
        loop.work_s = functools.partial(_work_s, random.Random(f"disk {plan.seed}"))
        disk = stack.enter_context(tempfile.TemporaryDirectory(dir=DISKS)) if plan.store else ""
        world = World(plan, loop, f"sqlite:{disk}/sessions.db" if plan.store else "memory")
        the_world.append(world)
        stack.callback(loop.close)
        if sabotage is not None:
            sabotage(world)
        try:
            if trace:
                world.network.overheard = world.tell
            with mock.patch.object(client_connection, "_Dial", lambda *_, **__: dial(world)):  # noqa: PT008 - one each
                loop.run(world.run())
                world.broker.kill()  # lets go of its files
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            world.truth.violation("no program breaks", f"{type(error).__name__}: {error}")
        finally:
            the_world.pop()
    report.violations = world.truth.violations
    report.violations += [f"no program breaks: {what}" for what in (*loop.faults, *complaints)]
    report.steps, report.virtual_s, report.story = loop.steps, loop.time(), world.story
    report.digest = f"{world.truth.digest()} {loop.steps}"
    return report
