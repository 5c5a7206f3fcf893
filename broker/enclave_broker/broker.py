"""The broker as a program's part: start it, use it, stop it.

    async with create_broker(workers=["ws://127.0.0.1:3001/ws"], port=0) as broker:
        async for event in broker.execute("return 1 + 1"):
            print(event)

Everything that runs belongs to one task group in one task, which `stop` ends and awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any, Literal, Self

from enclave_protocol import Limits, decode_event, parse_env, parse_files, parse_limits
from enclave_protocol.credentials import WORKER_TOKEN_VARIABLE, is_loopback
from enclave_protocol.inputs import encode_file

from .access import LOCAL
from .access.files import KeysWatch, load_gate, load_secrets
from .config import BrokerConfig
from .dispatcher import Dispatcher
from .finding.build import make_sources
from .finding.dial_in import DialIn
from .finding.keeper import LinkKeeper
from .finding.sources import Connecting
from .http import create_app
from .listening import listen
from .metrics import Metrics
from .new_session import NewSession
from .placement import DEFAULT_PROFILE
from .recovery import Recovery
from .server import Server, server_config
from .store.options import make_store
from .tls import check_server_files, worker_context
from .tools import Secrets, ToolRegistry
from .tools.secrets import ENVIRONMENT_PREFIX
from .tools.sources import SourceKeeper
from .ws import WorkersDoor

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from enclave_protocol import AnyEvent
    from enclave_protocol.messages import Retry

    from .channels import Runtime
    from .tools import ApprovalHook, Tool, ToolSource
    from .tracing import Tracing

log = logging.getLogger("enclave.broker")

TICK_S = 0.1
"""How often the queue's deadlines and the retained sessions are looked at."""
SOURCES_WAIT_S = 10.0
"""Longest wait, at the start, for sources of tools that do not answer."""
KEYS_POLL_S = 1.0
"""How often the keys file is looked at."""

_EXPOSED = (
    "listening on {host} would let everybody who reaches it run code: give API keys with --keys-file "
    "(`enclave keys new` makes one), listen on 127.0.0.1, or say --insecure where something else keeps strangers out"
)


