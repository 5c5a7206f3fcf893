"""Which web pages may use the broker."""

from __future__ import annotations

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from enclave_broker import BrokerConfig
from enclave_broker.http.origins import Origins
from tests.broker.conftest import fleet
from tests.fakes import FakeWorker

APP = "https://app.example.com"
HERE = "127.0.0.1:3000"


@pytest.mark.parametrize(
    ("allowed", "listens", "origin", "host", "expected"),
    [
        ([], "127.0.0.1", "http://localhost:5173", HERE, True),
        ([], "127.0.0.1", "http://127.0.0.1:5173", HERE, True),
        ([], "::1", "http://[::1]:5173", "[::1]:3000", True),
        ([], "127.0.0.1", APP, HERE, False),
        ([], "127.0.0.1", "null", HERE, False),
        ([], "127.0.0.1", "", HERE, False),
        ([], "127.0.0.1", "http://localhost.example.com", HERE, False),
        ([], "127.0.0.1", "http://[", HERE, False),
        # A stranger's name that was made to lead to loopback is not the broker's own.
        ([], "127.0.0.1", "http://evil.example.com:3000", "evil.example.com:3000", False),
        ([], "0.0.0.0", "http://localhost:5173", "broker:3000", False),
        ([], "0.0.0.0", "https://broker.example.com", "broker.example.com", True),
        ([], "0.0.0.0", "null", "null", False),
        ([APP], "127.0.0.1", APP, HERE, True),
        ([APP], "127.0.0.1", APP.upper(), HERE, True),
        ([APP], "127.0.0.1", f"{APP}:8443", HERE, False),
        ([APP], "127.0.0.1", "http://app.example.com", HERE, False),
        ([APP], "127.0.0.1", f"{APP}.evil.com", HERE, False),
        ([APP], "127.0.0.1", "http://localhost:5173", HERE, False),
        ([APP, "loopback"], "0.0.0.0", "http://localhost:5173", "broker", True),
        (["*"], "0.0.0.0", APP, "broker", True),
        (["*"], "0.0.0.0", "null", "broker", True),
    ],
)
def test_a_page_may_if_it_is_named_or_the_brokers_own(
    allowed: list[str],
    listens: str,
    origin: str,
    host: str,
    expected: bool,  # noqa: FBT001
) -> None:
    assert Origins(allowed, listens).allows(origin, host) is expected


@pytest.mark.parametrize("origin", ["app.example.com", f"{APP}/", f"{APP}/page", "https://*.example.com", "", "null"])
def test_what_is_no_origin_is_refused_when_the_broker_starts(origin: str) -> None:
    with pytest.raises(ValueError, match=r"https://app\.example\.com"):
        BrokerConfig(cors_origins=[origin])


async def test_a_browser_that_asks_first_is_told_what_it_may() -> None:
    async with fleet(cors_origins=[APP]) as running:
        asks = {
            "origin": APP,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        for path in ("/sessions", "/sessions/s_1/stream", "/sessions/s_1/cancel", "/nowhere"):
            response = await running.http.options(path, headers=asks)
            assert (response.status_code, response.content) == (204, b"")
            told = response.headers
            assert told["access-control-allow-origin"] == APP
            assert told["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
            for header in ("Authorization", "Content-Type", "Last-Event-ID", "X-Enclave-Language"):
                assert header in told["access-control-allow-headers"]
            assert told["access-control-max-age"] == "86400"
            assert told["vary"] == "Origin"
            assert "access-control-allow-credentials" not in told


async def test_streams_and_errors_carry_the_headers_too() -> None:
    async with fleet(FakeWorker(), cors_origins=[APP]) as running:
        page = {"origin": APP}
        answers = [
            await running.http.post("/sessions", json={"code": "1"}, headers=page),
            await running.http.post("/sessions", json={}, headers=page),
            await running.http.get("/sessions/s_none", headers=page),
            await running.http.get("/nowhere", headers=page),
            await running.http.put("/sessions", headers=page),
        ]
        assert [answer.status_code for answer in answers] == [200, 400, 404, 404, 405]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == APP
            assert "X-Session-ID" in answer.headers["access-control-expose-headers"]
            assert "Retry-After" in answer.headers["access-control-expose-headers"]
            assert answer.headers["vary"] == "Origin"


async def test_every_page_may_if_it_was_said_and_the_origin_is_not_shown() -> None:
    async with fleet(cors_origins=["*"]) as running:
        response = await running.http.get("/healthz", headers={"origin": APP})
        assert response.headers["access-control-allow-origin"] == "*"


async def test_a_page_that_may_not_is_refused_and_nothing_runs() -> None:
    async with fleet(FakeWorker()) as running:
        # What a page can send without asking first.
        simple = {"origin": APP, "content-type": "text/plain"}
        answers = [
            await running.http.post("/sessions", content='{"code": "1"}', headers=simple),
            await running.http.options("/sessions", headers={"origin": APP, "access-control-request-method": "POST"}),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (403, "ORIGIN_NOT_ALLOWED")
            assert APP in answer.json()["message"]
            assert "access-control-allow-origin" not in answer.headers
        assert running.workers[0].received == []
        assert (await running.http.post("/sessions", json={"code": "1"})).status_code == 200


async def test_a_name_that_a_stranger_made_lead_to_loopback_has_no_pages_here() -> None:
    async with fleet() as running:
        strange = {"host": "evil.example.com:3000", "sec-fetch-site": "same-origin"}
        refused = await running.http.get("/sessions", headers=strange)
        assert (refused.status_code, refused.json()["code"]) == (403, "ORIGIN_NOT_ALLOWED")
        # By http, the browser of such a page says nothing but the name.
        refused = await running.http.get("/sessions", headers={"host": "evil.example.com:3000"})
        assert (refused.status_code, refused.json()["code"]) == (403, "ORIGIN_NOT_ALLOWED")
        fine = {"sec-fetch-site": "same-origin"}  # of this host
        assert (await running.http.get("/sessions", headers=fine)).status_code == 200
    async with fleet(cors_origins=[APP]) as running:
        named = {"host": "app.example.com", "sec-fetch-site": "same-origin"}
        assert (await running.http.get("/sessions", headers=named)).status_code == 200


async def test_a_page_that_may_not_gets_no_websocket_either() -> None:
    async with fleet(FakeWorker()) as running:
        url = running.broker.url.replace("http", "ws") + "/ws"
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, additional_headers={"Origin": APP}):
                pass
        assert refused.value.response.status_code == 403
        async with connect(url, additional_headers={"Origin": "http://localhost:5173"}) as socket:
            assert '"hello"' in str(await socket.recv())


def test_a_closed_broker_answers_programs_under_any_name() -> None:
    """Behind a proxy it is called what the proxy is called; a page that was led to it has no key."""
    closed = Origins([], "127.0.0.1", closed=True)
    assert closed.lets_in("proxy.example.com", None)
    assert closed.lets_in("proxy.example.com", "none")
    assert not closed.lets_in("proxy.example.com", "same-origin")
