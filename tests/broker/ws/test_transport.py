"""Attacks on one socket below its messages: what is not taken is said so, and nothing of it stays."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import socket
import struct
from typing import Any

import pytest

from enclave_broker import BrokerConfig
from enclave_broker.metrics import Metrics
from enclave_broker.server import Server, server_config
from enclave_broker.ws.codes import BROKER_STOPS
from enclave_broker.ws.transport import MAX_FRAGMENTS, SLICE_BYTES, SocketProtocol, is_gone
from enclave_protocol import MAX_MESSAGE_BYTES
from tests.broker.conftest import fleet
from tests.broker.ws.sockets import BINARY, CLOSE, CONT, PING, PONG, TEXT, client_of, frame, raw_client, raw_client_of
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel

RESERVED = 3
SO_ATTACH_FILTER = 26
BPF_RETURN = 6


def protocol() -> SocketProtocol:
    """Return the broker's end of the only socket."""
    sockets = [thing for thing in gc.get_objects() if issubclass(type(thing), SocketProtocol)]
    found: list[SocketProtocol] = [socket for socket in sockets if not socket.disconnected]
    (only,) = found
    return only


REFUSED = {
    "a message that is too large": (
        [frame(TEXT, b"x" * (MAX_MESSAGE_BYTES + 1))],
        (1009, f"frame with {MAX_MESSAGE_BYTES + 1} bytes exceeds limit of {MAX_MESSAGE_BYTES} bytes"),
    ),
    "fragments that are too large together": (
        [frame(TEXT, b"x" * MAX_MESSAGE_BYTES, fin=False), frame(CONT, b"y")],
        (
            1009,
            f"frame with 1 bytes after reading {MAX_MESSAGE_BYTES} bytes exceeds limit of {MAX_MESSAGE_BYTES} bytes",
        ),
    ),
    "too many fragments": (
        [frame(TEXT, b"x", fin=False), frame(CONT, b"x", fin=False) * (MAX_FRAGMENTS + 5000)],
        (1009, f"a message of more than {MAX_FRAGMENTS} fragments"),
    ),
    "text that is not UTF-8": ([frame(TEXT, b"\xff\xfe")], (1007, "a text frame that is not UTF-8")),
    "a reserved opcode": ([frame(RESERVED)], (1002, "invalid opcode")),
}


@pytest.mark.parametrize(("frames", "closed"), REFUSED.values(), ids=REFUSED)
async def test_what_can_not_be_a_message_closes_the_socket_and_the_client_sees_why(
    frames: list[bytes], closed: tuple[int, str]
) -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=60.0) as running:
        async with raw_client(running) as client:
            await client.send(frame(TEXT, b'{"type":"execute","sessionId":"s_1","code":"1"}'))
            await running.workers[0].wait_received("execute")
            # More of it behind: the close frame must not be lost to a reset.
            await client.send(*frames, frame(TEXT, b"z" * 1_000_000) * 3)
            assert await client.closed() == closed
            await client.ended()
        async with client_of(running) as other:  # nothing but the socket was touched
            await other.send("attach", sessionId="s_1")
            assert (await other.next())["seq"] == 1


async def echoes_late(asked: asyncio.Event, answering: asyncio.Event, receive: Any, send: Any) -> None:
    """Serve one socket: accept it when told to, and send its first message back."""
    await receive()
    asked.set()
    await answering.wait()
    await send({"type": "websocket.accept"})
    message = await receive()
    if message["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
        await receive()


@pytest.mark.parametrize(
    ("early", "answer"),
    [
        (frame(TEXT, b"early"), (TEXT, b"early")),
        (frame(PING, b"p") + frame(TEXT, b"early") * 5000, (PONG, b"p")),
        (frame(RESERVED), (CLOSE, b"\x03\xeainvalid opcode")),
    ],
)
async def test_what_comes_before_the_handshake_was_answered_waits_for_that(
    early: bytes, answer: tuple[int, bytes]
) -> None:
    asked, answering = asyncio.Event(), asyncio.Event()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await echoes_late(asked, answering, receive, send)

    server = Server(server_config(app, BrokerConfig(), Metrics()))
    listener = socket.create_server(("127.0.0.1", 0))
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener]))
        await server.wait_started()
        async with raw_client_of(*listener.getsockname(), answered=False) as client:
            await asked.wait()
            await client.send(early)
            while not protocol().read_paused:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0)
            answering.set()
            await client.answer()
            assert await client.next() == answer
        server.stop()