class Broker:
    """A broker. Make it with `create_broker`, in or out of a running loop; use it as an async context manager.

    Args:
        config: its settings.
        tools: what guests may call.
        runtimes: workers in this process, for mode `embedded`.
        secrets: what tools may be given.
        approve: who is asked about tools that need approval.
        sources: where more tools come from, while the broker runs.
        tracing: where sessions' traces go; a client's is only passed on if not given.

    Raises:
        ValueError: a tool needs approval, and nobody can be asked; or keys, secrets or certificates can't be used; or
            it would be open to more than this machine.
    """

    def __init__(
        self,
        config: BrokerConfig,
        tools: ToolRegistry,
        runtimes: Sequence[Runtime] = (),
        *,
        secrets: Secrets | None = None,
        approve: ApprovalHook | None = None,
        sources: Iterable[ToolSource] = (),
        tracing: Tracing | None = None,
    ) -> None:
        _check_tools(tools, secrets or Secrets(), approve)
        self.config = config
        self.tools = tools
        self.metrics = Metrics()
        gate = load_gate(config)
        self._keys = KeysWatch(config.keys_file, gate, self.metrics)
        self._worker_tokens = load_secrets(config.worker_token_file, WORKER_TOKEN_VARIABLE)
        worker_tls = worker_context(config.worker_tls_ca, config.worker_tls_cert, config.worker_tls_key)
        if config.tls_cert or config.tls_key:
            check_server_files(config.tls_cert, config.tls_key)
        if not (gate.closed or config.insecure or is_loopback(config.host)):
            raise ValueError(_EXPOSED.format(host=config.host))
        store = make_store(config.store)
        self.metrics.watch_store(lambda: store.failure)
        self.dispatcher = Dispatcher(
            config, tools, self.metrics, gate, secrets=secrets, approve=approve, tracing=tracing, store=store
        )
        self.sources = SourceKeeper(list(sources), tools)
        self.sources.count_in(self.metrics.tool_sources)
        token = self._worker_tokens[0] if self._worker_tokens else ""
        connecting = Connecting(timeout_s=config.hello_timeout_s, token=token, tls=worker_tls)
        found = make_sources(config, connecting, runtimes, stale=self.metrics.worker_source_stale)
        self._runtimes = runtimes
        self.dial_in = DialIn(self._cut_silent)
        self.workers_door = WorkersDoor(config, self._worker_tokens, closed=gate.closed)
        found += [self.dial_in] if config.accept_workers else []
        self.links = LinkKeeper(found, self.dispatcher.fleet, config)
        self._started: list[Runtime] = []  # to be stopped, the last first
        self._socket: socket.socket | None = None
        self._port = config.port
        self._recovery: Recovery | None = None
        self._main: asyncio.Task[None] | None = None
        self._drain_asked = asyncio.Event()
        self._idle = asyncio.Event()
        self._stop = asyncio.Event()

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self.config.host

    @property
    def port(self) -> int:
        """The port it listens on; the real one, once started, where the configuration says 0."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.config.tls_cert else 'http'}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen, and start connecting to the workers; returns once requests are answered.

        Raises:
            PortInUse: something listens there already.
            OSError: the address can't be listened on.
            StoreError: the file of sessions can't be used.
        """
        if self._main is not None:
            raise RuntimeError("the broker was started before")
        listener = listen(self.config.host, self.config.port)
        self._port = listener.getsockname()[1]
        try:
            self._recover()
            for runtime in self._runtimes:
                await runtime.start()
                self._started.append(runtime)
        except BaseException:
            listener.close()
            await self._stop_runtimes()
            await self.dispatcher.store.close()
            raise
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._main = asyncio.create_task(self._run(listener, ready), name="enclave-broker")
        await asyncio.wait([self._main, ready], return_when=asyncio.FIRST_COMPLETED)
        if self._main.done():
            ready.cancel()
            await self.stop()

    async def stop(self) -> None:
        """End everything that runs, and every session that the store does not keep. Safe to call again."""
        self._stop.set()
        try:
            if self._main is not None:
                await self._main
        finally:
            await self._stop_runtimes()
            await self.dispatcher.store.close()

    def drain(self) -> None:
        """Take no new sessions, give those that there are `grace_s` seconds to end and be read, then stop.

        Returns at once: `wait_stopped` waits for the end. Asked again, it changes nothing; `stop` does not wait for it.
        """
        if not self._drain_asked.is_set():
            self.dispatcher.drain()
            live = self.dispatcher.directory.live
            log.info("draining: %d sessions have up to %g s to end", live, self.config.grace_s)
            self._drain_asked.set()

    async def wait_stopped(self) -> None:
        """Wait until `stop` was called, or something went fatally wrong; raises what did."""
        if self._main is not None:
            await asyncio.shield(self._main)

    def reload_keys(self) -> None:
        """Read the keys file again. One that can't be read is told in the log, and the old keys stay in force."""
        self._keys.reload()

    async def execute(
        self,
        code: str,
        *,
        session_id: str | None = None,
        limits: Limits | dict[str, Any] | None = None,
        language: str | None = None,
        profile: str = DEFAULT_PROFILE,
        env: dict[str, str] | None = None,
        files: dict[str, str | bytes] | None = None,
        retry: Retry = "never",
    ) -> AsyncGenerator[AnyEvent, None]:
        """Run code and yield its events, the last of which is the `final`. Leaving early cancels the session.

        Args:
            code: the body of an async function.
            session_id: `s_…`; a new one if not given.
            limits: as `Limits`, or by their names on the wire.
            language: `python`, `javascript` or `shell`; None: that of a profile other than `python`, else the broker's.
            profile: one that a worker offers.
            env: environment variables of the code.
            files: files in its working directory, by relative path.
            retry: `safe` lets it run again elsewhere if its worker is lost before its first event.

        Raises:
            RemoteProtocolError: the code is too large, a limit is not one, or one of the others is not acceptable.
            DuplicateSession: the id is taken.
            NoCapacity: every slot is taken and the queue is full.
            Trimmed: the caller takes events more slowly than `log_bytes` can bridge.
        """
        if not isinstance(limits, Limits):
            limits = parse_limits(limits or {}, defaults=self.dispatcher.offers.limits_of(profile))
        contents = {
            path: encode_file(data) if isinstance(data, bytes) else data for path, data in (files or {}).items()
        }
        new = NewSession(
            code=code,
            session_id=session_id,
            limits=limits,
            language=self.dispatcher.offers.unsaid_language().language(
                language, None if profile == DEFAULT_PROFILE else profile
            ),
            profile=profile,
            env=parse_env(env or {}),
            files=parse_files(contents),
            retry=retry,
        )
        session = self.dispatcher.submit(new, LOCAL)
        more = asyncio.Event()
        cursor = session.log.subscribe(1, more.set)
        try:
            while not cursor.finished:
                more.clear()
                for line in cursor.take():
                    yield decode_event(line)
                if not cursor.finished:
                    await more.wait()
        finally:
            cursor.close()
            self.dispatcher.cancel(session, "its reader left")

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def _run(self, listener: socket.socket, ready: asyncio.Future[None]) -> None:
        with contextlib.closing(listener):
            server = Server(server_config(create_app(self), self.config, self.metrics))
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(server.serve(sockets=[listener]))
                background = [group.create_task(self._tick()), group.create_task(self._watch_keys())]
                background.append(group.create_task(self.links.run()))
                background.append(group.create_task(self._stop_when_drained()))
                background.append(group.create_task(self.sources.run()))
                await server.wait_started()
                looking = group.create_task(self._look_for_tools())
                looking.add_done_callback(lambda _: _set(ready))
                background.append(looking)
                await self._stop.wait()
                self.dispatcher.end_all()
                await self.dispatcher.wait_tools_ended()
                # The server closes WebSockets at once, whatever they are still sent.
                await self.dispatcher.readers.wait_read(self.config.stop_grace_s)
                server.stop()
                await serving
                for task in background:
                    task.cancel()
            await self.dispatcher.tracing.stop(self.config.stop_grace_s)

    def _recover(self) -> None:
        found = self.dispatcher.store.open(log_bytes=self.config.log_bytes, now=time.monotonic(), wall=time.time())
        self._recovery = Recovery(self.dispatcher, found)
        self._recovery.sessions()
        self.dispatcher.answering.await_tools()

    async def _look_for_tools(self) -> None:
        await self.sources.wait_looked(SOURCES_WAIT_S)
        if self._recovery is not None:
            self._recovery.calls()
            self._recovery = None
        self.dispatcher.answering.tools_looked()

    async def _stop_runtimes(self) -> None:
        while self._started:
            await self._started.pop().stop()

    def _cut_silent(self, name: str, reason: str) -> bool:
        return self.links.cut_silent(name, reason)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for tick in (self.dispatcher.tick, self.links.tick):
                try:
                    tick()
                except Exception:  # one session's fault must not end all others
                    log.exception("a fault in what is done with time")
            if self._drain_asked.is_set() and self.dispatcher.idle:
                self._idle.set()

    async def _stop_when_drained(self) -> None:
        await self._drain_asked.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.grace_s):
                await self._idle.wait()
        self._stop.set()

    async def _watch_keys(self) -> None:
        gate = self.dispatcher.gate
        while True:
            await asyncio.sleep(KEYS_POLL_S)
            self._keys.poll()
            for tenant in gate.ledger.tidy(time.monotonic(), gate.tenants):
                self.metrics.forget_tenant(tenant)


