"""Shared fakes. `FakeWorker` is a real WebSocket server that speaks the worker's side of the protocol, scripted."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from enclave_protocol import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from websockets.asyncio.server import Server

    Script = Callable[["FakeSession"], Awaitable[None]]

STATS = {"durationMs": 1.5, "toolCallCount": 0, "stdoutBytes": 0}


class FakeSession:
    """One session on the fake: a script's way to send events, and to see what the broker sends for it."""

    def __init__(self, worker: FakeWorker, connection: ServerConnection, execute: dict[str, Any]) -> None:
        self.worker = worker
        self.execute = execute
        self.session_id: str = execute["sessionId"]
        self.seq: int = execute.get("firstSeq", 1)
        self.cancelled = asyncio.Event()
        self.results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._connection = connection

    async def event(self, kind: str, payload: dict[str, Any]) -> None:
        """Send the next event."""
        envelope = {"type": kind, "protocolVersion": 2, "sessionId": self.session_id, "seq": self.seq}
        self.seq += 1
        await self.raw({**envelope, "payload": payload})

    async def raw(self, message: dict[str, Any]) -> None:
        """Send anything."""
        await self._connection.send(json.dumps(message))

    async def stdout(self, chunk: str) -> None:
        await self.event("stdout", {"chunk": chunk})

    async def call(self, name: str, args: Any = None, *, call_id: str = "c_1") -> dict[str, Any]:
        """Call a tool and wait for its result."""
        await self.event("tool_call", {"callId": call_id, "toolName": name, "args": args})
        result = await self.results.get()
        await self.event("tool_result_applied", {"callId": call_id})
        return result

    async def final(self, result: Any = None) -> None:
        await self.event("final", {"ok": True, "result": result, "stats": STATS})

    async def fail(self, code: str, message: str = "it failed") -> None:
        await self.event("final", {"ok": False, "error": {"message": message, "code": code}, "stats": STATS})

    async def refuse(self) -> None:
        """Say that there is no slot."""
        await self.fail("NO_CAPACITY", "no slot is free")


async def returns_its_code(session: FakeSession) -> None:
    """The default script: a line of output, and the code as the result."""
    await session.stdout("hello\n")
    await session.final(session.execute["code"])


async def answers_at_once(session: FakeSession) -> None:
    """Nothing but a final."""
    await session.final(2)


async def waits_for_cancel(session: FakeSession) -> None:
    """Runs until it is cancelled."""
    await session.stdout("running\n")
    await session.cancelled.wait()
    await session.fail("SESSION_CANCELLED", "cancelled")


class FakeWorker:
    """A worker whose sessions follow a script.

    `received` has every message but pings; `silence` stops it from answering anything, pings included.
    """

    def __init__(self, script: Script = returns_its_code, *, max_sessions: int = 20, name: str = "fake") -> None:
        self.script = script
        self.max_sessions = max_sessions
        self.name = name
        self.draining = False
        self.active_elsewhere = 0
        self.silent = False
        self.reads = True
        """Whether it takes messages off the connections that it accepts from now on."""
        self.hello: dict[str, Any] | None = {}
        """Fields that replace the usual hello's; None says nothing at all."""
        self.sessions: dict[str, FakeSession] = {}
        self.received: list[dict[str, Any]] = []
        self.host = "127.0.0.1"
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self.connections = 0
        self.pings = 0
        self._arrived = asyncio.Event()
        self._server: Server | None = None
        self._open: set[ServerConnection] = set()

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}/ws"

    async def start(self) -> Self:
        """Listen: on a free port at first, on the same one after a `kill`."""
        self._server = await serve(
            self._serve,
            self.host,
            self.port,
            ssl=self.tls,
            max_size=MAX_MESSAGE_BYTES,
            compression=None,
            ping_interval=None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def kill(self) -> None:
        """Go away without a word, as a killed process does."""
        for connection in list(self._open):
            connection.transport.abort()
        await self.stop()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def wait_received(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until `count` messages of a type have arrived, and return them."""
        async with asyncio.timeout(60):
            while True:
                self._arrived.clear()
                found = [message for message in self.received if message["type"] == kind]
                if len(found) >= count:
                    return found
                await self._arrived.wait()

    async def wait_pinged(self) -> None:
        """Wait for the next ping."""
        before = self.pings
        async with asyncio.timeout(60):
            while self.pings == before:
                self._arrived.clear()
                await self._arrived.wait()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One that does not read does not see its peer leave either.
        await (self.stop() if self.reads else self.kill())

    async def _serve(self, connection: ServerConnection) -> None:
        self._open.add(connection)
        self.connections += 1
        mine: dict[str, FakeSession] = {}
        try:
            async with asyncio.TaskGroup() as group:
                if self.hello is not None:
                    await connection.send(json.dumps(self._hello() | self.hello))
                if not self.reads:
                    connection.transport.pause_reading()
                    await connection.wait_closed()
                async for text in connection:
                    await self._handle(json.loads(text), connection, mine, group)
                raise ConnectionResetError  # noqa: TRY301 - ends the scripts
        except* (ConnectionClosed, ConnectionResetError):
            pass
        finally:
            self._open.discard(connection)
            for session_id in mine:
                self.sessions.pop(session_id, None)

    async def _handle(
        self,
        message: dict[str, Any],
        connection: ServerConnection,
        mine: dict[str, FakeSession],
        group: asyncio.TaskGroup,
    ) -> None:
        kind = message["type"]
        if kind == "ping":
            self.pings += 1
            self._arrived.set()
            if not self.silent:
                await connection.send(json.dumps(self._pong(message)))
            return
        self.received.append(message)
        self._arrived.set()
        if kind == "execute":
            session = FakeSession(self, connection, message)
            mine[session.session_id] = self.sessions[session.session_id] = session
            group.create_task(self._run(session, mine))
        elif (found := mine.get(message.get("sessionId", ""))) is None:
            return
        elif kind == "cancel":
            found.cancelled.set()
        elif kind == "tool_result":
            found.results.put_nowait(message)

    async def _run(self, session: FakeSession, mine: dict[str, FakeSession]) -> None:
        try:
            await self.script(session)
        finally:
            mine.pop(session.session_id, None)
            self.sessions.pop(session.session_id, None)

    def _hello(self) -> dict[str, Any]:
        return {
            "type": "hello",
            "workerId": self.name,
            "version": "0.1.0",
            "protocolVersion": 2,
            "level": "SECURE",
            "languages": ["python"],
            "profiles": ["python"],
            "maxSessions": self.max_sessions,
            "active": self.active_elsewhere,
            "draining": self.draining,
        }

    def _pong(self, ping: dict[str, Any]) -> dict[str, Any]:
        active = self.active_elsewhere + len(self.sessions)
        return {
            "type": "pong",
            "timestamp": ping.get("timestamp", 0),
            "active": active,
            "maxSessions": self.max_sessions,
            "draining": self.draining,
        }
