"""Heads of requests that come to no end: whoever sends them is not known yet, and may not fill the broker."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from enclave_broker.http.heads import MAX_HEAD_BYTES
from tests.broker.conftest import fleet
from tests.fakes import FakeWorker

PIECE = b"x" * 16_384
TOO_MANY = 4096
"""Pieces: 64 MiB, more than lies between the two ends."""


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
    async with fleet(FakeWorker()) as running:
        reader, writer = await asyncio.open_connection(running.broker.host, running.broker.port)
        # Just beyond, so that nothing is left unread, which would reset the connection before the answer is read.
        head = b"GET /healthz HTTP/1.1\r\nHost: "
        writer.write(head + b"x" * (MAX_HEAD_BYTES + 1 - len(head)))
        status, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert status.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["code"] == "HEADERS_TOO_LARGE"
    assert json.loads(body)["details"]["limit"] == MAX_HEAD_BYTES


async def test_a_large_body_behind_a_large_head_is_none_of_it() -> None:
    async with fleet(FakeWorker()) as running:
        long = {"x-long": "x" * (MAX_HEAD_BYTES // 2)}
        answer = await running.http.post("/sessions", content=b" " * (4 * MAX_HEAD_BYTES) + b"{", headers=long)
        assert answer.status_code == 400
