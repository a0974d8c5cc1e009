"""What every chart shares: a figure for Plotly as plain data, its static picture, colours, axes and the formats of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_induction.formatting import in_markup
from pytest_induction.report.drawing import Plot, room_for, rule, text, ticks_between

INK, FAINT, GRID, AXIS = "var(--ink,#1b2430)", "var(--faint,#5b6675)", "var(--grid,#e3e7ee)", "var(--axis,#aab4c0)"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
STROKES = ("", "7 4", "2 3", "7 3 2 3", "11 4", "11 3 2 3")  # the same dashes in a static picture
WIDTH = 720  # of a static picture, where it is not said


@dataclass(frozen=True)
class Chart:
    """One chart: `spec` is a Plotly figure, `static` its picture without scripts; `label` is what is read aloud."""

    title: str
    label: str
    spec: Mapping[str, Any]
    static: str
    height: int
    note: str = ""
    is_picture: bool = False  # `static` is a whole SVG file, which is shown as an image


def number(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    """Three digits, as they are read in text; a share has three decimals. What is not known is a dash."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    size = abs(value)
    decimals = 3 if unit == "share" or size < 0.9995 else 2 if size < 9.995 else 1 if size < 99.95 else 0
    said = f"{value:{'+' if signed else ''}.{decimals}f}"
    return said.replace("-", "\u2212")


def tidy(value: Any, digits: int = 4) -> Any:
    """The same with fewer digits: numbers for a figure, in few bytes. What is not a number is None."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        short = round(value, digits) if math.isfinite(value) else None
        return int(short) if short is not None and short == int(short) else short
    if isinstance(value, Mapping):
        return {name: tidy(each, digits) for name, each in value.items()}
    return [tidy(each, digits) for each in value]


def known(values: Iterable[Any]) -> list[float]:
    """The finite numbers among them."""
    return [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def figure(traces: Sequence[Mapping[str, Any]], height: int, **layout: Any) -> dict[str, Any]:
    """A Plotly figure in our look. The page's script adds what depends on light and dark."""
    base = {
        "height": height,
        "margin": {"l": 52, "r": 16, "t": 12, "b": 44},
        "font": {"size": 12},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "dragmode": "zoom",
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
    }
    return {"data": list(traces), "layout": {**base, **layout}}


def axis(title: str = "", **rest: Any) -> dict[str, Any]:
    """An axis in our look."""
    look = {"zeroline": False, "ticks": "outside", "ticklen": 4, "automargin": True}
    return {**look, **({"title": {"text": title, "standoff": 8, "font": {"size": 12}}} if title else {}), **rest}


def map_axis(count: int, title: str, **rest: Any) -> dict[str, Any]:
    """The axis of a map that has a row or column for each of `count` things, numbered from zero."""
    look = {"showgrid": False, "tickmode": "linear", "tick0": 0, "dtick": map_step(count), "range": [-0.5, count - 0.5]}
    return axis(title, **{**look, **rest})


def map_step(count: int) -> int:
    """Every which of `count` rows or columns of a map has its number written."""
    return next((step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64) if count / step <= 12), max(1, count // 10))


def scale(colours: Sequence[str]) -> list[list[Any]]:
    """Colours as Plotly has them."""
    return [[round(place / (len(colours) - 1), 4), colour] for place, colour in enumerate(colours)]


def picture(parts: Iterable[str], width: float, height: float, label: str) -> str:
    """A static picture. Its texts take their look from the page."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg {size} fill="none" role="img" aria-label="{in_markup(label)}">{"".join(parts)}</svg>'


def frame(
    plot: Plot,
    x: tuple[str, Sequence[tuple[float, str]] | None],
    y: tuple[str, Sequence[tuple[float, str]] | None],
) -> list[str]:
    """Grid, ticks and names of the axes of a static picture; ticks are places and words, None for round numbers."""
    across = [(value, _short(value)) for value in ticks_between(*plot.x, 6)] if x[1] is None else x[1]
    up = [(value, _short(value)) for value in ticks_between(*plot.y, 4)] if y[1] is None else y[1]
    parts = []
    for value, words in up:
        at = plot.at(plot.x[0], value)[1]
        parts += [rule(plot.left, at, plot.right, at, GRID), text(plot.left - 7, at + 4, words, "faint", anchor="end")]
    for value, words in across:
        at = plot.at(value, plot.y[0])[0]
        parts += [rule(at, plot.bottom, at, plot.bottom + 4, AXIS), text(at, plot.bottom + 17, words, "faint", anchor="middle")]
    parts.append(rule(plot.left, plot.bottom, plot.right, plot.bottom, AXIS))
    parts.append(text(plot.right, plot.bottom + 34, x[0], "faint", anchor="end"))
    return [*parts, text(plot.left - 40, plot.top - 8, y[0], "faint")]


def _short(value: float) -> str:
    return f"{value:g}".replace("-", "\u2212")


def span(values: Iterable[float], *, least: float | None = None, room: float = 0.06) -> tuple[float, float]:
    """The ends of an axis for these values, with some room; `least` is on it in any case."""
    found = [*values, *([] if least is None else [least])] or [0.0, 1.0]
    low, high = min(found), max(found)
    extra = room_for(low, high, room)
    return (low if low == least else low - extra), high + extra


def cells(rows: Sequence[Sequence[float | None]], colours: Sequence[str], ends: tuple[float, float], *, gap: float = 0.0) -> str:
    """A map in few bytes: one path for each colour, one unit for each cell; neighbours of one colour are one where no gap is."""
    drawn: dict[int, list[str]] = {}
    for y, row in enumerate(rows):
        levels = [level(value, ends, len(colours)) for value in row]
        x = 0
        while x < len(levels):
            here = levels[x]
            end = x + 1
            while not gap and end < len(levels) and levels[end] == here:
                end += 1
            if here is not None:
                side = f"{1 - gap:g}"
                wide = side if gap else str(end - x)
                drawn.setdefault(here, []).append(f"M{x} {y}h{wide}v{side}h-{wide}z")
            x = end
    return "".join(f'<path fill="{colours[place]}" d="{"".join(steps)}"/>' for place, steps in sorted(drawn.items()))


def level(value: float | None, ends: tuple[float, float], count: int) -> int | None:
    """Which of `count` colours a value has; None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    share = (value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.0
    return int(min(count - 1.0, max(0.0, share * count)))


def band(plot: Plot, x: Sequence[float], low: Sequence[float | None], high: Sequence[float | None], colour: str) -> str:
    """The area between two curves of a static picture."""
    there = [(a, b, c) for a, b, c in zip(x, low, high, strict=True) if b is not None and c is not None]
    if len(there) < 2:
        return ""
    points = [plot.at(a, c) for a, _, c in there] + [plot.at(a, b) for a, b, _ in reversed(there)]
    steps = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    return f'<path d="M{steps}z" fill="{colour}" fill-opacity=".16"/>'


def band_traces(x: Sequence[float], low: Sequence[Any], high: Sequence[Any], colour: str) -> list[dict[str, Any]]:
    """The same for Plotly: two lines without ink, and what is between them."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    line = {"x": list(x), "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "type": "scatter", "showlegend": False}
    tint = f"rgba({red},{green},{blue},0.16)"
    return [{**line, "y": tidy(low)}, {**line, "y": tidy(high), "fill": "tonexty", "fillcolor": tint}]
