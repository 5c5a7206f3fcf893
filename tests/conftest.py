"""Fixtures of the tests that run a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support import Client, Footprint, client_of, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from enclave_worker.runtime import RuntimeWorker


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if descriptors, processes, threads or mounts are left when all else is torn down."""
    before = Footprint.now()
    yield
    assert Footprint.now() == before


@pytest_asyncio.fixture
async def worker(no_leaks: None) -> AsyncIterator[RuntimeWorker]:  # noqa: ARG001 - it surrounds this one
    """A running worker."""
    async with running() as runtime:
        yield runtime


@pytest_asyncio.fixture
async def client(worker: RuntimeWorker) -> AsyncIterator[Client]:
    """A connection to `worker`."""
    async with client_of(worker.url) as client:
        yield client
