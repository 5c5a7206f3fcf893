"""The tasks of a broker's sources: what one does wrong is its own affair."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from enclave_broker.tools import ToolRegistry, ToolSource
from enclave_broker.tools.catalog import describe
from enclave_broker.tools.sources import SourceKeeper
from enclave_broker.tools.sources.watched import WatchedSource
from tests.broker.tools.stubs.schemas import fake

if TYPE_CHECKING:
    import pytest

    from enclave_broker.tools import Tool


class Quiet(WatchedSource):
    """One that never answers."""

    async def load(self) -> list[Tool]:
        raise NotImplementedError

    async def run(self, registry: ToolRegistry) -> None:
        await asyncio.Event().wait()


class Faulty(Quiet):
    """One that fails in a way that it should not."""

    closed = False

    async def run(self, registry: ToolRegistry) -> None:
        raise KeyError("a fault")

    async def close(self) -> None:
        self.closed = True


class Plain(ToolSource):
    """One of somebody else's making, that only does what it has to."""

    name = "plain"

    async def load(self) -> list[Tool]:
        return [fake("plain_tool", service="plain")]

    async def run(self, registry: ToolRegistry) -> None:
        registry.replace_source(self.name, await self.load())
        await asyncio.Event().wait()


async def test_a_fault_in_one_source_touches_no_other_and_all_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    registry = ToolRegistry()
    faulty = Faulty("faulty")
    keeper = SourceKeeper([faulty, Plain()], registry)
    running = asyncio.create_task(keeper.run())
    await keeper.wait_looked(20)
    assert registry.names() == ["plain_tool"]
    assert "a fault of ours" in caplog.text
    assert not running.done()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert faulty.closed


async def test_a_source_that_never_answers_holds_up_the_start_for_its_time_only_and_can_be_seen() -> None:
    registry = ToolRegistry()
    quiet = Quiet("quiet", spec_url="https://x.example/openapi.json")
    keeper = SourceKeeper([quiet], registry)
    running = asyncio.create_task(keeper.run())
    await keeper.wait_looked(0.01)
    for _ in range(3):
        quiet.failed("no answer")
    (service,) = describe(registry, unwell=keeper.unwell).services
    assert (service.name, service.action_count, service.healthy) == ("quiet", 0, False)
    assert service.spec_url == "https://x.example/openapi.json"
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
