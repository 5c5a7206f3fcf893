"""Sessions that outlive their broker: in a SQLite file.

Theory of operation. The loop fills a batch; a thread stores it. While one batch is being stored the next one fills, so
that a commit takes in whatever piled up during the last one, and nobody waits for a timer. When a batch is stored, on
the loop again, its logs can be read to where they were when it was handed over, and its actions run. Another thread
reads finished sessions. Both have a connection of their own, and WAL lets them work side by side.

A file that can't be written (a full disk, a lock that somebody holds) ends no session and stops none: they go on as
they would in memory, readers included, and everything is offered to the file again until it takes it. Until then the
broker says that it is not durable, and a mark in the lock file tells it to a broker that starts after this one was
killed: what such sessions had told their clients is not known then. What waits to be written is bounded; past that,
the sessions that have not ended are forgotten by the store, and live on in memory alone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .batch import Batch
from .database import Database
from .logs import ShelvedLog, StoredLog
from .records import ending_of, load, place_of, record_of, request_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_broker.event_log import EventLog
    from enclave_broker.sessions import BrokerSession

    from .base import Loaded

log = logging.getLogger("enclave.broker.store")

MIB = 1024 * 1024
RETRY_S = 0.25
"""Time between attempts to write to a file that could not be written."""
UNWRITTEN_BYTES = 64 * MIB
"""What may wait for such a file, at most."""


class SqliteStore:
    """Keeps sessions in a file.

    Args:
        path: where it is; made if there is none.
        unwritten_bytes: what may wait while it can't be written.
    """

    durable = True

    def __init__(self, path: str, *, unwritten_bytes: int = UNWRITTEN_BYTES) -> None:
        self.broker_id = ""
        self.failure = ""
        self._path = path
        self._opened: Database | None = None
        self._unwritten_bytes = unwritten_bytes
        self._next_key = 1
        self._logs: dict[int, StoredLog] = {}  # of the sessions whose end is not stored
        self._batch = Batch()
        self._storing: Batch | None = None
        self._writing: asyncio.Future[None] | None = None  # it, or what was stored last
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="enclave-store")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="enclave-store-reads")
        self._reading: set[asyncio.Future[list[bytes]]] = set()
        self._scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        self._marked = False
        """Whether the next broker would be told that clients know more than the file."""

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise AssertionError("the store is not open")
        return self._opened

    def open(self, *, log_bytes: int, now: float, wall: float) -> Loaded:
        """Open the file, and return the sessions that it has.

        Raises:
            StoreError: it can't be used, another broker uses it, or it is damaged.
        """
        database = Database(self._path)
        try:
            loaded = load(database, self, log_bytes=log_bytes, now=now, wall=wall)
            self._next_key = database.last_key() + 1
        except BaseException:
            database.close()
            raise
        self._opened = database
        self._marked = loaded.unwritten
        self.broker_id = database.broker_id
        self._logs = {found.log.key: found.log for found in loaded.live}
        return loaded

    def new_log(self, max_bytes: int) -> EventLog:
        """Return a log that is stored from `add` on."""
        return StoredLog(max_bytes)

    def add(self, session: BrokerSession) -> None:
        """Keep a session."""
        if not isinstance(session.log, StoredLog) or session.request is None:
            raise AssertionError("not a new session of this store's")
        self._bound()
        stored, key = session.log, self._next_key
        self._next_key += 1
        self._logs[key] = stored
        request = request_of(session.request, encrypted=session.channel is not None)
        self._filling().add(key, session.session_id, record_of(session), request)
        lines = stored.kept()
        stored.keep(self, key, {} if session.channel is not None else session.open_calls)
        for seq, line in enumerate(lines, stored.first_seq):
            self.appended(stored, seq, line)

    def update(self, session: BrokerSession) -> None:
        """Keep where a session is."""
        key = self._kept(session)
        if key is not None:
            self._filling().place(key, place_of(session))

    def answer(self, session: BrokerSession, call_id: str, message: bytes) -> None:
        """Keep the answer of a call."""
        self._bound()
        stored = session.log
        # Those of an encrypted session are in clear here, and of no use to a broker that has no key for it.
        if isinstance(stored, StoredLog) and stored.keeper is not None and session.channel is None:
            batch = self._filling()
            _forget_applied(stored, batch)
            stored.calls.add(call_id)
            batch.answer(stored.key, call_id, message)

    def finish(self, session: BrokerSession) -> None:
        """Keep how a session ended."""
        key = self._kept(session)
        if key is not None:
            batch = self._filling()
            batch.end(key, ending_of(session))
            batch.shelve.append(functools.partial(self._shelve, session, key))

    def remove(self, session: BrokerSession) -> None:
        """Forget a session."""
        stored = session.log
        if isinstance(stored, StoredLog):
            key = self._kept(session)
            stored.let_go()
        else:
            key = stored.key if isinstance(stored, ShelvedLog) else None
        if key is not None:
            self._logs.pop(key, None)
            self._filling().remove(key)

    def then(self, action: Callable[[], object]) -> None:
        """Run an action when everything is stored that was handed over before."""
        if self.failure or self._closed:
            action()
        elif not self._batch.empty or self._batch.actions:
            self._batch.actions.append(action)
        elif self._storing is not None:
            self._storing.actions.append(action)
        else:
            action()

    async def settle(self) -> None:
        """Wait until everything is stored that was handed over before."""
        if self.failure or (self._storing is None and self._batch.empty):
            return
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.then(functools.partial(_set, stored))
        await stored

    async def close(self) -> None:
        """Store the rest, and let go of the file."""
        if self._closed or self._opened is None:
            return
        await self.settle()
        self._closed = True
        if self._writing is not None:
            # Another attempt, or what came since: the rest may only be stored with it or after it, for a file that
            # lacks an event before one that it has is refused as damaged.
            await asyncio.wait([self._writing])
        if self._retry is not None:
            self._retry.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        rest, self._batch = self._batch, Batch()
        await asyncio.get_running_loop().run_in_executor(None, self._shut, rest)
        self._publish(rest)
        for stored in self._logs.values():
            stored.let_go()

    def _shut(self, rest: Batch) -> None:
        self._writer.shutdown()
        self._reader.shutdown()
        try:
            if not rest.empty:
                self._database.write(rest)
        except (sqlite3.Error, OSError) as error:
            log.error("%s could not be written to the end: %s", self._database.path, error)  # noqa: TRY400
        else:
            self._mark(unwritten=False)
        self._database.close()

    # For logs

    def appended(self, log: StoredLog, seq: int, line: bytes) -> None:
        """Store a line."""
        self._bound()
        if log.keeper is None:
            return
        batch = self._filling()
        batch.append(log.key, seq, line)
        if self.failure:
            log.stored(seq + 1)
        else:
            batch.logs[log] = seq + 1

    def trimmed(self, log: StoredLog, calls: dict[str, bytes]) -> None:
        """Store less of a log."""
        self._bound()
        if log.keeper is None:
            return
        batch = self._filling()
        batch.trimmed[log.key] = log.first_seq
        # What is left must be open as far as the lines that are left say.
        _forget_applied(log, batch)
        for call_id in calls.keys() - log.calls:
            batch.answer(log.key, call_id, calls[call_id])
        log.calls |= calls.keys()

    def fetch(self, key: int, from_seq: int, max_bytes: int, done: Callable[[list[bytes] | None], object]) -> None:
        """Read some lines of a finished session."""
        loop = asyncio.get_running_loop()
        if self._closed:
            loop.call_soon(done, None)
            return
        reading = loop.run_in_executor(self._reader, self._database.some_lines, key, from_seq, max_bytes)
        self._reading.add(reading)
        reading.add_done_callback(functools.partial(self._fetched, done))

    def _fetched(self, done: Callable[[list[bytes] | None], object], reading: asyncio.Future[list[bytes]]) -> None:
        self._reading.discard(reading)
        error = None if reading.cancelled() else reading.exception()
        if error is not None:
            log.error("events of a finished session can't be read: %s", error)
        done(None if error is not None or reading.cancelled() else reading.result() or None)

    # Storing

    def _bound(self) -> None:
        """Forget what lives if too much waits. Before anything is handed over: nothing more may be of who is forgotten.

        What would be, the next session that gets its key would inherit.
        """
        if self.failure and self._batch.size_bytes > self._unwritten_bytes:
            self._forget_live()

    def _kept(self, session: BrokerSession) -> int | None:
        self._bound()
        stored = session.log
        return stored.key if isinstance(stored, StoredLog) and stored.keeper is not None else None

    def _filling(self) -> Batch:
        """Return the batch to add to, and see to it that it is stored."""
        if not self.failure and self._storing is None and not (self._scheduled or self._closed):
            self._scheduled = True  # soon, not now: what belongs together is still being handed over
            asyncio.get_running_loop().call_soon(self._store)
        return self._batch

    def _store(self) -> None:
        self._scheduled = False
        if self._closed:
            return  # `close` stores the rest
        batch, self._batch = self._batch, Batch()
        self._storing = batch
        self._writing = asyncio.get_running_loop().run_in_executor(self._writer, self._database.write, batch)
        self._writing.add_done_callback(functools.partial(self._stored, batch))

    def _stored(self, batch: Batch, storing: asyncio.Future[None]) -> None:
        error = storing.exception()
        if error is not None:
            self._failed(batch, error)
            return
        # What came since the file failed was told to clients as it came, and is stored with the next batch. What the
        # broker before this one could not write needs no mark once it is stored how this one ended those sessions.
        if not self.failure or self._batch.empty:
            self._mark(unwritten=False)
        if self.failure:
            log.warning("%s can be written again: sessions are durable again", self._database.path)
            self.failure = ""
        self._publish(batch)
        for shelve in batch.shelve:
            shelve()
        self._storing = None
        if not self._batch.empty:
            self._store()

    def _failed(self, batch: Batch, error: BaseException) -> None:
        if not self.failure:
            log.error("%s can't be written: %s; sessions go on in memory until it can", self._database.path, error)
            self._mark(unwritten=True)
        self.failure = str(error) or type(error).__name__
        self._publish(batch)
        self._publish(self._batch)
        batch.merge(self._batch)
        self._batch, self._storing = batch, None
        self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._store)

    def _mark(self, *, unwritten: bool) -> None:
        if unwritten != self._marked:
            self._marked = unwritten
            try:
                self._database.mark_unwritten(unwritten=unwritten)
            except OSError as error:  # which must not keep sessions waiting for the store
                log.error("%s.lock can't be written: %s", self._database.path, error)  # noqa: TRY400

    def _publish(self, batch: Batch) -> None:
        for stored, end_seq in batch.logs.items():
            stored.stored(end_seq)
        batch.logs.clear()
        for action in batch.actions:  # which may add to them: `then` while this runs comes after what is there
            try:
                action()
            except Exception:  # one session's fault must not keep all others from being stored
                log.exception("an action that waited for the store failed")
        batch.actions.clear()

    def _shelve(self, session: BrokerSession, key: int) -> None:
        stored = self._logs.pop(key, None)
        if stored is not None and session.log is stored:
            # Who reads it at this moment keeps it alive, and reads it to its end.
            session.log = stored.shelved(self)

    def _forget_live(self) -> None:
        log.error(
            "over %d bytes wait for %s: live sessions are in memory alone from here on",
            self._unwritten_bytes,
            self._database.path,
        )
        for stored in self._logs.values():
            stored.let_go()
        self._logs.clear()
        self._batch = Batch(removed=self._batch.removed, forget_live=True)


def _forget_applied(log: StoredLog, batch: Batch) -> None:
    """Store no longer what is known of calls whose guest has the result."""
    for call_id in log.calls - log.open_calls.keys():
        batch.apply(log.key, call_id)
    log.calls.intersection_update(log.open_calls)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
