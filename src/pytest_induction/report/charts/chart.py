"""What every chart shares: its picture, axes, maps, and the formats of numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_induction.formatting import in_markup
from pytest_induction.report.charts.drawing import AXIS, Plot, room_for, rule, text, ticks_between

DASHES = ("", "7 4", "2 3", "7 3 2 3", "11 4", "11 3 2 3")
WIDTH = 720  # of a picture, where it is not said
Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """One chart: `svg` is its picture, `width` pixels wide; `label` is what is read aloud."""

    title: str
    label: str
    svg: str
    note: str = ""
    width: int = WIDTH


def number(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    """Three digits, as they are read in text; a share has three decimals. What is not known is a dash."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    size = abs(value)
    decimals = 3 if unit == "share" or size < 0.9995 else 2 if size < 9.995 else 1 if size < 99.95 else 0
    digits = f"{value:{'+' if signed else ''}.{decimals}f}"
    return digits.replace("-", "\u2212")


def exact(value: float, *, signed: bool = False) -> str:
    """Five digits: all that is recorded of what a chart shows."""
    return f"{value:{'+' if signed else ''}.5g}".replace("-", "\u2212")


def around(value: float | None, low: float | None, high: float | None, unit: str = "", *, signed: bool = False) -> str:
    """A number with its interval."""
    middle, left, right = (number(each, unit, signed=signed) for each in (value, low, high))
    return f"{middle} ({left} to {right})"


def known(values: Iterable[object]) -> list[float]:
    """The finite numbers among them."""
    return [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def map_step(count: int) -> int:
    """Every which of `count` rows or columns of a map has its number written."""
    return next((step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64) if count / step <= 12), max(1, count // 10))


def picture(parts: Iterable[str], width: float, height: float, label: str) -> str:
    """The whole picture. Its texts take their look from the page, or from `drawing.as_file`."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    ends = 'fill="none" stroke-linejoin="round" stroke-linecap="round"'
    return f'<svg {size} {ends} role="img" aria-label="{in_markup(label)}">{"".join(parts)}</svg>'


def frame(plot: Plot, x: tuple[str, Ticks | None], y: tuple[str, Ticks | None]) -> list[str]:
    """Grid, ticks and names of the axes; ticks are places and words, None for round numbers."""
    across = round_ticks(plot.x, 6) if x[1] is None else x[1]
    return [*heights(plot, y[1]), *bottom(plot, x[0], across), text(plot.left - 40, plot.top - 8, y[0], "faint")]


def heights(plot: Plot, ticks: Ticks | None = None, *, ruled: bool = True) -> list[str]:
    """The axis at the left: words, and a rule across the plot at each."""
    parts = []
    for value, words in round_ticks(plot.y, 4) if ticks is None else ticks:
        at = plot.at(plot.x[0], value)[1]
        parts += [rule(plot.left, at, plot.right, at)] if ruled else []
        parts.append(text(plot.left - 7, at + 4, words, "faint", anchor="end"))
    return parts


def bottom(plot: Plot, name: str, ticks: Ticks) -> list[str]:
    """The axis at the bottom: a line, words, and below them what it is."""
    parts = []
    for value, words in ticks:
        at = plot.at(value, plot.y[0])[0]
        parts += [rule(at, plot.bottom, at, plot.bottom + 4, AXIS), text(at, plot.bottom + 17, words, "faint", anchor="middle")]
    parts.append(rule(plot.left, plot.bottom, plot.right, plot.bottom, AXIS))
    return [*parts, text(plot.right, plot.bottom + 34, name, "faint", anchor="end")]


def round_ticks(ends: tuple[float, float], count: int) -> Ticks:
    """Round numbers between two others, and their words."""
    return [(value, f"{value:g}".replace("-", "\u2212")) for value in ticks_between(*ends, count)]


def span(values: Iterable[float], *, least: float | None = None, room: float = 0.06) -> tuple[float, float]:
    """The ends of an axis for these values, with some room; `least` is on it in any case."""
    found = [*values, *([] if least is None else [least])] or [0.0, 1.0]
    low, high = min(found), max(found)
    extra = room_for(low, high, room)
    return (low if low == least else low - extra), high + extra


def cells(
    rows: Sequence[Sequence[float | None]],
    colours: Sequence[str],
    ends: tuple[float, float],
    *,
    gap: float = 0.0,
    edges: tuple[Sequence[float], Sequence[float]] | None = None,
) -> str:
    """A map in few bytes: one path for each colour; neighbours in a row that have one colour are one where no gap is.

    `edges` are where columns and rows begin and end; without them each is one unit wide.
    """
    across, down = edges or (range(max(map(len, rows), default=0) + 1), range(len(rows) + 1))
    drawn: dict[int, list[str]] = {}
    for row, (top, bottom) in zip(rows, itertools.pairwise(down), strict=True):
        begin = 0
        for here, same in itertools.groupby(row, lambda value: level(value, ends, len(colours))):
            end = begin + len(list(same))
            for left, right in itertools.pairwise(across[begin : end + 1] if gap else (across[begin], across[end])):
                if here is not None:
                    wide, high = _place(right - left - gap), _place(bottom - top - gap)
                    drawn.setdefault(here, []).append(
                        f"M{_place(left)} {_place(top)}h{wide}v{high}h{_place(left - right + gap)}z"
                    )
            begin = end
    return "".join(f'<path fill="{colours[step]}" d="{"".join(steps)}"/>' for step, steps in sorted(drawn.items()))


def _place(value: float) -> str:
    return f"{round(value, 2):g}"


def level(value: float | None, ends: tuple[float, float], count: int) -> int | None:
    """Which of `count` colours a value has; None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    share = (value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.0
    return int(min(count - 1.0, max(0.0, share * count)))


def band(plot: Plot, x: Sequence[float], low: Sequence[float | None], high: Sequence[float | None], colour: str) -> str:
    """The area between two curves."""
    there = [(a, b, c) for a, b, c in zip(x, low, high, strict=True) if b is not None and c is not None]
    if len(there) < 2:
        return ""
    points = [plot.at(a, c) for a, _, c in there] + [plot.at(a, b) for a, b, _ in reversed(there)]
    steps = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    return f'<path d="M{steps}z" fill="{colour}" fill-opacity=".16"/>'


def dots(plot: Plot, x: Sequence[float], y: Sequence[float | None], colour: str, size: float = 2.2) -> list[str]:
    """A dot at each point of a curve that is known."""
    points = (plot.at(a, b) for a, b in zip(x, y, strict=True) if b is not None)
    return [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{size:g}" fill="{colour}"/>' for a, b in points]
