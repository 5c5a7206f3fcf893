"""Clients of brokers that say exactly what each test wants, and a tool of theirs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from enclave_client import AsyncClient
from tests.client.fake_socket import FakeSocketBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.client.fake_socket import Script


@contextlib.asynccontextmanager
async def client_of(script: Script, **settings: Any) -> AsyncIterator[tuple[AsyncClient, FakeSocketBroker]]:
    """A client of a fake broker, and the check that it leaves no task behind."""
    before = asyncio.all_tasks()
    async with asyncio.timeout(60):
        async with FakeSocketBroker(script) as broker:
            async with AsyncClient(broker.url, **settings) as client:
                yield client, broker
            after = {task.get_name() for task in asyncio.all_tasks() - before}
            assert not [name for name in after if name.startswith("enclave")]


async def search(query: str, limit: int = 2) -> list[str]:
    """Search the web.

    In more words.
    """
    return [query] * limit
