"""Whether a run that is over and mended has kept every guarantee: the truth held against what everybody was told."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from .guests import LIE
from .truth import GRACE_S, KILLED, RETRYABLE

if TYPE_CHECKING:
    from enclave_broker.event_log import EventLog

    from .guests import GuestRun
    from .plan import SessionPlan
    from .truth import Reading
    from .world import World


class Verdict:
    """Judges a run.

    Args:
        world: the run.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._truth = world.truth
        self._wrong = world.truth.violation

    async def check_end(self) -> None:
        """Check what has to be true when everything is over and mended."""
        for reading in self._truth.readings:
            if not reading.over:
                self._wrong("no stream hangs", f"{reading.who} of {reading.session_id} waits for {reading.next_seq}")
            elif not reading.finished and not reading.lost:
                self._wrong("one ending", f"{reading.who} of {reading.session_id} ended at {reading.next_seq - 1}")
            elif reading.lost and (reason := self._unfounded(reading)):
                self._wrong("no stream is given up", f"{reading.who} of {reading.session_id}: {reading.lost}: {reason}")
        for session_id in self._truth.accepted_s:
            self._check_session(session_id)
        self._check_runs()
        for (tool, call), times in self._truth.tool_calls.items():
            if times > 1 and tool not in RETRYABLE:
                self._wrong("a call runs its tool once", f"{tool} ran {times} times for {call}")
        await self._check_logs()
        self._check_idle()

    def _unfounded(self, reading: Reading) -> str:
        """Return why a client's program may not be told that it will not learn the end; empty if it may."""
        session_id, why = reading.session_id, reading.lost
        accepted_s = self._truth.accepted_s.get(session_id, float("inf"))
        if why == KILLED:
            return ""
        if why == "HTTP 503":
            return ""  # see BrokerHost: not while a slot is free
        if why.startswith("BrokerUnavailable"):
            return "" if accepted_s == float("inf") else "it was accepted"
        if why == "HTTP 404" and reading.next_seq == 1:
            return "" if accepted_s >= reading.lost_s - 2.0 else "it was accepted before"
        if why.startswith("SessionLost") and reading.next_seq == 1 and session_id in self._truth.cancelled_s:
            return "" if accepted_s == float("inf") else "it was accepted"
        return "nothing justifies it"

    def _check_session(self, session_id: str) -> None:
        plan = self._world.sessions[session_id]
        lines = self._truth.seen[session_id]
        if not lines:
            return
        if sorted(lines) != list(range(1, len(lines) + 1)):
            self._wrong("numbers are contiguous from 1", f"{session_id}: {sorted(lines)}")
            return
        events = [msgspec.json.decode(lines[seq]) for seq in sorted(lines)]
        if events[0]["type"] not in {"session_init", "final"}:
            self._wrong("a stream begins", f"{session_id}: {events[0]['type']}")
        if events[-1]["type"] == "final":
            self._check_final(plan, events)

    def _check_final(self, plan: SessionPlan, events: list[dict[str, Any]]) -> None:
        session_id, payload = plan.session_id, events[-1]["payload"]
        runs = [run for run in self._truth.runs if run.session_id == session_id]
        said = "".join(event["payload"]["chunk"] for event in events if event["type"] == "stdout")
        if payload["ok"]:
            run = next((run for run in runs if run.said == "result" and run.result == payload.get("result")), None)
            if run is None:
                self._wrong("a final does not lie", f"{session_id} ended with {payload}, guests: {runs}")
            elif said != "".join(run.printed):
                self._wrong("no output is lost", f"{session_id} said {said!r}, its guest {run.printed}")
            elif payload["stats"]["stdoutBytes"] != len(said):
                self._wrong("a final does not lie", f"{session_id} has {payload['stats']}, and {len(said)} bytes")
            self._check_calls(session_id, events, run)
            return
        if not any("".join(run.printed).startswith(said) for run in runs) and said:
            self._wrong("no output is made up", f"{session_id} said {said!r}, its guests {runs}")
        code = payload["error"]["code"]
        reason = self.unjustified(plan, code, runs)
        if reason:
            self._wrong("honest endings", f"{session_id} ended with {payload['error']}: {reason}")

    def _check_calls(self, session_id: str, events: list[dict[str, Any]], run: GuestRun | None) -> None:
        made = [event["payload"]["callId"] for event in events if event["type"] == "tool_call"]
        applied = [event["payload"]["callId"] for event in events if event["type"] == "tool_result_applied"]
        if len(set(made)) != len(made) or len(set(applied)) != len(applied) or not set(applied) <= set(made):
            self._wrong("calls", f"{session_id} made {made}, applied {applied}")
        if run is not None and len(made) != len(run.called):
            self._wrong("calls", f"{session_id} shows {len(made)} calls, its guest made {run.called}")
        if run is not None and self._world.plan.mood != "rough":
            self._check_answers(run)

    def _check_answers(self, run: GuestRun) -> None:
        """Hold what a guest was told against what its tools say, where nothing keeps them from being heard."""
        disturbed = {kind for _, _, kind, _ in self._truth.notes} & {"down", "silent"}
        for number, name in enumerate(run.called, 1):
            right: list[Any] = (
                [{"failed": "NOT_TODAY"}] if name == "fails" else [number * 10 if name == "local" else number]
            )
            right += [{"failed": "LATER"}] if name == "again" else []
            answer = run.answers[number][0]
            if answer not in right and not (disturbed and isinstance(answer, dict)):
                self._wrong("answers arrive", f"call {number} of {name} in {run.session_id} got {answer}")

    def unjustified(self, plan: SessionPlan, code: str, runs: list[GuestRun]) -> str:
        """Return why a session may not end with this code; empty if it may."""
        if code == plan.natural and code != "DEADLINE_EXCEEDED":
            return ""
        begin = self._truth.accepted_s[plan.session_id]
        end = self._truth.ended_s.get(plan.session_id, self._truth.now())
        check = getattr(self, f"_unjustified_{code.lower()}", None)
        return check(plan, runs, begin, end) if check is not None else "no such ending was due"

    def _unjustified_deadline_exceeded(self, plan: SessionPlan, runs: list[GuestRun], begin: float, end: float) -> str:
        if plan.mood != "rough" and any(run.said and run.said_s < end - GRACE_S for run in runs):
            return "its guest had ended long before"
        return "" if end - begin >= plan.wall_ms / 1000 - 0.01 else f"it lived {end - begin:.2f} s only"

    def _unjustified_session_cancelled(self, plan: SessionPlan, _: list[GuestRun], begin: float, end: float) -> str:
        if plan.session_id in self._truth.cancelled_s or self._client_was_away(plan, begin, end):
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
            for at_s, until, kind, whom in self._truth.notes
            if until >= begin - grace_s
        )

    def _check_runs(self) -> None:
        by_session: dict[str, list[GuestRun]] = defaultdict(list)
        for run in self._truth.runs:
            by_session[run.session_id].append(run)
            if run.alive:
                self._wrong("no sandbox outlives its session", f"{run}")
            doubled = {number: answers for number, answers in run.answers.items() if len(answers) > 1 and number != LIE}
            if doubled:
                self._wrong("one answer per call", f"{run.session_id}: {doubled}")
            ended = self._truth.ended_s.get(run.session_id)
            if ended is not None and run.gone_s is not None and run.gone_s > ended + self._world.faults.outlives_s(run):
                self._wrong(
                    "no sandbox outlives its session",
                    f"{run.session_id} ended at {ended:.2f}, its sandbox on {run.worker} at {run.gone_s:.2f}",
                )
        for session_id, runs in by_session.items():
            plan = self._world.sessions[session_id]
            most = 3 if plan.safe else 1
            if len(runs) > most:
                self._wrong("a session is run once", f"{session_id}, safe={plan.safe}: {runs}")
            for earlier, later in itertools.pairwise(runs):
                first = self._truth.first_worker_event_s(session_id)
                if first is not None and first < later.began_s and not self._late(later):
                    self._wrong("run again only if unseen", f"{session_id}: {earlier} and {later}, seen {first:.2f}")

    def _late(self, run: GuestRun) -> bool:
        """Whether what began a run can have been on its way for long: one that may run twice may do so late."""
        name = run.worker.partition("#")[0]
        return any(who == name and at_s <= run.began_s <= until for at_s, until, _, who in self._truth.notes)

    async def _check_logs(self) -> None:
        """Read every log that is kept: nobody was told anything else than is kept."""
        process = self._world.broker.process
        for session in self._world.broker.dispatcher.directory.sessions():
            kept = await process.spawn(_replayed(session.log))
            for seq, line in self._truth.seen[session.session_id].items():
                if seq >= session.log.first_seq and kept.get(seq) != line:
                    was = (kept.get(seq) or b"nothing")[:200]
                    self._wrong(
                        "replays are byte-identical", f"{session.session_id}: {line[:200]!r} is kept as {was!r}"
                    )

    def _check_idle(self) -> None:
        world = self._world
        fleet = world.broker.dispatcher.placer.statistics()
        slots = sum(worker.sessions.config.max_sessions for worker in world.workers.values())
        if fleet.reserved or fleet.waiting or fleet.free != slots or world.broker.dispatcher.directory.live:
            self._wrong("slots never leak", f"{fleet} of {slots}, {world.broker.dispatcher.placer!r}")
        for worker in world.workers.values():
            if worker.sessions.active or worker.pools.taken or worker.pools.live:
                self._wrong(
                    "slots never leak", f"{worker.name}: {worker.sessions.active} active, {list(worker.pools.taken)}"
                )
        running = world.broker.dispatcher.tool_calls.running
        if running:
            self._wrong("tools end with their sessions", f"{running} still run")


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
