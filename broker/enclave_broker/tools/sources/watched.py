"""What sources that may fail and change have in common: how they are, in words and in the log."""

from __future__ import annotations

import asyncio
import logging

from enclave_broker.tools.tool import ToolSource

from .health import Health

log = logging.getLogger("enclave.broker.tools")


class WatchedSource(ToolSource):
    """A source that is looked at again and again.

    Args:
        name: its name.
        spec_url: where its description lies, for everybody to see; empty if nowhere.
    """

    def __init__(self, name: str, *, spec_url: str = "") -> None:
        self.name = name
        self.spec_url = spec_url
        self.health = Health()
        self.looked = asyncio.Event()
        """Set when it was looked at for the first time, whatever came of it."""

    async def close(self) -> None:
        """Give up what it holds outside of `run`. Called once, in the end."""

    def failed(self, words: str) -> None:
        """Note that a look failed, and log it if it is news."""
        known = words == self.health.error
        if self.health.failed(words):
            log.error("tools of %s: unwell, %d failures in a row: %s", self.name, self.health.failures, words)
        elif not known:
            log.warning("tools of %s: %s", self.name, words)

    def succeeded(self) -> None:
        """Note that a look succeeded, and log it if it is news."""
        if self.health.succeeded():
            log.info("tools of %s: recovered", self.name)
