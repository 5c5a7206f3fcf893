"""What really happened in a run, and whether everybody was told so: the guarantees of a fleet, as checks.

The truth comes from beside the programs: the guests' own books, the tools' own counts, and every byte that reached a
client. Anything else that a program says is held against it. A check that fails adds to `violations`, and the run goes
on: what follows can tell why.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from enclave_broker.store.logs import ShelvedLog
from enclave_protocol import peek

if TYPE_CHECKING:
    from .guests import GuestRun
    from .world import World

GRACE_S = 6.0
"""How much later than its deadline a session may end, whatever happens: the broker's own grace, a detection of silence,
and a tick."""
Note = tuple[float, float, str, str]
"""From when, until when, what, and to whom."""
RETRYABLE = frozenset({"again"})
"""Tools that may run more than once for a call."""
KILLED = "its client was killed"


class Reading:
    """One client's reading of one session."""

    def __init__(self, truth: Truth, session_id: str, who: str) -> None:
        self.session_id = session_id
        self.who = who
        self.next_seq = 1
        self.finished = False
        self.over = False
        self.lost = ""
        """Why its end was not learned."""
        self.lost_s = 0.0
        self._truth = truth

    def lose(self, why: str) -> None:
        """Note that the client was told that it will not learn the end."""
        self.lost, self.lost_s = why, self._truth.now()

    def take(self, line: bytes) -> None:
        """Take in what the client's program was given."""
        truth, where = self._truth, f"{self.who} of {self.session_id}"
        envelope = peek(line)
        if self.finished:
            truth.violation("nothing after the final", f"{where} got {line[:200]!r}")
        if envelope.seq != self.next_seq:
            truth.violation(
                "nothing lost, doubled or reordered", f"{where} got {envelope.seq}, due was {self.next_seq}"
            )
        self.next_seq = int(envelope.seq or 0) + 1
        self.finished = envelope.type == "final"
        truth.told(self.session_id, int(envelope.seq or 0), line, where)


