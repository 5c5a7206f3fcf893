"""Both doors: closed to strangers on every route, and another tenant's session does not exist on any."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from litestar.routes import HTTPRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from enclave_broker import create_broker
from enclave_broker.access import Scope
from enclave_broker.http.app import _routes
from tests.broker.access.tenants import final, two_tenants
from tests.broker.conftest import fleet
from tests.broker.ws.sockets import client_of
from tests.fakes import FakeSession, FakeWorker, returns_its_code, waits_for_cancel
from tests.plain_http import NO_AUTHORITIES

if TYPE_CHECKING:
    from pathlib import Path

    from litestar.handlers import HTTPRouteHandler

PUBLIC = {("GET", "/healthz"), ("GET", "/readyz")}


def handlers() -> list[tuple[str, str, HTTPRouteHandler]]:
    """Every method and path of the door, with what handles it."""
    app = _routes(create_broker())
    found = []
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                found += [(str(method), route.path, handler) for method in handler.http_methods]
    return found


ROUTES = [(method, path) for method, path, _ in handlers() if method != "OPTIONS"]


def test_every_route_says_who_it_is_for() -> None:
    silent = {path for _, path, handler in handlers() if "enclave.needs" not in handler.opt}
    # Handlers that the framework makes: for keys alone, by the guard's default.
    assert {path for path in silent if not path.startswith("/docs")} <= {path for _, path in ROUTES}
    named = {(method, path) for method, path, handler in handlers() if "enclave.needs" in handler.opt}
    assert {route for route in ROUTES if not route[1].startswith("/docs")} == named


async def test_strangers_are_told_401_on_every_route_and_only_probes_answer_them(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, acme, _):
        await acme.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        async with tenants.client(None) as nobody, tenants.client("ek_000000000000_" + "A" * 43) as stranger:
            for client in (nobody, stranger):
                for method, path in ROUTES:
                    where = path.replace("{session_id:str}", "s_1").replace("{session_id}", "s_1")
                    answer = await client.request(method, where)
                    if (method, path) in PUBLIC:
                        assert answer.status_code == 200, path
                        continue
                    assert answer.status_code == 401, f"{method} {path}: {answer.text}"
                    assert answer.json()["code"] == "UNAUTHENTICATED"
                    assert answer.headers["www-authenticate"] == "Bearer"
            rejected = tenants.running.metric("enclave_rejections_total", code="UNAUTHENTICATED")
            assert rejected == 2 * (len(ROUTES) - len(PUBLIC))
            assert (await nobody.options("/sessions")).status_code == 204


async def test_strangers_get_no_websocket(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, _, _):
        url = tenants.broker.url.replace("http", "ws") + "/ws"
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {tenants.file.keys['acme']}"}):
            with pytest.raises(InvalidStatus) as caught:
                await connect(url, proxy=None, additional_headers=headers)
            assert caught.value.response.status_code == 401
            assert json.loads(caught.value.response.body)["code"] == "UNAUTHENTICATED"
            assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"


async def test_another_tenants_session_is_one_that_never_was_on_every_route(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker(waits_for_cancel)) as (tenants, acme, rival):
        live = await tenants.start(acme, "s_live")
        requests = [
            ("GET", "/sessions/{}"),
            ("GET", "/sessions/{}/stream"),
            ("POST", "/sessions/{}/cancel"),
            ("POST", "/sessions/{}/tool-result"),
            ("DELETE", "/sessions/{}"),
        ]
        for session_id in ("s_live", "s_done"):
            for method, path in requests:
                foreign = await rival.request(method, path.format(session_id))
                unknown = await rival.request(method, path.format("s_never"))
                assert foreign.status_code == unknown.status_code == 404
                assert foreign.text.replace(session_id, "s_never") == unknown.text
            if session_id == "s_live":
                assert (await rival.get("/sessions")).json() == {"sessions": [], "total": 0}
                assert [s["sessionId"] for s in (await acme.get("/sessions")).json()["sessions"]] == ["s_live"]
                assert (await acme.post("/sessions/s_live/cancel")).status_code == 200
                assert final(await live)["error"]["code"] == "SESSION_CANCELLED"
                done = await tenants.start(acme, "s_done")
                assert (await acme.post("/sessions/s_done/cancel")).status_code == 200
                await done
        assert (await acme.get("/sessions/s_done/stream")).status_code == 200


async def test_another_tenants_session_is_unknown_on_a_websocket(tmp_path: Path) -> None:
    async def asks(session: FakeSession) -> None:
        await session.final(await session.call("ask", call_id="c_1"))

    async with two_tenants(tmp_path, FakeWorker(asks)) as (tenants, _, _):
        running, keys = tenants.running, tenants.file.keys
        async with client_of(running, keys["acme"]) as acme, client_of(running, keys["rival"]) as rival:
            await acme.send("execute", sessionId="s_1", code="1")
            await acme.next("tool_call")
            for kind, fields in (
                ("attach", {}),
                ("cancel", {}),
                ("tool_result", {"callId": "c_1", "success": True, "value": 1}),
            ):
                await rival.send(kind, sessionId="s_1", **fields)
                said = (await rival.next("error"))["payload"]["message"]
                await rival.send(kind, sessionId="s_2", **fields)
                assert (await rival.next("error"))["payload"]["message"] == said
            await acme.send("tool_result", sessionId="s_1", callId="c_1", success=True, value=1)
            assert (await acme.next("final"))["payload"]["ok"] is True


@pytest.mark.parametrize("script", [waits_for_cancel, returns_its_code])
async def test_another_tenants_id_is_taken_as_long_as_its_session_is_kept(tmp_path: Path, script: Any) -> None:
    """A finished session makes room for its tenant's next one of that id, but for nobody else's."""
    request = {"code": "1", "sessionId": "s_1"}
    async with (
        two_tenants(tmp_path, FakeWorker(script)) as (tenants, acme, rival),
        acme.stream("POST", "/sessions", json=request) as mine,
    ):
        lines = mine.aiter_lines()
        await anext(lines)
        if script is returns_its_code:
            assert [line async for line in lines]
        refused = await rival.post("/sessions", json=request)
        assert refused.status_code == 409
        assert refused.json()["code"] == "DUPLICATE_SESSION"
        again = await acme.post("/sessions", json=request)
        assert again.status_code == (409 if script is waits_for_cancel else 200)
        assert tenants.broker.dispatcher.gate.ledger.account("rival").active == 0


async def test_two_keys_of_a_tenant_share_its_sessions(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, acme, _):
        await acme.post("/sessions", json={"code": "1", "sessionId": "s_1"})
        second = tenants.file.add("acme", frozenset({Scope.READ}))
        tenants.broker.reload_keys()
        async with tenants.client(second) as other:
            assert (await other.get("/sessions/s_1")).json()["state"] == "completed"
            for method, path in (("POST", "/sessions"), ("DELETE", "/sessions/s_1"), ("POST", "/tokens")):
                refused = await other.request(method, path, json={"code": "1"})
                assert (refused.status_code, refused.json()["code"]) == (403, "INSUFFICIENT_SCOPE")


async def test_metrics_are_for_those_who_have_their_scope_unless_they_are_public(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, acme, _):
        assert (await acme.get("/metrics")).status_code == 403
        key = tenants.file.add("ops", frozenset({Scope.METRICS}))
        tenants.broker.reload_keys()
        async with tenants.client(key) as ops:
            assert (await ops.get("/metrics")).status_code == 200
            assert (await ops.get("/sessions")).status_code == 403
    async with (
        two_tenants(tmp_path, FakeWorker(), public_metrics=True) as (tenants, _, _),
        httpx.AsyncClient(base_url=tenants.broker.url, verify=NO_AUTHORITIES) as nobody,
    ):
        assert (await nobody.get("/metrics")).status_code == 200


async def test_without_keys_nobody_is_asked_and_everything_is_the_default_tenants() -> None:
    async with fleet(FakeWorker()) as running:
        assert (await running.http.post("/sessions", json={"code": "1", "sessionId": "s_1"})).status_code == 200
        own = (await running.http.get("/tenant")).json()
        assert own["tenant"] == "default"
        assert {usage["quota"]: usage["used"] for usage in own["quotas"]}["sessionsPerMinute"] == 1
