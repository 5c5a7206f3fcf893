"""What strangers send on a connection: who they are is not known yet, and they may not fill the broker, nor hold it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.access import LOCAL
from enclave_broker.api import decode_create
from enclave_broker.http.connection import MAX_AHEAD, MAX_HEAD_BYTES
from tests.broker.conftest import Fleet, fleet
from tests.fakes import FakeSession, FakeWorker, answers_at_once, waits_for_cancel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PIECE = b"x" * 16_384
TOO_MANY = 4096
"""Pieces: 64 MiB, more than lies between the two ends."""
RUN = b'{"code": "1"}'
POST = b"POST /sessions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(RUN), RUN)
GET = b"GET /healthz HTTP/1.1\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
SOCKET = b"GET /ws HTTP/1.1\r\n%sSec-WebSocket-Version: 13\r\n" % UPGRADE
NAMED = b'{"code": "1", "sessionId": "s_1"}'
LINE, MANY, MANY_BYTES = "x" * 64_000, 400, 32 * 1024 * 1024
"""More than lies between the two ends, and a log that keeps all of it."""
HTTP_2 = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


class Raw:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the next answer; it says how long it is."""
        async with asyncio.timeout(60):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            return int(head.split()[1]), json.loads(await self.reader.readexactly(length))

    async def rest(self) -> bytes:
        """Return all that comes until the broker closes the connection."""
        async with asyncio.timeout(60):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def raw(running: Fleet) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection(running.broker.host, running.broker.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# Size


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /",
        b"GET /healthz HTTP/1.1\r\nHost: ",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-",
        b"POST /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-",
    ],
    ids=["the address", "a value", "a name", "a trailer"],
)
async def test_a_head_without_an_end_is_refused_and_its_connection_closed(begun: bytes) -> None:
    async with fleet(FakeWorker()) as running:
        reader, writer = await asyncio.open_connection(running.broker.host, running.broker.port)
        writer.write(begun)
        with contextlib.suppress(ConnectionError):
            for _ in range(TOO_MANY):
                writer.write(PIECE)
                await writer.drain()
            pytest.fail("all of it was taken")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        assert (await running.http.get("/healthz")).status_code == 200


async def test_the_refusal_says_what_is_allowed() -> None:
    async with fleet(FakeWorker()) as running, raw(running) as client:
        # Just beyond, so that nothing is left unread, which would reset the connection before the answer is read.
        head = b"GET /healthz HTTP/1.1\r\nHost: "
        await client.send(head + b"x" * (MAX_HEAD_BYTES + 1 - len(head)))
        status, told = await client.answer()
        assert (status, told["code"]) == (431, "HEADERS_TOO_LARGE")
        assert told["details"]["limit"] == MAX_HEAD_BYTES
        assert await client.rest() == b""
        assert running.metric("enclave_rejections_total", code="HEADERS_TOO_LARGE") == 1


