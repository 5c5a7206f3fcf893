"""A worker as an object: pool, sessions and server put together, started and stopped as one."""

from __future__ import annotations

import asyncio
import enum
import functools
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Self

import msgspec

from enclave_protocol import LocalProtocolError

from .config import RuntimeConfig
from .executions import DEFAULT_BUFFER_BYTES, ExecutionResult, collect, make_execute
from .listeners import Observable
from .loop_thread import LoopThread, call_in
from .metrics import WorkerMetrics, resident_bytes
from .parts import Parts
from .server import WEBSOCKET_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from enclave_protocol import Limits

    from .embedding import TextChannel
    from .sandbox.levels import Layer
    from .sessions import Sessions


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


class RuntimeWorker(Observable):
    """A worker. Make one with `create_runtime_worker`; it belongs to the event loop that starts it.

    With an event loop: `start` and `stop`, or `async with`. Without: `start_sync` and `stop_sync`, or `with`, which
    open no port and give the worker a thread of its own. A stopped worker can be started again.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        super().__init__()
        self.config = config
        self.worker_id = config.worker_id or f"{socket.gethostname()}-{os.getpid()}"
        self.metrics = WorkerMetrics()
        self.port = 0
        """The port it listens on, once it does."""
        self._state = RuntimeState.STOPPED
        self._parts: Parts | None = None  # while it is started
        self._sessions: Sessions | None = None  # the last ones, also when it has stopped
        self._thread: LoopThread | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._started_s = 0.0
        self._watch()

    def __repr__(self) -> str:
        return f"<RuntimeWorker {self.worker_id} {self._state} port={self.port}>"

    @property
    def url(self) -> str:
        """Where brokers and clients connect."""
        scheme = "wss" if self.config.tls_cert else "ws"
        return f"{scheme}://{self.config.host}:{self.port}{WEBSOCKET_PATH}"

    @property
    def missing_layers(self) -> frozenset[Layer]:
        """Layers that its level lets it do without on this host; none before it was started."""
        return frozenset() if self._parts is None else frozenset(self._parts.footing.lacking)

    @property
    def level(self) -> str:
        """The security level that it holds; empty unless it was started."""
        return "" if self._parts is None else self._parts.footing.level.name

    @property
    def sessions(self) -> Sessions:
        """The live sessions; raises LocalProtocolError unless the worker was started."""
        if self._sessions is None:
            raise LocalProtocolError("the worker was never started", field="state", allowed="start() first")
        return self._sessions

    def get_state(self) -> RuntimeState:
        """Return what the worker is doing."""
        return self._state

    def get_stats(self) -> RuntimeStats:
        """Return what it has done since it was last started; raises LocalProtocolError if it never was."""
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
            warm_sandboxes=0 if self._parts is None else self._parts.pools.warm,
        )

    async def start(self, *, listen: bool | None = None) -> None:
        """Bring up the pool, prove that a sandbox holds, and listen.

        Args:
            listen: False opens no port; sessions then come by `handle`, `execute` or `execute_sync` only. None leaves
                it to the configuration.

        Raises:
            AccessError: it would be open to strangers, or a secret or certificate can't be used.
            ProfileError: a profile can't be offered; it says why.
            SandboxError: this host can't give a layer; it names the step.
            OSError: the address is taken or not ours.
            LocalProtocolError: it is started already.
        """
        self._enter(RuntimeState.STARTING)
        listens = self.config.listen if listen is None else listen
        try:
            parts = self._parts = Parts(self.worker_id, self.config, self.metrics, self.listeners, listens=listens)
            self._sessions = parts.sessions
            port = await parts.start()
        except BaseException:
            await self._stop_parts()
            self._enter(RuntimeState.STOPPED)
            raise
        self.port = port if listens else self.port
        self._started_s = time.monotonic()
        self._enter(RuntimeState.RUNNING)

    def drain(self, reason: str = "the worker was told to") -> None:
        """Take no more sessions, for good, and tell the brokers; live ones go on. Safe to call again.

        `wait_drained` returns when the worker can be stopped without a loss.
        """
        self.require_running()
        self.sessions.drain(reason)

    async def wait_drained(self) -> None:
        """Return when the worker was told to drain, by whomever, and is done.

        Done: no session is live, and the events of those that ended are acknowledged, or their broker's lease is over.
        """
        await self.sessions.wait_drained()

    async def stop(self, *, grace_s: float = 0.0) -> None:
        """Drain, give live sessions `grace_s` seconds, end the rest, and let go of everything.

        Safe to call again and at the same time. Cancelled, it goes on without its caller: half stopped is no state.
        """
        if self._state is RuntimeState.STOPPED:
            return
        if self._stopping is None:
            self._enter(RuntimeState.STOPPING)
            self._stopping = asyncio.create_task(self._stop(grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        self.sessions.drain("the worker stops")
        try:
            async with asyncio.timeout(grace_s):
                await self.sessions.wait_drained()
        except TimeoutError:
            await self.sessions.end_all("the worker stops")
        await self._stop_parts()
        self._stopping = None
        self._enter(RuntimeState.STOPPED)

    async def handle(self, channel: TextChannel) -> None:
        """Serve one channel inside this process, `hello` first, until either end closes it or the worker stops.

        Raises:
            ConnectionRefusedError: the worker does not run.
        """
        if self._parts is None or self._state is not RuntimeState.RUNNING:
            await channel.close()
            raise ConnectionRefusedError(f"the worker is {self._state}")
        await self._parts.embedding.serve(channel)

    async def execute(
        self,
        session_id: str | None,
        code: str,
        limits: Limits | Mapping[str, Any] | None = None,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        *,
        language: str | None = None,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, str | bytes] | None = None,
    ) -> ExecutionResult:
        """Run code in a fresh sandbox and return how it went. Cancelled, it ends the session.

        Args:
            session_id: `s_…`, which no live session may have; a new one if None.
            code: the body of an async function; or a script for the shell.
            limits: all of them, or by their names on the wire those that differ from the configuration's.
            tools: what the code may call, by name: plain functions (each call in a thread) or async ones. A name that
                is not among them gives the code an `UNKNOWN_TOOL` error, one that raises the exception's message.
            language: `python`, `javascript` or `shell`; the first of the profile's if None.
            profile: one that the worker offers; `python` if None.
            env: environment variables of the code.
            files: files in its working directory, by relative path.

        Raises:
            RemoteProtocolError: the id, the code, a limit or one of these is not acceptable; nothing was started.
            LocalProtocolError: the worker does not run, or in another loop.
        """
        self.require_running()
        message = make_execute(session_id, code, limits, language=language, profile=profile, env=env, files=files)
        return await collect(self.sessions, message, tools or {}, buffer_bytes=DEFAULT_BUFFER_BYTES)

    def execute_sync(
        self,
        session_id: str | None,
        code: str,
        limits: Limits | Mapping[str, Any] | None = None,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        *,
        language: str | None = None,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, str | bytes] | None = None,
    ) -> ExecutionResult:
        """Like `execute`, for a thread without an event loop, such as a serverless handler's. Any number may call it.

        Interrupted (KeyboardInterrupt), it ends the session.

        Raises:
            RuntimeError: the worker's own event loop runs in this thread.
        """
        self.require_running()
        done = self.execute(session_id, code, limits, tools, language=language, profile=profile, env=env, files=files)
        return call_in(self.sessions.loop, done)

    def start_sync(self, *, listen: bool = False) -> None:
        """Start the worker in a thread of its own; `stop_sync` ends both. Raises what `start` raises.

        Args:
            listen: whether to open the port as well.
        """
        self._require_stopped()
        thread = LoopThread()
        try:
            call_in(thread.loop, self.start(listen=listen))
        except BaseException:
            thread.stop()
            raise
        self._thread = thread

    def stop_sync(self, *, grace_s: float = 0.0) -> None:
        """Stop a worker that `start_sync` started, as `stop` does, and end its thread. Safe to call again."""
        thread = self._thread
        if thread is not None:
            call_in(thread.loop, self.stop(grace_s=grace_s))
            self._thread = None
            thread.stop()

    def __enter__(self) -> Self:
        self.start_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_sync()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def require_running(self) -> None:
        """Raise LocalProtocolError unless the worker runs."""
        if self._state is not RuntimeState.RUNNING:
            raise LocalProtocolError(f"the worker is {self._state}", field="state", allowed="running: start it first")

    def _require_stopped(self) -> None:
        if self._state is not RuntimeState.STOPPED:
            raise LocalProtocolError(f"the worker is {self._state}", field="state", allowed="stopped: stop it first")

    async def _stop_parts(self) -> None:
        if self._parts is not None:
            await self._parts.stop()
            self._parts = None

    def _enter(self, state: RuntimeState) -> None:
        if state not in _TRANSITIONS[self._state]:
            allowed = ", ".join(sorted(_TRANSITIONS[self._state]))
            raise LocalProtocolError(f"{state} while {self._state}", field="state", allowed=allowed)
        self._state = state

    def _watch(self) -> None:
        metrics = self.metrics
        metrics.watch("enclave_executions_active", "Executions that hold a slot.", lambda: self._active)
        metrics.watch("enclave_worker_slots", "Slots of the worker.", lambda: self.config.max_sessions)
        metrics.watch("enclave_sessions_detached", "Sessions that wait for a broker to attach.", lambda: self._detached)
        metrics.watch("enclave_events_kept_bytes", "Events that no broker has acknowledged yet.", lambda: self._kept)
        metrics.watch_states(
            "enclave_pool_sandboxes",
            "Sandboxes that exist: warm ones wait for code, starting ones are being made, taken ones have a session.",
            {state: functools.partial(self._sandboxes, state) for state in ("warm", "starting", "taken")},
        )

    @property
    def _active(self) -> int:
        return 0 if self._sessions is None else self._sessions.active

    @property
    def _detached(self) -> int:
        return 0 if self._sessions is None else self._sessions.holdings.detached

    @property
    def _kept(self) -> int:
        return 0 if self._sessions is None else self._sessions.holdings.budget.used_bytes

    def _sandboxes(self, state: str) -> float:
        """Count the sandboxes of a state; there are none unless the worker runs."""
        return 0.0 if self._parts is None else float(self._parts.pools.sandboxes[state])


def create_runtime_worker(config: RuntimeConfig | None = None) -> RuntimeWorker:
    """Make a worker; `await worker.start()` brings it up."""
    return RuntimeWorker(config or RuntimeConfig())
