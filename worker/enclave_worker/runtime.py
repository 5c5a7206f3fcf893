"""A worker as an object: pool, sessions and server put together, started and stopped as one."""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from enclave_protocol import LocalProtocolError, SandboxError

from .config import RuntimeConfig
from .connection import Connection
from .metrics import WorkerMetrics, open_descriptors, resident_bytes
from .pool import Pool
from .sandbox.plan import make_plan
from .sandbox.spec import interpreter, python_spec
from .server import WEBSOCKET_PATH, WorkerServer
from .sessions import Sessions

if TYPE_CHECKING:
    from .connection import Peer
    from .sandbox.plan import Privilege

LEVEL = "SECURE"
_NEEDED_CAPABILITIES = (6, 7, 8, 21)
"""CAP_SETGID, CAP_SETUID, CAP_SETPCAP and CAP_SYS_ADMIN: with fewer, root is no better than an ordinary user."""
_DYING_MARGIN = 16
"""Sandboxes that may still be dying while their sessions' slots are taken again."""


class RuntimeState(enum.StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


_TRANSITIONS = {
    RuntimeState.STOPPED: {RuntimeState.STARTING},
    RuntimeState.STARTING: {RuntimeState.RUNNING, RuntimeState.STOPPED},
    RuntimeState.RUNNING: {RuntimeState.STOPPING},
    RuntimeState.STOPPING: {RuntimeState.STOPPED},
}


class RuntimeStats(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's counts since it started."""

    active_sessions: int
    total_executions: int
    successful_executions: int
    failed_executions: int
    cancelled_executions: int
    average_execution_ms: float
    """Mean time from acceptance to `final`; 0 before the first."""
    memory_bytes: int
    """Resident size of the worker's own process."""
    uptime_s: float
    warm_sandboxes: int


class RuntimeWorker:
    """A worker. Make one with `create_runtime_worker`; it belongs to the event loop that starts it."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.config = config
        self.worker_id = config.worker_id or f"{socket.gethostname()}-{os.getpid()}"
        self.metrics = WorkerMetrics()
        self.port = 0
        """The port it listens on, once it does."""
        self._state = RuntimeState.STOPPED
        self._pool: Pool | None = None
        self._sessions: Sessions | None = None
        self._server: WorkerServer | None = None
        self._started_s = 0.0

    def __repr__(self) -> str:
        return f"<RuntimeWorker {self.worker_id} {self._state} port={self.port}>"

    @property
    def url(self) -> str:
        """Where brokers and clients connect."""
        return f"ws://{self.config.host}:{self.port}{WEBSOCKET_PATH}"

    @property
    def sessions(self) -> Sessions:
        """The live sessions; raises LocalProtocolError unless the worker runs."""
        if self._sessions is None:
            raise LocalProtocolError("the worker is not running", field="state", allowed="start() first")
        return self._sessions

    def get_state(self) -> RuntimeState:
        """Return what the worker is doing."""
        return self._state

    def get_stats(self) -> RuntimeStats:
        """Return what it has done since it started."""
        sessions = self.sessions
        totals = sessions.totals
        return RuntimeStats(
            active_sessions=sessions.active,
            total_executions=totals.executions,
            successful_executions=totals.successful,
            failed_executions=totals.failed,
            cancelled_executions=totals.cancelled,
            average_execution_ms=totals.execution_ms / totals.executions if totals.executions else 0.0,
            memory_bytes=resident_bytes(),
            uptime_s=time.monotonic() - self._started_s,
            warm_sandboxes=self._pool.warm if self._pool is not None else 0,
        )

    async def start(self, *, listen: bool = True) -> None:
        """Bring up the pool, prove that a sandbox holds, and listen.

        Args:
            listen: False opens no port; sessions then come by `handle` or `sessions.execute` only.

        Raises:
            SandboxError: this host can't give a layer; it names the step.
            OSError: the address is taken or not ours.
        """
        self._enter(RuntimeState.STARTING)
        try:
            self._pool = _make_pool(self.config)
            self._sessions = Sessions(self.config, self._pool, self.metrics)
            self._server = WorkerServer(self._sessions, self._pool, self.metrics, worker_id=self.worker_id, level=LEVEL)
            if listen:
                self.port = await self._server.start(self.config.host, self.config.port)
            await self._pool.start()
        except BaseException:
            await self._stop_parts()
            self._enter(RuntimeState.STOPPED)
            raise
        self._watch(self._pool, self._sessions)
        self._started_s = time.monotonic()
        self._enter(RuntimeState.RUNNING)

    async def stop(self, *, grace_s: float = 0.0) -> None:
        """Refuse new sessions, give live ones `grace_s` seconds, end the rest, and let go of everything."""
        if self._state is RuntimeState.STOPPED:
            return
        self._enter(RuntimeState.STOPPING)
        self.sessions.draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self.sessions.wait_idle()
        except TimeoutError:
            await self.sessions.end_all("the worker stops")
        await self._stop_parts()
        self._enter(RuntimeState.STOPPED)

    async def handle(self, peer: Peer) -> None:
        """Serve one peer that is not a WebSocket, until it is gone."""
        await Connection(peer, self.sessions, worker_id=self.worker_id, level=LEVEL).serve()

    async def _stop_parts(self) -> None:
        if self._server is not None:
            await self._server.stop()
        if self._pool is not None:
            await self._pool.stop()
        self._server = self._pool = None

    def _enter(self, state: RuntimeState) -> None:
        if state not in _TRANSITIONS[self._state]:
            allowed = ", ".join(sorted(_TRANSITIONS[self._state]))
            raise LocalProtocolError(f"{state} while {self._state}", field="state", allowed=allowed)
        self._state = state

    def _watch(self, pool: Pool, sessions: Sessions) -> None:
        self.metrics.watch("enclave_sessions_active", "Sessions that hold a slot.", lambda: sessions.active)
        self.metrics.watch("enclave_slots", "Slots.", lambda: self.config.max_sessions)
        self.metrics.watch("enclave_pool_warm", "Sandboxes that wait for code.", lambda: pool.warm)
        self.metrics.watch("enclave_pool_live", "Sandboxes that exist.", lambda: pool.live)
        self.metrics.watch("enclave_pool_cold_starts", "Sandboxes a session waited for.", lambda: pool.cold_starts)
        self.metrics.watch("process_resident_memory_bytes", "Resident size of the worker.", resident_bytes)
        self.metrics.watch("process_open_fds", "Open descriptors of the worker.", open_descriptors)


def create_runtime_worker(config: RuntimeConfig | None = None) -> RuntimeWorker:
    """Make a worker; `await worker.start()` brings it up."""
    return RuntimeWorker(config or RuntimeConfig())


def _make_pool(config: RuntimeConfig) -> Pool:
    plan = make_plan(python_spec(), privilege=_privilege(), uid=os.geteuid(), gid=os.getegid())
    max_live = config.max_sessions + config.pool_size + _DYING_MARGIN
    first_uid = _first_uid(config.first_uid, max_live) if plan.privilege == "root" else 0
    return Pool(plan, interpreter(), size=config.pool_size, max_live=max_live, first_uid=first_uid)


def _privilege() -> Privilege:
    """Find out whether we are root with what root needs; a container's root often is not."""
    if os.geteuid() != 0:
        return "user"
    with open("/proc/self/status") as file:  # noqa: PTH123 - a kernel file
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return "root" if all(effective >> bit & 1 for bit in _NEEDED_CAPABILITIES) else "user"


def _first_uid(wanted: int, count: int) -> int:
    """Check that our user namespace has the ids that sandboxes are to run as (a container's may not)."""
    with open("/proc/self/uid_map") as file:  # noqa: PTH123 - a kernel file
        ranges = [(int(first), int(size)) for first, _, size in (line.split() for line in file)]
    if any(first <= wanted and wanted + count <= first + size for first, size in ranges):
        return wanted
    had = ", ".join(f"{first}-{first + size - 1}" for first, size in ranges)
    hint = f"choose --first-uid inside {had}"
    raise SandboxError("choose user ids", 0, f"no ids {wanted}-{wanted + count - 1} in this user namespace", hint=hint)
