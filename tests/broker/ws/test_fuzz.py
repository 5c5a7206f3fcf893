"""Random frames on a real socket: no crash, no hang, nothing left, and every answer is one of ours."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_broker.ws.client import SocketClient
from enclave_broker.ws.transport import SocketProtocol
from enclave_protocol import encode
from tests.broker.conftest import Fleet, fleet
from tests.broker.ws.sockets import CLOSE, CONT, PING, PONG, TEXT, frame, raw_client
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel
from tests.protocol import strategies

if TYPE_CHECKING:
    import pytest

_IDS = ["s_1", "s_2", "s_3", "c_1", "one", "", None, 5]
_KEYS = ["callId", "fromSeq", "limits", "tools", "payload", "success", "value", "env", "language"]
_TYPES = ["execute", "attach", "cancel", "tool_result", "tool_result_submit", "ping", "hello", "dance"]
END = b"that was all"

# Plausible ones hit sessions that are there: few ids, and code that the fake worker runs.
_plausible = st.fixed_dictionaries(
    {"type": st.sampled_from(_TYPES), "sessionId": st.sampled_from(_IDS), "code": st.just("call") | strategies.text},
    optional=dict.fromkeys(_KEYS, strategies.json_values | st.sampled_from(_IDS) | st.lists(strategies.text)),
).map(lambda message: json.dumps(message).encode())
_data = (
    _plausible
    | strategies.client_messages.map(encode)
    | strategies.json_values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
)
_frames = st.builds(frame, st.just(TEXT), _data) | st.builds(
    frame, st.sampled_from([CONT, TEXT, 2, 3, CLOSE, PING, PONG, 11]), st.binary(max_size=130), fin=st.booleans()
)
_mostly_messages = st.lists(st.builds(frame, st.just(TEXT), _data), max_size=8)


async def _script(session: FakeSession) -> None:
    if session.execute["code"] != "call":
        await waits_for_cancel(session)
        return
    await session.event("tool_call", {"callId": "c_1", "toolName": "ask", "args": None})
    waits = [asyncio.ensure_future(session.results.get()), asyncio.ensure_future(session.cancelled.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    await (session.final() if not session.cancelled.is_set() else session.fail("SESSION_CANCELLED"))


def _check(data: bytes) -> None:
    """Assert that a message to the client is an event, or an answer in one of our shapes."""
    message: dict[str, Any] = json.loads(data)
    if "seq" in message:
        assert message["sessionId"].startswith("s_")
    elif message["type"] == "error":
        assert message["payload"]["code"] == "VALIDATION_ERROR"
        assert message["payload"]["message"]
        assert message["payload"]["allowed"]
    else:
        assert message["type"] in {"hello", "pong"}


def left() -> list[object]:
    """Return what there is of any client, or of its connection, that nobody has let go of."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), SocketClient | SocketProtocol)]


async def _attack(running: Fleet, frames: list[bytes]) -> None:
    async with raw_client(running) as client:
        await client.send(*frames, frame(PING, END))
        with contextlib.suppress(asyncio.IncompleteReadError):  # closed, as it should after some of these
            while (got := await client.next(TEXT, PONG, CLOSE)) != (PONG, END):
                opcode, data = got
                if opcode == TEXT:
                    _check(data)
                elif opcode == CLOSE:
                    await client.ended()
                    break
    await running.wait_until(lambda: running.metric("enclave_client_sockets") == 0)


async def test_random_frames_are_answered_or_closed_and_leave_nothing(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    async with fleet(FakeWorker(_script), disconnect_grace_s=0.0) as running:

        @settings(max_examples=150)
        @given(_mostly_messages | st.lists(_frames, max_size=8))
        def attack(frames: list[bytes]) -> None:
            asyncio.run_coroutine_threadsafe(_attack(running, frames), loop).result()

        await asyncio.to_thread(attack)
        await running.wait_until(lambda: not running.broker.dispatcher.directory.live)
        await running.wait_until(lambda: not left())
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
