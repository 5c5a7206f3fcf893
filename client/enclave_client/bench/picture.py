"""Latency against load as a picture: an SVG, written by hand.

Both axes are logarithmic: what is compared differs by a hundred times, and what matters are ratios. The picture brings
its own background and follows the reader's choice of light or dark; colours are told apart by those who do not see red
and green, and dashes and words say the same as they do.
"""

from __future__ import annotations

import dataclasses
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import machine_line
from .rivals import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .figures import Series

WIDTH, HEIGHT = 880, 560
LEFT, RIGHT, BOTTOM = 72, 24, 74
"""Of the margins around the plot; above it is the legend, which has as many lines as there are series."""
_TITLE_Y, _LEGEND_Y, _LEGEND_STEP = 30, 56, 20
_LIGHT = ("#0969da", "#6e7781", "#bc4c00", "#8250df", "#116329")
_DARK = ("#4493f8", "#9198a1", "#f0883e", "#b98bff", "#3fb950")
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.dim { fill: #59636e; font-size: 12px }
.paper { fill: #ffffff }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.limit { stroke: #59636e; stroke-width: 1; stroke-dasharray: 2 4 }
.p50 { fill: none; stroke-width: 2.5; stroke-linejoin: round }
.p99 { fill: none; stroke-width: 1.5; stroke-linejoin: round; stroke-dasharray: 6 4 }
"""
_STYLE_DARK = """text { fill: #f0f6fc } .dim { fill: #9198a1 } .paper { fill: #0d1117 }
.grid { stroke: #30363d } .limit { stroke: #9198a1 }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dot:
    """A point at which there is a time to draw."""

    asked: float
    served: float
    p50_ms: float
    p99_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Line:
    """What is drawn of a series."""

    title: str
    capacity: float
    points: list[_Dot]


def _line(series: Series) -> _Line:
    points = [
        _Dot(asked=each.asked, served=each.served, p50_ms=each.p50_ms, p99_ms=each.p99_ms)
        for each in series.points
        if each.p50_ms is not None and each.p99_ms is not None
    ]
    return _Line(title=series.title, capacity=series.capacity, points=points)


class _Axis:
    """A logarithmic axis over some values, which it has all of with a little room."""

    def __init__(self, values: Iterable[float], begin: float, end: float) -> None:
        known = list(values)
        self._low = math.log10(min(known) / 1.25)
        self._high = math.log10(max(known) * 1.25)
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        """Return where a value is, in pixels."""
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 1)

    def ticks(self) -> Iterator[float]:
        """Yield 1, 2 and 5 times each power of ten that is on the axis."""
        for power in range(math.floor(self._low), math.ceil(self._high) + 1):
            for digit in (1, 2, 5):
                value = digit * 10.0**power
                if self._low <= math.log10(value) <= self._high:
                    yield value


def draw(series: Sequence[Series], machine: str) -> str:
    """Return the picture.

    Args:
        series: what was measured; at most as many as there are colours, ours first.
        machine: on what, in words.

    Raises:
        ValueError: there is no point to draw.
    """
    shown = [each for each in map(_line, series) if each.points]
    points = [point for each in shown for point in each.points]
    if not points:
        raise ValueError("no point to draw")
    top = _LEGEND_Y + _LEGEND_STEP * len(shown) + 12
    across = _Axis((point.asked for point in points), LEFT, WIDTH - RIGHT)
    up = _Axis((ms for point in points for ms in (point.p50_ms, point.p99_ms)), HEIGHT - BOTTOM, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Latency against load</title>",
        f"<desc>{escape(_in_words(shown))}</desc>",
        f"<style>{_style()}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        _text(LEFT, _TITLE_Y, "Latency against load: 1 + 1", "title"),
        *_axes(across, up, top),
        *_limit(shown[0], across, top),
        *(line for number, each in enumerate(shown) for line in _drawn(each, number, across, up)),
        *_legend(shown),
        _text(LEFT, HEIGHT - 10, machine, "dim"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def draw_beside(file: str, series: Sequence[Series], machine: dict[str, Any]) -> None:
    """Write the picture beside a file of figures; nothing if there is nothing to draw, or that is no file."""
    place = Path(file)
    if place.is_file() and any(_line(each).points for each in series):
        place.with_suffix(".svg").write_text(draw(series, machine_line(machine)), encoding="utf-8")


def _style() -> str:
    light = "".join(_colours(number, colour) for number, colour in enumerate(_LIGHT))
    dark = "".join(_colours(number, colour) for number, colour in enumerate(_DARK))
    return f"{_STYLE}{light}@media (prefers-color-scheme: dark) {{\n{_STYLE_DARK}{dark}}}\n"


def _colours(number: int, colour: str) -> str:
    return f".line{number} {{ stroke: {colour} }} .dot{number} {{ fill: {colour} }}\n"


def _in_words(series: Sequence[_Line]) -> str:
    return ". ".join(
        f"{each.title}: {_capacity(each)}; at {each.points[0].asked:.0f} in a second the median "
        f"takes {each.points[0].p50_ms:.1f} ms"
        for each in series
    )


def _axes(across: _Axis, up: _Axis, top: float) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for value in across.ticks():
        x = across.at(value)
        yield f'<line class="grid" x1="{x}" y1="{top}" x2="{x}" y2="{bottom}"/>'
        yield _text(x, bottom + 18, f"{value:g}", "dim", "middle")
    for value in up.ticks():
        y = up.at(value)
        yield f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>'
        yield _text(LEFT - 8, y + 4, f"{value:g}", "dim", "end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, "asked for, in a second (at random times)", anchor="middle")
    middle = (top + bottom) / 2
    yield (
        f'<text transform="translate(18 {middle:g}) rotate(-90)" text-anchor="middle">'
        "from when it was due to the whole answer, ms</text>"
    )


def _limit(ours: _Line, across: _Axis, top: float) -> Iterator[str]:
    """Mark what the first one can do: beyond, everything is late in the end."""
    x = across.at(ours.capacity)
    yield f'<line class="limit" x1="{x}" y1="{top}" x2="{x}" y2="{HEIGHT - BOTTOM}"/>'
    yield _text(x - 6, HEIGHT - BOTTOM - 8, _capacity(ours), "dim", "end")


def _drawn(series: _Line, number: int, across: _Axis, up: _Axis) -> Iterator[str]:
    yield _path(series.points, number, "p99", across, lambda point: up.at(point.p99_ms))
    yield _path(series.points, number, "p50", across, lambda point: up.at(point.p50_ms))
    for point in series.points:
        said = (
            f"{series.title}: {point.asked:g}/s asked, {point.served:g}/s served, "
            f"p50 {point.p50_ms:g} ms, p99 {point.p99_ms:g} ms"
        )
        dot = f'<circle class="dot{number}" cx="{across.at(point.asked)}" cy="{up.at(point.p50_ms)}" r="3.5">'
        yield f"{dot}<title>{escape(said)}</title></circle>"


def _path(points: Sequence[_Dot], number: int, kind: str, across: _Axis, height: Callable[[_Dot], float]) -> str:
    steps = " L".join(f"{across.at(point.asked)} {height(point)}" for point in points)
    return f'<path class="{kind} line{number}" d="M{steps}"/>'


def _legend(series: Sequence[_Line]) -> Iterator[str]:
    for number, each in enumerate(series):
        y = _LEGEND_Y + number * _LEGEND_STEP
        yield f'<path class="p50 line{number}" d="M{LEFT} {y - 4} h28"/>'
        yield f'<circle class="dot{number}" cx="{LEFT + 14}" cy="{y - 4}" r="3.5"/>'
        yield _text(LEFT + 38, y, f"{each.title}; {_capacity(each)}")
    x = WIDTH - RIGHT - 170
    for y, kind, said in (
        (_LEGEND_Y, "p50", "p50: half take less"),
        (_LEGEND_Y + 20, "p99", "p99: one in 100 takes more"),
    ):
        yield f'<path class="{kind} line0" d="M{x - 38} {y - 4} h28"/>'
        yield _text(x, y, said)


def _capacity(series: _Line) -> str:
    return f"{AT_ONCE} clients get {series.capacity:.0f}/s"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    told = f' class="{kind}"' if kind else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text{told} x="{x:g}" y="{y:g}"{place}>{escape(text)}</text>'
