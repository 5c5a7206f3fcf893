"""The door for new sessions does what the route behind it does, which serves another spelling of the path."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from enclave_broker.http import MAX_BODY_BYTES
from tests.broker.access.tenants import two_tenants
from tests.broker.conftest import fleet, parse
from tests.fakes import FakeWorker, answers_at_once

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

DOOR, ROUTE = "/sessions", "/sessions/"
RUN = b'{"code": "1", "sessionId": "s_1"}'


async def told(client: httpx.AsyncClient, path: str, **request: Any) -> tuple[int, str, dict[str, str]]:
    """What the answer to a request says."""
    response = await client.post(path, **request)
    headers = {name: value for name, value in response.headers.items() if name != "date"}
    return response.status_code, response.text, headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"code": 1}',
        b'{"code": "1", "more": 1}',
        b'{"code": "1", "sessionId": "x"}',
        b" " * (MAX_BODY_BYTES + 1),
    ],
    ids=["none", "cut", "wrong type", "unknown field", "bad id", "too large"],
)
async def test_both_refuse_in_the_same_words(body: bytes) -> None:
    async with fleet(FakeWorker(answers_at_once)) as running:
        door = await told(running.http, DOOR, content=body)
        assert 400 <= door[0] < 500
        assert door == await told(running.http, ROUTE, content=body)
        assert running.metric("enclave_http_requests_total", method="POST", route=DOOR, status=str(door[0])) == 2


async def test_a_body_that_does_not_say_how_long_it_is_may_not_be_too_large_either() -> None:
    async def parts() -> Any:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    async with fleet(FakeWorker(answers_at_once)) as running:
        assert (await told(running.http, DOOR, content=parts()))[0] == 413
        assert (await told(running.http, DOOR, content=RUN))[0] == 200


@pytest.mark.parametrize(("length", "status"), [(len(RUN), b"200"), (MAX_BODY_BYTES + 1, b"413")])
async def test_a_length_with_thousands_of_zeros_in_front_is_a_length(length: int, status: bytes) -> None:
    async with fleet(FakeWorker(answers_at_once)) as running:
        reader, writer = await asyncio.open_connection(running.broker.host, running.broker.port)
        zeros = b"0" * 5000
        writer.write(b"POST /sessions HTTP/1.1\r\nContent-Length: %s%d\r\n\r\n%s" % (zeros, length, RUN))
        assert (await reader.readline()).split()[1] == status
        writer.close()


async def test_both_run_a_session_and_know_a_request_that_was_made_before() -> None:
    async with fleet(FakeWorker(answers_at_once)) as running:
        status, events, headers = await told(running.http, DOOR, content=RUN)
        assert (status, parse(events)[-1]["type"]) == (200, "final")
        replayed = headers | {"x-enclave-replayed": "true"}
        assert await told(running.http, DOOR, content=RUN) == (200, events, replayed)
        assert await told(running.http, ROUTE, content=RUN) == (200, events, replayed)


async def test_both_ask_who_it_is(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker(answers_at_once)) as (some, acme, _):
        token = await acme.post("/tokens", json={"scopes": ["sessions:read"]})
        async with some.client(None) as stranger, some.client(token.json()["token"]) as reader:
            for client, status in ((stranger, 401), (reader, 403)):
                door = await told(client, DOOR, content=RUN)
                assert door[0] == status
                assert door == await told(client, ROUTE, content=RUN)
        assert (await told(acme, DOOR, content=RUN))[0] == 200


async def test_a_client_that_leaves_in_the_middle_of_its_body_makes_no_session() -> None:
    async with fleet(FakeWorker(answers_at_once)) as running:
        _, writer = await asyncio.open_connection(running.broker.host, running.broker.port)
        writer.write(b"POST /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await running.http.get("/sessions")).json()["total"] == 0
