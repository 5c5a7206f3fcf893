"""What a run of a case means: pure, from the case and what was observed.

The order of the rules matters. What a guest got hold of counts first, whatever else happened; a lack of evidence
counts before the outcome, because code that broke off tells nothing about the sandbox.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

import msgspec

from .corpus import OTHERS_SERVED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .corpus import Case

_OURS = frozenset({"INTERNAL_ERROR", "WORKER_LOST"})
"""Outcomes that no guest may bring about."""
_EVIDENCE = re.compile(r"^(HELD|BREACH) ([^:\n]+)(?:: (.*))?$", re.MULTILINE)


class Verdict(enum.StrEnum):
    """What came of a case."""

    HELD = "held"
    """Every attempt was made, and refused."""
    BREACH = "BREACH"
    """Something was reached, changed, or left behind, or ended as it must not."""
    NOT_ATTEMPTED = "not attempted"
    """Not every attempt was seen to be made: nothing is proven."""
    NOT_HELD_HERE = "not held here"
    """It asks for something that this worker's sandboxes do not have; it was not run."""

    @property
    def fails(self) -> bool:
        """Whether the corpus has not held."""
        return self in {Verdict.BREACH, Verdict.NOT_ATTEMPTED}


class SessionSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One session of a case, as its client saw it."""

    outcome: str
    """`OK`, or the error's code; empty if there was no `final` in time."""
    message: str = ""
    stdout: str = ""
    stderr: str = ""
    leaked: tuple[str, ...] = ()
    """Names of the host's secrets that were found in any of its events."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was seen of a run."""

    sessions: tuple[SessionSeen, ...]
    damage: tuple[str, ...] = ()
    """What changed on the host, or was left behind."""
    bystanders: int = 0
    """Sessions that ran beside it."""
    unserved: tuple[str, ...] = ()
    """How those of them ended that did not end well, and the one after it."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A case and what came of it."""

    case: str
    category: str
    layer: str
    verdict: Verdict
    reason: str
    """One line; what was held, broken, or is missing."""


class _Line(msgspec.Struct, frozen=True):
    word: str
    attempt: str
    how: str


def judge(case: Case, observed: Observed, available: frozenset[str]) -> Report:
    """Say what a run means.

    Args:
        case: what was to be attempted.
        observed: what was seen.
        available: of `corpus.NEEDS`, what the sandboxes have.
    """
    if lacking := missing_needs(case, available):
        return _report(case, Verdict.NOT_HELD_HERE, f"needs {', '.join(lacking)}")
    for reason in _breaches(case, observed):
        return _report(case, Verdict.BREACH, reason)
    heard = {line.attempt for session in observed.sessions for line in _lines(session)}
    last = observed.sessions[-1]
    ended = f"it ended with {last.outcome}" + (f" ({last.message[:200]})" if last.message else "")
    if unheard := [name for name in case.evidence if name not in heard]:
        return _report(case, Verdict.NOT_ATTEMPTED, f"nothing heard of: {', '.join(unheard)}; {ended}")
    if last.outcome not in case.outcomes:
        return _report(case, Verdict.BREACH, f"{ended}, not with {' or '.join(sorted(case.outcomes))}")
    return _report(case, Verdict.HELD, f"{len(case.evidence)} attempts; {last.outcome}")


def missing_needs(case: Case, available: frozenset[str]) -> list[str]:
    """Return what the case asks for and is not there."""
    return [need for need in case.needs if need not in available]


def _breaches(case: Case, observed: Observed) -> Iterator[str]:
    for session in observed.sessions:
        if session.leaked:
            yield f"the guest got hold of {', '.join(session.leaked)}"
        for line in _lines(session):
            if line.word == "BREACH":
                yield f"{line.attempt}: {line.how}"
        if not session.outcome:
            yield "no final in time"
        if session.outcome in _OURS:
            yield f"it brought about {session.outcome}: {session.message[:200]}"
    if observed.damage:
        yield "; ".join(observed.damage)
    if observed.unserved:
        yield f"others were not served: {observed.unserved[0]}"
    if OTHERS_SERVED in case.host and not observed.bystanders:
        yield "others were not served: none got as far"
    yield from _repeated(case, observed)


def _repeated(case: Case, observed: Observed) -> Iterator[str]:
    for name in case.distinct:
        words = [line.how for session in observed.sessions for line in _lines(session) if line.attempt == name]
        if len(set(words)) != len(words):
            yield f"{name}: the same in two sessions"


def _lines(session: SessionSeen) -> list[_Line]:
    return [_Line(*found) for text in (session.stdout, session.stderr) for found in _EVIDENCE.findall(text)]


def _report(case: Case, verdict: Verdict, reason: str) -> Report:
    return Report(case=case.name, category=case.category, layer=case.layer, verdict=verdict, reason=reason)
