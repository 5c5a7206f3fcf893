"""The programs of the fleet on simulated hosts: each the real code, from the connection inwards.

A host starts its program, kills it, and starts it again; what a broker keeps on its disk outlives it, a worker keeps
nothing. What `Broker` and `RuntimeWorker` are besides (HTTP, sockets, zygotes) stays outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from typing import TYPE_CHECKING, Any, cast

from enclave_broker.access.caller import LOCAL
from enclave_broker.dispatcher import Dispatcher
from enclave_broker.finding.keeper import LinkKeeper
from enclave_broker.finding.sources import FixedSource
from enclave_broker.http.streams import EventStream
from enclave_broker.metrics import Metrics
from enclave_broker.new_session import DuplicateSession, NewSession
from enclave_broker.recovery import Recovery
from enclave_broker.store.options import make_store
from enclave_broker.store.sqlite import SqliteStore
from enclave_broker.tools import ToolRegistry
from enclave_broker.ws.client import SocketClient
from enclave_protocol import NoCapacity, RemoteProtocolError, decode_tool_result, parse_limits
from enclave_worker.config import RuntimeConfig
from enclave_worker.connection import Connection, PeerLeft, WorkerIdentity, flush
from enclave_worker.metrics import WorkerMetrics
from enclave_worker.sessions import Sessions

from .guests import FakePools
from .network import Goodbye
from .virtual_time import Process

if TYPE_CHECKING:
    from enclave_broker.channels import Dial
    from enclave_broker.config import BrokerConfig
    from enclave_broker.sessions import BrokerSession
    from enclave_broker.tools.functions import FunctionTool

    from .network import End
    from .world import World

BROKER = "broker"
WS, HTTP = f"{BROKER}:ws", f"{BROKER}:http"
TICK_S = 0.1
RESUME_S = 7.0
"""How long a broker waits for a worker that is away,"""
LEASE_S = 10.0
"""and a worker for its broker,"""
SILENCE_S = 3.0
"""which is gone when it is silent for so long."""
SERVER_PATIENCE_S = (20.0, 40.0)
"""What the WebSocket library, at its defaults, gives a broker's connection before it breaks it."""
CLIENT_PATIENCE_S = (10.0, 20.0)
"""The same, as the client sets it."""
SOCKET_PATIENCE_S = (10.0, 15.0)
"""What the broker's own WebSocket gives a client: two pings."""

# They only count, and making them takes longer than a run.
BROKER_METRICS = Metrics()
WORKER_METRICS = WorkerMetrics()


class _WorkerPeer:
    """A connection as the worker sees it."""

    def __init__(self, end: End) -> None:
        self.name = end.peer.host
        self._end = end

    def send_now(self, line: bytes) -> bool:
        return self._end.send_now(line)

    async def send(self, line: bytes) -> None:
        try:
            await self._end.send(line)
        except ConnectionError as error:
            raise _gone(error) from error

    async def recv(self) -> str:
        try:
            return cast("bytes", await self._end.recv()).decode()
        except ConnectionError as error:
            raise _gone(error) from error


def _gone(error: ConnectionError) -> ConnectionError:
    return PeerLeft(str(error)) if isinstance(error, Goodbye) else ConnectionResetError(str(error))


