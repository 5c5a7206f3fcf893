"""The one owner of the links to workers.

Theory of operation. Sources say which workers there are; after each change `_apply` compares their names with the
links that there are (`changes.compare`, pure) and does what it says. A link is a task of the keeper's group from its
start until it has ended, and as long is `fleet.links[name]` that link, unless it is one of two to one worker.

A worker that leaves its list is retired: it gets no new sessions, and its link is closed when the last of its sessions
has ended, which the broker's clock asks about. One that comes back meanwhile is taken back as it is. One that comes
back while its link is being closed waits for that: two links of one name never exist.

A worker may be found twice, by two names or in two ways. The first link on which its `instance` says hello is the one
that counts; on the others it is refused, and they keep trying, so that one of them takes over when the first is gone,
with the sessions that are on the worker.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_broker.links import Link
from enclave_protocol import Drain, encode

from .changes import Present, compare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enclave_broker.config import BrokerConfig
    from enclave_broker.fleet import Fleet
    from enclave_protocol import Hello

    from .sources import Source

log = logging.getLogger("enclave.broker.finding")


class LinkKeeper:
    """The links of one broker.

    Args:
        sources: where workers are found; of two that have found the same, the first is asked to dial.
        fleet: whose links they are.
        config: the links' intervals and sizes.
    """

    def __init__(self, sources: Sequence[Source], fleet: Fleet, config: BrokerConfig) -> None:
        self.sources = tuple(sources)
        self._fleet = fleet
        self._config = config
        self._group: asyncio.TaskGroup | None = None
        self._links: dict[str, Link] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[str] = set()
        self._left: set[str] = set()  # whose worker left its list
        self._drained: dict[str, str | None] = {}  # by link, which life of its worker an operator has ended

    async def run(self) -> None:
        """Keep the links, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._apply()
            for source in self.sources:
                group.create_task(source.run(self._apply), name=f"enclave-find-{source.label}")
            await asyncio.Event().wait()

    def tick(self) -> None:
        """Close the links of retired workers whose sessions have ended."""
        if self._left and self._group is not None:
            self._apply()

    def cut_silent(self, name: str, reason: str) -> bool:
        """End the present connection of a link, if there is one; False, and nothing is done, if its worker is heard."""
        link = self._links.get(name)
        if link is None:
            return True
        if link.heard:
            return False
        link.cut(reason)
        return True

    def drain(self, worker_id: str) -> list[str]:
        """Have a worker get no new sessions and, if it can be told, end once it has none.

        Args:
            worker_id: what it calls itself.

        Returns:
            The links to it, by name; none if it is not connected. What is started in its place is used again.
        """
        links = [link for link in self._links.values() if link.up and link.worker_id == worker_id]
        for link in links:
            self._drained[link.name] = link.instance
            self._retire(link)
            if link.resumes:
                link.send(encode(Drain(reason="an operator drains this worker")))
        return sorted(link.name for link in links)

    def _apply(self) -> None:
        wanted: dict[str, Source] = {}
        for source in self.sources:
            for name in source.names:
                wanted.setdefault(name, source)
        changes = compare(wanted, {name: self._state(name) for name in self._tasks})
        for name in changes.stop:
            self._stopping.add(name)
            self._left.discard(name)
            self._tasks[name].cancel()
        for name in changes.retire:
            message = "worker %s left its list: no new sessions, and its link ends with the last one"
            log.info(message, name, extra=self._links[name].about)
            self._left.add(name)
            self._retire(self._links[name])
        for name in changes.take_back:
            log.info("worker %s is back on its list", name, extra=self._links[name].about)
            self._left.discard(name)
            self._retire(self._links[name])
        for name in changes.start:
            self._start(name, wanted[name])

    def _state(self, name: str) -> Present:
        if name in self._stopping:
            return Present.STOPPING
        if name not in self._left:
            return Present.KEPT
        # A worker that is not told that its last events are kept would wait for that, for as long as its lease.
        settled = not self._fleet.link_busy(name) and self._links[name].settled
        return Present.RETIRED_IDLE if settled else Present.RETIRED_BUSY

    def _start(self, name: str, source: Source) -> None:
        assert self._group is not None, "links are started by `run` alone"
        link = Link(name, source.dial(name), self._fleet.incoming, self._config, admit=self._admit)
        self._links[name] = self._fleet.links[name] = link
        task = self._tasks[name] = self._group.create_task(link.run(), name=f"enclave-link-{name}")
        task.add_done_callback(lambda _: self._ended(link))

    def _retire(self, link: Link) -> None:
        link.retiring = self._is_retired(link, link.instance)
        if link.retiring:
            self._fleet.incoming.link_retired(link)

    def _is_retired(self, link: Link, instance: str | None) -> bool:
        return link.name in self._left or (link.name in self._drained and self._drained[link.name] == instance)

    def _ended(self, link: Link) -> None:
        del self._tasks[link.name], self._links[link.name]
        self._drained.pop(link.name, None)
        if link.name in self._stopping:  # else the broker stops
            self._stopping.discard(link.name)
            self._fleet.incoming.link_gone(link)
            for source in self.sources:
                source.forget(link.name)
            log.info("worker %s: link closed", link.name, extra=link.about)
            self._apply()

    def _admit(self, link: Link, hello: Hello) -> str | None:
        """Return why a worker is not used on this link, None if it is."""
        other = None if hello.instance is UNSET else self._holder(hello.instance, link)
        if other is None:
            if hello.instance is UNSET or self._drained.get(link.name) != hello.instance:
                self._drained.pop(link.name, None)  # it was started again; of one that does not say, that is assumed
            link.retiring = self._is_retired(link, hello.instance or None)
            self._fleet.links[link.name] = link
            return None
        self._fleet.links.pop(link.name, None)
        return f"it is worker {hello.worker_id}, which {other.name} leads to already"

    def _holder(self, instance: str, asking: Link) -> Link | None:
        for link in self._fleet.links.values():
            if link is not asking and link.up and link.instance == instance:
                return link
        return None
