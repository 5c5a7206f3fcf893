"""What really happened in a run, and whether everybody was told so: the guarantees of a fleet, as checks.

The truth comes from beside the programs: the guests' own books, the tools' own counts, and every byte that reached a
client. Anything else that a program says is held against it. A check that fails adds to `violations`, and the run goes
on: what follows can tell why.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from enclave_broker.store.logs import ShelvedLog
from enclave_protocol import peek

if TYPE_CHECKING:
    from enclave_broker.event_log import EventLog

    from .guests import GuestRun
    from .plan import SessionPlan
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

    # The end

    async def check_end(self) -> None:
        """Check what has to be true when everything is over and mended."""
        for reading in self.readings:
            if not reading.over:
                self.violation("no stream hangs", f"{reading.who} of {reading.session_id} waits for {reading.next_seq}")
            elif not reading.finished and not reading.lost:
                self.violation("one ending", f"{reading.who} of {reading.session_id} ended at {reading.next_seq - 1}")
            elif reading.lost and (reason := self._unfounded(reading)):
                self.violation(
                    "no stream is given up", f"{reading.who} of {reading.session_id}: {reading.lost}: {reason}"
                )
        for session_id in self.accepted_s:
            self._check_session(session_id)
        self._check_runs()
        for (tool, call), times in self.tool_calls.items():
            if times > 1 and tool not in RETRYABLE:
                self.violation("a call runs its tool once", f"{tool} ran {times} times for {call}")
        await self._check_logs()
        self._check_idle()

    def _unfounded(self, reading: Reading) -> str:
        """Return why a client's program may not be told that it will not learn the end; empty if it may."""
        session_id, why = reading.session_id, reading.lost
        accepted_s = self.accepted_s.get(session_id, float("inf"))
        if why == KILLED:
            return ""
        if why == "HTTP 503":
            return ""  # see BrokerHost: not while a slot is free
        if why.startswith("BrokerUnavailable"):
            return "" if accepted_s == float("inf") else "it was accepted"
        if why == "HTTP 404" and reading.next_seq == 1:
            return "" if accepted_s >= reading.lost_s - 2.0 else "it was accepted before"
        if why.startswith("SessionLost") and reading.next_seq == 1 and session_id in self.cancelled_s:
            return "" if accepted_s == float("inf") else "it was accepted"
        return "nothing justifies it"

    def _check_session(self, session_id: str) -> None:
        plan = self._world.sessions[session_id]
        lines = self.seen[session_id]
        if not lines:
            return
        if sorted(lines) != list(range(1, len(lines) + 1)):
            self.violation("numbers are contiguous from 1", f"{session_id}: {sorted(lines)}")
            return
        events = [msgspec.json.decode(lines[seq]) for seq in sorted(lines)]
        if events[0]["type"] not in {"session_init", "final"}:
            self.violation("a stream begins", f"{session_id}: {events[0]['type']}")
        if events[-1]["type"] == "final":
            self._check_final(plan, events)

    def _check_final(self, plan: SessionPlan, events: list[dict[str, Any]]) -> None:
        session_id, payload = plan.session_id, events[-1]["payload"]
        runs = [run for run in self.runs if run.session_id == session_id]
        said = "".join(event["payload"]["chunk"] for event in events if event["type"] == "stdout")
        if payload["ok"]:
            run = next((run for run in runs if run.said == "result" and run.result == payload.get("result")), None)
            if run is None:
                self.violation("a final does not lie", f"{session_id} ended with {payload}, guests: {runs}")
            elif said != "".join(run.printed):
                self.violation("no output is lost", f"{session_id} said {said!r}, its guest {run.printed}")
            elif payload["stats"]["stdoutBytes"] != len(said):
                self.violation("a final does not lie", f"{session_id} has {payload['stats']}, and {len(said)} bytes")
            self._check_calls(session_id, events, run)
            return
        if not any("".join(run.printed).startswith(said) for run in runs) and said:
            self.violation("no output is made up", f"{session_id} said {said!r}, its guests {runs}")
        code = payload["error"]["code"]
        reason = self.unjustified(plan, code, runs)
        if reason:
            self.violation("honest endings", f"{session_id} ended with {payload['error']}: {reason}")

    def _check_calls(self, session_id: str, events: list[dict[str, Any]], run: GuestRun | None) -> None:
        made = [event["payload"]["callId"] for event in events if event["type"] == "tool_call"]
        applied = [event["payload"]["callId"] for event in events if event["type"] == "tool_result_applied"]
        if len(set(made)) != len(made) or len(set(applied)) != len(applied) or not set(applied) <= set(made):
            self.violation("calls", f"{session_id} made {made}, applied {applied}")
        if run is not None and len(made) != len(run.called):
            self.violation("calls", f"{session_id} shows {len(made)} calls, its guest made {run.called}")
        if run is not None and self._world.plan.mood != "rough":
            self._check_answers(run)

    def _check_answers(self, run: GuestRun) -> None:
        """Hold what a guest was told against what its tools say, where nothing keeps them from being heard."""
        disturbed = {kind for _, _, kind, _ in self.notes} & {"down", "silent"}
        for number, name in enumerate(run.called, 1):
            right: list[Any] = (
                [{"failed": "NOT_TODAY"}] if name == "fails" else [number * 10 if name == "local" else number]
            )
            right += [{"failed": "LATER"}] if name == "again" else []
            answer = run.answers[number][0]
            if answer not in right and not (disturbed and isinstance(answer, dict)):
                self.violation("answers arrive", f"call {number} of {name} in {run.session_id} got {answer}")

    def unjustified(self, plan: SessionPlan, code: str, runs: list[GuestRun]) -> str:
        """Return why a session may not end with this code; empty if it may."""
        if code == plan.natural and code != "DEADLINE_EXCEEDED":
            return ""
        begin = self.accepted_s[plan.session_id]
        end = self.ended_s.get(plan.session_id, self.now())
        check = getattr(self, f"_unjustified_{code.lower()}", None)
        return check(plan, runs, begin, end) if check is not None else "no such ending was due"

    def _unjustified_deadline_exceeded(self, plan: SessionPlan, runs: list[GuestRun], begin: float, end: float) -> str:
        if plan.mood != "rough" and any(run.said and run.said_s < end - GRACE_S for run in runs):
            return "its guest had ended long before"
        return "" if end - begin >= plan.wall_ms / 1000 - 0.01 else f"it lived {end - begin:.2f} s only"

    def _unjustified_session_cancelled(self, plan: SessionPlan, _: list[GuestRun], begin: float, end: float) -> str:
        if plan.session_id in self.cancelled_s or self._client_was_away(plan, begin, end):
            return ""
        return "nobody asked for it, and its client was there"

    def _unjustified_no_capacity(self, plan: SessionPlan, runs: list[GuestRun], begin: float, end: float) -> str:
        if end - begin >= min(self._world.config.queue_timeout_ms, plan.wall_ms) / 1000 - 0.01 or not runs:
            return ""
        return f"after {end - begin:.2f} s"

    def _unjustified_worker_lost(self, plan: SessionPlan, _: list[GuestRun], begin: float, end: float) -> str:
        return "" if self._world.faults.may_lose_worker(plan, begin, end) else "no worker was lost"

    def _client_was_away(self, plan: SessionPlan, begin: float, end: float) -> bool:
        """Whether a client can have been out of the broker's sight for as long as it takes to be given up."""
        grace_s = self._world.config.disconnect_grace_s
        who = {f"client{plan.client}", "broker"}
        slack_s = 3 * RETURN_S if plan.mood == "rough" else 0.0
        return any(
            at_s <= end and whom in who and (kind == "killed" or until - at_s + slack_s >= grace_s)
            for at_s, until, kind, whom in self.notes
            if until >= begin - grace_s
        )

    def _check_runs(self) -> None:
        by_session: dict[str, list[GuestRun]] = defaultdict(list)
        for run in self.runs:
            by_session[run.session_id].append(run)
            if run.alive:
                self.violation("no sandbox outlives its session", f"{run}")
            doubled = {number: answers for number, answers in run.answers.items() if len(answers) > 1}
            if doubled:
                self.violation("one answer per call", f"{run.session_id}: {doubled}")
            ended = self.ended_s.get(run.session_id)
            if ended is not None and run.gone_s is not None and run.gone_s > ended + self._world.faults.outlives_s(run):
                self.violation(
                    "no sandbox outlives its session",
                    f"{run.session_id} ended at {ended:.2f}, its sandbox on {run.worker} at {run.gone_s:.2f}",
                )
        for session_id, runs in by_session.items():
            plan = self._world.sessions[session_id]
            most = 3 if plan.safe else 1
            if len(runs) > most:
                self.violation("a session is run once", f"{session_id}, safe={plan.safe}: {runs}")
            for earlier, later in itertools.pairwise(runs):
                first = self._first_worker_event_s(session_id)
                if first is not None and first < later.began_s:
                    self.violation("run again only if unseen", f"{session_id}: {earlier} and {later}, seen {first:.2f}")

    def seen_of_worker(self, session_id: str) -> list[int]:
        """Return the numbers of a session's events that were a worker's, as far as anybody saw them."""
        kinds = {"stdout", "tool_call", "log"}
        return [seq for seq, line in sorted(self.seen[session_id].items()) if peek(line).type in kinds]

    def _first_worker_event_s(self, session_id: str) -> float | None:
        seqs = self.seen_of_worker(session_id)
        return self.seen_at_s[session_id, seqs[0]] if seqs else None

    async def _check_logs(self) -> None:
        """Read every log that is kept: nobody was told anything else than is kept."""
        process = self._world.broker.process
        for session in self._world.broker.dispatcher.directory.sessions():
            kept = await process.spawn(_replayed(session.log))
            for seq, line in self.seen[session.session_id].items():
                if seq >= session.log.first_seq and kept.get(seq) != line:
                    was = (kept.get(seq) or b"nothing")[:200]
                    self.violation(
                        "replays are byte-identical", f"{session.session_id}: {line[:200]!r} is kept as {was!r}"
                    )

    def _check_idle(self) -> None:
        world = self._world
        fleet = world.broker.dispatcher.placer.statistics()
        slots = sum(worker.sessions.config.max_sessions for worker in world.workers.values())
        if fleet.reserved or fleet.waiting or fleet.free != slots or world.broker.dispatcher.directory.live:
            self.violation("slots never leak", f"{fleet} of {slots}, {world.broker.dispatcher.placer!r}")
        for worker in world.workers.values():
            if worker.sessions.active or worker.pools.taken or worker.pools.live:
                self.violation(
                    "slots never leak", f"{worker.name}: {worker.sessions.active} active, {list(worker.pools.taken)}"
                )
        running = world.broker.dispatcher.tool_calls.running
        if running:
            self.violation("tools end with their sessions", f"{running} still run")


async def _replayed(log: EventLog) -> dict[int, bytes]:
    """Return a session's lines by their numbers, as a reader gets them: all that there are now."""
    more = asyncio.Event()
    cursor = log.subscribe(log.first_seq, more.set)
    found: dict[int, bytes] = {}
    while not cursor.finished and (log.ended or cursor.behind):
        more.clear()
        first = cursor.next_seq
        lines = cursor.take()
        found |= dict(enumerate(lines, first))
        if not lines and not cursor.finished:
            await more.wait()
    cursor.close()
    return found


RETURN_S = 2.0
"""How long a client takes, at most, to be back after it can be."""
