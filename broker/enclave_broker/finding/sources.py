"""Sources of workers: each says the names of those that it has found, and how they are dialled.

What a source can't read, and what says that there are no workers at all, leaves its last list in force: a list that is
wrong for a while costs attempts to connect, an empty one the fleet. The log and `enclave_worker_source_stale` say so.
"""

from __future__ import annotations

import abc
import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_broker.channels import WebSocketDial

from .urls import canonical, check_worker_url, is_encrypted

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Gauge

    from enclave_broker.channels import Dial

log = logging.getLogger("enclave.broker.finding")

MAX_WORKERS = 1000
"""Of one source."""
MAX_FILE_BYTES = 1024 * 1024


class Unreadable(Exception):  # noqa: N818 - what happened
    """A source does not say which workers there are; the text says why.

    Attributes:
        found: those that it named nevertheless, by name: they are there, but others may be, too.
    """

    def __init__(self, why: str, found: Mapping[str, Dial] | None = None) -> None:
        self.found = found or {}
        super().__init__(why)


class Connecting:
    """How workers that are found by a URL are dialled: the same for all.

    Args:
        timeout_s: longest wait for a connection and its handshake.
        token: the secret that workers want; empty sends none.
        tls: how `wss://` is spoken; None leaves it to the system's authorities.
    """

    def __init__(self, *, timeout_s: float, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._timeout_s = timeout_s
        self._token = token
        self._tls = tls

    def check(self, place: str) -> None:
        """Raise ValueError for a place without TLS where certificates are configured."""
        if self._tls is not None and not is_encrypted(place):
            raise ValueError(f"worker URL {place!r}: is not encrypted, but worker_tls_… is given: write wss://")

    def dial(self, url: str, *, certified_as: str = "") -> Dial:
        """Return what dials a URL; `certified_as` is whose certificate is wanted, if not that of the URL's host."""
        return WebSocketDial(
            url, timeout_s=self._timeout_s, token=self._token, tls=self._tls, certified_as=certified_as
        )


class Source(abc.ABC):
    """Where some of the workers are found.

    Args:
        label: what log and metrics call it.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    @property
    @abc.abstractmethod
    def names(self) -> Iterable[str]:
        """The workers that there are, by the names of their links."""

    @abc.abstractmethod
    def dial(self, name: str) -> Dial:
        """Return what connects to one of them."""

    def forget(self, name: str) -> None:  # noqa: B027 - most keep nothing
        """Let go of what was kept for a link that has ended for good."""

    @abc.abstractmethod
    async def run(self, changed: Callable[[], None]) -> None:
        """Keep `names` true, calling `changed` after each change, until cancelled or there will be none."""


class FixedSource(Source):
    """Workers that never change: those of the command line, and those in this process."""

    def __init__(self, dials: Mapping[str, Dial]) -> None:
        super().__init__("fixed")
        self._dials = dict(dials)

    @property
    def names(self) -> Iterable[str]:
        """All of them."""
        return self._dials

    def dial(self, name: str) -> Dial:
        """Return what connects to one of them."""
        return self._dials[name]

    async def run(self, changed: Callable[[], None]) -> None:
        """Nothing ever changes."""


def fixed_urls(urls: Iterable[str], connecting: Connecting) -> dict[str, Dial]:
    """Return what dials these workers, by name. Two spellings of one URL are one worker."""
    dials: dict[str, Dial] = {}
    for url in urls:
        dials.setdefault(canonical(url), connecting.dial(url))
    return dials


class WatchedSource(Source):
    """A list that is looked at again and again.

    Args:
        label: what log and metrics call it.
        every_s: how often it is looked at.
        stale: says whether the last look failed.
    """

    def __init__(self, label: str, *, every_s: float, stale: Gauge) -> None:
        super().__init__(label)
        self._every_s = every_s
        self._stale = stale.labels(label)
        self._dials: dict[str, Dial] = {}
        self._trouble = False

    @property
    def names(self) -> Iterable[str]:
        """The last list that could be read."""
        return self._dials

    def dial(self, name: str) -> Dial:
        """Return what connects to one of them."""
        return self._dials[name]

    @abc.abstractmethod
    async def look(self) -> Mapping[str, Dial] | None:
        """Return the workers that there are; None if nothing has changed. Raises Unreadable."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Look, again and again."""
        while True:
            try:
                found = await self.look()
                if found is not None:
                    self._take(found, changed)
            except Unreadable as error:
                self._add(error.found, changed)
                self.failed(str(error))
            await asyncio.sleep(self._every_s)

    def failed(self, why: str) -> None:
        """Note that the list could not be read."""
        self._stale.set(1)
        level = logging.DEBUG if self._trouble else logging.ERROR  # once: what it says may differ each time
        log.log(level, "workers of %s: the last list stays in force, %d workers: %s", self.label, len(self._dials), why)
        self._trouble = True

    def _take(self, found: Mapping[str, Dial], changed: Callable[[], None]) -> None:
        if not found:
            raise Unreadable("it names no worker")
        if len(found) > MAX_WORKERS:
            raise Unreadable(f"it names {len(found)} workers (allowed: up to {MAX_WORKERS})")
        if self._trouble:
            log.info("workers of %s: the list can be read again", self.label)
        self._trouble = False
        self._stale.set(0)
        self._exchange(found, changed)

    def _add(self, found: Mapping[str, Dial], changed: Callable[[], None]) -> None:
        both = {**found, **self._dials}
        if len(both) <= MAX_WORKERS:
            self._exchange(both, changed)

    def _exchange(self, found: Mapping[str, Dial], changed: Callable[[], None]) -> None:
        came, left = found.keys() - self._dials.keys(), self._dials.keys() - found.keys()
        self._dials = dict(found)
        if came or left:
            log.info("workers of %s: %d, of which %d are new; %d left", self.label, len(found), len(came), len(left))
            changed()


class FileSource(WatchedSource):
    """A file with one URL per line, read again when it changes. Blank lines and those that begin with # are skipped.

    One bad line refuses the whole file: half a list would drain the other half of the fleet.
    """

    def __init__(self, path: str, connecting: Connecting, *, stale: Gauge, every_s: float) -> None:
        super().__init__(path, every_s=every_s, stale=stale)
        self._path = Path(path)
        self._connecting = connecting
        self._seen: tuple[int, int, int, int] | None = None

    async def look(self) -> Mapping[str, Dial] | None:
        """Read the file, if it is not what it was; raises Unreadable."""
        try:
            status = self._path.stat()
            seen = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            if seen == self._seen:
                return None
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            self._seen = None
            raise Unreadable(error.strerror or str(error)) from error
        self._seen = seen
        return self._parse(data)

    def _parse(self, data: bytes) -> Mapping[str, Dial]:
        if len(data) > MAX_FILE_BYTES:
            raise Unreadable(f"it is larger than {MAX_FILE_BYTES} bytes")
        try:
            lines = data.decode().splitlines()
        except UnicodeDecodeError:
            raise Unreadable("it is not UTF-8") from None
        urls = []
        for number, line in enumerate(lines, 1):
            url = line.strip()
            if not url or url.startswith("#"):
                continue
            try:
                self._connecting.check(check_worker_url(url))
            except ValueError as error:
                raise Unreadable(f"line {number}: {error}") from error
            urls.append(url)
        return fixed_urls(urls, self._connecting)
