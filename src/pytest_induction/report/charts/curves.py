"""Curves with their intervals over one axis, and estimates below one another: what notebooks draw of small tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import (
    Chart,
    Ticks,
    around,
    band,
    bottom,
    dots,
    heights,
    known,
    number,
    picture,
    round_ticks,
    span,
)
from pytest_induction.report.charts.drawing import AXIS, GOLD, LINES, Plot, dashed, mark, rule, text

WIDTH, HEIGHT, LEFT, TOP, KEYS = 560, 200, 52, 26, 150  # in pixels; `KEYS` is the room of the legend
ROW, NAMES, NUMBERS = 24, 190, 190  # of estimates: the height of one, and the room of their names and numbers
MOST_ESTIMATES = 40


def curves(data: Mapping[str, Any]) -> list[Chart]:
    """One plot: `series` each have a `name`, `x`, `y`, and perhaps `low` and `high`; `x` and `y` are the names of the axes."""
    series = data["series"]
    places = sorted({place for each in series for place in each["x"]})
    ends = (places[0], places[-1]) if places[0] < places[-1] else (places[0] - 0.5, places[0] + 0.5)
    values = [value for each in series for key in ("y", "low", "high") for value in known(each.get(key) or ())]
    plot = Plot(LEFT, TOP, WIDTH - LEFT - KEYS, HEIGHT, ends, span(values, least=0.0 if min(values, default=0.0) >= 0 else None))
    label = f"{data['y']} by {data['x']}: {', '.join(_label(each) for each in series)}"
    parts = [*heights(plot), *bottom(plot, data["x"], _ticks(places, plot))]
    for place, each in enumerate(series):
        colour = LINES[place % len(LINES)]
        parts.append(band(plot, each["x"], each.get("low") or [None] * len(each["x"]), each.get("high") or each["y"], colour))
        parts += [plot.line(each["x"], each["y"], colour), *dots(plot, each["x"], each["y"], colour)]
        y = plot.top + 10 + 20 * place
        parts.append(f'<path d="M{plot.right + 14:.1f} {y}h22" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(plot.right + 42, y + 4, each["name"]))
    return [Chart(data["y"], label, picture(parts, WIDTH, plot.bottom + 44, label), data.get("note", ""), WIDTH)]


def _label(series: Mapping[str, Any]) -> str:
    there = known(series["y"])
    return f"{series['name']} {number(there[0])} to {number(there[-1])}" if there else f"{series['name']} not known"


def _ticks(places: Sequence[float], plot: Plot) -> Ticks:
    """Each place that was measured, as far as their words do not touch."""
    found: list[tuple[float, str]] = []
    for place in places:
        if not found or plot.at(place, 0)[0] - plot.at(found[-1][0], 0)[0] >= 30:
            found.append((place, f"{place:g}"))
    return found


def estimates(data: Mapping[str, Any]) -> list[Chart]:
    """One plot for each unit, by a `title`.

    `rows` have a `name`, `value`, `low`, `high`, `unit` and `thresholds`, which are dashed.
    """
    units: dict[str, list[Mapping[str, Any]]] = {}
    for row in data["rows"]:
        if known([row["value"]]):
            units.setdefault(row["unit"], []).append(row)
    return [_estimates(data["title"], unit, rows) for unit, rows in units.items()]


def _estimates(name: str, unit: str, rows: Sequence[Mapping[str, Any]]) -> Chart:
    left_out, rows = len(rows) - MOST_ESTIMATES, rows[:MOST_ESTIMATES]
    values = [value for row in rows for value in known([row["value"], row["low"], row["high"], *row["thresholds"]])]
    is_share = unit == "share" and min(values) >= 0 and max(values) <= 1
    ends = (0.0, 1.0) if is_share else span([*values, 0.0], least=0.0 if min(values) >= 0 else None)
    plot = Plot(NAMES, 8, WIDTH - NAMES - NUMBERS + 60, ROW * len(rows), ends, (0.0, float(len(rows))))
    words = [
        around(row["value"], row["low"], row["high"], unit) if known([row["low"]]) else number(row["value"], unit) for row in rows
    ]
    label = "; ".join(f"{row['name']} {shown}" for row, shown in zip(rows, words, strict=True))
    parts = bottom(plot, "" if unit == "share" else unit, round_ticks(ends, 4))
    parts += [rule(x, plot.top, x, plot.bottom, AXIS) for x in [plot.at(0.0, 0)[0]] if ends[0] < 0]
    for place, (row, shown) in enumerate(zip(rows, words, strict=True)):
        y = plot.top + ROW * (place + 0.5)
        low, at, high = (plot.at(row[key] if math.isfinite(row[key]) else row["value"], 0)[0] for key in ("low", "value", "high"))
        parts += [text(plot.left - 12, y + 4, row["name"], anchor="end"), rule(plot.left, y, plot.right, y)]
        parts += [
            dashed(rule(x, y - ROW / 2, x, y + ROW / 2, GOLD, 2), "3 2")
            for x in (plot.at(each, 0)[0] for each in row["thresholds"])
        ]
        parts += [rule(low, y, max(high, low + 0.5), y, LINES[0], 4), mark(at, y, 9, LINES[0], "circle")]
        parts.append(text(plot.right + 12, y + 4, shown, "faint"))
    note = "dashed: what it was held against" if any(row["thresholds"] for row in rows) else ""
    note += f"; {left_out} more are not drawn" if left_out > 0 else ""
    title = name + ("" if unit in ("share", "") else f" ({unit})")
    return Chart(title, label, picture(parts, WIDTH + 60, plot.bottom + 40, label), note.removeprefix("; "), WIDTH + 60)
