"""A fleet whose broker knows two tenants, and clients with their keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx

from enclave_broker.access.caller import DEFAULT_KEY_SCOPES
from enclave_broker.access.keys import key_lines, new_key
from tests.broker.conftest import fleet
from tests.plain_http import NO_AUTHORITIES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from enclave_broker.access import Scope
    from tests.broker.conftest import Fleet
    from tests.fakes import FakeWorker


class KeysFile:
    """The keys file of a broker."""

    def __init__(self, path: Path, text: str = "") -> None:
        self.path = path
        self.keys: dict[str, str] = {}
        """Keys by tenant, the newest of each."""
        path.write_text(text)

    def add(self, tenant: str, scopes: frozenset[Scope] = DEFAULT_KEY_SCOPES) -> str:
        """Make a key."""
        key, key_id = new_key()
        with self.path.open("a") as file:
            file.write("\n" + key_lines(key, key_id, tenant, scopes))
        self.keys[tenant] = key
        return key


class Tenants:
    """A running fleet with keys."""

    def __init__(self, running: Fleet, file: KeysFile) -> None:
        self.running = running
        self.broker = running.broker
        self.file = file

    @contextlib.asynccontextmanager
    async def client(self, credential: str | None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client that shows a key or a token."""
        shown = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        async with httpx.AsyncClient(
            base_url=self.broker.url, headers=shown | headers, timeout=60, verify=NO_AUTHORITIES
        ) as client:
            yield client

    async def start(self, client: httpx.AsyncClient, session_id: str) -> asyncio.Task[str]:
        """Post a session in the background, and return once its worker has it."""

        async def post() -> str:
            return (await client.post("/sessions", json={"code": "1", "sessionId": session_id})).text

        worker = self.running.workers[0]
        before = sum(message["type"] == "execute" for message in worker.received)
        task = asyncio.create_task(post())
        await worker.wait_received("execute", before + 1)
        return task


@contextlib.asynccontextmanager
async def two_tenants(
    path: Path, worker: FakeWorker, text: str = "", **settings: Any
) -> AsyncIterator[tuple[Tenants, httpx.AsyncClient, httpx.AsyncClient]]:
    """Run a fleet with the tenants `acme` and `rival`; `text` begins its keys file."""
    file = KeysFile(path / "keys.toml", text)
    file.add("acme")
    file.add("rival")
    async with fleet(worker, keys_file=str(file.path), **settings) as running:
        tenants = Tenants(running, file)
        async with tenants.client(file.keys["acme"]) as acme, tenants.client(file.keys["rival"]) as rival:
            yield tenants, acme, rival


def final(text: str) -> dict[str, Any]:
    """The payload of a stream's last event."""
    event = json.loads(text.splitlines()[-1])
    assert event["type"] == "final"
    payload: dict[str, Any] = event["payload"]
    return payload