async def test_empty_fragments_take_no_memory_and_no_place() -> None:
    async with fleet() as running, raw_client(running) as client:
        await client.send(frame(TEXT, b'{"type":', fin=False))
        await client.send(frame(CONT, fin=False) * (MAX_FRAGMENTS * 3))
        await client.send(frame(CONT, b'"ping",', fin=False), frame(PING, b"here"))
        while await client.next() != (PONG, b"here"):
            pass
        assert len(protocol().frames) == 2
        await client.send(frame(CONT, b'"timestamp":7}'))
        assert json.loads((await client.next(TEXT))[1])["timestamp"] == 7


async def test_thousands_of_messages_at_once_are_taken_in_a_slice_at_a_time() -> None:
    async with fleet() as running, raw_client(running) as client:
        smallest = frame(TEXT, b"1")
        most = SLICE_BYTES // len(smallest) + 1
        queued: list[int] = []
        own = protocol()
        put = own.queue.put_nowait

        def counting(message: object) -> None:
            put(message)  # type: ignore[arg-type]
            queued.append(own.queue.qsize())

        own.queue.put_nowait = counting  # type: ignore[method-assign, assignment]
        await client.send(smallest * 20_000, frame(PING, b"end"))
        while await client.next() != (PONG, b"end"):
            pass
        assert len(queued) == 20_000
        assert max(queued) <= most


async def test_pings_of_a_client_that_reads_nothing_are_not_answered_one_by_one() -> None:
    async with fleet() as running, raw_client(running) as client:
        own = protocol()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        burst = frame(PING, b"p" * 125) * 1000
        sizes: list[int] = []

        def stalled() -> bool:
            sizes.append(own.transport.get_write_buffer_size())
            client.writer.write(burst)
            return not own.writable.is_set() and len(sizes) > 200

        await running.wait_until(stalled)
        assert max(sizes) < 2_000_000  # of the 25 MB that were asked for


async def test_a_client_that_answers_no_ping_is_cut_off_and_told_how_to_resume() -> None:
    async with fleet(socket_ping_s=0.02, write_timeout_s=0.1) as running, raw_client(running) as client:
        code, reason = await client.closed()
        assert code == 1011
        assert reason.endswith("attach each session from the seq you have, plus 1")
        await running.wait_until(lambda: running.metric("enclave_client_sockets") == 0)


async def test_a_client_that_answers_pings_stays_however_idle() -> None:
    # Three unanswered ones would be too many. They go out by hand: by the clock, a busy machine could skip an answer.
    async with fleet(socket_ping_s=60, write_timeout_s=180) as running, raw_client(running) as client:
        own = protocol()
        for _ in range(40):
            own._tick()
            _, payload = await client.next(PING)
            await client.send(frame(PONG, payload))
            await running.wait_until(lambda: not own._unanswered)
        await client.send(frame(TEXT, b'{"type":"ping"}'))
        assert b'"pong"' in (await client.next(TEXT))[1]


async def test_a_client_whose_machine_is_gone_is_noticed_by_its_missing_acknowledgements() -> None:
    async with fleet(FakeWorker(waits_for_cancel), socket_ping_s=0.2, disconnect_grace_s=0.0) as running:
        async with raw_client(running) as client:
            await client.send(frame(TEXT, b'{"type":"execute","sessionId":"s_1","code":"1"}'))
            await running.workers[0].wait_received("execute")
            # From now on its kernel drops whatever arrives, before it could acknowledge it: a cable that was pulled.
            nothing = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
            program = struct.pack("HL", 1, ctypes.addressof(nothing))
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            await running.workers[0].wait_received("cancel")
        await running.wait_until(lambda: running.metric("enclave_client_sockets") == 0)


@pytest.mark.parametrize(
    ("unanswered", "waited_s", "acknowledged_s", "expected"),
    [
        (0, 0.0, 0.0, False),
        (1, 5.0, 60.0, False),
        (2, 10.0, 9.99, False),  # its machine is there, and itself is busy
        (2, 10.0, 15.0, True),  # half open: nothing since before the first of the two
        (5, 25.0, 0.1, False),
        (6, 30.0, 0.1, True),  # its machine is there, itself hangs
        (1, 600.0, 600.0, False),  # the broker was stopped
    ],
)
def test_a_client_is_gone_when_its_machine_is_or_when_itself_hangs(
    unanswered: int, waited_s: float, acknowledged_s: float, expected: object
) -> None:
    assert is_gone(unanswered, most=6, waited_s=waited_s, acknowledged_s=acknowledged_s) is expected


