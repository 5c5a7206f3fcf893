"""One run: a fleet, clients, faults, and what is left of it all."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import namespaces
from .clients import Clients
from .faults import Faults, schedule
from .fleet import running
from .leftovers import Held, adopt_orphans, leftovers
from .report import Tally
from .work import work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .records import Record
    from .work import Work

SLOTS = 16
"""Of each worker."""
QUEUE_S = 30.0
RETAIN_S = 900.0
GRACE_S = 25.0
"""For sessions of a program that is drained: more than the longest takes."""
DISK_BYTES = 256 << 20
"""Of the store's disk: room for every session of a run, and little enough to be filled in no time."""
MAX_EXAMPLES = 10
OF_BROKERS = frozenset({"kill broker", "drain broker", "full disk"})
"""What only a store that keeps sessions can bear."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run."""

    sessions: int
    at_once: int
    workers: int
    vanishing: int
    dialling: int
    every_s: float
    store: str
    faults: tuple[str, ...]
    seed: int
    keep: str = ""


async def run(plan: Plan, say: Callable[[str], None]) -> bool:
    """Run it; tell what happens and what was found to `say`; return whether all is well."""
    adopt_orphans()
    lacking = namespaces.lacking()
    names = tuple(name for name in plan.faults if plan.store == "sqlite" or name not in OF_BROKERS)
    if lacking and plan.vanishing:
        say(f"skipped, no host vanishes: {lacking}")
        plan = dataclasses.replace(plan, vanishing=0)
    if os.geteuid() != 0 and "full disk" in names:
        say("skipped, no disk is full: mounting one needs root")
    can = {"vanish": plan.vanishing > 0, "full disk": os.geteuid() == 0}
    names = tuple(name for name in names if can.get(name, True))
    say(f"seed {plan.seed}: {plan.sessions} sessions, {plan.at_once} at once, {plan.workers} workers")
    say(f"what happens: {', '.join(names)}")
    tally, started_s = Tally(), time.monotonic()
    # libuv keeps a descriptor from the first time that anything listens.
    (await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)).close()
    with contextlib.ExitStack() as stack:
        before = Held.now()
        directory = Path(stack.enter_context(_directory(plan.keep)))
        with disk(directory / "store", full="full disk" in names):
            found, pids = await _run(dataclasses.replace(plan, faults=names), directory, tally, say)
        found += await leftovers(before, pids, directory / "tmp")
    say(f"{time.monotonic() - started_s:.0f} s")
    say(tally.table())
    for line in found:
        say(f"  {line}")
    say("all is well" if tally.well and not found else f"NOT WELL: repeat it with --seed {plan.seed}")
    return tally.well and not found


async def _run(plan: Plan, directory: Path, tally: Tally, say: Callable[[str], None]) -> tuple[list[str], list[int]]:
    """Run the sessions; return what was found beside them, and the process ids of all workers."""
    store = directory / "store"
    broker_options = ["--tools", "tests.fleet.chaos.broker_tools", "--retain-s", str(RETAIN_S), "--queue-size", "5000"]
    broker_options += ["--queue-timeout-ms", str(int(QUEUE_S * 1000))]
    if plan.store == "sqlite":
        broker_options += ["--store", f"sqlite:{store / 'sessions.db'}"]
    worker_options = ["--level", "BEST", "--max-sessions", str(SLOTS), "--grace-s", str(GRACE_S)]
    how = {"worker_options": worker_options, "broker_options": broker_options}
    how |= {name: getattr(plan, name) for name in ("workers", "vanishing", "dialling")}
    records: dict[str, Record] = {}

    def take(one: Work, record: Record) -> None:
        if one.kind == "once":  # judged when the file of its tool's runs is whole
            records[one.key] = record
        else:
            tally.add(record)

    async with running(directory, say, **how) as fleet:
        clients = Clients(fleet.door.port, queue_s=QUEUE_S)
        over = asyncio.Event()
        faults = Faults(fleet, store if "full disk" in plan.faults else None, say)
        async with asyncio.TaskGroup() as group:
            if plan.faults:
                group.create_task(faults.run(schedule(plan.seed, plan.faults, plan.every_s), over))
            await clients.run_all((work(plan.seed, n) for n in range(plan.sessions)), plan.at_once, take)
            over.set()
        await clients.close()
    _count_runs(fleet.runs_file, records)
    for record in records.values():
        tally.add(record)
    say("faults: " + ", ".join(f"{name} {count}" for name, count in faults.done.items() if count))
    tracebacks = collections.Counter(fleet.tracebacks)
    say("exceptions in the logs: " + (", ".join(f"{name} {n}" for name, n in tracebacks.items()) or "none"))
    unexplained = [
        f"{code} without a cause: {record.session_id} ({record.kind})"
        for code, record in tally.failed
        if not faults.explain(code, record.began_s, record.ended_s)
    ]
    say(f"ended without a cause: {len(unexplained)}")
    deaths = [death for member in fleet.members for death in member.deaths]
    return [*deaths, *unexplained[:MAX_EXAMPLES]], [pid for worker in fleet.workers for pid in worker.pids]


def _count_runs(file: Path, records: dict[str, Record]) -> None:
    """Count the runs of the broker's tool that may run once."""
    if file.exists():
        for line in file.read_text().splitlines():
            key = line.split()[0]
            if key in records:
                records[key].runs[line] += 1


def _directory(keep: str) -> contextlib.AbstractContextManager[str]:
    """Return the programs' directory: a temporary one, if it is not to be kept."""
    if not keep:
        return tempfile.TemporaryDirectory(prefix="chaos-")
    Path(keep).mkdir(exist_ok=True)
    return contextlib.nullcontext(keep)


@contextlib.contextmanager
def disk(path: Path, *, full: bool) -> Iterator[None]:
    """Have a directory for the store: a small disk of its own, if it is to be filled up."""
    path.mkdir()
    if full:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", path], check=True)
    try:
        yield
    finally:
        if full:
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(path)
