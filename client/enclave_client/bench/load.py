"""Sessions asked for over HTTP, and what became of them."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from .http import Connection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .exchange import Exchange

MAX_FAILURES_KEPT = 5
SUM = "return 1 + 1"
"""The session that every figure of latency and throughput is about."""
MIXED = (
    *[SUM] * 7,
    "print('out')\nreturn 2",
    "import asyncio\nawait asyncio.sleep(0)\nreturn 2",
    "import json; return 2",
)
"""Of each ten sessions of the long run, three print, import or await."""
ENDS_WELL = b'"ok":true,"result":2'
"""In the stream of a session that returned 2."""
_CPU_LOOP = "print(1)\nwhile True: pass"
_TOOL_CALLS = """
import time
took_ms = []
for number in range({count}):
    started = time.perf_counter()
    assert await call_tool("bench_echo", {{"value": number}}) == number
    took_ms.append((time.perf_counter() - started) * 1000)
return took_ms
"""


class Load:
    """Asks one broker for sessions, and counts those that fail."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sessions = 0
        self.failed = 0
        self.failures: list[str] = []

    def connection(self) -> Connection:
        """Return a new connection to the broker, not open yet."""
        return Connection(self.url)

    def exchange(self) -> Exchange:
        """Return what `in_flight` asks on, not open yet."""
        return self.connection()

    async def run(self, connection: Exchange, body: bytes) -> float:
        """Run one session that returns 2; return its time in ms from the request to the last byte. Raises OSError."""
        self.sessions += 1
        started = time.perf_counter()
        answer = await connection.post("/sessions", body)
        elapsed_ms = (time.perf_counter() - started) * 1000
        self.check(answer)
        return elapsed_ms

    async def one_by_one(self, body: bytes, count: int) -> list[float]:
        """Run so many sessions on one connection; return how long each took, in ms. Raises OSError."""
        async with self.connection() as connection:
            return [await self.run(connection, body) for _ in range(count)]

    async def in_flight(self, codes: Iterable[str], at_once: int, took_ms: list[float] | None = None) -> float:
        """Run a session for each code, `at_once` at a time; return how long all of it took, in s.

        Args:
            codes: what they run.
            at_once: how many connections ask, each for the next session when it has one.
            took_ms: takes how long each took that was answered.
        """
        bodies = iter([create_body(code) for code in codes])
        took_ms = [] if took_ms is None else took_ms
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._run_all(bodies, took_ms))
        return time.perf_counter() - started

    async def tool_calls_ms(self, connection: Connection, count: int) -> list[float]:
        """Return how long each of `count` tool calls of one session took, by the guest's clock."""
        self.sessions += 1
        body = create_body(_TOOL_CALLS.format(count=count), max_tool_calls=count)
        answer = await connection.post("/sessions", body)
        final = _final(answer)
        if not final.get("ok"):
            self.fail(str(final))
            return []
        return [float(took_ms) for took_ms in final["result"]]

    async def cancel_ms(self, connection: Connection, other: Connection) -> float:
        """Start an endless loop, and return how long after the cancel its final came."""
        self.sessions += 1
        session_id = f"s_{uuid.uuid4()}"
        await connection.post_until("/sessions", create_body(_CPU_LOOP, session_id=session_id), b'"stdout"')
        started = time.perf_counter()
        answering = asyncio.ensure_future(other.post(f"/sessions/{session_id}/cancel", b"{}"))
        final = _final(await connection.rest())
        elapsed_ms = (time.perf_counter() - started) * 1000
        await answering
        if final.get("error", {}).get("code") != "SESSION_CANCELLED":
            self.fail(str(final))
        return elapsed_ms

    async def _run_all(self, bodies: Iterator[bytes], took_ms: list[float]) -> None:
        connection = self.exchange()
        for body in bodies:  # shared by all: each takes the next
            try:
                if not connection.is_open:
                    await connection.open()
                took_ms.append(await self.run(connection, body))
            except OSError as error:  # a timeout is one
                self.fail(f"{type(error).__name__} {error}")
                connection.close()
                connection = self.exchange()
        connection.close()

    def check(self, answer: bytes) -> None:
        """Count the session of this response as failed unless it returned 2."""
        if ENDS_WELL not in answer:
            self.fail(answer[-500:].decode(errors="replace"))

    def fail(self, reason: str) -> None:
        """Count a session that did not end as it should."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES_KEPT:
            self.failures.append(reason)

    def absorb(self, other: Load) -> None:
        """Count what another load asked for, and what failed of that, as this one's."""
        self.sessions += other.sessions
        self.failed += other.failed
        self.failures = (self.failures + other.failures)[:MAX_FAILURES_KEPT]


def first(error: BaseException) -> BaseException:
    """Return what went wrong first: nobody who expects an OSError catches a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def create_body(
    code: str, *, language: str = "", profile: str = "", session_id: str = "", max_tool_calls: int = 0
) -> bytes:
    """Return the body of `POST /sessions`."""
    body: dict[str, Any] = {"code": code}
    if language:
        body["language"] = language
    if profile:
        body["profile"] = profile
    if session_id:
        body["sessionId"] = session_id
    if max_tool_calls:
        body["limits"] = {"maxToolCalls": max_tool_calls}
    return msgspec.json.encode(body)


def _final(answer: bytes) -> dict[str, Any]:
    """Return the payload of the last event of a response; empty if there is none."""
    # A chunk is whole lines, so a line that starts as an object is an event.
    events = [line for line in answer.splitlines() if line.startswith(b"{")]
    payload: dict[str, Any] = msgspec.json.decode(events[-1]).get("payload", {}) if events else {}
    return payload