class WorkerHost:
    """A host with a worker on it."""

    def __init__(self, world: World, name: str, slots: int, *, old: bool) -> None:
        self.name = name
        self.old = old
        """Whether it speaks revision 1 alone."""
        self.incarnation = 0
        self.process: Process
        self.pools: FakePools
        self.sessions: Sessions
        self._world = world
        self._config = RuntimeConfig(
            max_sessions=slots,
            level="SECURE",
            send_buffer_bytes=16 * 1024,
            lease_s=LEASE_S,
            broker_silence_s=SILENCE_S,
            kept_session_bytes=16 * 1024,
        )

    @property
    def alive(self) -> bool:
        """Whether its program runs."""
        return self.process.alive

    def start(self) -> None:
        """Start the program."""
        world = self._world
        self.incarnation += 1
        self.process = Process(world.loop, f"{self.name}#{self.incarnation}")
        self.process.run(self._boot)

    def kill(self, *, vanish: bool = False) -> None:
        """Kill it; `vanish` takes the host off the network with it."""
        self.process.kill()
        for run in self._world.truth.runs:
            if run.process is self.process and run.gone_s is None:
                run.gone_s = self._world.loop.time()
        self._world.network.died(self.process, vanished=vanish)

    def _boot(self) -> None:
        world = self._world
        self.pools = FakePools(world.loop, world.rng, self.process, world.truth.runs)
        self.sessions = Sessions(self._config, cast("Any", self.pools), WORKER_METRICS)
        instance = "" if self.old else self.process.name
        self._identity = WorkerIdentity(worker_id=self.name, instance=instance, level="SECURE")
        self._connections: dict[Connection, End] = {}
        world.network.listen(f"{self.name}:ws", self.process, self._accept, SERVER_PATIENCE_S)

    def _accept(self, end: End) -> None:
        self.process.spawn(self._serve(end))

    async def _serve(self, end: End) -> None:
        connection = Connection(_WorkerPeer(end), self.sessions, self._identity)
        self._connections[connection] = end
        try:
            await connection.serve()
        finally:
            del self._connections[connection]
        await end.close()

    def stop(self, grace_s: float) -> None:
        """Have the program end in good order, as SIGTERM does."""
        self.process.spawn(self._stop(grace_s))

    async def _stop(self, grace_s: float) -> None:
        self.sessions.drain("the worker stops")
        try:
            async with asyncio.timeout(grace_s):
                await self.sessions.wait_drained()
        except TimeoutError:
            await self.sessions.end_all("the worker stops")
        await flush(self._connections, self.sessions.holdings)
        for end in list(self._connections.values()):
            await end.close()
        self._world.loop.call_soon(self.kill, context=contextvars.Context())


class _Dial:
    """Dials a worker over the simulated network."""

    def __init__(self, world: World, worker: str, timeout_s: float) -> None:
        self._world = world
        self._worker = worker
        self._timeout_s = timeout_s

    async def __call__(self) -> End:
        process = self._world.broker.process
        return await self._world.network.connect(process, BROKER, f"{self._worker}:ws", timeout_s=self._timeout_s)


