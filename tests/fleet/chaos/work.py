"""What sessions do in the chaos run: kinds of code, each with what comes of it when nothing hinders it.

A seed and a number give a session's kind, its size and the way it is read: the same session in every run.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Literal

from .records import Expected

Way = Literal["ndjson", "sse", "ws"]
WAYS: tuple[Way, ...] = ("ndjson", "sse", "ws")
DEADLINE_MS = 20_000
"""Of the guest: far more than any of them needs, however busy the machine is."""

_LINES = """
import time
for n in range({count}):
    print("{key} " + str(n) + " " + "x" * {width}, flush=True)
    {pause}
return [{count}]
"""
_CALLS = """
done = []
for n in range({count}):
    print("{key} " + str(n) + " " + "x" * {width}, flush=True)
    try:
        done.append(await call_tool("{tool}", {{"key": "{key}", "n": n}}))
    except Exception as error:
        done.append(getattr(error, "code", repr(error)))
return done
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One session to be run."""

    number: int
    key: str
    """Its own; what it prints and calls begins with it."""
    kind: str
    way: Way
    code: str
    expected: Expected
    own_tools: bool
    """Whether it calls the client's tool."""
    retry_safe: bool


def text(key: str, count: int, width: int) -> str:
    """Return what a session of so many lines prints."""
    return "".join(f"{key} {n} {'x' * width}\n" for n in range(count))


def answer(key: str, n: int) -> str:
    """Return what every tool answers."""
    return f"{key}:{n}"


def work(seed: int, number: int) -> Work:
    """Return a session."""
    chance = random.Random(f"{seed}/{number}")
    key = f"k{number}"
    kind = chance.choices(("short", "long", "flood", "calls", "once", "own"), (25, 20, 10, 20, 10, 15))[0]
    way: Way = chance.choice(("ndjson", "sse", "ws"))
    if kind in {"short", "long", "flood"}:
        count, width, pause_s = {
            "short": (chance.randint(1, 5), 20, 0.0),
            "long": (chance.randint(10, 60), 60, chance.uniform(0.02, 0.12)),
            "flood": (chance.randint(500, 1900), 120, 0.0),  # less than `maxStdoutBytes`
        }[kind]
        pause = f"time.sleep({pause_s:.3f})" if pause_s else ""
        code = _LINES.format(key=key, count=count, width=width, pause=pause)
        results: list[int | str] = [count]
    else:
        count, width = chance.randint(1, 12), 20
        tool = {"calls": "chaos_answer", "once": "chaos_once", "own": "own_answer"}[kind]
        code = _CALLS.format(key=key, count=count, width=width, tool=tool)
        results = [answer(key, n) for n in range(count)]
    return Work(
        number=number,
        key=key,
        kind=kind,
        way="ndjson" if kind == "own" and way == "sse" else way,
        code=code,
        expected=Expected(stdout=text(key, count, width), results=results),
        own_tools=kind == "own",
        retry_safe=chance.random() < 0.5,
    )
