"""What tenants may use, and what their tokens may do, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from enclave_broker import create_broker
from enclave_broker.access import Scope
from enclave_broker.http import create_app
from enclave_broker.metrics import MAX_TENANTS, OTHER, Metrics
from tests.broker.access.tenants import KeysFile, final, two_tenants
from tests.broker.ws.sockets import client_of
from tests.fakes import STATS, FakeSession, FakeWorker, waits_for_cancel
from tests.plain_http import NO_AUTHORITIES

if TYPE_CHECKING:
    from pathlib import Path


async def usage(client: httpx.AsyncClient) -> dict[str, int]:
    return {quota["quota"]: quota["used"] for quota in (await client.get("/tenant")).json()["quotas"]}


async def test_a_place_is_free_again_when_its_session_has_ended_and_others_have_their_own(tmp_path: Path) -> None:
    text = "[tenants.acme.quotas]\nconcurrent_sessions = 1\n"
    async with two_tenants(tmp_path, FakeWorker(waits_for_cancel), text) as (tenants, acme, rival):
        live = await tenants.start(acme, "s_1")
        refused = await acme.post("/sessions", json={"code": "1"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        body = refused.json()
        assert body["code"] == "QUOTA_EXCEEDED"
        assert body["details"].pop("retryAfterMs") >= 1000
        assert body["details"] == {"quota": "concurrentSessions", "limit": 1, "used": 1}
        others = await tenants.start(rival, "s_2")
        await acme.post("/sessions/s_1/cancel")
        await live
        again = await tenants.start(acme, "s_3")
        for client, task, session_id in ((acme, again, "s_3"), (rival, others, "s_2")):
            await client.post(f"/sessions/{session_id}/cancel")
            await task
        assert (await usage(acme))["concurrentSessions"] == 0
        metric = tenants.running.metric
        assert metric("enclave_quota_refusals_total", tenant="acme", quota="concurrentSessions") == 1
        assert metric("enclave_tenant_sessions_total", tenant="acme") == 2
        assert metric("enclave_rejections_total", code="QUOTA_EXCEEDED") == 1


async def test_a_session_that_no_worker_could_take_counts_for_nothing(tmp_path: Path) -> None:
    text = "[tenants.acme.quotas]\nsessions_per_minute = 1\n"
    async with two_tenants(tmp_path, FakeWorker(waits_for_cancel, max_sessions=1), text, queue_size=0) as (
        tenants,
        acme,
        rival,
    ):
        live = await tenants.start(rival, "s_1")
        for _ in range(3):
            assert (await acme.post("/sessions", json={"code": "1"})).status_code == 503
        assert (await usage(acme))["sessionsPerMinute"] == 0
        await rival.post("/sessions/s_1/cancel")
        await live


async def test_used_up_processor_time_and_rates_refuse_the_next_session_with_when_to_return(tmp_path: Path) -> None:
    async def burns(session: FakeSession) -> None:
        stats = STATS | {"cpuMs": 2500.0}
        await session.event("final", {"ok": True, "result": 1, "stats": stats})

    text = "[tenants.acme.quotas]\ncpu_seconds_per_hour = 5\n[tenants.rival.quotas]\nsessions_per_minute = 2\n"
    async with two_tenants(tmp_path, FakeWorker(burns), text) as (tenants, acme, rival):
        for client in (acme, rival):
            for _ in range(2):
                assert final((await client.post("/sessions", json={"code": "1"})).text)["ok"] is True
        slow, fast = [await client.post("/sessions", json={"code": "1"}) for client in (acme, rival)]
        used_up = slow.json()["details"]
        assert (slow.status_code, used_up["quota"], used_up["used"]) == (429, "cpuSecondsPerHour", 5)
        assert 3500 < int(slow.headers["retry-after"]) <= 3660
        used_up = fast.json()["details"]
        assert (fast.status_code, used_up["quota"], used_up["used"]) == (429, "sessionsPerMinute", 2)
        assert 1 <= int(fast.headers["retry-after"]) <= 61
        assert tenants.running.metric("enclave_tenant_cpu_seconds_total", tenant="acme") == 5
        assert (await usage(acme))["cpuSecondsPerHour"] == 5


async def test_a_tool_call_too_many_fails_in_the_guest_whoever_would_have_answered_it(tmp_path: Path) -> None:
    async def calls(session: FakeSession) -> None:
        results = [await session.call("ask", call_id=f"c_{i}") for i in range(3)]
        await session.final([result.get("error", {}).get("code", "ok") for result in results])

    text = "[tenants.acme.quotas]\ntool_calls_per_minute = 2\n"
    async with (
        two_tenants(tmp_path, FakeWorker(calls), text) as (tenants, acme, _),
        client_of(tenants.running, tenants.file.keys["acme"]) as socket,
    ):
        await socket.send("execute", sessionId="s_1", code="1")
        for _ in range(2):
            call = (await socket.next("tool_call"))["payload"]
            await socket.send("tool_result", sessionId="s_1", callId=call["callId"], success=True, value=1)
        result = (await socket.next("final"))["payload"]["result"]
        assert result == ["ok", "ok", "QUOTA_EXCEEDED"]
        assert (await usage(acme))["toolCallsPerMinute"] == 2


async def test_on_a_websocket_a_used_up_quota_is_a_final_that_says_so(tmp_path: Path) -> None:
    text = "[tenants.acme.quotas]\nsessions_per_minute = 0\n"
    async with (
        two_tenants(tmp_path, FakeWorker(), text) as (tenants, _, _),
        client_of(tenants.running, tenants.file.keys["acme"]) as socket,
    ):
        await socket.send("execute", sessionId="s_1", code="1")
        ended = await socket.next()
        assert (ended["type"], ended["seq"], ended["payload"]["ok"]) == ("final", 1, False)
        assert ended["payload"]["error"]["code"] == "QUOTA_EXCEEDED"
        assert ended["payload"]["error"]["retryable"] is True


async def test_a_token_does_what_it_is_for_and_nothing_else(tmp_path: Path) -> None:
    sites = ("https://app.example", "https://evil.example")
    async with two_tenants(tmp_path, FakeWorker(), cors_origins=sites) as (tenants, acme, rival):
        await acme.post("/sessions", json={"code": "1", "sessionId": "s_other"})
        wanted = {
            "sessionId": "s_1",
            "origins": ["https://app.example"],
            "ttlMs": 5000,
            "limits": {"deadlineMs": 700, "maxToolCalls": 3},
        }
        made = await acme.post("/tokens", json=wanted)
        assert made.status_code == 201
        assert made.headers["cache-control"] == "no-store"
        told = made.json()
        assert (told["tenant"], told["sessionId"]) == ("acme", "s_1")
        assert told["scopes"] == ["sessions:control", "sessions:create", "sessions:read"]
        async with tenants.client(told["token"], Origin="https://app.example") as page:
            assert (await page.get("/tenant")).json()["sessionId"] == "s_1"
            answer = await page.post("/sessions", json={"code": "1", "limits": {"maxToolCalls": 2, "deadlineMs": 9000}})
            assert answer.headers["x-session-id"] == "s_1"
            sent = tenants.running.workers[0].received[-1]["limits"]
            assert (sent["maxToolCalls"], sent["deadlineMs"]) == (2, 700)
            assert [s["sessionId"] for s in (await page.get("/sessions")).json()["sessions"]] == ["s_1"]
            assert (await page.get("/sessions/s_other")).status_code == 404
            del page.headers["Authorization"]
            in_url = await page.get("/sessions/s_1/stream", params={"access_token": told["token"], "fromSeq": "3"})
            assert final(in_url.text)["ok"] is True
            page.headers["Authorization"] = f"Bearer {told['token']}"
            another = await page.post("/sessions", json={"code": "1", "sessionId": "s_2"})
            assert (another.status_code, another.json()["code"]) == (403, "FORBIDDEN_SESSION")
            for method, path in (("POST", "/tokens"), ("GET", "/metrics"), ("GET", "/docs")):
                refused = await page.request(method, path)
                assert (refused.status_code, refused.json()["code"]) == (403, "INSUFFICIENT_SCOPE")
        async with tenants.client(told["token"], Origin="https://evil.example") as page:
            refused = await page.get("/sessions/s_1")
            assert (refused.status_code, refused.json()["code"]) == (403, "FORBIDDEN_ORIGIN")
        assert (await rival.get("/sessions/s_1")).status_code == 404


async def test_a_page_opens_a_websocket_with_its_token_as_a_subprotocol_which_is_not_echoed(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, acme, _):
        token = (await acme.post("/tokens", json={"scopes": ["sessions:create"]})).json()["token"]
        url = tenants.broker.url.replace("http", "ws") + "/ws"
        async with connect(url, proxy=None, subprotocols=["enclave.v2", f"enclave.bearer.{token}"]) as socket:  # type: ignore[list-item]  # a NewType of str
            assert socket.response is not None
            assert socket.subprotocol == "enclave.v2"
            assert token not in str(socket.response.headers)
            await socket.recv()
            await socket.send(json.dumps({"type": "execute", "sessionId": "s_1", "code": "1"}))
            while json.loads(await socket.recv())["type"] != "final":
                pass
            for kind in ("cancel", "attach"):
                await socket.send(json.dumps({"type": kind, "sessionId": "s_1"}))
                assert "INSUFFICIENT_SCOPE" in json.loads(await socket.recv())["payload"]["message"]


async def test_a_websocket_whose_key_is_gone_can_do_no_more(tmp_path: Path) -> None:
    async with (
        two_tenants(tmp_path, FakeWorker()) as (tenants, _, _),
        client_of(tenants.running, tenants.file.keys["acme"]) as socket,
    ):
        tenants.file.path.write_text("")
        tenants.broker.reload_keys()
        await socket.send("execute", sessionId="s_1", code="1")
        refused = await socket.next()
        assert refused["type"] == "error"
        assert "UNAUTHENTICATED" in refused["payload"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes"),
        ({"origins": []}, "origins"),
        ({"origins": ["https://app.example/"]}, "origins[0]"),
        ({"origins": ["https://a.example", "*"]}, "origins[1]"),
        ({"origins": ["null"]}, "origins[0]"),
        ({"sessionId": ""}, "sessionId"),
        ({"sessionId": "weird"}, "sessionId"),
        ({"ttlMs": 999}, "ttlMs"),
        ({"ttlMs": 86_400_001}, "ttlMs"),
        ({"limits": {"heartbeatIntervalMs": 1}}, "limits"),
        ({"limits": {"deadlineMs": 0}}, "limits"),
        ({"admin": True}, "admin"),
        ([], ""),
    ],
)
async def test_a_request_for_a_token_that_makes_no_sense_is_refused_with_the_field(
    tmp_path: Path, body: Any, field: str
) -> None:
    file = KeysFile(tmp_path / "keys.toml")
    key = file.add("acme")
    app: Any = create_app(create_broker(keys_file=str(file.path)))  # httpx and Litestar type ASGI differently
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://broker") as client:
        refused = await client.post("/tokens", json=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_REQUEST")
        assert refused.json().get("details", {}).get("field", "").startswith(field)


async def test_keys_change_under_a_running_session_which_lives_on(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker(waits_for_cancel)) as (tenants, acme, rival):
        live = await tenants.start(acme, "s_1")
        old = tenants.file.keys["acme"]
        tenants.file.path.write_text("")
        new, other = tenants.file.add("acme"), tenants.file.add("ops", frozenset({Scope.METRICS}))
        os.utime(tenants.file.path, ns=(1, 1))  # even if its time went back
        async with tenants.client(other) as ops:
            async with asyncio.timeout(60):
                while (await ops.get("/metrics")).status_code != 200:  # the broker looks at the file now and then
                    pass
        assert [(await client.get("/sessions")).status_code for client in (acme, rival)] == [401, 401]
        assert not live.done()
        async with tenants.client(new) as renewed:
            tenants.file.path.write_text("[keys\n")
            tenants.broker.reload_keys()
            assert tenants.running.metric("enclave_keys_stale") == 1
            assert (await renewed.post("/sessions/s_1/cancel")).status_code == 200
            assert final(await live)["error"]["code"] == "SESSION_CANCELLED"
            tenants.file.path.unlink()
            tenants.broker.reload_keys()
            assert (await renewed.get("/sessions")).status_code == 200
        assert old != new


def test_tenants_beyond_so_many_are_one_label() -> None:
    metrics = Metrics()
    for number in range(MAX_TENANTS + 50):
        metrics.tenant_ended(f"t{number}", 0.5)
        metrics.quota_refused(f"t{number}", "sessionsPerMinute")
    value = metrics.registry.get_sample_value
    assert value("enclave_tenant_sessions_total", {"tenant": OTHER}) == 50
    metrics.forget_tenant("t0")
    metrics.tenant_ended("late", 0.5)
    assert value("enclave_tenant_sessions_total", {"tenant": "late"}) == 1
    assert value("enclave_tenant_sessions_total", {"tenant": "t0"}) is None


HEADER = st.binary(max_size=300).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b""))


def test_no_header_and_no_body_makes_the_broker_fail(tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys.toml")
    good = f"Bearer {file.add('acme')}".encode()
    app: Any = create_app(
        create_broker(keys_file=str(file.path), cors_origins=("*",))
    )  # httpx and Litestar type ASGI differently
    values = HEADER | HEADER.map(lambda data: b"Bearer " + data) | st.sampled_from([good, good[:-1], good + b" ", b""])
    body = st.binary(max_size=100) | st.recursive(
        st.none() | st.integers() | st.text(max_size=20), lambda inner: st.dictionaries(st.text(max_size=12), inner)
    ).map(lambda value: json.dumps(value).encode())

    with asyncio.Runner() as runner:

        async def ask(path: str, headers: list[tuple[bytes, bytes]], content: bytes) -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://broker", verify=NO_AUTHORITIES
            ) as client:
                return await client.post(path, headers=headers, content=content)

        @settings(max_examples=150)
        @given(
            path=st.sampled_from(["/tokens", "/sessions/s_1/cancel"]),
            authorization=values,
            origin=HEADER,
            content=body,
        )
        def fuzz(path: str, authorization: bytes, origin: bytes, content: bytes) -> None:
            headers = [(b"authorization", authorization), (b"origin", origin)]
            answer = runner.run(ask(path, headers, content))
            assert answer.status_code in {201, 400, 401, 403, 404}, answer.text
            assert answer.status_code == 201 or answer.json()["code"]
            if authorization.strip() != good:
                assert answer.status_code == 401
                assert answer.json()["message"] == "this is no key or token of this broker"  # and nothing of what came

        fuzz()