class BrokerHost:
    """The host with the broker on it."""

    def __init__(self, world: World, config: BrokerConfig, tools: list[FunctionTool]) -> None:
        self.incarnation = 0
        self.config = config
        self.process: Process
        self.dispatcher: Dispatcher
        self._world = world
        self._tools = tools

    @property
    def alive(self) -> bool:
        """Whether its program runs."""
        return self.process.alive

    def start(self) -> None:
        """Start the program."""
        self.incarnation += 1
        self.process = Process(self._world.loop, f"{BROKER}#{self.incarnation}")
        self.process.run(self._boot)

    def kill(self, *, vanish: bool = False) -> None:
        """Kill it; `vanish` takes the host off the network with it."""
        self.process.kill()
        self._world.network.died(self.process, vanished=vanish)
        if isinstance(self.dispatcher.store, SqliteStore):
            self.dispatcher.store._database.close()  # as the kernel does, the lock above all

    def _boot(self) -> None:
        world = self._world
        self.registry = ToolRegistry(self._tools)
        store = make_store(self.config.store)
        self.dispatcher = Dispatcher(self.config, self.registry, BROKER_METRICS, store=store)
        found = store.open(log_bytes=self.config.log_bytes, now=time.monotonic(), wall=time.time())
        recovery = Recovery(self.dispatcher, found)
        recovery.sessions()
        world.loop.call_later(world.rng.choice((0.0, 0.5)), recovery.calls)
        dials: dict[str, Dial] = {name: _Dial(world, name, self.config.hello_timeout_s) for name in world.workers}
        self._links = LinkKeeper([FixedSource(dials)], self.dispatcher.fleet, self.config)
        self._background = [self.process.spawn(self._links.run())]
        self._background.append(self.process.spawn(self._tick()))
        world.network.listen(
            WS, self.process, lambda end: _spawn(self.process, self._serve_socket(end)), SOCKET_PATIENCE_S
        )
        world.network.listen(
            HTTP, self.process, lambda end: _spawn(self.process, self._serve_http(end)), SOCKET_PATIENCE_S
        )

    def stop(self, grace_s: float) -> None:
        """Have the program end in good order, as SIGTERM does."""
        self.process.spawn(self._stop(grace_s))

    async def _stop(self, grace_s: float) -> None:
        self.dispatcher.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.dispatcher.directory.live:  # noqa: ASYNC110 - as the broker does
                    await asyncio.sleep(TICK_S)
        self.dispatcher.end_all()
        await self.dispatcher.wait_tools_ended()
        for task in self._background:
            task.cancel()
        await asyncio.wait(self._background)
        await self.dispatcher.store.close()
        self._world.loop.call_soon(self.kill, context=contextvars.Context())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.dispatcher.tick()
            self._links.tick()

    async def _serve_socket(self, end: End) -> None:
        await SocketClient(cast("Any", _Socket(end)), self.dispatcher, LOCAL).serve()
        await end.close()

    async def _serve_http(self, end: End) -> None:
        """Answer one request, as the routes of `http/` do."""
        try:
            request = await end.recv()
            await self._answer(end, request)
        except ConnectionError:
            return
        await end.close()

    async def _answer(self, end: End, request: dict[str, Any]) -> None:
        if request["do"] == "post":
            answer = self._post(request)
        else:
            session = self.dispatcher.find(request["session_id"], LOCAL)
            answer = 404 if session is None else getattr(self, f"_{request['do']}")(session, request)
        if isinstance(answer, int):
            await end.send({"status": answer})
        else:
            await self._stream(end, answer)

    def _post(self, request: dict[str, Any]) -> EventStream | int:
        dispatcher = self.dispatcher
        limits = parse_limits(request["limits"], defaults=dispatcher.offers.limits_of("python"))
        new = NewSession(
            code=request["code"],
            session_id=request["session_id"],
            limits=limits,
            client_tools=None,
            retry=request["retry"],
        )
        try:
            return EventStream(dispatcher.submit(new, LOCAL), dispatcher, 1)
        except DuplicateSession:
            return 409
        except NoCapacity:
            if dispatcher.placer.statistics().free and not dispatcher.draining:
                self._world.truth.violation(
                    "overload is told, not made", f"{new.session_id} got no slot, and one is free"
                )
            return 503

    def _get(self, session: BrokerSession, request: dict[str, Any]) -> EventStream | int:
        if session.log.refuses(request["from_seq"]) is None:
            return EventStream(session, self.dispatcher, request["from_seq"])
        return 410 if request["from_seq"] < session.log.first_seq else 204

    def _cancel(self, session: BrokerSession, request: dict[str, Any]) -> int:
        del request
        self.dispatcher.cancel(session, "asked over HTTP")
        return 202

    def _give(self, session: BrokerSession, request: dict[str, Any]) -> int:
        try:
            self.dispatcher.answering.answer_call(session, decode_tool_result(request["body"], session.session_id))
        except RemoteProtocolError:
            return 409
        return 202

    async def _stream(self, end: End, stream: EventStream) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                await end.send({"status": message["status"]})
            else:
                await end.send(message)

        async def receive() -> Any:
            try:
                while True:
                    await end.recv()
            except ConnectionError:
                return {"type": "http.disconnect"}

        await stream(cast("Any", None), receive, send)


class _Socket:
    """A client's WebSocket as the broker's handler sees it."""

    def __init__(self, end: End) -> None:
        self._end = end

    async def receive(self) -> dict[str, Any]:
        try:
            return {"type": "websocket.receive", "text": (await self._end.recv()).decode()}
        except ConnectionError as error:
            return {"type": "websocket.disconnect", "code": 1006, "reason": str(error)}

    async def send(self, message: dict[str, Any]) -> None:
        await self._end.send(message["text"].encode())


def _spawn(process: Process, coroutine: Any) -> None:
    process.spawn(coroutine)
