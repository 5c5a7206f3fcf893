"""What is done to the fleet: a schedule that a seed gives, and the doing.

Theory of operation. The schedule says when something happens, what, to which of those whom it can happen to, and for
how long; the same for a seed, always. What comes of it is not: the fleet runs on real time. Two things are never done
to one member at once; what would be is left out, and the timeline says what was done. Everything has ended when `run`
returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclave_client.bench.footprint import children

from .proxy import BOTH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from .fleet import Fleet, Member
    from .proxy import Direction, Proxy

SHARES = {
    "cut": 20,  # a link or some clients' connections, by RST or by FIN
    "half open": 8,  # connections that nothing goes through any more, in one direction or both; new ones are well
    "partition": 8,  # nothing goes through, on new connections neither, for a while
    "slow": 5,
    "kill worker": 10,
    "drain worker": 4,
    "freeze worker": 5,
    "kill broker": 6,
    "drain broker": 2,
    "freeze broker": 3,
    "kill guest": 8,
    "kill zygote": 4,
    "vanish": 8,
    "full disk": 3,
}
"""What can happen, and how often, of all."""
CAUSES = {
    "WORKER_LOST": {"kill worker": 0.0, "partition": 9.0, "freeze worker": 9.0, "vanish": 9.0},
    "GUEST_CRASHED": {"kill guest": 0.0, "kill zygote": 0.0},
    "SESSION_CANCELLED": {"partition": 3.0, "slow": 3.0},
}
"""What alone can make sessions end so, if it lasts so many seconds: a worker that is away for less than the broker
waits for it loses nothing, nor does a broker that is killed; a client that is away for too long loses its session."""
_AFTERMATH_S = 30.0
"""How long after its end something can still end sessions."""
_WRITTEN_S = 3.0
"""After so long with room, a broker has written what it could not."""
_FILL_PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is to happen."""

    at_s: float
    """From the beginning of the run."""
    name: str
    target: float
    """Which one, from 0 to 1, of those that it can happen to."""
    for_s: float
    how: float
    """From 0 to 1: chooses between the ways in which it can."""


def schedule(seed: int, names: tuple[str, ...], every_s: float) -> Iterator[Fault]:
    """Yield what happens, without end: every so often on average, of these kinds by their shares."""
    chance = random.Random(f"faults of {seed}")
    at_s = 0.0
    while True:
        at_s += chance.expovariate(1 / every_s)
        name = chance.choices(names, [SHARES[name] for name in names])[0]
        # Mostly shorter than the fleet's patience, sometimes longer.
        for_s = min(chance.expovariate(1 / 2.5), 15.0)
        yield Fault(at_s=at_s, name=name, target=chance.random(), for_s=for_s, how=chance.random())


