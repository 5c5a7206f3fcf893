"""What that which was found means: the level this host gives, what the next one takes, and the words for it. Pure."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .sandbox.levels import LEVELS, Layer, choose_level, missing_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .doctor_needs import Answer, Host, Need, NeededBy
    from .sandbox.levels import Level

WEAKEST = LEVELS["STANDARD"]
"""That is ever recommended."""
RECOMMENDED = tuple(list(LEVELS.values())[: list(LEVELS).index(WEAKEST.name) + 1])
"""From the strictest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was tried."""

    name: str
    needed_for: str
    ok: bool
    found: str
    """What there is, in words."""
    layer: NeededBy
    """What cannot be without it."""
    fix: str = ""
    """The command or setting that mends it; empty if it is there."""
    options: tuple[str, ...] = ()
    """What workers here must be started with for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """A worker that was started to see whether it does."""

    level: Level
    ok: bool
    said: str
    """How long it took, or its last words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found, and what became of the workers that were started."""

    checks: tuple[Check, ...]
    starts: tuple[Start, ...]

    @property
    def level(self) -> Level | None:
        """The strictest level that a worker really started at; None if there was none, or PERMISSIVE alone."""
        started = [start.level for start in self.starts if start.ok]
        return next((level for level in RECOMMENDED if level in started), None)

    def gives(self, asked: str) -> bool:
        """Whether a worker started at the level that this name stands for here."""
        level = choose_level(asked, lacking(self.checks))
        return any(start.ok and start.level == level for start in self.starts)


def judge(need: Need, host: Host, answer: Answer) -> Check:
    """Make a check of what a probe said."""
    return Check(
        name=need.name,
        needed_for=need.needed_for,
        ok=answer.ok,
        found=answer.found,
        layer=need.layer,
        fix="" if answer.ok else need.fix(host, answer),
        options=answer.options,
    )


def lacking(checks: Iterable[Check]) -> dict[Layer, str]:
    """Return the layers that this host does not give, each with what is missing for it."""
    found: dict[Layer, str] = {}
    for check in checks:
        if not check.ok and isinstance(check.layer, Layer):
            found[check.layer] = f"{found[check.layer]}, {check.name}" if check.layer in found else check.name
    return found


def possible_levels(checks: Sequence[Check]) -> list[Level]:
    """Return the levels for which nothing is missing, from the strictest; PERMISSIVE may be the last."""
    if any(not check.ok and check.layer == "every level" for check in checks):
        return []
    missing = lacking(checks)
    return [level for level in LEVELS.values() if not missing_layers(level, missing)]


def starts_of(checks: Sequence[Check], asked: str, start: Callable[[Level], Start]) -> Iterator[Start]:
    """Call `start` for the strictest level for which nothing is missing, and for the one that was asked for.

    One that fails is followed by the next level. A level for which something is missing is not tried, and PERMISSIVE
    only where nothing else starts, or if it was asked for.
    """
    wanted = choose_level(asked, lacking(checks)) if asked else None
    best_is_known = False
    for level in possible_levels(checks):
        if not best_is_known or level == wanted:
            started = start(level)
            best_is_known = best_is_known or started.ok
            yield started


def options_of(checks: Iterable[Check]) -> list[str]:
    """Return what a worker has to be started with here."""
    return [option for check in checks for option in check.options]


def to_mend(checks: Iterable[Check], level: Level) -> list[Check]:
    """Return what keeps a worker from starting at this level."""
    return [
        check for check in checks if not check.ok and (check.layer == "every level" or check.layer in level.requires)
    ]


def next_level(level: Level | None) -> Level | None:
    """Return the level to aim for beyond this one; None if there is none."""
    if level is None:
        return WEAKEST
    index = RECOMMENDED.index(level)
    return RECOMMENDED[index - 1] if index else None


def render(diagnosis: Diagnosis, asked: str = "") -> str:
    """Return a table of everything, what to mend, and the level.

    Args:
        diagnosis: what was found.
        asked: the level that somebody wants; empty to aim for the one above what there is.
    """
    return "\n".join([*_table(diagnosis), "", *_verdict(diagnosis, asked)])


def _table(diagnosis: Diagnosis) -> list[str]:
    checks = (
        (_mark(check), check.name, f"{check.needed_for}{_levels_that_need(check)}", check.found)
        for check in diagnosis.checks
    )
    starts = (
        ("ok" if start.ok else "FAILED", f"a worker at {start.level.name}", "everything", start.said)
        for start in diagnosis.starts
    )
    rows = [("", "what", "needed for", "found"), *checks, *starts]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows]


def _mark(check: Check) -> str:
    if check.ok:
        return "ok"
    return "absent" if check.layer == "no level" else "MISSING"


def _levels_that_need(check: Check) -> str:
    if check.layer == "no level":
        return " (optional)"
    needing = [level.name for level in RECOMMENDED if check.layer == "every level" or check.layer in level.requires]
    return "" if len(needing) == len(RECOMMENDED) else f" ({', '.join(needing)})"


def _verdict(diagnosis: Diagnosis, asked: str) -> list[str]:
    level = diagnosis.level
    lines = [*_failures(diagnosis)]
    wanted = choose_level(asked, lacking(diagnosis.checks)) if asked else None
    aim = wanted if wanted is not None and not diagnosis.gives(asked) else next_level(level)
    if aim is not None:
        lines += _advice(diagnosis.checks, aim)
    if level is None:
        return [*lines, *_nothing_better(diagnosis), "This host gives no level yet: a worker cannot start."]
    options = " ".join(options_of(diagnosis.checks))
    lines += [f"Start workers with: enclave-runtime --level {level.name} {options}".rstrip(), ""]
    if wanted is not None and not diagnosis.gives(asked):
        return [*lines, f"This host gives {level.name}, not {wanted.name}."]
    highest = ", the highest there is" if level == RECOMMENDED[0] else ""
    return [*lines, f"This host gives {level.name}{highest}."]


def _failures(diagnosis: Diagnosis) -> list[str]:
    failed = [start.level.name for start in diagnosis.starts if not start.ok and start.level in RECOMMENDED]
    if not failed:
        return []
    return [f"Nothing is missing for {', '.join(failed)}, and yet no worker starts: please report it.", ""]


def _advice(checks: Iterable[Check], aim: Level) -> list[str]:
    advice: dict[str, list[str]] = {}  # one piece may mend several things
    for check in to_mend(checks, aim):
        advice.setdefault(check.fix, []).append(check.name)
    if not advice:
        return []
    lines = [f"For {aim.name}:"]
    for fix, names in advice.items():
        first, *more = fix.split("\n")
        lines += [f"  {', '.join(names)}: {first}", *(f"    {line}" for line in more)]
    return [*lines, ""]


def _nothing_better(diagnosis: Diagnosis) -> list[str]:
    if not any(start.ok for start in diagnosis.starts):
        return []
    return ["What does start here is a worker at PERMISSIVE, which does without walls: for your own code only.", ""]
