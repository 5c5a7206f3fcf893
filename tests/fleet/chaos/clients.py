"""Clients that want every session's end, whatever becomes of their connections, and write down all that they see.

Theory of operation. Those over HTTP do what the API asks of a client, by hand: the same request again, with the same
session id, until there is an answer to it; from then on the stream, from the number that is due, until the `final`; a
refusal that names a time is waited for. Those on a WebSocket are `enclave_client`, which is to do the same by itself.
Each session is read again from its beginning when it has ended. Nobody waits longer than a session may take, and some.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_client import AsyncClient, BrokerUnavailable, RequestRefused, SessionTimeout

from .http_client import asked
from .records import Reading, Record
from .work import DEADLINE_MS, answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_client.request import SessionOptions

    from .http_client import Answer
    from .work import Work

HEARTBEAT_MS = 1000
LATE_GRACE_S = 30.0
"""What may pass beyond a session's deadline and wait for a slot: the broker's own graces, the time that a lost worker
or a broker that starts again takes, and that a client's own link is away."""
GIVE_UP_S = 30.0
"""How much longer a client waits than a session may take, before it has no final."""
REPLAY_S = 60.0
"""How long a replay is tried."""
LONGEST_PAUSE_S = 1.0
_RUNNING = frozenset({409})
_LATER = frozenset({429, 500, 502, 503, 504})
_OVER = frozenset({200, 404, 409})
"""Of an answer to a call: it is taken, or not wanted any more."""


class GaveUp(Exception):  # noqa: N818 - a fact
    """There is nothing more to be had of a session."""


class Clients:
    """All clients of a run.

    Args:
        port: where the broker is, by the proxy in between.
        queue_s: longest wait for a slot.
        sockets: how many WebSockets share the sessions that use one.
    """

    def __init__(self, port: int, *, queue_s: float, sockets: int = 4) -> None:
        self._port = port
        self._allowed_s = DEADLINE_MS / 1000 + queue_s + LATE_GRACE_S
        patience_s = self._allowed_s + GIVE_UP_S
        url = f"http://127.0.0.1:{port}"
        self._sockets = [AsyncClient(url, reconnect_s=patience_s, wait_s=patience_s) for _ in range(sockets)]
        self.live = 0

    async def close(self) -> None:
        """End the WebSockets."""
        await asyncio.gather(*(client.close() for client in self._sockets))

    async def run_all(self, works: Iterable[Work], at_once: int, take: Callable[[Work, Record], None]) -> None:
        """Run sessions, so many at once; hand out what was seen of each as soon as its last replay is read."""
        waiting = iter(works)
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._run_some(waiting, take))

    async def run(self, work: Work) -> Record:
        """Run one session."""
        record = Record(
            session_id=f"s_{uuid.uuid4()}",
            kind=f"{work.kind}/{work.way}",
            expected=work.expected,
            began_s=time.monotonic(),
            allowed_s=self._allowed_s,
        )
        try:
            async with asyncio.timeout(self._allowed_s + GIVE_UP_S):
                await (self._by_socket(work, record) if work.way == "ws" else _ByHttp(self._port, work, record).run())
            if not record.gone:
                record.ended_s = time.monotonic()
        except GaveUp as error:
            record.gone = str(error)
        except TimeoutError:
            record.gone = f"nothing after {self._allowed_s + GIVE_UP_S:.0f} s"
        if not record.gone:
            await self._replay(record)
        return record

    async def _run_some(self, works: Iterable[Work], take: Callable[[Work, Record], None]) -> None:
        for work in works:  # shared by all: each takes the next
            self.live += 1
            try:
                take(work, await self.run(work))
            finally:
                self.live -= 1

    async def _by_socket(self, work: Work, record: Record) -> None:
        client = self._sockets[work.number % len(self._sockets)]

        async def own_answer(key: str, n: int) -> str:
            record.runs[f"{key} {n}"] += 1
            await asyncio.sleep(0)
            return answer(key, n)

        options: SessionOptions = {
            "session_id": record.session_id,
            "limits": {"deadlineMs": DEADLINE_MS, "heartbeatIntervalMs": HEARTBEAT_MS},
        }
        if work.own_tools:
            options["tools"] = [own_answer]
        reading = Reading(from_seq=1)
        record.readings.append(reading)
        while not reading.whole:
            try:
                async with client.stream(work.code, **options) as session:
                    async for line in session.lines():
                        reading.lines.append(line)
                if refused(reading):  # as a 503 is over HTTP
                    reading.lines.clear()
                    await asyncio.sleep(LONGEST_PAUSE_S)
                else:
                    reading.whole = True
            except RequestRefused as error:
                if error.code not in {"NO_CAPACITY", "QUOTA_EXCEEDED", "DRAINING"} or reading.lines:
                    raise GaveUp(f"refused: {error.code} {error}") from error
                await asyncio.sleep(LONGEST_PAUSE_S)
            except (BrokerUnavailable, SessionTimeout) as error:
                if reading.lines or type(error) is not BrokerUnavailable:  # some broker may have heard of it
                    raise GaveUp(f"{type(error).__name__}: {error}") from error
                await asyncio.sleep(LONGEST_PAUSE_S)

    async def _replay(self, record: Record) -> None:
        """Read it again, from its beginning to its end."""
        try:
            async with asyncio.timeout(REPLAY_S):
                while True:
                    if await self._replayed(record):
                        return
                    await asyncio.sleep(0.2)
        except TimeoutError:
            record.readings.append(Reading(from_seq=1, whole=True, said=f"no replay within {REPLAY_S:.0f} s"))

    async def _replayed(self, record: Record) -> bool:
        reading = Reading(from_seq=1)
        try:
            async with asked(self._port, "GET", f"/sessions/{record.session_id}/stream") as got:
                if got.status in _LATER:
                    return False
                if got.status == 200:
                    async for line in got.lines():
                        reading.lines.append(line)
                else:
                    reading.said = f"its replay is {got.status}: {(await got.body())[:200]!r}"
        except OSError:
            record.readings.append(reading)
            return False
        reading.whole = True
        record.readings.append(reading)
        return True


