"""Runs the sources of a broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from .watched import WatchedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import Gauge

    from enclave_broker.tools.registry import ToolRegistry
    from enclave_broker.tools.tool import ToolSource

log = logging.getLogger("enclave.broker.tools")

RESTART_S = 30.0
"""Wait after a source failed in a way that it should not."""


class SourceKeeper:
    """All sources of a broker, each in a task of its own.

    Args:
        sources: made, and not run yet.
        registry: where their tools go.
    """

    def __init__(self, sources: Sequence[ToolSource], registry: ToolRegistry) -> None:
        self.sources = tuple(sources)
        self._registry = registry

    @property
    def unwell(self) -> frozenset[str]:
        """The sources that can't be relied on at the moment."""
        return frozenset(source.name for source in self._watched if not source.health.well)

    @property
    def _watched(self) -> list[WatchedSource]:
        return [source for source in self.sources if isinstance(source, WatchedSource)]

    def count_in(self, gauge: Gauge) -> None:
        """Have a gauge say how many sources are in which state, whenever it is asked."""
        gauge.labels("well").set_function(lambda: len(self.sources) - len(self.unwell))
        gauge.labels("unwell").set_function(lambda: len(self.unwell))

    async def run(self) -> None:
        """Run every source until cancelled; a fault in one touches neither the others nor the broker.

        Each is in the catalogue from the start, so that one that never answers can be seen there.
        """
        for source in self.sources:
            self._registry.replace_source(source.name, (), spec_url=source.spec_url)
        async with asyncio.TaskGroup() as group:
            for source in self.sources:
                group.create_task(self._keep(source), name=f"enclave-tools-{source.name}")

    async def wait_looked(self, timeout_s: float) -> None:
        """Wait until every source was looked at once, so that the first sessions find their tools; or `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for source in self._watched:
                    await source.looked.wait()

    async def _keep(self, source: ToolSource) -> None:
        try:
            while True:
                try:
                    await source.run(self._registry)
                except Exception:
                    log.exception("tools of %s: a fault of ours", source.name)
                if isinstance(source, WatchedSource):
                    source.looked.set()
                await asyncio.sleep(RESTART_S)
        finally:
            if isinstance(source, WatchedSource):
                await source.close()