async def floods(session: FakeSession) -> None:
    for _ in range(1000):
        await session.stdout("x" * 50_000)
    await session.final()


async def test_a_client_that_reads_nothing_costs_no_more_than_the_log_and_leaves_no_socket() -> None:
    go = asyncio.Event()

    async def floods_when_told(session: FakeSession) -> None:
        await go.wait()
        await floods(session)

    settings: dict[str, Any] = {"log_bytes": 100_000, "socket_ping_s": 0.05, "write_timeout_s": 1}
    async with fleet(FakeWorker(floods_when_told), **settings) as running, raw_client(running) as client:
        own, sizes = protocol(), list[int]()
        own.silent_s = 3600  # type: ignore[misc]  # it is to be too slow, before it can be taken for gone
        await client.send(frame(TEXT, b'{"type":"execute","sessionId":"s_1","code":"1"}'))
        await running.workers[0].wait_received("execute")
        # What its machine acknowledges from now on is later than the first ping that it leaves unanswered.
        await running.wait_until(lambda: own._unanswered > 0)

        def gone() -> bool:
            sizes.append(own.transport.get_write_buffer_size())
            return own.disconnected

        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        go.set()
        await running.wait_until(gone)
        assert max(sizes) < 500_000  # of 50 MB
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        assert session.log.size_bytes <= 100_000
        assert running.metric("enclave_readers_cut_total") == 1
        await running.wait_until(lambda: running.metric("enclave_client_sockets") == 0)


async def test_a_client_that_says_goodbye_and_reads_nothing_leaves_no_socket() -> None:
    async with fleet(FakeWorker(floods), socket_ping_s=0.05) as running, raw_client(running) as client:
        own = protocol()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(frame(TEXT, b'{"type":"execute","sessionId":"s_1","code":"1"}'))
        await running.wait_until(lambda: not own.writable.is_set())
        await client.send(frame(8, b"\x03\xe8"))
        await running.wait_until(lambda: own.disconnected)


async def test_a_binary_frame_is_told_so_and_the_socket_stays() -> None:
    async with fleet() as running, raw_client(running) as client:
        await client.next(TEXT)
        await client.send(frame(BINARY, b'{"type":"ping"}'))
        rejection = json.loads((await client.next(TEXT))[1])
        assert rejection["payload"]["message"] == "binary frame (allowed: text frames of one JSON value each)"
        await client.send(frame(TEXT, b'{"type":"ping"}'))
        assert json.loads((await client.next(TEXT))[1])["type"] == "pong"


async def test_the_broker_says_goodbye_when_it_stops_and_what_became_of_the_sessions_before() -> None:
    async with fleet(FakeWorker(waits_for_cancel)) as running, raw_client(running) as client:
        await client.send(frame(TEXT, b'{"type":"execute","sessionId":"s_1","code":"1"}'))
        await running.workers[0].wait_received("execute")
        await running.broker.stop()
        while b'"final"' not in (await client.next(TEXT))[1]:
            pass
        assert await client.closed() == (1012, BROKER_STOPS)


async def test_a_client_that_reads_slowly_is_sent_all_of_its_sessions_before_the_goodbye() -> None:
    async def talks(session: FakeSession) -> None:
        for _ in range(140):
            await session.stdout("x" * 50_000)
        await waits_for_cancel(session)

    async with fleet(FakeWorker(talks)) as running, raw_client(running) as client:
        own = protocol()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(frame(TEXT, b'{"type":"execute","sessionId":"s_1","code":"1"}'))
        await running.wait_until(lambda: not own.writable.is_set())
        session = running.broker.dispatcher.directory.get("s_1")
        assert session is not None
        await running.wait_until(lambda: session.log.next_seq == 143)
        stopping = asyncio.create_task(running.broker.stop())
        await running.wait_until(lambda: not session.live)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        told = [json.loads((await client.next(TEXT))[1]) for _ in range(144)]
        assert (told[0]["type"], told[-1]["type"]) == ("hello", "final")
        assert await client.closed() == (1012, BROKER_STOPS)
        await stopping