def refused(reading: Reading) -> bool:
    """Whether the fleet had no room, and a session never was: what a WebSocket is told of that is a single `final`."""
    if len(reading.lines) != 1:
        return False
    payload = msgspec.json.decode(reading.lines[0])["payload"]
    return bool(payload.get("error", {}).get("code") == "NO_CAPACITY")


class _ByHttp:
    """One session over HTTP."""

    def __init__(self, port: int, work: Work, record: Record) -> None:
        self._port = port
        self._work = work
        self._record = record
        self._sse = work.way == "sse"
        self._next_seq = 1
        self._known = False
        """Whether the broker has it, as far as we know."""
        self._over = False
        self._attempts = 0
        self._calls: asyncio.TaskGroup
        limits = {"deadlineMs": DEADLINE_MS, "heartbeatIntervalMs": HEARTBEAT_MS}
        request: dict[str, Any] = {"code": work.code, "sessionId": record.session_id, "limits": limits}
        if work.own_tools:
            request["tools"] = [{"name": "own_answer"}]
        if work.retry_safe:
            request["retry"] = "safe"
        self._body = msgspec.json.encode(request)

    async def run(self) -> None:
        """Run it to its final, or until there is nothing more to be had: then `record.gone` says why."""
        async with asyncio.TaskGroup() as self._calls:
            while not self._over:
                try:
                    await self._connect()
                except OSError as error:
                    self._attempts += 1
                    self._record.tell(f"broken with {self._next_seq} due: {type(error).__name__} {error}")
                if not self._over:
                    await self._pause(min(LONGEST_PAUSE_S, 0.02 * 2 ** min(self._attempts, 10)))

    async def _connect(self) -> None:
        """Ask once, and read what comes. Raises OSError."""
        headers = {"Accept": "text/event-stream" if self._sse else "application/x-ndjson"}
        if not self._known:
            async with asked(self._port, "POST", "/sessions", body=self._body, headers=headers) as got:
                self._record.tell(f"POST is {got.status}")
                if got.status in _RUNNING:
                    self._known = True
                elif got.status in _LATER:
                    await self._pause(float(got.headers.get("retry-after", 1)))
                else:
                    await self._read(got, 1)
            return
        path = f"/sessions/{self._record.session_id}/stream"
        if self._sse and self._next_seq > 1:
            headers["Last-Event-ID"] = str(self._next_seq - 1)
        else:
            path += f"?fromSeq={self._next_seq}"
        async with asked(self._port, "GET", path, headers=headers) as got:
            self._record.tell(f"GET from {self._next_seq} is {got.status}")
            if got.status == 404 and self._next_seq == 1:
                self._known = False  # the answer to our request was not about this session
            elif got.status in _LATER:
                await self._pause(float(got.headers.get("retry-after", 1)))
            else:
                await self._read(got, self._next_seq)

    async def _read(self, got: Answer, from_seq: int) -> None:
        if got.status != 200:
            said = (await got.body())[:300].decode(errors="replace")
            self._record.gone = f"{got.status} with {from_seq} due: {said}"
            self._over = True
            return
        self._known = True
        reading = Reading(from_seq=from_seq)
        self._record.readings.append(reading)
        async for line in got.lines():
            event = line.removeprefix(b"data: ") if self._sse else line
            if event.startswith(b"{"):
                self._attempts = 0
                reading.lines.append(event)
                self._heard(event)
        reading.whole = True

    def _heard(self, line: bytes) -> None:
        event = msgspec.json.decode(line)
        self._next_seq = max(self._next_seq, event["seq"] + 1)
        if event["type"] == "final":
            self._over = True
        elif event["type"] == "tool_call" and event["payload"]["toolName"] == "own_answer":
            self._calls.create_task(self._answer(event["payload"]))

    async def _answer(self, call: dict[str, Any]) -> None:
        """Run our tool, and say what came of it until that was heard."""
        key, n = call["args"]["key"], call["args"]["n"]
        self._record.runs[f"{key} {n}"] += 1
        body = msgspec.json.encode({"callId": call["callId"], "result": answer(key, n)})
        path = f"/sessions/{self._record.session_id}/tool-result"
        while not self._over:
            try:
                async with asked(self._port, "POST", path, body=body) as got:
                    if got.status in _OVER:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.1)

    @staticmethod
    async def _pause(delay_s: float) -> None:
        await asyncio.sleep(min(delay_s, 2.0) * random.uniform(0.7, 1.3))
