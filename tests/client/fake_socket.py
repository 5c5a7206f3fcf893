"""A broker's `/ws` that says exactly what a test wants: it keeps each session's events, and cuts connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from enclave_protocol import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from websockets.asyncio.server import Server

    Script = Callable[["Told"], Awaitable[None]]

HELLO = {
    "type": "hello",
    "workerId": "fake",
    "version": "0",
    "protocolVersion": 2,
    "level": "SECURE",
    "languages": ["python"],
    "profiles": ["python"],
    "maxSessions": 9,
    "active": 0,
}
INIT = {"cancelUrl": "/", "expiresAt": "2030-01-01T00:00:00Z", "encryption": {"enabled": False}}


class Told:
    """One session: what it was told, its log, and a script's way to add to it."""

    def __init__(self, broker: FakeSocketBroker, execute: dict[str, Any]) -> None:
        self.broker = broker
        self.execute = execute
        self.session_id: str = execute["sessionId"]
        self.log: list[str] = []
        self.trimmed = 0
        self.readers: dict[ServerConnection, int] = {}
        self.cancelled = asyncio.Event()
        self.reason: str | None = None
        self.results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def event(self, kind: str, **payload: Any) -> None:
        await self.raw({"type": kind, "protocolVersion": 2, "payload": payload})

    async def raw(self, event: dict[str, Any]) -> None:
        await self.line(json.dumps({"sessionId": self.session_id, "seq": len(self.log) + 1, **event}))

    async def line(self, text: str) -> None:
        """Add an event as it is."""
        self.log.append(text)
        await self.flush()

    async def flush(self) -> None:
        """Send every reader what it does not have yet."""
        for connection in list(self.readers):
            with contextlib.suppress(ConnectionClosed):
                while (at := self.readers.get(connection, len(self.log))) < len(self.log):
                    self.readers[connection] = at + 1
                    await connection.send(self.log[at])

    async def stdout(self, chunk: str) -> None:
        await self.event("stdout", chunk=chunk)

    async def call(self, name: str, args: Any, *, call_id: str = "c_1") -> dict[str, Any]:
        """Call a tool, and wait for its result."""
        await self.event("tool_call", callId=call_id, toolName=name, args=args)
        result = await self.results.get()
        await self.event("tool_result_applied", callId=call_id)
        return result

    async def final(self, result: Any = None) -> None:
        await self.event("final", ok=True, result=result)

    async def fail(self, code: str, message: str = "it failed", **more: Any) -> None:
        await self.event("final", ok=False, error={"code": code, "message": message, **more})


class FakeSocketBroker:
    """Listens on loopback, and plays a script for each session.

    `answer` is called with each handshake, and may refuse it.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sessions: dict[str, Told] = {}
        self.received: list[dict[str, Any]] = []
        self.handshakes: list[Request] = []
        self.refusal: Response | None = None
        self.hello: dict[str, Any] | None = HELLO
        self.port = 0
        self._server: Server | None = None
        self._open: set[ServerConnection] = set()
        self._arrived = asyncio.Event()
        self._scripts: set[asyncio.Task[None]] = set()
        self.rejects = ""
        """A field that no request has right."""
        self.reads = True
        """Whether it takes messages off the connections that it accepts from now on."""
        self.deaf: set[str] = set()
        """Types of messages that get lost on their way here."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> Self:
        """Listen: on a free port at first, on the same one after a `stop`."""
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            max_size=MAX_MESSAGE_BYTES,
            compression=None,
            process_request=self._handshake,
            select_subprotocol=lambda _, offered: offered[0] if offered else None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening, with every connection broken."""
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def cut(self) -> None:
        """Break every connection without a word."""
        for connection in list(self._open):
            for told in self.sessions.values():
                told.readers.pop(connection, None)
            connection.transport.abort()

    def forget(self) -> None:
        """Know nothing of any session any more, as after a restart."""
        for task in self._scripts:
            task.cancel()
        self.sessions.clear()

    async def wait_received(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until `count` messages of a type have arrived, and return them."""
        async with asyncio.timeout(60):
            while True:
                self._arrived.clear()
                found = [message for message in self.received if message["type"] == kind]
                if len(found) >= count:
                    return found
                await self._arrived.wait()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        for task in self._scripts:
            task.cancel()
        ended = await asyncio.gather(*self._scripts, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _handshake(self, _connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request)
        return self.refusal

    async def _serve(self, connection: ServerConnection) -> None:
        self._open.add(connection)
        try:
            if self.hello is not None:
                await connection.send(json.dumps(self.hello))
            if not self.reads:
                connection.transport.pause_reading()
                await connection.wait_closed()
            async for text in connection:
                message = json.loads(text)
                if message["type"] not in self.deaf:
                    await self._handle(connection, message)
                self.received.append(message)
                self._arrived.set()
        except ConnectionClosed:
            pass
        finally:
            self._open.discard(connection)
            for told in self.sessions.values():
                told.readers.pop(connection, None)

    async def _handle(self, connection: ServerConnection, message: dict[str, Any]) -> None:
        session_id = message["sessionId"]
        told = self.sessions.get(session_id)
        if message["type"] == "execute":
            if told is not None or self.rejects:
                said = (self.rejects, "not here") if self.rejects else ("sessionId", "has not ended")
                await self._reject(connection, session_id, *said)
                return
            told = self.sessions[session_id] = Told(self, message)
            told.readers[connection] = 0
            task = asyncio.create_task(self._play(told))
            self._scripts.add(task)
        elif told is None:
            await self._reject(connection, session_id, "sessionId", "unknown session")
        elif message["type"] == "attach":
            if message["fromSeq"] <= told.trimmed:
                await self._reject(connection, session_id, "fromSeq", f"events before {told.trimmed + 1} are gone")
                return
            told.readers[connection] = message["fromSeq"] - 1
            await told.flush()
        elif connection not in told.readers:
            await self._reject(connection, session_id, "sessionId", "not of this connection")
        elif message["type"] == "cancel":
            told.reason = message.get("reason")
            told.cancelled.set()
        elif message["type"] == "tool_result":
            told.results.put_nowait(message)

    async def _play(self, told: Told) -> None:
        await told.event("session_init", **INIT)
        await self.script(told)

    async def _reject(self, connection: ServerConnection, session_id: str, field: str, message: str) -> None:
        payload = {"message": f"{field}: {message}", "code": "VALIDATION_ERROR", "recoverable": True, "field": field}
        await connection.send(json.dumps({"type": "error", "sessionId": session_id, "payload": payload}))


def refusal(status: int, body: bytes, reason: str = "No", **headers: str) -> Response:
    """Return an answer to a handshake."""
    return Response(status, reason, Headers({"Content-Length": str(len(body)), **headers}), body)


async def says_hello(told: Told) -> None:
    """The default script: a line of output, and the code as the result."""
    await told.stdout("hello\n")
    await told.final(told.execute["code"])


async def waits_for_cancel(told: Told) -> None:
    """Runs until it is cancelled."""
    await told.stdout("running\n")
    await told.cancelled.wait()
    await told.fail("SESSION_CANCELLED", "cancelled")
