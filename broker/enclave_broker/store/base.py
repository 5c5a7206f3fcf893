"""The one interface behind the session directory and the event log.

Two rules make a broker that is killed one that has lost nothing:

- Nobody is told what is not stored. Readers of a log see its lines once they are stored; what goes out for a session
  (the `execute` to its worker, an answer, a tool that is run for it, an `ack`) goes by `then`, which runs it once
  everything handed over before is stored.
- What belongs together is handed over without a pause in between, and is stored together or not at all.

A store in memory has stored at once: `then` runs its action, logs wake their readers, and nothing here costs anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from enclave_protocol import EnclaveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_broker.event_log import EventLog
    from enclave_broker.sessions import BrokerSession

    from .logs import StoredLog


class StoreError(EnclaveError):
    """The store can't be used; the text says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unended:
    """A session that had not ended."""

    session: BrokerSession
    log: StoredLog
    """The session's."""
    calls: list[bytes]
    """Events of open calls that the log has no more."""
    answers: dict[str, bytes]
    """By the calls' ids; also of calls whose guest has it by now."""
    encrypted: bool
    """Whether its events were sealed, with a key that is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a file has."""

    finished: list[BrokerSession]
    """The one that ended first comes first."""
    live: list[Unended]
    """In the order they were made."""
    unwritten: bool
    """Whether the live ones may have told more than what is stored."""


class Store(Protocol):
    """Keeps sessions. Its methods are called on one event loop, and none but the `async` ones waits.

    Whether a session is still wanted is not decided here but by the directory, for every store in the same way.
    """

    durable: bool
    """Whether the next broker finds what this one has stored."""
    failure: str
    """Why what should be stored is not, at the moment: sessions go on in memory. Empty if all is well."""
    broker_id: str
    """Names the broker to its workers: the same at every start if the store is durable, else a new one."""

    def open(self, *, log_bytes: int, now: float, wall: float) -> Loaded:
        """Get ready, and return what there is. To be called first, and once.

        Args:
            log_bytes: the size of live sessions' logs.
            now: seconds on the monotonic clock.
            wall: seconds since the epoch.

        Raises:
            StoreError: it can't be used.
        """

    def new_log(self, max_bytes: int) -> EventLog:
        """Return the log of a new session, which is kept here from `add` on. Its readers see what is stored."""

    def add(self, session: BrokerSession) -> None:
        """Keep a session: its request, and its log with all that it has and gets."""

    def update(self, session: BrokerSession) -> None:
        """Keep where a session is now, and whether it is to be cancelled."""

    def answer(self, session: BrokerSession, call_id: str, message: bytes) -> None:
        """Keep the answer of a tool call, as long as it is among the session's own."""

    def finish(self, session: BrokerSession) -> None:
        """Keep how a session ended, whose log has just got its last line, and no more than a reader needs of it.

        When that is stored, the session may be given another log, to read it from the store.
        """

    def remove(self, session: BrokerSession) -> None:
        """Forget a session. Who reads its log still does, to its end, also of one that goes on: it is in memory."""

    def then(self, action: Callable[[], object]) -> None:
        """Run an action when everything handed over before it is stored; at once, if it is. In the order of the calls.

        An action must not raise, and has to look whether it still makes sense: its session may have ended.
        """

    async def settle(self) -> None:
        """Wait until everything that was handed over so far is stored."""

    async def close(self) -> None:
        """Store what is not stored yet, and let go of files. Safe to call again."""
