"""Hundreds of guests that take over their socket and write what a seed says, against the real worker.

Each session has its one valid `final`, the good ones among them are served, and afterwards the worker holds what it
held before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from websockets.asyncio.client import connect

from tests.real_client import check_stream
from tests.support import PATIENCE_S

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from .conftest import Target

SESSIONS = 300
AT_ONCE = 12
EVERY_GOOD = 10
"""One of so many sessions is a good one."""
MOST_GROWTH_BYTES = 8 << 20
DEADLINE_MS = 150

FUZZER = """
import json, os, random, socket, struct
chance = random.Random({seed})
sock = socket.socket(fileno=os.dup(3))
def body():
    kind = chance.choice(["tool_call", "tool_call", "tool_call", "result", "error", "ready", "final", "execute"])
    message = {{
        "type": kind,
        "id": chance.choice([1, 2, 3, 7, -1, 2**53, "1", None, 1.5]),
        "name": chance.choice(["t", "t", "", "x" * 300, None, "\\ud800"]),
        "args": chance.choice([None, 1e308, -0.0, [[]] * 9, {{"a": "\\u0000"}}]),
        "value": chance.choice([1, "x" * 5000, 10**400]),
        "code": "WORKER_LOST",
        "message": "m" * chance.choice([1, 30000]),
    }}
    if kind == "tool_call" and chance.random() < 0.7:
        message.update(id=chance.randrange(1, 10**6), name="t", args=[1])
    text = json.dumps(message).encode()
    how = chance.randrange(12)
    if how == 0:
        text = text[:chance.randrange(len(text))]
    elif how == 1:
        at = chance.randrange(len(text))
        text = text[:at] + bytes([chance.randrange(256)]) + text[at + 1:]
    elif how == 2:
        text = b'{{"type":"result","value":' + b"[" * chance.choice([10, 990, 50000])
    elif how == 3:
        text = chance.randbytes(chance.randrange(200))
    return text
def framed():
    text = body()
    size = len(text)
    if chance.random() < 0.08:
        size = chance.choice([0, 1, size + 1, 1 << 20, 1 << 31, 2**32 - 1])
    return struct.pack(">I", size) + text
def write(data):
    by = chance.choice([1, 3, 100, 1 << 20, 1 << 20])
    data = data[:2000] if by < 100 else data
    while data:
        data = data[os.write(3, data[:by]):]
def pass_descriptors():
    some = [os.open("/dev/null", os.O_RDONLY) for _ in range(chance.randrange(1, 100))]
    try:
        socket.send_fds(sock, [framed()[:chance.choice([1, 1 << 20])]], some)
    except OSError:
        pass
    for each in some:
        os.close(each)
def flood():
    data = b"".join(framed() for _ in range(20)) * 5
    for _ in range(chance.randrange(1, 20)):
        write(data)
def call(count):
    for _ in range(count):
        number = chance.randrange(1, 10**9)
        data = json.dumps({{"type": "tool_call", "id": number, "name": "t", "args": None}}).encode()
        os.write(3, struct.pack(">I", len(data)) + data)
actions = [
    lambda: write(framed()), lambda: write(framed()), lambda: write(framed() + framed()), pass_descriptors, flood,
    lambda: call(1), lambda: call(40), lambda: sock.recv(chance.choice([1, 1000, 1 << 20]), socket.MSG_DONTWAIT),
    lambda: sock.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])),
    lambda: sock.send(b"!", socket.MSG_OOB), lambda: os.write(chance.choice([1, 2]), chance.randbytes(3000)),
    lambda: os.fork(), lambda: os.close(3), lambda: os.write(1, b"x" * 300000),
    lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1),
]
while True:
    try:
        chance.choice(actions)()
    except OSError:
        if chance.random() < 0.3:
            break
end = chance.randrange(4)
if end == 0:
    os._exit(chance.randrange(3))
elif end == 1:
    return "the driver's own word"
while True:
    pass
"""
ANSWER = "x" * 50_000


class Crowd:
    """Sessions on one connection, so many at once; their tool calls are answered, wanted or not."""

    def __init__(self, connection: ClientConnection, seeds: range) -> None:
        self.finals: dict[str, dict[str, Any]] = {}
        self._connection = connection
        self._seeds = iter(seeds)
        self._lines: dict[str, list[bytes]] = {}

    async def run(self) -> None:
        """Run them all, and hold every stream to the wire."""
        for _ in range(AT_ONCE):
            await self._start_next()
        while self._lines:
            async with asyncio.timeout(PATIENCE_S):
                line = await self._connection.recv(decode=False)
            event = msgspec.json.decode(line)
            if "seq" not in event:
                continue  # the answer to a call came too late
            session_id = event["sessionId"]
            self._lines[session_id].append(line)
            if event["type"] == "tool_call":
                answer = {"type": "tool_result", "sessionId": session_id, "callId": event["payload"]["callId"]}
                await self._send(answer | {"result": ANSWER})
            elif event["type"] == "final":
                check_stream(self._lines.pop(session_id))
                self.finals[session_id] = event["payload"]
                await self._start_next()

    async def _start_next(self) -> None:
        seed = next(self._seeds, None)
        if seed is None:
            return
        good = seed % EVERY_GOOD == 0
        session_id = f"s_{'good' if good else 'seed'}_{seed}"
        self._lines[session_id] = []
        code = "return await call_tool('t')" if good else FUZZER.format(seed=seed)
        limits = {"deadlineMs": 50_000 if good else DEADLINE_MS, "maxToolCalls": 1000, "maxStdoutBytes": 10_000}
        await self._send({"type": "execute", "sessionId": session_id, "code": code, "limits": limits})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._connection.send(msgspec.json.encode(message).decode())


async def _run(target: Target, seeds: range) -> dict[str, dict[str, Any]]:
    async with connect(target.url, max_size=None, compression=None) as connection:
        assert msgspec.json.decode(await connection.recv())["type"] == "hello"
        crowd = Crowd(connection, seeds)
        await crowd.run()
        return crowd.finals


async def test_guests_that_write_anything_end_once_each_harm_nobody_and_leave_nothing(target: Target) -> None:
    await _run(target, range(100))
    before, resident_bytes = target.at_rest(), target.metric("process_resident_memory_bytes")

    finals = await _run(target, range(1000, 1000 + SESSIONS))

    assert len(finals) == SESSIONS
    good = [final for session_id, final in finals.items() if session_id.startswith("s_good")]
    assert [final.get("result") for final in good] == [ANSWER] * (SESSIONS // EVERY_GOOD)
    ours = [final for final in finals.values() if not final["ok"] and final["error"]["code"] == "INTERNAL_ERROR"]
    assert ours == []
    assert target.at_rest() == before
    assert target.metric("process_resident_memory_bytes") - resident_bytes < MOST_GROWTH_BYTES
