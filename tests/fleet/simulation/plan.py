"""What happens in one run, drawn from its seed: a fleet, its sessions, and what goes wrong.

Three moods. In a *calm* run nothing goes wrong, so every session has to end as its code does. In a *gentle* one goes
wrong what the fleet promises to bear without a trace: every session has to end as its code does, again. In a *rough*
one anything goes wrong, and sessions may end otherwise, if there is a reason for it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from enclave_client.request import SessionOptions

from .network import shortened

Mood = Literal["calm", "gentle", "rough"]
Step = list[Any]

BROKER_TOOLS = ("echo", "slow", "fails", "again")
CLIENT_TOOL = "local"
MOMENTS = (
    *("execute", "tool_call", "tool_result", "tool_result_applied", "final", "stdout"),
    *("ack", "attach", "welcome", "hello", "session_init", "cancel", "error"),
)
"""Messages at which it is bad luck if something goes wrong."""
AT_MOMENTS = 0.5
"""How many faults strike at one of them."""
OLD = 0.1
"""How many workers are old, where things go wrong."""
STORED = 0.35
"""How many brokers have a disk."""
LAST_FAULT_S = 12.0
"""When everything that is broken is mended, but for workers that are abandoned for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """One session."""

    session_id: str
    mood: Mood
    client: int
    over: Literal["socket", "http"]
    at_s: float
    script: list[Step]
    wall_ms: int
    safe: bool = False
    """Whether it may be run again when nothing of it was seen."""
    cancel_after_s: float | None = None
    second_reader_after_s: float | None = None

    @property
    def natural(self) -> str:
        """How it ends if nothing goes wrong: `ok` or a code."""
        last = self.script[-1][0]
        return {"return": "ok", "raise": "EXECUTION_ERROR", "spin": "DEADLINE_EXCEEDED"}.get(last, "GUEST_CRASHED")

    def __str__(self) -> str:
        more = "".join(
            (
                " safe" if self.safe else "",
                "" if self.cancel_after_s is None else f" cancelled after {self.cancel_after_s:.2f}",
                "" if self.second_reader_after_s is None else f" read again after {self.second_reader_after_s:.2f}",
            )
        )
        script = shortened(json.dumps(self.script, separators=(",", ":")))
        return f"{self.session_id} client {self.client} {self.over} wall {self.wall_ms} ms{more}: {script}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong, or comes and goes."""

    at_s: float
    kind: str
    who: int = 0
    """Which worker or client."""
    for_s: float = 0.0
    way: int = 0
    """Direction, or flavour."""
    on: str = ""
    """Kind of the message that it waits for, instead of a time,"""
    count: int = 1
    """and the how manieth of the run that is."""

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.2f} s" if self.for_s else ""
        when = f" at {self.on} {self.count}" if self.on else ""
        return f"{self.kind} {self.who}{lasts} way {self.way}{when}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All of it."""

    seed: int
    mood: Mood
    slots: list[int]
    """Of each worker."""
    old: tuple[int, ...]
    """Those that speak revision 1 of the link alone."""
    clients: int
    delay_s: tuple[float, float]
    sessions: list[SessionPlan]
    faults: list[Fault] = field(default_factory=list)
    store: bool = False
    """Whether the broker has a disk."""
    queue_size: int = 100

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {self.mood}, workers with {self.slots} slots"
            f"{f' (old: {self.old})' if self.old else ''}, {self.clients} clients,"
            f" {self.delay_s[0] * 1000:g} to {self.delay_s[1] * 1000:g} ms a hop, queue {self.queue_size},"
            f" {'a store on disk' if self.store else 'a store in memory'}"
        )
        todo = [(session.at_s, f"session {session}") for session in self.sessions]
        todo += [(fault.at_s, str(fault)) for fault in self.faults]
        return "\n".join([head, *(f"  {at_s:7.3f}  {what}" for at_s, what in sorted(todo))])


HARMLESS = ("cut_client", "stall_client", "half_open_client", "catalog")
GENTLE = (
    *HARMLESS,
    "cut_worker",
    "cut_worker",
    "half_open_worker",
    "half_open_worker",
    "stall_worker",
    "stall_worker",
    "part_worker",
)
STORED_GENTLE = (*GENTLE, "kill_broker", "kill_broker", "kill_broker", "roll_broker")
"""With a disk, a broker can be killed, too,"""
FULL_DISK = (*GENTLE, "fill_disk", "fill_disk", "fill_disk", "fill_disk")
"""or its disk be full."""
ROUGH = (
    *GENTLE,
    "stall_worker",
    "part_worker",
    "part_worker",
    "kill_worker",
    "vanish_worker",
    "abandon_worker",
    "kill_client",
    "part_client",
    "freeze_broker",
    "freeze_worker",
    "roll_worker",
)
STORED_ROUGH = (*ROUGH, "kill_broker", "kill_broker", "kill_broker", "roll_broker", "vanish_broker")


