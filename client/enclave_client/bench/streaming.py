"""Tools in a WebSocket client, and 50 MB of output to one that reads and to one that stops: over `/ws`, real sandboxes.

Streaming is measured on a fleet of its own that has done nothing before: in one that has, memory that was freed would
hide what the stream takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from enclave_client.fleet import FleetSpec, running_fleet

from . import footprint
from .figures import Figure, at_least, at_most, percentile, spread
from .http import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from enclave_client.fleet import Fleet

    from .load import Load
    from .phases import Plan

CALLS_A_SESSION = 50
MAX_CLIENT_TOOL_MS = 2.0
OUTPUT_MB = 50
STREAMS = 3
CUT_OFF = 4008
"""The code with which the broker closes the socket of a client that is too slow."""
MIN_MB_PER_S = 30.0
MAX_GROWTH_MB = 20.0
LOG_MB = 8
"""What the broker keeps of a session's events, and so for a client that does not read: its `log_bytes`."""
MAX_STALLED_MB = 2.0 * LOG_MB
STALL_TIMEOUT_S = 60.0
_WRITE = f"""
import os
chunk = memoryview(b"x" * 65536)
for _ in range({OUTPUT_MB * 1024 * 1024 // 65536}):
    rest = chunk
    while rest:
        rest = rest[os.write(1, rest):]
"""
_CALL = """
import time
took_ms = []
for number in range({count}):
    started = time.perf_counter()
    assert await call_tool("bench_client", {{"value": number}}) == number
    took_ms.append((time.perf_counter() - started) * 1000)
return took_ms
"""


@contextlib.asynccontextmanager
async def socket(url: str) -> AsyncIterator[ClientConnection]:
    """Open a WebSocket to the broker, its hello read."""
    where = urlsplit(url)
    async with connect(f"ws://{where.netloc}/ws", max_size=None, compression=None, proxy=None) as connection:
        await connection.recv()
        yield connection


async def client_tools(load: Load, plan: Plan, beside: list[Figure]) -> list[Figure]:
    """Measure the way of a tool call from the sandbox to a WebSocket client and back; `beside`: to the broker's own."""
    took_ms: list[float] = []
    async with socket(load.url) as connection:
        for _ in range(plan.rounds):
            load.sessions += 1
            final = await _answer_calls(connection)
            if not final.get("ok"):
                load.fail(str(final))
            took_ms += map(float, final.get("result", ()))
    said = "; ".join(f"{figure.title}: {figure.value:.2f} {figure.unit}" for figure in beside)
    title = "a tool call to a WebSocket client, p50"
    p50 = percentile(took_ms or [0.0], 50)
    detail = spread(took_ms or [0.0])
    return [at_most("client_tool_p50", title, p50, "ms", MAX_CLIENT_TOOL_MS, compared_with=said, detail=detail)]


async def _answer_calls(connection: ClientConnection) -> dict[str, Any]:
    limits = {"maxToolCalls": CALLS_A_SESSION}
    await _execute(connection, _CALL.format(count=CALLS_A_SESSION), limits, tools=["bench_client"])
    while True:
        event = msgspec.json.decode(await connection.recv(decode=False))
        if event["type"] == "final":
            payload: dict[str, Any] = event["payload"]
            return payload
        if event["type"] == "tool_call":
            call = event["payload"]
            answer = {"type": "tool_result", "sessionId": event["sessionId"], "callId": call["callId"]}
            await connection.send(
                msgspec.json.encode(answer | {"success": True, "value": call["args"]["value"]}), text=True
            )


async def streaming(load: Load) -> list[Figure]:
    """Measure how fast output reaches a client that reads it, and what broker and worker grow by meanwhile."""
    async with _fresh_fleet(load) as (fleet, broker, worker):
        grown = _growth_mb(broker, worker)
        rates = [await _stream_mb_per_s(load, fleet.url)]
        broker_mb, worker_mb = grown()  # of the first alone: ended sessions are retained for a while, for replay
        rates += [await _stream_mb_per_s(load, fleet.url) for _ in range(STREAMS - 1)]
    # On a busy machine this process may be put aside for longer than a session's log lasts, and is cut off.
    cut = rates.count(0)
    said = f"median of {STREAMS}, of which {cut} were cut off because this client was not fast enough"
    grew = "the most that it grew by, RSS"
    return [
        at_least(
            "stream_rate",
            f"{OUTPUT_MB} MB of output to a reading client",
            statistics.median(rates),
            "MB/s",
            MIN_MB_PER_S,
            compared_with=said if cut else "",
            detail={"perStream": [round(rate, 1) for rate in rates]},
        ),
        at_most("stream_broker_growth", "broker meanwhile", broker_mb, "MB", MAX_GROWTH_MB, compared_with=grew),
        at_most("stream_worker_growth", "worker meanwhile", worker_mb, "MB", MAX_GROWTH_MB),
    ]