def create_broker(
    *,
    mode: Literal["embedded", "extracted"] = "extracted",
    runtimes: Iterable[str | Runtime] = (),
    tools: ToolRegistry | Iterable[Callable[..., Any] | Tool] = (),
    secrets: Secrets | Mapping[str, str] | None = None,
    approve: ApprovalHook | None = None,
    sources: Iterable[ToolSource] = (),
    tracing: Tracing | None = None,
    config: BrokerConfig | None = None,
    **settings: Any,
) -> Broker:
    """Make a broker.

    Args:
        mode: `extracted` speaks to worker processes, `embedded` to workers in this process.
        runtimes: worker URLs (`extracted`) or objects with `start`, `stop` and `handle(channel)` (`embedded`).
        tools: functions that guests may call, or a whole registry.
        secrets: what tools may be given, by name.
        approve: an async function that is asked before a tool marked `needs_approval` runs.
        sources: where more tools come from, while the broker runs: see `enclave_broker.tools.sources`.
        tracing: where sessions' traces go, such as `load_tracing(os.environ)`; no farther if not given.
        config: settings to start from.
        **settings: fields of `BrokerConfig`, which win over `config`.

    Raises:
        ValueError: a worker URL or a secret is malformed, the mode and the runtimes do not fit, or a tool needs
            approval and `approve` is not given.
    """
    workers = list(runtimes)
    urls = [worker for worker in workers if isinstance(worker, str)]
    embedded = [worker for worker in workers if not isinstance(worker, str)]
    if mode == "extracted" and embedded:
        raise ValueError("mode 'extracted' takes worker URLs; runtime objects belong to mode 'embedded'")
    settings["workers"] = (*(config.workers if config else ()), *settings.get("workers", ()), *urls)
    settings["mode"] = mode
    full = dataclasses.replace(config, **settings) if config else BrokerConfig(**settings)
    registry = tools if isinstance(tools, ToolRegistry) else ToolRegistry(tools)
    given = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
    return Broker(full, registry, embedded, secrets=given, approve=approve, sources=sources, tracing=tracing)


def _check_tools(tools: ToolRegistry, secrets: Secrets, approve: ApprovalHook | None) -> None:
    for tool in tools.tools():
        if tool.policy.needs_approval and approve is None:
            raise ValueError(f"tool {tool.name!r} needs approval, and no approval hook is given")
        for name in secrets.missing(tool.policy.secrets):
            log.warning("tool %s needs the secret %s: set %s%s", tool.name, name, ENVIRONMENT_PREFIX, name)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
