"""The client library at a broker that asks who is calling, and shows who it is."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from enclave_client import AsyncClient, BrokerUnavailable, Client, RequestRefused, Result
from tests.broker.access.tenants import two_tenants
from tests.broker.conftest import fleet
from tests.fakes import FakeWorker, waits_for_cancel

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_key_opens_the_door_and_only_to_its_tenants_sessions(tmp_path: Path) -> None:
    async with asyncio.timeout(60), two_tenants(tmp_path, FakeWorker(waits_for_cancel)) as (tenants, _, _):
        url, keys = tenants.broker.url, tenants.file.keys
        async with (
            AsyncClient(url, api_key=keys["acme"]) as acme,
            AsyncClient(url, api_key=keys["acme"]) as again,
            AsyncClient(url, api_key=keys["rival"]) as rival,
            acme.stream("1", session_id="s_acme") as session,
        ):
            with pytest.raises(RequestRefused, match="unknown session"):
                await rival.attach("s_acme").__aenter__()
            async with again.attach("s_acme") as attached:
                session.cancel()
                assert (await attached.wait()).error == (await session.wait()).error


@pytest.mark.parametrize("key", ["", "ek_wrong", "ek_000000000000_" + "A" * 43])
async def test_a_wrong_key_is_the_callers_error_and_is_not_repeated(tmp_path: Path, key: str) -> None:
    async with asyncio.timeout(60), two_tenants(tmp_path, FakeWorker()) as (tenants, _, _):
        async with AsyncClient(tenants.broker.url, api_key=key) as client:
            with pytest.raises(RequestRefused) as refused:
                await client.run("1")
        assert refused.value.code == "UNAUTHENTICATED"
        assert not key or key not in str(refused.value)


def run_and_close(client: Client) -> Result:
    with client:
        return client.run("1")


async def test_a_broker_whose_certificate_nobody_vouches_for_is_not_spoken_to(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert", tmp_path / "key"
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(cert), append=True)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)

    async with asyncio.timeout(60), fleet(FakeWorker(), tls_cert=str(cert), tls_key=str(key)) as running:
        url = f"https://127.0.0.1:{running.broker.port}"
        async with AsyncClient(url, api_key="ek_secret") as stranger:
            with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.run("1")
        async with AsyncClient(url, ssl=ours) as client:
            assert (await client.run("1")).ok
        assert (await asyncio.to_thread(run_and_close, Client(url, ssl=ours))).ok
    with pytest.raises(ValueError, match="https"):
        AsyncClient("http://127.0.0.1:1", ssl=ours)