class Truth:
    """The books of one run."""

    def __init__(self, world: World) -> None:
        self.violations: list[str] = []
        self.runs: list[GuestRun] = []
        self.readings: list[Reading] = []
        self.seen: dict[str, dict[int, bytes]] = defaultdict(dict)
        """By session and number: what a client was told."""
        self.seen_at_s: dict[tuple[str, int], float] = {}
        self.accepted_s: dict[str, float] = {}
        """When a broker was first seen to have a session."""
        self.ended_s: dict[str, float] = {}
        self.cancelled_s: dict[str, float] = {}
        self.notes: list[Note] = []
        """What went wrong."""
        self.tool_calls: dict[tuple[str, str], int] = defaultdict(int)
        """By tool and call: how often it ran."""
        self._world = world
        self._checked: dict[str, int] = {}

    def now(self) -> float:
        """Return the time."""
        return self._world.loop.time()

    def violation(self, rule: str, what: str) -> None:
        """Note that a guarantee does not hold."""
        self.violations.append(f"[{self._world.loop.time():.4f}] {rule}: {what}")

    def reading(self, session_id: str, who: str) -> Reading:
        """Begin a reading."""
        self.readings.append(Reading(self, session_id, who))
        return self.readings[-1]

    def told(self, session_id: str, seq: int, line: bytes, where: str) -> None:
        """Note what a client was told; everybody has to be told the same."""
        known = self.seen[session_id].setdefault(seq, line)
        self.seen_at_s.setdefault((session_id, seq), self._world.loop.time())
        if known != line:
            self.violation("replays are byte-identical", f"{where} got {line[:200]!r}, before it was {known[:200]!r}")

    def cancelled(self, session_id: str) -> None:
        """Note that a client asked for the end."""
        self.cancelled_s.setdefault(session_id, self._world.loop.time())

    def called_at_client(self, session_id: str, number: int) -> None:
        """Note that a client's tool ran."""
        self.tool_calls["local", f"{session_id} {number}"] += 1

    def note(self, kind: str, who: str, for_s: float = 0.0) -> None:
        """Note what goes wrong."""
        now = self._world.loop.time()
        self.notes.append((now, now + for_s, kind, who))

    def digest(self) -> str:
        """Return a hash of what everybody was told, and when."""
        told = hashlib.sha256()
        for session_id in sorted(self.seen):
            for seq in sorted(self.seen[session_id]):
                told.update(f"{self.seen_at_s[session_id, seq]!r} ".encode() + self.seen[session_id][seq])
        return told.hexdigest()[:16]

    # Every moment

    def check_now(self) -> None:
        """Check what is always true."""
        world = self._world
        for worker in world.workers.values():
            if worker.alive:
                self._check_worker(worker.name, worker.sessions.active, worker.sessions.config.max_sessions)
        if world.broker.alive:
            self._check_broker()

    def _check_worker(self, name: str, active: int, slots: int) -> None:
        if active > slots:
            self.violation("slots", f"{name} has {active} sessions in {slots} slots")

    def _check_broker(self) -> None:
        dispatcher, now = self._world.broker.dispatcher, self._world.loop.time()
        try:
            dispatcher.validate()
        except AssertionError as error:
            self.violation("the broker's books", str(error))
        for session in dispatcher.directory.sessions():
            session_id = session.session_id
            if session.log.end_seq > 1:
                self.accepted_s.setdefault(session_id, session.created)
            else:
                continue  # nobody was told yet
            self._check_log(session_id, session.log)
            if session.log.ended:
                self.ended_s.setdefault(session_id, now)
            elif now > self.latest_end_s(session_id):
                self.violation("one ending, in time", f"{session_id} lives at {now:.2f}: {session!r}")

    def _check_log(self, session_id: str, log: Any) -> None:
        first = max(self._checked.get(session_id, 0) + 1, log.first_seq)
        if first >= log.end_seq or isinstance(log, ShelvedLog):
            return
        kinds = []
        for seq, line in enumerate(log.lines(first, log.max_bytes), first):
            envelope = peek(line)
            kinds.append(envelope.type)
            if envelope.seq != seq or envelope.session_id != session_id:
                self.violation("numbers are contiguous", f"{session_id}: event {envelope.seq} at {seq}")
        self._checked[session_id] = log.end_seq - 1
        if "final" in kinds[:-1] or (log.ended != (kinds[-1] == "final")):
            self.violation("one ending", f"{session_id}: {kinds}, ended={log.ended}")

    def broker_died(self) -> None:
        """Note that what it had in its memory counts no more."""
        self._checked.clear()

    def latest_end_s(self, session_id: str) -> float:
        """Return when a session has ended at the latest."""
        plan, world = self._world.sessions[session_id], self._world
        accepted_s = self.accepted_s[session_id]
        wall_s = plan.wall_ms / 1000
        queued_s = min(world.config.queue_timeout_ms / 1000, wall_s)
        return accepted_s + queued_s + wall_s + GRACE_S + self._absent_s(accepted_s)

    def _absent_s(self, since_s: float) -> float:
        """Return for how long there was no broker since then."""
        return sum(
            until - max(begin, since_s)
            for begin, until, kind, who in self.notes
            if who == "broker" and kind in {"freeze", "down"} and until > since_s
        )

    def seen_of_worker(self, session_id: str) -> list[int]:
        """Return the numbers of a session's events that were a worker's, as far as anybody saw them."""
        kinds = {"stdout", "tool_call", "log"}
        return [seq for seq, line in sorted(self.seen[session_id].items()) if peek(line).type in kinds]

    def first_worker_event_s(self, session_id: str) -> float | None:
        seqs = self.seen_of_worker(session_id)
        return self.seen_at_s[session_id, seqs[0]] if seqs else None
