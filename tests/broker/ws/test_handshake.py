"""What is spoken on a WebSocket, from the request's headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from enclave_broker.ws.handshake import choose_subprotocol
from enclave_protocol import RemoteProtocolError
from tests.broker.access.tenants import two_tenants
from tests.broker.conftest import fleet
from tests.broker.ws.sockets import raw_client
from tests.fakes import FakeWorker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        ([""], None),
        (["enclave.v2"], "enclave.v2"),
        (["enclave.v2", "enclave.bearer.abc"], "enclave.v2"),
        (["enclave.bearer.abc", "other", "enclave.v2"], "enclave.v2"),
    ],
)
def test_the_one_subprotocol_is_chosen_whatever_stands_beside_it(offered: list[str], chosen: str | None) -> None:
    assert choose_subprotocol(offered) == chosen


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (["enclave.v3"], "no such subprotocol: enclave.v3"),
        (["graphql-ws", "enclave.bearer.secret"], "no such subprotocol: graphql-ws"),
        (["enclave.bearer.secret"], "a token alone is no subprotocol"),
        (["x" * 500] * 10, "no such subprotocol: " + ", ".join(["x" * 40] * 3)),
    ],
)
def test_other_subprotocols_are_refused_by_name_and_no_token_is_quoted(offered: list[str], reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        choose_subprotocol(offered)
    assert caught.value.reason == reason
    assert "enclave.v2" in caught.value.allowed
    assert "secret" not in str(caught.value)


async def test_the_handshake_selects_the_subprotocol_and_never_echoes_a_token() -> None:
    async with fleet() as running:
        async with raw_client(running, "Sec-WebSocket-Protocol: enclave.v2, enclave.bearer.secret") as client:
            assert client.head.startswith("HTTP/1.1 101")
            assert "sec-websocket-protocol: enclave.v2\r\n" in client.head.lower()
            assert "secret" not in client.head
        async with raw_client(running) as client:
            assert client.head.startswith("HTTP/1.1 101")
            assert "sec-websocket-protocol" not in client.head.lower()


async def test_a_handshake_for_another_subprotocol_is_answered_by_a_400_that_names_it() -> None:
    async with fleet() as running:
        async with raw_client(running, "Sec-WebSocket-Protocol: enclave.v9, enclave.bearer.secret") as client:
            assert client.head.startswith("HTTP/1.1 400")
            body = json.loads(await client.reader.read())
        assert body["details"]["field"] == "Sec-WebSocket-Protocol"
        assert "enclave.v9" in body["message"]
        assert "secret" not in str(body)
        assert running.metric("enclave_rejections_total", code="INVALID_REQUEST") == 1


async def test_a_socket_above_their_number_is_refused_until_another_closes() -> None:
    async with fleet(max_sockets=1) as running:
        async with raw_client(running):
            assert running.metric("enclave_client_sockets") == 1
            async with raw_client(running) as second:
                assert second.head.startswith("HTTP/1.1 503")
                assert "retry-after: 1\r\n" in second.head.lower()
        await running.wait_until(lambda: running.metric("enclave_client_sockets") == 0)
        async with raw_client(running) as third:
            assert third.head.startswith("HTTP/1.1 101")


async def test_a_query_that_looks_like_a_token_is_no_token(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, FakeWorker()) as (tenants, _, _):
        url = f"ws://{tenants.broker.host}:{tenants.broker.port}/ws?access_token=x"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, proxy=None)
        assert (refused.value.response.status_code, b"UNAUTHENTICATED" in refused.value.response.body) == (401, True)
