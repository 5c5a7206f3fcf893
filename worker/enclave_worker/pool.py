"""Warm sandboxes: already forked, already enclosed, waiting for code.

A session takes a warm one, or waits for one that is made at once: an empty pool is slower, never an error. What was
taken is replaced in the background. A sandbox serves one session and is never put back. A pool of size 0 keeps none:
each is made when it is asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

from enclave_protocol import SandboxError

from .alarms import Alarms
from .zygotes import Zygotes

if TYPE_CHECKING:
    from .output import Stream
    from .sandbox.plan import Plan
    from .sandbox_process import Sandbox
    from .slots import Slots
    from .usage import Exit

log = logging.getLogger("enclave.worker")

_START_TIMEOUT_S = 10.0
"""A sandbox that is not ready by then is stuck; it takes milliseconds."""
_HOLD_S = 0.5
_REFILL_DELAY_S = 0.005


class Taker(Protocol):
    """Somebody who wants a sandbox."""

    def on_sandbox(self, sandbox: Sandbox) -> None:
        """Here it is; it is yours until it has exited, or you retire it."""


class _Notice(msgspec.Struct):
    """The first frame of a sandbox: `ready`, or `failed` with the step."""

    type: str
    step: str = ""
    errno: int = 0
    reason: str = ""


_notices = msgspec.json.Decoder(_Notice)


class Pool:
    """Keeps `size` sandboxes warm. Owner of every sandbox until it is taken."""

    def __init__(
        self, plan: Plan, interpreter: str, *, size: int, max_live: int, slots: Slots, zygote_forks: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._alarms = Alarms(self._loop)
        self._zygotes = Zygotes(plan, interpreter, forks=zygote_forks, on_current=self._refill)
        self._size = size
        self._max_live = max_live
        self._slots = slots
        self._retired = _Retired(self)
        self._warm: deque[Sandbox] = deque()
        self._starting: set[Sandbox] = set()
        self._takers: deque[Taker] = deque()
        self._numbers = itertools.count(1)
        self._live = 0
        self._first: asyncio.Future[None] | None = None
        self._stopping = False
        self._hold: asyncio.TimerHandle | None = None  # while it runs, none is made
        self._later: asyncio.TimerHandle | None = None  # when to make the next one

    def __repr__(self) -> str:
        return (
            f"<Pool warm={len(self._warm)} starting={len(self._starting)} takers={len(self._takers)} live={self._live}>"
        )

    @property
    def ready(self) -> bool:
        """Whether a sandbox can be had: there is a warm one, or, of a pool that keeps none, a zygote to fork it."""
        if self._size:
            return bool(self._warm)
        return self._zygotes.can_spawn and self._hold is None

    @property
    def warm(self) -> int:
        """Sandboxes that wait for code."""
        return len(self._warm)

    @property
    def starting(self) -> int:
        """Sandboxes that are being made."""
        return len(self._starting)

    @property
    def live(self) -> int:
        """Sandboxes that exist, taken ones included."""
        return self._live

    async def start(self) -> None:
        """Start the zygote and prove that a sandbox comes up with every layer in force.

        Raises:
            SandboxError: names the step that failed.
        """
        self._first = self._loop.create_future()
        await self._zygotes.start()
        self._refill()
        try:
            await self._first
        except BaseException:
            await self.stop()
            raise
        self._first = None

    async def stop(self) -> None:
        """End the zygote and every sandbox; returns when they are gone."""
        self._stopping = True
        for timer in (self._hold, self._later):
            if timer is not None:
                timer.cancel()
        await self._zygotes.stop()
        self._alarms.clear()
        self._warm.clear()

    def take(self, taker: Taker) -> None:
        """Give `taker` a sandbox: at once if one is warm, else as soon as one is made."""
        if self._warm:
            taker.on_sandbox(self._warm.popleft())
        else:
            self._takers.append(taker)
        if self._takers or len(self._warm) * 2 < self._size:
            self._refill()
        elif self._later is None:
            # Making the next one competes with running this one: most sessions are over before the timer strikes.
            self._later = self._loop.call_later(_REFILL_DELAY_S, self._refill)

    def forget(self, taker: Taker) -> None:
        """Stop looking for a sandbox for `taker`."""
        if taker in self._takers:
            self._takers.remove(taker)

    def retire(self, sandbox: Sandbox) -> None:
        """Kill a taken sandbox that nobody listens to any more, and see it out."""
        sandbox.dismiss(self._retired)

    def released(self, sandbox: Sandbox) -> None:
        """A sandbox has exited: its slot is free again, soon if not at once."""
        self._zygotes.released(sandbox.process)
        self._slots.release(sandbox.slot, self._freed)

    def _freed(self) -> None:
        self._live -= 1
        self._refill()

    # As the owner of sandboxes that nobody has taken yet.

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        """The first frame: ready, or failed."""
        if not self._has_started(sandbox):
            return  # a warm guest has nothing to say; it has run no code
        notice = _notices.decode(body)
        if notice.type != "ready":
            self._failed(SandboxError(notice.step, notice.errno, notice.reason))
            return
        sandbox.process.proven = True
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        if self._takers:
            self._takers.popleft().on_sandbox(sandbox)
        elif len(self._warm) < self._size:
            self._warm.append(sandbox)
        else:
            self.retire(sandbox)  # made for a session that has ended while it waited, or only to prove the zygote
        self._refill()

    def on_broken(self, sandbox: Sandbox, reason: str) -> None:
        """Can't happen before there is a guest, unless we break it ourselves."""
        log.error("sandbox %d: %s", sandbox.number, reason)
        sandbox.kill()

    def on_hangup(self, sandbox: Sandbox) -> None:
        """It is dying: nothing closes the socket of a sandbox that runs no code."""

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        """A sandbox that runs no code writes only if our driver failed."""
        log.error(
            "sandbox %d wrote to %s before it had code: %s", sandbox.number, stream, data.decode(errors="replace")
        )
        return True

    def on_dropped(self, sandbox: Sandbox, stream: Stream, size_bytes: int) -> None:
        """Nothing is unwanted before there is a guest."""

    def on_oom(self, sandbox: Sandbox) -> None:
        """Before it has run anything: the limit is too low for the driver itself."""
        log.error("sandbox %d: out of memory before it had code", sandbox.number)
        sandbox.kill()

    def on_exit(self, sandbox: Sandbox, exit_: Exit) -> None:
        """A sandbox died before anybody took it."""
        if self._has_started(sandbox):
            # A zygote that was lost, or is told to stop, says nothing about the host.
            if (self._zygotes.is_current(sandbox.process) and not self._stopping) or self._first is not None:
                reason = exit_.lost or f"it ended with wait status {exit_.status}"
                self._failed(SandboxError("start a sandbox", 0, reason))
        elif sandbox in self._warm:
            self._warm.remove(sandbox)
        self.released(sandbox)

    # Filling.

    def _refill(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._stopping or self._hold is not None or not self._zygotes.can_spawn:
            return
        proving = self._first is not None and not self._first.done()
        wanted = max(self._size, proving) + len(self._takers) - len(self._warm) - len(self._starting)
        while wanted > 0 and self._live < self._max_live and self._spawn():
            wanted -= 1

    def _spawn(self) -> bool:
        """Have one made; say whether there was a slot for it."""
        try:
            slot = self._slots.take()
        except OSError as error:
            self._failed(SandboxError("make a control group", error.errno or 0, str(error)))
            return False
        if slot is None:
            return False
        self._live += 1
        sandbox = self._zygotes.spawn(next(self._numbers), slot, self)
        self._starting.add(sandbox)
        self._alarms.set(sandbox, _START_TIMEOUT_S, self._stuck, sandbox)
        return True

    def _has_started(self, sandbox: Sandbox) -> bool:
        """Note that it has come up, or never will; False if that is known."""
        if sandbox not in self._starting:
            return False
        self._starting.discard(sandbox)
        self._alarms.drop(sandbox)
        return True

    def _stuck(self, sandbox: Sandbox) -> None:
        if not sandbox.is_open:
            sandbox.process.unresponsive(f"it has not forked a sandbox for {_START_TIMEOUT_S:g} s")
            return
        log.error("sandbox %d is not ready after %g s; killed", sandbox.number, _START_TIMEOUT_S)
        sandbox.kill()

    def _failed(self, error: SandboxError) -> None:
        if self._first is not None:
            if not self._first.done():
                self._first.set_exception(error)
            return
        log.error("%s", error)
        # A host that just refused a sandbox refuses the next one too: do not spin.
        if self._hold is not None:
            self._hold.cancel()
        self._hold = self._loop.call_later(_HOLD_S, self._release_hold)

    def _release_hold(self) -> None:
        self._hold = None
        self._refill()


class _Retired:
    """The owner of a sandbox whose session is over: deaf to the guest, it only waits for the end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def on_frame(self, sandbox: Sandbox, body: bytes) -> None:
        """Ignore it: the session has its verdict."""

    def on_broken(self, sandbox: Sandbox, reason: str) -> None:
        """Ignore it: the session has its verdict."""

    def on_hangup(self, sandbox: Sandbox) -> None:
        """Good."""

    def on_output(self, sandbox: Sandbox, stream: Stream, data: bytes) -> bool:
        """Throw it away: it was written after the session's end."""
        return False

    def on_dropped(self, sandbox: Sandbox, stream: Stream, size_bytes: int) -> None:
        """Nobody counts any more."""

    def on_oom(self, sandbox: Sandbox) -> None:
        """It is being killed anyway."""

    def on_exit(self, sandbox: Sandbox, exit_: Exit) -> None:
        """Let the pool have its slot back."""
        self._pool.released(sandbox)
