"""The budget as it is written down: `budget.md`, for people and for programs.

A figure has one line, and in a second table the system calls that it was made of when it was measured, so that a figure
that has grown can say what grew.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILE = Path(__file__).with_name("budget.md")
_SLACK = 0.04
_SLACK_OF_TOOLS = 0.12
"""Of sessions so long that it depends on the machine's load how often the broker acknowledges events meanwhile."""
_LEAST_SLACK = {"_calls": 2, "_functions": 0, "_modules": 2, "_faults": 8, "_kib": 24}
"""By the figure's ending. Where the kernel puts things, at random, decides over some pages and over six page tables."""
_SHOWN = 8
_MEASURED_WITH = re.compile(r"Python (\d+\.\d+) on (\w+)")
_LEVEL = "SECURE"
_ZYGOTE_CALLS = "zygote_calls"
"""Others than Python 3.11 count threads before a fork, in four calls."""
Found = dict[str, dict[str, int]]
"""Figures by name: counts by the name of the system call, or one count without a name."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found, in one run or in the best of several."""

    level: str
    """The worker's: with fewer layers it does other things."""
    figures: Found


@dataclasses.dataclass(frozen=True)
class Line:
    """One figure's."""

    name: str
    budget: int
    measured: int
    why: str
    made_of: Mapping[str, int]


def read(file: Path = FILE) -> dict[str, Line]:
    """Return the budget, by the names of figures."""
    rows = [_cells(line) for line in file.read_text().splitlines()]
    made_of = {row[0]: _parse(row[1]) for row in rows if len(row) == 2}
    lines = [row for row in rows if len(row) == 4 and row[1].isdigit()]
    return {
        name: Line(name, int(budget), int(measured), why, made_of.get(name, {}))
        for name, budget, measured, why in lines
    }


def write(found: Found, file: Path = FILE) -> None:
    """Make what was found just now the budget, with a few percent of slack. Figures that were not found stay."""
    text = []
    for line in file.read_text().splitlines():
        cells = _cells(line)
        counts = found.get(cells[0])
        if counts is None:
            text.append(_MEASURED_WITH.sub("Python {} on {}".format(*here()), line))
        elif len(cells) == 4:
            count = sum(counts.values())
            text.append(f"| {cells[0]} | {budget_for(cells[0], count)} | {count} | {cells[3]} |")
        else:
            text.append(f"| {cells[0]} | {_format(counts)} |")
    file.write_text("\n".join(text) + "\n")


def budget_for(name: str, measured: int) -> int:
    """Return the most that a figure may be that is this now."""
    least = _LEAST_SLACK[f"_{name.rpartition('_')[2]}"]
    share = _SLACK_OF_TOOLS if name.startswith("tool_") else _SLACK
    return measured + max(least, math.ceil(measured * share))


def why_not_held(name: str, level: str, file: Path = FILE) -> str:
    """Say why a figure of a worker at this level is not held to its budget here; nothing if it is."""
    if level != _LEVEL:
        return f"not held: measured at level {_LEVEL}"
    measured_with = _MEASURED_WITH.search(file.read_text())
    assert measured_with is not None, "budget.md says what it was measured with"
    python, machine = measured_with.groups()
    if machine != here()[1]:
        return f"not held: measured on {machine}"
    if python != here()[0] and (not name.endswith("_calls") or name == _ZYGOTE_CALLS):
        return f"not held: measured with Python {python}"
    return ""


def complaint(line: Line, counts: Mapping[str, int]) -> str:
    """Say what is wrong with a figure; nothing if it holds."""
    now = sum(counts.values())
    if now <= line.budget:
        return ""
    grown = {name: count - line.made_of.get(name, 0) for name, count in counts.items() if name}
    names = sorted((name for name in grown if grown[name] > 0), key=lambda name: (-grown[name], name))
    named = [f"{name} {line.made_of.get(name, 0)} → {counts[name]}" for name in names[:_SHOWN]]
    more = f"; what grew: {', '.join(named)}" if named else ""
    return f"{line.name} is {now}, was {line.measured} and may be {line.budget}{more}. Why it matters: {line.why}"


def complaints(now: Measured) -> list[str]:
    """Say what is wrong with all figures that are held here."""
    lines = [line for line in read().values() if line.name in now.figures and not why_not_held(line.name, now.level)]
    return [text for line in lines if (text := complaint(line, now.figures[line.name]))]


def pick(choose: Callable[[int, int], int], one: Measured, other: Measured) -> Measured:
    """Return of each figure the higher or the lower of two."""
    picked = {}
    for name, counts in one.figures.items():
        chosen = choose(sum(counts.values()), sum(other.figures[name].values()))
        picked[name] = counts if sum(counts.values()) == chosen else other.figures[name]
    return Measured(one.level, picked)


def here() -> tuple[str, str]:
    """Return the version of Python that this is, and the machine."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", os.uname().machine


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def _parse(text: str) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", text)}


def _format(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
