"""Histograms of durations, for what happens with every session: the library's take a lock for each number they hold."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Durations(Collector):
    """One histogram, of one label at most. It is observed from one thread, and may be read from any."""

    def __init__(self, name: str, text: str, bounds_s: Sequence[float], label: str = "") -> None:
        self._name = name
        self._text = text
        self._bounds_s = tuple(bounds_s)
        self._labels = [label] if label else []
        self._series: dict[str, tuple[list[int], list[float]]] = {}  # label's value -> count by bucket, and [sum]

    def observer(self, value: str = "") -> Callable[[float], None]:
        """Return what counts one duration, in seconds, for this value of the label."""
        bounds_s = self._bounds_s
        counts, total_s = self._series[value] = [0] * (len(bounds_s) + 1), [0.0]

        def observe(duration_s: float) -> None:
            counts[bisect_left(bounds_s, duration_s)] += 1
            total_s[0] += duration_s

        return observe

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the histogram as it is now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*(str(float(bound_s)) for bound_s in self._bounds_s), "+Inf"]
        for value, (counts, total_s) in self._series.items():
            buckets = list(zip(names, map(float, accumulate(counts)), strict=True))
            family.add_metric([value] if self._labels else [], buckets, total_s[0])
        yield family