class Faults:
    """Does to a fleet what a schedule says.

    Args:
        fleet: to whom.
        disk: where the broker's store is, if that can be filled up; else None.
        say: told the timeline, line by line.
    """

    def __init__(self, fleet: Fleet, disk: Path | None, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._disk = disk
        self._say = say
        self._began_s = time.monotonic()
        self.done: dict[str, int] = dict.fromkeys(SHARES, 0)
        """How often each has happened."""
        self._begun: list[Fault] = []
        self._acts: dict[str, Callable[[Fault], Coroutine[None, None, None]]] = {
            "cut": self._cut,
            "half open": self._half_open,
            "partition": self._partition,
            "slow": self._slow,
            "kill worker": self._kill_worker,
            "drain worker": self._drain_worker,
            "freeze worker": self._freeze_worker,
            "kill broker": self._kill_broker,
            "drain broker": self._drain_broker,
            "freeze broker": self._freeze_broker,
            "kill guest": self._kill_guest,
            "kill zygote": self._kill_zygote,
            "vanish": self._vanish,
            "full disk": self._full_disk,
        }

    async def run(self, faults: Iterator[Fault], over: asyncio.Event) -> None:
        """Do everything in its time until it is over; then wait for the end of what was begun."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                delay_s = self._began_s + fault.at_s - time.monotonic()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), max(delay_s, 0.0))
                if over.is_set():
                    return
                group.create_task(self._acts[fault.name](fault))

    def explain(self, code: str, began_s: float, ended_s: float) -> bool:
        """Return whether something happened that can have made a session end with this code in this time."""
        least_s = CAUSES.get(code)
        return least_s is None or any(
            fault.name in least_s
            and fault.for_s >= least_s[fault.name]
            and self._began_s + fault.at_s <= ended_s
            and self._began_s + fault.at_s + fault.for_s + _AFTERMATH_S >= began_s
            for fault in self._begun
        )

    def note(self, text: str) -> None:
        """Put something into the timeline."""
        self._say(f"{time.monotonic() - self._began_s:8.2f} s  {text}")

    def _begin(self, fault: Fault, text: str) -> None:
        self.done[fault.name] += 1
        self._begun.append(fault)
        self.note(text)

    def _worker(self, fault: Fault, *, vanishing: bool = False) -> Member | None:
        """Return the worker whose turn it is, or None if something is being done to it, or it is dead."""
        workers = [worker for worker in self._fleet.workers if worker.namespace or not vanishing]
        worker = workers[int(fault.target * len(workers))] if workers else None
        return None if worker is None or worker.busy or worker.program.ended else worker

    def _proxy(self, fault: Fault) -> tuple[str, Proxy]:
        """Return the proxy whose turn it is: the clients' door, or a worker's link."""
        links = [(worker.name, worker.proxy) for worker in self._fleet.workers if worker.proxy]
        proxies = [("clients", self._fleet.door), *links]
        return proxies[int(fault.target * len(proxies))]

    async def _cut(self, fault: Fault) -> None:
        name, proxy = self._proxy(fault)
        if not proxy.joined:
            return
        share = 1.0 if fault.how < 0.6 else fault.how
        chosen = [joined for joined in proxy.joined if random.random() < share]
        way = "RST" if fault.for_s < 1.7 else "FIN"  # half of them
        self._begin(fault, f"cut {len(chosen)} connections of {name} by {way}")
        for joined in chosen:
            joined.reset() if way == "RST" else joined.finish()

    async def _half_open(self, fault: Fault) -> None:
        name, proxy = self._proxy(fault)
        if not proxy.joined:
            return
        directions = _directions(fault.how)
        self._begin(
            fault, f"half open: {len(proxy.joined)} connections of {name}, {' and '.join(directions)}, for good"
        )
        for joined in list(proxy.joined):
            joined.stall(*directions)

    async def _partition(self, fault: Fault) -> None:
        await self._for_a_while(
            fault,
            f"partition, {_words(_directions(fault.how))}",
            lambda proxy: proxy.partition(*_directions(fault.how)),
        )

    async def _slow(self, fault: Fault) -> None:
        bytes_per_s = 5000 * 100**fault.how
        await self._for_a_while(fault, f"slow, {bytes_per_s:.0f} bytes/s", lambda proxy: proxy.slow(bytes_per_s))

    async def _for_a_while(self, fault: Fault, what: str, act: Callable[[Proxy], None]) -> None:
        name, proxy = self._proxy(fault)
        member = next((m for m in self._fleet.members if m.proxy is proxy), None)
        if member is None or member.busy:
            return
        async with self._held(member):
            self._begin(fault, f"{what}: {name} for {fault.for_s:.1f} s")
            act(proxy)
            await asyncio.sleep(fault.for_s)
            proxy.heal()

    async def _kill_worker(self, fault: Fault) -> None:
        if (worker := self._worker(fault)) is not None:
            await self._end(fault, worker, signal.SIGKILL)

    async def _drain_worker(self, fault: Fault) -> None:
        if (worker := self._worker(fault)) is not None:
            await self._end(fault, worker, signal.SIGTERM)

    async def _kill_broker(self, fault: Fault) -> None:
        await self._end(fault, self._fleet.broker, signal.SIGKILL)

    async def _drain_broker(self, fault: Fault) -> None:
        await self._end(fault, self._fleet.broker, signal.SIGTERM)

    async def _end(self, fault: Fault, member: Member, number: signal.Signals) -> None:
        if member.busy:
            return
        async with self._held(member):
            delay_s = fault.for_s * fault.how
            self._begin(fault, f"{number.name} to {member.name}; back {delay_s:.1f} s after its end")
            await member.die(number, delay_s)
            self.note(f"{member.name} is back")

    async def _freeze_worker(self, fault: Fault) -> None:
        if (worker := self._worker(fault)) is not None:
            await self._freeze(fault, worker)

    async def _freeze_broker(self, fault: Fault) -> None:
        await self._freeze(fault, self._fleet.broker)

    async def _freeze(self, fault: Fault, member: Member) -> None:
        if member.busy:
            return
        async with self._held(member):
            self._begin(fault, f"SIGSTOP to {member.name} for {fault.for_s:.1f} s")
            member.send(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.for_s)
            finally:
                member.send(signal.SIGCONT)

    async def _kill_guest(self, fault: Fault) -> None:
        self._kill_below(fault, 4, "a sandbox")

    async def _kill_zygote(self, fault: Fault) -> None:
        self._kill_below(fault, 3, "a zygote")

    def _kill_below(self, fault: Fault, depth: int, what: str) -> None:
        """Kill a process so far below a worker: worker, launcher, keeper, zygote, sandbox."""
        worker = self._worker(fault)
        if worker is None or worker.program.pid is None:
            return
        found = [worker.program.pid]
        for _ in range(depth):
            found = [child for pid in found for child in children(pid)]
        if found:
            pid = found[int(fault.how * len(found))]
            self._begin(fault, f"SIGKILL to {what} of {worker.name}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _vanish(self, fault: Fault) -> None:
        worker = self._worker(fault, vanishing=True)
        if worker is None or worker.namespace is None:
            return
        async with self._held(worker):
            self._begin(fault, f"the host of {worker.name} vanishes for {fault.for_s:.1f} s")
            await worker.namespace.vanish()
            try:
                await asyncio.sleep(fault.for_s)
            finally:
                await worker.namespace.return_()

    async def _full_disk(self, fault: Fault) -> None:
        broker = self._fleet.broker
        if self._disk is None or broker.busy:
            return
        # What a broker cannot write is in its memory alone until it can, and it says so: it is not killed meanwhile.
        async with self._held(broker):
            self._begin(fault, f"the store's disk is full for {fault.for_s:.1f} s")
            filler = self._disk / "filler"
            try:
                fill(filler)
                await asyncio.sleep(fault.for_s)
            finally:
                filler.unlink()
            await asyncio.sleep(_WRITTEN_S)

    @contextlib.asynccontextmanager
    async def _held(self, member: Member) -> AsyncIterator[None]:
        member.busy = True
        try:
            yield
        finally:
            member.busy = False


def fill(path: Path) -> None:
    """Write a file until there is no room for more."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * _FILL_PIECE_BYTES)


def _directions(how: float) -> tuple[Direction, ...]:
    return BOTH if how < 0.5 else ("up",) if how < 0.75 else ("down",)


def _words(directions: tuple[Direction, ...]) -> str:
    return " and ".join(directions)
