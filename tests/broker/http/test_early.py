"""The early door: what is refused there is refused as inside, and nothing is refused that has a chance inside."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any

import pytest

from tests.broker.access.tenants import two_tenants
from tests.broker.conftest import Fleet, fleet, parse, start
from tests.fakes import FakeSession, FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

APP = "https://app.example.com"
CODE = {"code": "1"}


@contextlib.asynccontextmanager
async def full_fleet(**settings: Any) -> AsyncIterator[Fleet]:
    """A fleet with one slot, which is taken, and a queue in which nobody fits."""
    worker = FakeWorker(waits_for_cancel, max_sessions=1)
    async with fleet(worker, queue_size=0, **settings) as running:
        task = await start(running, "s_first")
        yield running
        await running.http.post("/sessions/s_first/cancel")
        await task


def said(response: httpx.Response) -> tuple[int, Any, dict[str, str]]:
    """What a refusal says, but for how late it is, and with that how long a session takes."""
    headers = {name: value for name, value in response.headers.items() if name not in {"date", "content-length"}}
    body = response.json()
    retry_after_ms = body["details"].pop("retryAfterMs")
    assert 1000 <= retry_after_ms <= 60_000
    assert headers.pop("retry-after") == str(math.ceil(retry_after_ms / 1000))
    return response.status_code, body, headers


async def test_a_full_fleet_refuses_at_the_door_as_it_does_inside() -> None:
    async with full_fleet(cors_origins=[APP]) as running:
        for headers in ({}, {"Origin": APP}):
            early = said(await running.http.post("/sessions", json=CODE, headers=headers))
            inside = said(await running.http.post("/sessions", json=CODE | {"sessionId": "s_9"}, headers=headers))
            assert early == inside
            assert early[0] == 503
            assert early[1]["code"] == "NO_CAPACITY"
            assert early[2].get("access-control-allow-origin") == headers.get("Origin")
        assert running.metric("enclave_rejections_total", code="NO_CAPACITY") == 4
        assert running.metric("enclave_http_requests_total", method="POST", route="/sessions", status="503") == 4


async def test_a_page_that_may_not_is_told_so_though_the_fleet_is_full() -> None:
    async with full_fleet() as running:
        response = await running.http.post("/sessions", json=CODE, headers={"Origin": APP})
        assert response.json()["code"] == "ORIGIN_NOT_ALLOWED"


async def test_the_same_request_made_again_is_answered_though_the_fleet_is_full() -> None:
    async def answers_the_first(session: FakeSession) -> None:
        await (session.final(1) if session.session_id == "s_1" else waits_for_cancel(session))

    async with fleet(FakeWorker(answers_the_first, max_sessions=1), queue_size=0) as running:
        body = '{"code": "1", "session\\u0049d": "s_1"}'  # as JSON may have it
        first = await running.http.post("/sessions", content=body)
        task = await start(running, "s_2")
        again = await running.http.post("/sessions", content=body)
        assert parse(again.text) == parse(first.text)
        assert again.headers["x-enclave-replayed"]
        assert (await running.http.post("/sessions", json=CODE)).status_code == 503
        await running.http.post("/sessions/s_2/cancel")
        await task


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_not_known_to_be_small_is_read_inside(chunked: bool) -> None:  # noqa: FBT001 - a parameter
    async def parts() -> AsyncIterator[bytes]:
        yield b'{"code": 1}'

    async with full_fleet() as running:
        content = parts() if chunked else b'{"code": 1}'.ljust(70_000)
        response = await running.http.post("/sessions", content=content)
        assert response.status_code == 400
        assert response.json()["details"]["field"] == "code"


async def test_a_client_that_leaves_while_its_request_is_read_disturbs_nobody() -> None:
    async with full_fleet() as running:
        _, writer = await asyncio.open_connection(running.broker.host, running.broker.port)
        writer.write(b"POST /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await running.http.post("/sessions", json=CODE)).status_code == 503


async def test_who_has_no_key_is_told_so_and_who_has_used_up_a_quota_how_long_to_wait(tmp_path: Path) -> None:
    text = "[tenants.acme]\nquotas = { concurrent_sessions = 1 }\n"
    worker = FakeWorker(waits_for_cancel, max_sessions=1)
    async with (
        two_tenants(tmp_path, worker, text, queue_size=0) as (some, acme, rival),
        some.client(None) as stranger,
    ):
        task = await some.start(acme, "s_1")
        early = said(await acme.post("/sessions", json=CODE))
        assert early == said(await acme.post("/sessions", json=CODE | {"sessionId": "s_9"}))
        assert early[0] == 429
        assert some.running.metric("enclave_quota_refusals_total", tenant="acme", quota="concurrentSessions") == 2
        assert early[1]["details"] == {"quota": "concurrentSessions", "limit": 1, "used": 1}
        assert (await rival.post("/sessions", json=CODE)).status_code == 503
        assert (await stranger.post("/sessions", json=CODE)).status_code == 401
        await acme.post("/sessions/s_1/cancel")
        await task