async def test_a_large_body_behind_a_large_head_is_none_of_it() -> None:
    async with fleet(FakeWorker()) as running:
        long = {"x-long": "x" * (MAX_HEAD_BYTES // 2)}
        answer = await running.http.post("/sessions", content=b" " * (4 * MAX_HEAD_BYTES) + b"{", headers=long)
        assert answer.status_code == 400


# Time


@pytest.mark.parametrize(
    "begun",
    [
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        b"POST /sessions HTTP/1.1\r\nContent-Length: 20\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nContent-Length: 20\r\n\r\n{",
        b"POST /sessions:batch HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"\r\n",
    ],
    ids=["a letter", "a head", "no body", "a body", "a chunk", "an empty line"],
)
async def test_a_request_that_is_not_completed_is_refused_and_its_connection_closed(
    begun: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with fleet(FakeWorker(), request_timeout_s=0.05) as running, raw(running) as client:
        await client.send(begun)
        status, told = await client.answer()
        assert (status, told["code"]) == (408, "REQUEST_TIMEOUT")
        assert await client.rest() == b""
        assert running.metric("enclave_rejections_total", code="REQUEST_TIMEOUT") == 1
        assert running.metric("enclave_http_requests_total", method="(other)", route="(other)", status="408") == 1
        assert (await running.http.get("/sessions")).json()["total"] == 0
    told_of = [record.levelname for record in caplog.records if record.name == "enclave.broker.http"]
    assert told_of == ["INFO"]


# Turns


@pytest.mark.parametrize(
    "nonsense",
    [
        b"NONSENSE\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nmuch\r\n",
        b"GET http:///:/ HTTP/1.1\r\n\r\n",
        b"CONNECT example.com:80 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["a method", "a length", "a chunk", "an address", "a proxy's", "TLS"],
)
async def test_what_is_no_request_is_refused_in_the_one_shape(
    nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(FakeWorker()) as running, raw(running) as client:
        await client.send(GET)
        assert (await client.answer())[0] == 200
        await client.send(nonsense)
        status, told = await client.answer()
        assert (status, told["code"]) == (400, "INVALID_REQUEST")
        assert told["message"].startswith("this is no")
        assert await client.rest() == b""
        assert running.metric("enclave_rejections_total", code="INVALID_REQUEST") == 1
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


@pytest.mark.parametrize(
    "behind",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /".ljust(MAX_HEAD_BYTES + 1, b"x"),  # no more, or the rest would reset the connection
        SOCKET + b"\r\n",
        GET * (MAX_AHEAD + 1),
    ],
    ids=["nonsense", "a long head", "a socket", "too many"],
)
async def test_what_can_not_be_answered_in_its_turn_ends_the_connection_and_nothing_else_is_said(behind: bytes) -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=60.0) as running, raw(running) as client:
        await client.send(POST)
        seen = await client.reader.readuntil(b'"stdout"')
        await client.send(behind)
        seen += await client.rest()
        assert seen.count(b"HTTP/1.1 ") == 1
        assert b"\r\n0\r\n" not in seen  # its client knows that there is more
        (session,) = (await running.http.get("/sessions")).json()["sessions"]
        assert session["state"] == "running"
        await running.http.post(f"/sessions/{session['sessionId']}/cancel")


async def test_requests_in_a_row_are_answered_in_a_row() -> None:
    async with fleet(FakeWorker(answers_at_once)) as running, raw(running) as client:
        await client.send(POST + GET * MAX_AHEAD)
        assert b'"final"' in await client.reader.readuntil(b"\r\n0\r\n\r\n")
        for _ in range(MAX_AHEAD):
            assert (await client.answer())[0] == 200


# Upgrades


@pytest.mark.parametrize("cut", [0, 20, len(RUN) + 2, len(RUN)])
async def test_who_would_rather_speak_something_else_is_answered_with_the_body_that_was_sent(cut: int) -> None:
    request = b"POST /sessions HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (HTTP_2, len(RUN), RUN)
    async with fleet(FakeWorker(answers_at_once)) as running, raw(running) as client:
        for part in (request[: len(request) - cut], request[len(request) - cut :] + GET):
            await client.send(part)
            await asyncio.sleep(0)
        assert b'"final"' in await client.reader.readuntil(b"\r\n0\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_only_a_get_can_become_a_socket() -> None:
    request = b"POST /sessions HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (UPGRADE, len(RUN), RUN)
    async with fleet(FakeWorker(answers_at_once)) as running, raw(running) as client:
        await client.send(request)
        assert b'"final"' in await client.reader.readuntil(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "headers",
    [b"Cookie: %s\r\n" % (b"x" * 9000), b"X: y\r\n" * 200, b"Content-Length: 1\r\n"],
    ids=["a long line", "many lines", "a body"],
)
async def test_a_handshake_that_sockets_can_not_read_is_answered(headers: bytes) -> None:
    async with fleet(FakeWorker()) as running, raw(running) as client:
        await client.send(SOCKET + headers + b"\r\n")
        status, told = await client.answer()
        assert (status, told["code"]) == (400, "INVALID_REQUEST")
        assert "this is no WebSocket handshake: " in told["message"]
        assert await client.rest() == b""


# Answers


async def test_a_reader_that_was_cut_off_and_takes_nothing_does_not_hold_its_connection() -> None:
    """Its end waits behind what it did not take."""

    async def talks(session: FakeSession) -> None:
        for _ in range(MANY):
            await session.stdout(LINE)
        await session.final()

    async with fleet(
        FakeWorker(talks), write_timeout_s=0.05, log_bytes=MANY_BYTES, retained_bytes=MANY_BYTES
    ) as running:
        dispatcher = running.broker.dispatcher
        session = dispatcher.submit(decode_create(NAMED, dispatcher.offers.limits_of)[0], LOCAL)
        await running.wait_until(lambda: not session.live)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((running.broker.host, running.broker.port))
            client.sendall(b"GET /sessions/s_1/stream HTTP/1.1\r\n\r\n")
            await running.wait_until(lambda: running.metric("enclave_readers_cut_total") == 1)
            await running.wait_until(lambda: is_reset(client))
        assert running.metric("enclave_readers_cut_total") == 1


def is_reset(client: socket.socket) -> bool:
    try:
        client.send(b"x")
    except ConnectionError:
        return True
    return False


# Leaving


@pytest.mark.parametrize("path", [b"/sessions", b"/sessions/", b"/sessions:batch", b"/sessions/s_1/cancel"])
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_the_brokers(
    path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(FakeWorker(waits_for_cancel), disconnect_grace_s=60.0) as running:
        dispatcher = running.broker.dispatcher
        session = dispatcher.submit(decode_create(NAMED, dispatcher.offers.limits_of)[0], LOCAL)
        async with raw(running) as client:
            await client.send(b"POST %s HTTP/1.1\r\nContent-Length: 20\r\nExpect: 100-continue\r\n\r\n" % path)
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"  # it is being read
            await client.send(b"{")
        await running.wait_until(lambda: not any("run_asgi" in repr(task) for task in asyncio.all_tasks()))
        assert session.live
        assert running.metric("enclave_rejections_total", code="INTERNAL_ERROR") == 0
        for route in (path.decode(), "/sessions", "/sessions/{session_id}/cancel"):
            assert running.metric("enclave_http_requests_total", method="POST", route=route, status="500") == 0
        dispatcher.cancel(session)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