async def _stream_mb_per_s(load: Load, url: str) -> float:
    """Stream once; return how fast, 0 if this client was cut off."""
    load.sessions += 1
    size_bytes = OUTPUT_MB * 1024 * 1024
    started = time.perf_counter()
    try:
        async with socket(url) as connection:
            await _execute(connection, _WRITE, {"maxStdoutBytes": 2 * size_bytes})
            came_bytes, ok = await _read_out(connection)
    except ConnectionClosed as closed:
        if closed.rcvd is None or closed.rcvd.code != CUT_OFF:
            load.fail(f"streaming: {closed}")
        return 0.0
    if not ok or came_bytes < size_bytes:
        load.fail(f"streaming: {came_bytes} bytes came")
    return came_bytes / 1e6 / (time.perf_counter() - started)


async def stalled(load: Load) -> list[Figure]:
    """Measure what broker and worker grow by when the client reads nothing of the same output."""
    async with _fresh_fleet(load) as (fleet, broker, worker), socket(fleet.url) as connection:
        grown = _growth_mb(broker, worker)
        load.sessions += 1
        connection.transport.pause_reading()
        session_id = "s_stalled"
        limits = {"maxStdoutBytes": 2 * OUTPUT_MB * 1024 * 1024}
        await _execute(connection, _WRITE, limits, sessionId=session_id)
        outcome = await _outcome(fleet.url, session_id)
        if outcome != "ok":
            load.fail(f"the session of a client that does not read ended with {outcome or 'nothing'}")
        broker_mb, worker_mb = grown()
        connection.transport.abort()
    kept = f"its log holds {LOG_MB} MB; the session went on to its end, which was {outcome}"
    title = "broker, for a client that reads nothing"
    return [
        at_most("stalled_broker_growth", title, broker_mb, "MB", MAX_STALLED_MB, compared_with=kept),
        at_most("stalled_worker_growth", "worker meanwhile", worker_mb, "MB", MAX_GROWTH_MB),
    ]


@contextlib.asynccontextmanager
async def _fresh_fleet(load: Load) -> AsyncIterator[tuple[Fleet, int, int]]:
    """Run a fleet; yields it and the process ids of its broker and its worker."""
    async with running_fleet(FleetSpec(workers=1), lambda *_: None) as fleet:
        broker, worker = fleet.broker.pid, fleet.workers[0].pid
        assert broker, "a started fleet has a broker"
        assert worker, "... and a worker"
        async with socket(fleet.url) as connection:  # a first session, so that nothing is loaded while it is measured
            load.sessions += 1
            await _execute(connection, "print(1)", {})
            await _read_out(connection)
        yield fleet, broker, worker


def _growth_mb(*pids: int) -> Callable[[], list[float]]:
    """Start to watch processes; the function that is returned tells the most that each has grown by since."""
    before = [footprint.resident_mb(pid) for pid in pids]
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # forgets the highest
    return lambda: [footprint.highest_mb(pid) - was for pid, was in zip(pids, before, strict=True)]


async def _execute(connection: ClientConnection, code: str, limits: dict[str, int], **fields: Any) -> None:
    message = {"type": "execute", "code": code, "limits": limits, **fields}
    await connection.send(msgspec.json.encode(message), text=True)


async def _read_out(connection: ClientConnection) -> tuple[int, bool]:
    """Read one session's events; return the bytes of their lines, and whether it ended well."""
    size_bytes = 0
    while True:
        line = await connection.recv(decode=False)
        size_bytes += len(line)
        if line.startswith(b'{"type":"final"'):
            return size_bytes, b'"ok":true' in line


async def _outcome(url: str, session_id: str) -> str:
    """Wait until a session has ended, asking over HTTP; return how, empty if it did not in time."""
    deadline = time.monotonic() + STALL_TIMEOUT_S
    async with Connection(url) as connection:
        while time.monotonic() < deadline:
            body = (await connection.get(f"/sessions/{session_id}")).rpartition(b"\r\n\r\n")[2]
            outcome: str = msgspec.json.decode(body).get("outcome", "")
            if outcome:
                return outcome
            await asyncio.sleep(0.02)
    return ""
