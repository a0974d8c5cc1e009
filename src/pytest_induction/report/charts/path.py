"""The path of a training in the space of token losses: the window of induction in gold, and where it turns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import Chart, exact, picture, round_ticks
from pytest_induction.report.charts.drawing import AXIS, GOLD, INK, LINES, Plot, dot, marked, rule, text
from pytest_induction.report.view import amount

LEFT, TOP, SIDE = 44, 26, 370  # margins, and how wide and high the plot is
WIDTH, HEIGHT = LEFT + SIDE + 12, TOP + SIDE + 64
TRAIL = "#64748b"
Point = tuple[float, float]


def path(data: Mapping[str, Any]) -> Chart:
    """The chart of a run that has a path."""
    shown = data["path"]
    first, second = (f"{share:.0%}" for share in shown["shares"])
    label = (
        f"path of the training in the space of token losses; its first two directions hold {first} and {second} of what varies"
    )
    note = ["gold: the window of induction"] if shown["inside"] else []
    if shown["turn"] is not None:
        when = f"{amount(10 ** shown['turn_at'])} {data['unit']}"
        note.append(f"the turn is at {when}, in all directions, not in these two alone")
    parts = path_parts(data)
    return Chart("path of the token losses", label, picture(parts, WIDTH, HEIGHT, label), "; ".join(note), WIDTH)


def path_parts(data: Mapping[str, Any]) -> list[str]:
    """The path on its principal plane."""
    shown = data["path"]
    points = list(zip(shown["x"], shown["y"], strict=True))
    plot = _plot(shown)
    first, second = shown["shares"]
    parts = [*_grid(plot), text(plot.left, plot.top - 9, "path of the token losses (nats)", "name")]
    words = f"\u2192 first direction, {first:.0%} of what varies; \u2191 second, {second:.0%}"
    parts.append(text(plot.right, plot.bottom + 34, words, "faint", anchor="end"))
    if shown["turn"] is not None:
        words = "the turn is one in all directions, not in these two"
        parts.append(text(plot.right, plot.bottom + 52, words, "faint", anchor="end"))
    parts.append(plot.line(shown["x"], shown["y"], TRAIL, 1.6))
    if shown["inside"]:
        inside = points[max(0, shown["inside"][0] - 1) : shown["inside"][-1] + 2]
        parts.append(plot.line([x for x, _ in inside], [y for _, y in inside], GOLD, 5))
    return [*parts, *_dots(data, plot, points), *_marks(data, plot, points)]


def _plot(shown: Mapping[str, Any]) -> Plot:
    """One scale for both directions: angles are seen as they are."""
    middle = [(min(values) + max(values)) / 2 for values in (shown["x"], shown["y"])]
    half = max(*(max(values) - min(values) for values in (shown["x"], shown["y"])), 1e-9) * 0.57
    x, y = ((centre - half, centre + half) for centre in middle)
    return Plot(LEFT, TOP, SIDE, SIDE, x, y)


def _grid(plot: Plot) -> list[str]:
    parts = [f'<rect x="{plot.left}" y="{plot.top}" width="{plot.width}" height="{plot.height}" stroke="{AXIS}"/>']
    for value, words in round_ticks(plot.x, 5):
        across = plot.at(value, plot.y[0])[0]
        parts += [rule(across, plot.top, across, plot.bottom)]
        parts.append(text(across, plot.bottom + 16, words, "faint", anchor="middle"))
    for value, words in round_ticks(plot.y, 5):
        up = plot.at(plot.x[0], value)[1]
        parts += [rule(plot.left, up, plot.right, up), text(plot.left - 8, up + 4, words, "faint", anchor="end")]
    return parts


def _dots(data: Mapping[str, Any], plot: Plot, points: Sequence[Point]) -> list[str]:
    """A dot for each snapshot, which says when that was."""
    begin = data["range"][0] if data.get("begins_at_0") else None
    times = ["0" if at == begin else amount(10**at) for at in data["path"]["at"]]
    places = [f"{exact(x)}, {exact(y)} nats" for x, y in points]
    return [
        marked([f"{time} {data['unit']}", words], [dot(plot, point, 2.2, TRAIL)])
        for time, words, point in zip(times, places, points, strict=True)
    ]


def _marks(data: Mapping[str, Any], plot: Plot, points: Sequence[Point]) -> list[str]:
    """Where the path begins, ends and turns."""
    shown = data["path"]
    marks = [(points[0], "start", INK), (points[-1], "end", INK)]
    if shown["turn"] is not None:
        marks.append((points[shown["turn"]], f"turn, at {amount(10 ** shown['turn_at'])} {data['unit']}", LINES[1]))
    parts = [dot(plot, point, 5, colour) for point, _, colour in marks]
    for point, words, _ in marks:
        x, y, anchor = _clear(plot, points, point, 6.6 * len(words))
        parts.append(text(x, y, words, "halo", anchor=anchor))
    return parts


def _clear(plot: Plot, points: Sequence[Point], point: Point, width: float) -> tuple[float, float, str]:
    """Where beside a point a text of such a width covers least of the path: its place, and which end of it that is."""
    x, y = plot.at(*point)
    known = [plot.at(*each) for each in points]
    known += [((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in itertools.pairwise(known)]
    costs = []
    for across, anchor in ((9.0, "start"), (-9.0, "end")):
        for down in (-9.0, 18.0, -24.0, 34.0):
            left, base = x + across - (width if anchor == "end" else 0), y + down
            covered = sum(left - 4 < a < left + width + 4 and base - 14 < b < base + 5 for a, b in known)
            outside = max(0.0, plot.left - left, left + width - plot.right, plot.top + 14 - base, base - plot.bottom)
            costs.append((covered + outside, abs(down), (x + across, base, anchor)))
    return min(costs)[2]