def make_plan(seed: int) -> Plan:
    """Draw a run."""
    rng = random.Random(f"plan {seed}")
    mood: Mood = rng.choices(("calm", "gentle", "rough"), (1, 4, 6))[0]
    clients = rng.randint(1, 3)
    workers = [rng.choice((1, 1, 2, 3, 5)) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    sessions = [_session(rng, i, clients, mood) for i in range(rng.choice((1, 2, 3, 4, 5, 6, 8)))]
    store = rng.random() < STORED
    kinds: tuple[str, ...] = ()
    if mood == "gentle":
        kinds = rng.choice((STORED_GENTLE, STORED_GENTLE, FULL_DISK)) if store else GENTLE
    elif mood == "rough":
        kinds = STORED_ROUGH if store else ROUGH
    faults = (
        [_fault(rng, mood, rng.choice(kinds), len(workers), clients) for _ in range(rng.randint(1, 6))] if kinds else []
    )
    delay = rng.choice(((0.0002, 0.001), (0.001, 0.02), (0.0, 0.1), (0.05, 0.3)))
    return Plan(
        seed=seed,
        mood=mood,
        slots=workers,
        old=tuple(i for i in range(len(workers)) if mood == "rough" and rng.random() < OLD),
        clients=clients,
        delay_s=delay,
        sessions=sessions,
        faults=sorted(faults, key=lambda fault: fault.at_s),
        store=store,
        queue_size=rng.choice((100, 100, 100, 2)) if mood == "rough" else 100,
    )


def _session(rng: random.Random, number: int, clients: int, mood: Mood) -> SessionPlan:
    over: Literal["socket", "http"] = rng.choice(("socket", "socket", "http"))
    rough = mood == "rough"
    script: list[Step] = []
    for i in range(rng.randint(0, 7)):
        kind = rng.choice(("print", "print", "print", "sleep", "call", "call", "flood"))
        if kind == "print":
            script.append(["print", f"{number}.{i};" + "x" * rng.choice((0, 10, 300))])
        elif kind == "sleep":
            script.append(["sleep", round(rng.choice((0.001, 0.05, 0.3, 1.0, 2.5, 5.0)) * rng.random(), 4)])
        elif kind == "call":
            tools = (*BROKER_TOOLS, CLIENT_TOOL)
            script.append(["call", *(rng.choice(tools) for _ in range(rng.choice((1, 1, 1, 2, 3))))])
        else:
            script += [["print", f"{number}.{i}.{j};" + "y" * 3000] for j in range(rng.randint(5, 15))]
    lie = ["lie", rng.choice(("junk", "twice", "broken"))]
    script.append(rng.choices((["return"], ["raise"], ["die"], lie, ["spin"]), (12, 2, 1, 1, 1))[0])
    spins = script[-1] == ["spin"]
    tight = spins or (rough and rng.random() < 0.2)
    return SessionPlan(
        session_id=f"s_{number}",
        mood=mood,
        client=rng.randrange(clients),
        over=over,
        at_s=round(rng.choice((0.0, 1.0, 6.0)) * rng.random(), 4),
        script=script,
        wall_ms=rng.choice((1500, 4000)) if tight else 60_000,
        safe=rng.random() < 0.3 and (over == "http" or "retry" in SessionOptions.__annotations__),
        cancel_after_s=round(rng.uniform(0.0, 3.0), 3) if rng.random() < 0.1 else None,
        second_reader_after_s=round(rng.uniform(0.0, 4.0), 3) if rng.random() < 0.15 else None,
    )


def _fault(rng: random.Random, mood: Mood, kind: str, workers: int, clients: int) -> Fault:
    longest_s = 8.0 if mood == "rough" else 2.0
    for_s = {
        "stall_client": (0.1, 3.0),
        "stall_worker": (0.1, longest_s),
        "part_worker": (0.1, longest_s),
        "part_client": (0.2, 8.0),
        "kill_worker": (0.05, 5.0),
        "kill_broker": (0.05, longest_s),
        "vanish_broker": (0.5, longest_s),
        "roll_broker": (0.1, 1.0),
        "abandon_worker": (15.0, 40.0),
        "fill_disk": (0.2, 5.0),
        "vanish_worker": (0.5, 8.0),
        "freeze_broker": (0.1, 6.0),
        "freeze_worker": (0.1, 6.0),
        "roll_worker": (0.1, 2.0),
    }.get(kind)
    lasts_s = 0.0 if for_s is None else round(rng.uniform(*for_s), 3)
    at_s = round(rng.choice((1.0, 3.0, 8.0)) * rng.random(), 4)
    return Fault(
        at_s=at_s if lasts_s > LAST_FAULT_S else min(at_s, LAST_FAULT_S - lasts_s),
        on=rng.choice(MOMENTS) if rng.random() < AT_MOMENTS else "",
        count=rng.randint(1, 6),
        kind=kind,
        who=rng.randrange(clients if "client" in kind else workers),
        for_s=lasts_s,
        way=rng.randrange(3),
    )
