"""The client library at a broker that asks who is calling."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from enclave_client import AsyncClient, RequestRefused
from tests.broker.access.tenants import two_tenants
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
