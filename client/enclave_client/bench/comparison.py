"""The arithmetic of two things that were measured in turns: ratios, and how sure they are.

Theory of operation. Each round measured both, one right after the other, so what slowed down one of them slowed down
the other. A ratio is that of both figures over all rounds. How far it may be off is found by drawing rounds: as many
as there were, at random, some twice and some not at all; the ratios of such draws lie as far apart as those of other
runs would (a bootstrap of pairs). A change is told as one only if nearly all draws agree on its direction.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from .figures import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DRAWS = 1000
SURE_PERCENT = 99.0
"""Of the draws, how many lie between `low` and `high`. Ten figures are told at once: one wrong in 20 is too many."""
MIN_ROUNDS = 8
"""With fewer, draws look surer than they are."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of both."""

    name: str
    title: str
    unit: str
    base: float
    new: float
    ratio: float
    """`new` by `base`."""
    low: float | None = None
    high: float | None = None
    """Where the ratio of nearly all draws lies; None where there were no rounds to draw, or too few."""

    @property
    def verdict(self) -> str:
        """What can be said: `more`, `less`, or nothing."""
        if self.low is None or self.high is None:
            return ""
        return "more" if self.low > 1 else "less" if self.high < 1 else "no difference seen"


def compare(
    name: str,
    title: str,
    unit: str,
    rounds: Sequence[tuple[Sequence[float], Sequence[float]]],
    statistic: Callable[[list[float]], float],
    *,
    seed: int = 1,
) -> Comparison:
    """Compare a statistic of all samples.

    Args:
        name: for machines.
        title: for people.
        unit: of the statistic.
        rounds: of each, the samples of the base and of the new.
        statistic: of all samples of one of them, in no particular order.
        seed: of the draws.

    Raises:
        ValueError: there is no sample of one of them, or nothing in the base to divide by.
    """
    base, new = _both(rounds, statistic)
    low = high = None
    if len(rounds) >= MIN_ROUNDS:
        source = random.Random(seed)  # noqa: S311 - draws that can be repeated
        drawn = [_ratio(*_both(source.choices(rounds, k=len(rounds)), statistic)) for _ in range(DRAWS)]
        outside = (100 - SURE_PERCENT) / 2
        low, high = percentile(drawn, outside), percentile(drawn, 100 - outside)
    return Comparison(
        name=name, title=title, unit=unit, base=base, new=new, ratio=_ratio(base, new), low=low, high=high
    )


def single(name: str, title: str, unit: str, base: float, new: float) -> Comparison:
    """Compare what was measured once."""
    return Comparison(name=name, title=title, unit=unit, base=base, new=new, ratio=_ratio(base, new))


def heading(base: str, new: str) -> str:
    """Return the line above the table."""
    return f"{'':36} {base[:14]:>14} {new[:14]:>14} {'':5}   ratio   {SURE_PERCENT:g} % of draws"


def line(comparison: Comparison) -> str:
    """Return a comparison as a line of the table."""
    digits = 1 if min(comparison.base, comparison.new) >= 100 else 2
    values = f"{comparison.base:14.{digits}f} {comparison.new:14.{digits}f} {comparison.unit:5}"
    between = f"{comparison.low:.3f} to {comparison.high:.3f}" if comparison.low is not None else ""
    return f"{comparison.title:36} {values} {comparison.ratio:7.3f}   {between:16} {comparison.verdict}".rstrip()


def _both(
    rounds: Sequence[tuple[Sequence[float], Sequence[float]]], statistic: Callable[[list[float]], float]
) -> tuple[float, float]:
    base, new = ([sample for both in rounds for sample in both[side]] for side in (0, 1))
    return statistic(base), statistic(new)


def _ratio(base: float, new: float) -> float:
    if not base:
        raise ValueError("nothing in the base to divide by")
    return new / base
