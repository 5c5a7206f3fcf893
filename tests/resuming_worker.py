"""A fake worker of revision 2: a real WebSocket server whose scripted sessions outlive their connection.

What can be done to it: `cut` its connections, `kill` it and `start` it again as another instance, let it be away
(`present`), make it half-open (`mute` and `silent`), or have messages of ours lost on their way (`lose`, `cut_at`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, cast

from websockets.exceptions import ConnectionClosed

from tests.fakes import FakeSession, FakeWorker, returns_its_code

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

    from tests.fakes import Script


class ResumingSession(FakeSession):
    """A session that keeps its events until they are acknowledged."""

    worker: ResumingWorker

    def __init__(self, worker: ResumingWorker, connection: ServerConnection, execute: dict[str, Any]) -> None:
        super().__init__(worker, connection, execute)
        self.connection: ServerConnection | None = connection
        self.kept: dict[int, dict[str, Any]] = {}
        self.over = False
        self.answered: set[str] = set()
        self.loses_next = False
        """Whether the next event is kept, but not sent."""
        self._turn = asyncio.Lock()  # events go out in order, also while an attach sends old ones

    async def raw(self, message: dict[str, Any]) -> None:
        async with self._turn:
            if "seq" in message:
                self.kept[message["seq"]] = message
                self.over = message["type"] == "final"
            if self.loses_next:
                self.loses_next = False
            else:
                await self._out(message)

    async def attach(self, connection: ServerConnection, from_seq: int) -> None:
        async with self._turn:
            self.connection = connection
            for seq, message in self.kept.items():
                if seq >= from_seq:
                    await self._out(message)

    async def _out(self, message: dict[str, Any]) -> None:
        connection = self.connection
        if connection is not None and connection not in self.worker.half_open:
            with contextlib.suppress(ConnectionClosed):
                await connection.send(json.dumps(message))

    @property
    def described(self) -> dict[str, Any]:
        return {"sessionId": self.session_id, "firstSeq": min(self.kept, default=self.seq), "lastSeq": self.seq - 1}


class ResumingWorker(FakeWorker):
    """A worker whose sessions outlive their connection."""

    def __init__(self, script: Script = returns_its_code, *, max_sessions: int = 20, name: str = "fake") -> None:
        super().__init__(script, max_sessions=max_sessions, name=name)
        self.lives = 1
        self.kept: dict[str, ResumingSession] = {}
        self.present = asyncio.Event()
        self.present.set()
        self.lose: set[str] = set()
        """Types of messages that never arrive."""
        self.cut_at = ""
        """The next message of this type never arrives, and takes its connection with it."""
        self.cut_after = ""
        """The same, but it arrives."""
        self.half_open: set[ServerConnection] = set()
        """Connections on which nothing arrives any more, in either direction."""
        self._scripts: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break the connections that there are."""
        for connection in list(self._open):
            connection.transport.abort()

    def freeze(self) -> None:
        """Let nothing arrive on the connections that there are, which stay open."""
        self.half_open |= self._open

    async def kill(self) -> None:
        """End as by SIGKILL. A `start` after it is another instance's."""
        self.lives += 1
        self.kept.clear()
        self.sessions.clear()
        for task in self._scripts - {asyncio.current_task()}:
            task.cancel()
        self.cut()
        await self.stop()

    async def stop(self) -> None:
        self.present.set()
        await super().stop()
        if left := self._scripts - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.wait(left)

    async def wait_kept(self, count: int) -> None:
        """Wait until so many sessions are kept."""
        async with asyncio.timeout(60):
            while len(self.kept) != count:
                self._arrived.clear()
                await self._arrived.wait()

    async def wait_present(self, session_id: str, *, over: bool) -> None:
        """Wait until a session is kept and is, or is not, over."""
        async with asyncio.timeout(60):
            while session_id not in self.kept or self.kept[session_id].over is not over:
                self._arrived.clear()
                await self._arrived.wait()

    async def _serve(self, connection: ServerConnection) -> None:
        self._open.add(connection)
        self.connections += 1
        try:
            await self.present.wait()
            await connection.send(json.dumps(self._hello() | (self.hello or {})))
            async for text in connection:
                if connection not in self.half_open:
                    await self._take(json.loads(text), connection)
        except ConnectionClosed:
            pass
        finally:
            self._open.discard(connection)
            self.half_open.discard(connection)
            for session in self.kept.values():
                if session.connection is connection:
                    session.connection = None

    async def _take(self, message: dict[str, Any], connection: ServerConnection) -> None:
        kind = message["type"]
        if kind == "ping":
            self.pings += 1
            self._arrived.set()
            if not self.silent:
                await connection.send(json.dumps(self._pong(message)))
            return
        if kind in self.lose:
            return
        if kind == self.cut_at:
            self.cut_at = ""
            connection.transport.abort()
            return
        self.received.append(message)
        await self._obey(kind, message, connection)
        self._arrived.set()
        if kind == self.cut_after:
            self.cut_after = ""
            connection.transport.abort()

    async def _obey(self, kind: str, message: dict[str, Any], connection: ServerConnection) -> None:
        if kind == "execute" and message["sessionId"] in self.kept:
            await self._reject(connection, message["sessionId"], "sessionId")
        elif kind == "execute":
            session = ResumingSession(self, connection, message)
            self.kept[session.session_id] = self.sessions[session.session_id] = session
            task = asyncio.create_task(self._follow(session))
            self._scripts.add(task)
            task.add_done_callback(self._scripts.discard)
        elif kind == "ack":
            for session_id, seq in message["seqs"].items():
                self._forget(session_id, seq)
        elif kind != "welcome":
            await self._for_session(kind, message, connection)

    async def _for_session(self, kind: str, message: dict[str, Any], connection: ServerConnection) -> None:
        session = self.kept.get(message["sessionId"])
        if session is None or (kind != "attach" and session.connection is not connection):
            await self._reject(connection, message["sessionId"], "sessionId")
        elif kind == "attach" and message.get("fromSeq", 1) < session.described["firstSeq"]:
            await self._reject(connection, session.session_id, "fromSeq")
        elif kind == "attach":
            await session.attach(connection, message.get("fromSeq", 1))
        elif kind == "cancel":
            session.cancelled.set()
        elif kind == "catalog_changed":
            await session.event("catalog_changed", message["payload"])
        elif message["callId"] in session.answered:
            await self._reject(connection, session.session_id, "callId")
        else:
            session.answered.add(message["callId"])
            session.results.put_nowait(message)

    async def _reject(self, connection: ServerConnection, session_id: str, field: str) -> None:
        payload = {"message": f"bad {field}", "code": "VALIDATION_ERROR", "recoverable": True, "field": field}
        message = {"type": "error", "protocolVersion": 2, "sessionId": session_id, "payload": payload}
        await connection.send(json.dumps(message))

    def _forget(self, session_id: str, seq: int) -> None:
        session = self.kept.get(session_id)
        if session is None:
            return
        session.kept = {number: event for number, event in session.kept.items() if number > seq}
        if session.over and not session.kept:
            del self.kept[session_id]

    async def _follow(self, session: ResumingSession) -> None:
        try:
            await self.script(cast("FakeSession", session))
        finally:
            self.sessions.pop(session.session_id, None)
            self._arrived.set()

    def _hello(self) -> dict[str, Any]:
        kept = [session.described for session in self.kept.values()]
        mine = {"instance": f"{self.name}-{self.lives}", "maxRevision": 2, "active": len(self.sessions)}
        return super()._hello() | mine | ({"sessions": kept} if kept else {})
