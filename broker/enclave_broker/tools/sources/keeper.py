"""Runs the sources of a broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enclave_broker.tools.registry import ToolRegistry

    from .watched import WatchedSource

log = logging.getLogger("enclave.broker.tools")

RESTART_S = 30.0
"""Wait after a source failed in a way that it should not."""


class SourceKeeper:
    """All sources of a broker, each in a task of its own.

    Args:
        sources: made, and not run yet.
        registry: where their tools go.
    """

    def __init__(self, sources: Sequence[WatchedSource], registry: ToolRegistry) -> None:
        self.sources = tuple(sources)
        self._registry = registry

    async def run(self) -> None:
        """Run every source until cancelled; a fault in one touches neither the others nor the broker."""
        async with asyncio.TaskGroup() as group:
            for source in self.sources:
                group.create_task(self._keep(source), name=f"enclave-tools-{source.name}")

    async def wait_looked(self, timeout_s: float) -> None:
        """Wait until every source was looked at once, so that the first sessions find their tools; or `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for source in self.sources:
                    await source.looked.wait()

    async def _keep(self, source: WatchedSource) -> None:
        try:
            while True:
                try:
                    await source.run(self._registry)
                except Exception as error:
                    log.exception("tools of %s: a fault of ours", source.name)
                    source.failed(f"{type(error).__name__}: {error}")
                source.looked.set()
                await asyncio.sleep(RESTART_S)
        finally:
            await source.close()
