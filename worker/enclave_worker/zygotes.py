"""The zygote that a pool forks from, and those it forked from before: started, rotated, replaced when one dies.

Theory of operation. One zygote is *current*: new sandboxes come from it. After a number of forks another is started
beside it and takes its place: all forks of one zygote share a memory layout and a hash seed, and whatever it may have
leaked. One that dies is replaced at once. Either way the old one's sandboxes live on, so it is kept as *past* until the
last of them is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING

from enclave_protocol import SandboxError

from .zygote_process import ZygoteProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .sandbox.plan import Plan
    from .sandbox_owners import Home
    from .sandbox_process import Sandbox
    from .slots import Slot

log = logging.getLogger("enclave.worker")

_RESTART_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)


class Zygotes:
    """The current zygote and the past ones. Owns their processes and the tasks that start and stop them.

    Args:
        plan: what a zygote is told.
        interpreter: path of the Python that it runs on.
        forks: after how many sandboxes a zygote is replaced.
        on_current: called whenever there is a new current zygote, but for the first.
    """

    def __init__(self, plan: Plan, interpreter: str, *, forks: int, on_current: Callable[[], None]) -> None:
        self._plan = plan
        self._interpreter = interpreter
        self._forks = forks
        self._on_current = on_current
        self._current: ZygoteProcess | None = None
        self._past: set[ZygoteProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._starting = False
        self._rotate_at = forks
        self._stopping = False
        self.started = 0
        """Zygotes started so far."""

    def __repr__(self) -> str:
        return f"<Zygotes current={self._current is not None} past={len(self._past)} started={self.started}>"

    @property
    def can_spawn(self) -> bool:
        """Whether there is a zygote to fork from."""
        return self._current is not None

    def is_current(self, zygote: ZygoteProcess) -> bool:
        """Whether new sandboxes come from this one."""
        return zygote is self._current

    async def start(self) -> None:
        """Start the first zygote; raises SandboxError naming the step that failed."""
        self._current = await self._start()

    async def stop(self) -> None:
        """End every zygote and every sandbox; returns when they are gone."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        zygotes = [*self._past, *([self._current] if self._current is not None else [])]
        self._current = None
        self._past.clear()
        # Those that are leaving already are nobody else's to wait for, or to kill should somebody have stopped them.
        await asyncio.gather(*self._leaving, *(zygote.stop() for zygote in zygotes))

    def spawn(self, number: int, slot: Slot, home: Home) -> Sandbox:
        """Ask the current zygote for a sandbox; start another zygote if this one has forked enough."""
        assert self._current is not None, "asked only when can_spawn"
        sandbox = self._current.spawn(number, slot, home)
        if self._current.forked >= self._rotate_at and not self._starting:
            _keep(self._tasks, self._rotate())
        return sandbox

    def released(self, zygote: ZygoteProcess) -> None:
        """A sandbox of this zygote is gone. A past one is let go with its last."""
        if zygote in self._past and not zygote.sandboxes:
            self._past.discard(zygote)
            _keep(self._leaving, zygote.stop())

    async def _start(self) -> ZygoteProcess:
        self.started += 1
        return await ZygoteProcess.start(self._plan, self._interpreter, self._on_death)

    async def _rotate(self) -> None:
        self._starting = True
        try:
            successor = await self._start()
        except (SandboxError, OSError) as error:
            self._rotate_at += self._forks
            log.error("no new zygote, the old one stays: %s", error)  # noqa: TRY400 - one line; the step says where
        else:
            self._succeed(successor)
        finally:
            self._starting = False

    def _succeed(self, successor: ZygoteProcess) -> None:
        old, self._current = self._current, successor
        self._rotate_at = self._forks
        if old is not None:
            self._past.add(old)
            self.released(old)
        self._on_current()

    def _on_death(self, zygote: ZygoteProcess, reason: str) -> None:
        if self._stopping:
            return
        self._past.add(zygote)
        if zygote is self._current:
            log.error("the zygote ended: %s; starting another", reason)
            self._current = None
            _keep(self._tasks, self._replace())
        self.released(zygote)  # if it had no sandbox, there is none whose end would let go of it

    async def _replace(self) -> None:
        for attempt in itertools.count():
            await asyncio.sleep(_RESTART_DELAYS_S[min(attempt, len(_RESTART_DELAYS_S) - 1)])
            if self._current is not None:
                return  # a rotation was under way
            try:
                successor = await self._start()
            except (SandboxError, OSError) as error:
                log.error("no new zygote: %s", error)  # noqa: TRY400 - one line; the step says where
            else:
                self._succeed(successor)
                return


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
    """Start a task that is held in `tasks` until it is done."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
