"""One training run as a picture: an SVG file that needs nothing else, made of plain lists (see `runs.picture.picture_of`).

Everything that changes with training lies on one axis, the logarithm of the tokens, with the window in which induction formed in
gold; beside it the path of the training in the space of token losses, the window in gold again and the turn marked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.formatting import in_markup
from pytest_induction.report.drawing import (
    GOLD,
    GREY,
    GRID,
    LINES,
    SHADES,
    Plot,
    dot,
    rule,
    scaled,
    signed_colour,
    text,
    ticks_between,
)
from pytest_induction.report.view import amount

WIDTH, LEFT, PLOT, GAP = 1240, 78, 640, 34  # of the picture, its left margin, its plots, the space between them
SIDE, SIDE_WIDTH = 840, 370  # where the path begins, and how wide and high it is
TOP, LOW, TALL = 104, 118, 168  # the first plot, and the heights of plots
LONGEST_TITLE = 58  # characters that fit beside the legend
INK, FAINT, PAPER = "#1d2733", "#5f6b7a", "#ffffff"
HOLDS = "#15803d"  # where a property does
NAMED_HEADS = 4
MOST_DECADES = 3.5  # with marks at 1, 2 and 5; of more only the powers of ten
STEEPEST = (0.3, 1.0, 3.0, 10.0)  # nats per factor e at either end of the colours: the paper's, or more where most are steeper
STYLE = (
    f"text{{font:12px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:{INK}}}"
    f".halo{{paint-order:stroke;stroke:{PAPER};stroke-width:4px;stroke-linejoin:round}}"
    f".faint{{fill:{FAINT}}}.name{{font-weight:600;font-size:13px}}.title{{font-weight:700;font-size:20px}}"
    "path{fill:none;stroke-linejoin:round;stroke-linecap:round}"
)


def svg(picture: Mapping[str, Any]) -> str:
    """The whole picture as SVG. What was not recorded is left out, and named below the title."""
    x, plots, top = _span(picture["range"]), [], float(TOP)
    parts = [_head(picture)]
    for draw, height in _rows(picture):
        plot = Plot(LEFT, top, PLOT, height, x, (0.0, 1.0))
        plots.append(plot)
        parts += draw(picture, plot)
        top += height + GAP
    if plots:
        parts += _bottom(picture, plots[-1])
    side, bottom = _side(picture)
    tall = max(top + 26, bottom + 24)
    size = f'viewBox="0 0 {WIDTH} {tall:.0f}" width="{WIDTH}" height="{tall:.0f}"'
    about = f"<title>{in_markup(picture['title'])}: {in_markup(picture['subtitle'])}</title><style>{STYLE}</style>"
    ground = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{about}{ground}{"".join([*parts, *side])}</svg>\n'


def _rows(picture: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """What is drawn below what, each with its height."""
    curves = [(_curve_of(curve, LINES[place % len(LINES)]), LOW) for place, curve in enumerate(picture["curves"])]
    heads = [(_heads, LOW)] if picture["heads"] else []
    along = [(_index, TALL)] if picture["index"] else []
    hunts = [(_hunt_of(hunt), LOW) for hunt in picture.get("hunts", ())]
    return [*curves, *heads, *hunts, *along, *([(_map, TALL)] if picture["map"] else [])]


def _head(picture: Mapping[str, Any]) -> str:
    missing = f"; not recorded: {', '.join(picture['missing'])}" if picture["missing"] else ""
    title, window, legend = picture["title"], picture["window"], ""
    if len(title) > LONGEST_TITLE:
        title = f"\u2026{title[1 - LONGEST_TITLE :]}"  # what tells runs apart is at the end
    if window is not None:
        ends = " to ".join(amount(10**place) for place in window)
        swatch = f'<rect x="{SIDE}" y="27" width="14" height="14" fill="{GOLD}" fill-opacity="0.3"/>'
        unsure = "" if picture["verdict"] == "SHOWN" else f" ({picture['verdict']})"
        legend = swatch + text(SIDE + 22, 38, f"window of induction{unsure}: {ends} {picture['unit']}", "faint")
        if picture.get("reach"):
            reach = " to ".join(amount(10**place) for place in picture["reach"])
            legend += text(SIDE + 22, 56, f"lighter: what it may reach, {reach}", "faint")
    return text(LEFT, 38, title, "title") + text(LEFT, 60, picture["subtitle"] + missing, "faint") + legend


def _curve_of(curve: Mapping[str, Any], colour: str) -> Any:
    def draw(picture: Mapping[str, Any], plot: Plot) -> list[str]:
        plot = scaled(plot, curve["y"])
        return [*_frame(picture, plot, curve["name"], curve["unit"]), plot.line(curve["x"], curve["y"], colour)]

    return draw


def _heads(picture: Mapping[str, Any], plot: Plot) -> list[str]:
    heads = picture["heads"]
    plot = scaled(plot, [0.0, 1.0, *(value for head in heads for value in head["y"])])
    named = list(zip(heads[:NAMED_HEADS], LINES, strict=False))
    lines = [plot.line(head["x"], head["y"], GREY, 0.8) for head in reversed(heads[NAMED_HEADS:])]
    lines += [plot.line(head["x"], head["y"], colour) for head, colour in reversed(named)]
    labels = [(head["name"], head["y"][-1], colour) for head, colour in named]
    many = f"prefix matching of {len(heads)} of {picture['n_heads']} heads, the highest"
    name = "prefix matching of each head" if len(heads) == picture["n_heads"] else many
    return [*_frame(picture, plot, name, "share"), *lines, *_labels(plot, labels)]


def _hunt_of(hunt: Mapping[str, Any]) -> Any:
    """The smallest failing sequences of a property, and a dot on the ground where it holds on all that was generated."""

    def draw(picture: Mapping[str, Any], plot: Plot) -> list[str]:
        curves = [("shortest period", hunt["period"], LINES[0]), ("fewest copies", hunt["copies"], LINES[1])]
        known = [value for _, values, _ in curves for value in values if value is not None]
        plot = scaled(plot, [0.0, *known])
        name = f"{hunt['name']}: the smallest sequence that fails; a dot where none does"
        parts = _frame(picture, plot, name, "tokens, copies")
        for _, values, colour in curves:
            parts.append(plot.line(hunt["x"], values, colour))
            at = [(x, value) for x, value in zip(hunt["x"], values, strict=True) if value is not None]
            parts += [dot(plot, point, 2.2, colour) for point in at]
        parts += [dot(plot, (x, 0.0), 3, HOLDS) for x in hunt["holds"]]
        ends = [(words, last, colour) for words, values, colour in curves if (last := _last(values))]
        return [*parts, *_labels(plot, [*ends, *([("holds", 0.0, HOLDS)] if hunt["holds"] else [])])]

    return draw


def _index(picture: Mapping[str, Any], plot: Plot) -> list[str]:
    curves = picture["index"]
    plot = scaled(plot, [value for curve in curves for value in curve["y"]])
    shades = SHADES[-len(curves) :]
    lines = [plot.line(curve["x"], curve["y"], shade) for curve, shade in zip(curves, shades, strict=True)]
    labels = [(f"token {curve['token']:.0f}", _last(curve["y"]), shade) for curve, shade in zip(curves, shades, strict=True)]
    return [*_frame(picture, plot, "loss by token number", "nats"), *lines, *_labels(plot, labels)]


def _last(values: Sequence[float | None]) -> float:
    return next((value for value in reversed(values) if value is not None), 0.0)


def _map(picture: Mapping[str, Any], plot: Plot) -> list[str]:
    """The derivative of the loss by the logarithm of the token number: a cell for each snapshot and place."""
    cells = picture["map"]
    edges, places = edges_of(cells["x"]), [math.log10(token) for token in cells["tokens"]]
    rows = edges_of(places)
    plot = Plot(plot.left, plot.top, plot.width, plot.height, plot.x, (rows[0], rows[-1]))
    drawn, steepest = [], steepest_of([slope for slopes in cells["slopes"] for slope in slopes if slope is not None])
    for row, slopes in enumerate(cells["slopes"]):
        for column, slope in enumerate(slopes):
            (left, low), (right, high) = plot.at(edges[column], rows[row]), plot.at(edges[column + 1], rows[row + 1])
            left, right = max(left, plot.left), min(right, plot.right)
            if slope is not None and right > left:
                size = f'width="{right - left + 0.3:.1f}" height="{low - high + 0.3:.1f}"'
                drawn.append(f'<rect x="{left:.1f}" y="{high:.1f}" {size} fill="{signed_colour(slope / steepest)}"/>')
    named = "slope of the loss along the context, blue where it falls"
    frame = _frame(picture, plot, named, "token number", ticks=_tokens(rows[0], rows[-1]), is_filled=True)
    return [frame[0], *drawn, *frame[1:], *_colours(plot, steepest)]


def edges_of(places: Sequence[float]) -> list[float]:
    """Half-way between neighbours, and as far beyond the first and the last."""
    inner = [(one + two) / 2 for one, two in itertools.pairwise(places)]
    if not inner:
        return [places[0] - 0.1, places[0] + 0.1]
    return [2 * places[0] - inner[0], *inner, 2 * places[-1] - inner[-1]]


def _tokens(low: float, high: float) -> list[tuple[float, str]]:
    marks = [size * 10**power for power in range(6) for size in (1, 2, 5)]
    return [(math.log10(mark), f"{mark:g}") for mark in marks if low <= math.log10(mark) <= high]


def steepest_of(slopes: Sequence[float]) -> float:
    """The scale of the colours: the first that nine of ten slopes keep within."""
    sizes = sorted(map(abs, slopes))
    most = sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0
    return next((scale for scale in STEEPEST if scale >= most), STEEPEST[-1])


def _colours(plot: Plot, steepest: float) -> list[str]:
    """The bar of colours, right of the map."""
    steps, left = TALL // 3, plot.right + 14  # of whole pixels: no seams show
    height = plot.height / steps
    cells = [
        f'<rect x="{left:.1f}" y="{plot.top + place * height:.1f}" width="11" height="{height + 0.4:.1f}" '
        f'fill="{signed_colour(1 - 2 * (place + 0.5) / steps)}"/>'
        for place in range(steps)
    ]
    for share, y in ((1, plot.top + 9), (0, plot.top + plot.height / 2 + 4), (-1, plot.bottom)):
        cells.append(text(left + 17, y, f"{share * steepest:+g}" if share else "0", "faint"))
    return [*cells, text(left, plot.bottom + 19, "nats per factor e", "faint")]


def _side(picture: Mapping[str, Any]) -> tuple[list[str], float]:
    """The path on its principal plane, and below it the verdict on every series; how far down they reach."""
    path, top = picture["path"], TOP - 9.0
    parts: list[str] = []
    if path is not None:
        parts += _path(path, Plot(SIDE, TOP, SIDE_WIDTH, SIDE_WIDTH, (0.0, 1.0), (0.0, 1.0)), picture["unit"])
        top = TOP + SIDE_WIDTH + 92.0
    if not picture["changes"]:
        return parts, top
    parts.append(text(SIDE, top, "what changed", "name"))
    parts.append(text(SIDE + SIDE_WIDTH, top, f"half-way, in {picture['unit']}", "faint", anchor="end"))
    y = top
    for change in picture["changes"]:
        y += 21
        at = change["midpoint"]
        where = "" if at is None else f"{amount(10**at)} ({amount(10 ** change['low'])}..{amount(10 ** change['high'])})"
        parts += [text(SIDE, y, change["name"]), text(SIDE + 124, y, change["verdict"].replace("_", " "), "faint")]
        parts.append(text(SIDE + SIDE_WIDTH, y, where, "faint", anchor="end"))
    return parts, y


def _path(path: Mapping[str, Any], plot: Plot, unit: str) -> list[str]:
    middle = [(min(values) + max(values)) / 2 for values in (path["x"], path["y"])]
    half = max(*(max(values) - min(values) for values in (path["x"], path["y"])), 1e-9) * 0.57
    x, y = ((centre - half, centre + half) for centre in middle)
    plot = Plot(plot.left, plot.top, plot.width, plot.height, x, y)  # one scale for both: angles are seen as they are
    parts = [f'<rect x="{plot.left}" y="{plot.top}" width="{plot.width}" height="{plot.height}" fill="#fbfcfd" stroke="{GRID}"/>']
    for value in ticks_between(*plot.x, 5):
        across = plot.at(value, plot.y[0])[0]
        parts += [rule(across, plot.top, across, plot.bottom)]
        parts.append(text(across, plot.bottom + 16, f"{value:g}", "faint", anchor="middle"))
    for value in ticks_between(*plot.y, 5):
        up = plot.at(plot.x[0], value)[1]
        parts += [rule(plot.left, up, plot.right, up), text(plot.left - 8, up + 4, f"{value:g}", "faint", anchor="end")]
    first, second = path["shares"]
    parts.append(text(plot.left, plot.top - 9, "path of the token losses (nats)", "name"))
    shown = f"\u2192 first direction, {first:.0%} of what varies; \u2191 second, {second:.0%}"
    parts.append(text(plot.right, plot.bottom + 34, shown, "faint", anchor="end"))
    if path["turn"] is not None:
        parts.append(
            text(plot.right, plot.bottom + 52, "the turn is one in all directions, not in these two", "faint", anchor="end")
        )
    parts.append(plot.line(path["x"], path["y"], "#64748b", 1.6))
    points = list(zip(path["x"], path["y"], strict=True))
    if path["inside"]:
        inside = points[max(0, path["inside"][0] - 1) : path["inside"][-1] + 2]
        parts.append(plot.line([x for x, _ in inside], [y for _, y in inside], GOLD, 5))
    parts += [dot(plot, point, 2.2, "#64748b") for point in points]
    return parts + _marks(path, plot, points, unit)


def _marks(path: Mapping[str, Any], plot: Plot, points: Sequence[tuple[float, float]], unit: str) -> list[str]:
    """Where the path begins, ends and turns."""
    marks = [(points[0], "start", INK), (points[-1], "end", INK)]
    if path["turn"] is not None:
        marks.append((points[path["turn"]], f"turn, at {amount(10 ** path['turn_at'])} {unit}", LINES[1]))
    parts = [dot(plot, point, 5, colour) for point, _, colour in marks]
    for point, words, _ in marks:
        x, y, anchor = _clear(plot, points, point, 6.6 * len(words))
        parts.append(text(x, y, words, "halo", anchor=anchor))
    return parts


def _clear(
    plot: Plot, points: Sequence[tuple[float, float]], point: tuple[float, float], width: float
) -> tuple[float, float, str]:
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


def _frame(
    picture: Mapping[str, Any],
    plot: Plot,
    name: str,
    unit: str,
    *,
    ticks: Sequence[tuple[float, str]] | None = None,
    is_filled: bool = False,
) -> list[str]:
    """Window, grid, labels and name of a plot; over a filled one the window is two lines."""
    parts = [f'<rect x="{plot.left}" y="{plot.top}" width="{plot.width}" height="{plot.height}" fill="#fbfcfd"/>']
    if not is_filled:
        parts += [rule(x, plot.top, x, plot.bottom) for x, _ in _along(picture, plot)]
    if picture["window"] is not None:
        for ends, opacity in ((picture.get("reach"), 0.12), (picture["window"], 0.28)):
            if ends is None:
                continue
            first, last = (min(max(plot.at(place, 0)[0], plot.left), plot.right) for place in ends)
            if is_filled and ends == picture["window"]:
                parts += [rule(x, plot.top, x, plot.bottom, GOLD, 2) for x in (first, last)]
            elif not is_filled:
                size = f'width="{max(last - first, 1.5):.1f}" height="{plot.height}"'
                parts.append(f'<rect x="{first:.1f}" y="{plot.top}" {size} fill="{GOLD}" fill-opacity="{opacity}"/>')
    marks = [(value, f"{value:g}") for value in ticks_between(*plot.y, 4)] if ticks is None else ticks
    for value, label in marks:
        y = plot.at(plot.x[0], value)[1]
        parts += [] if is_filled else [rule(plot.left, y, plot.right, y)]
        parts.append(text(plot.left - 8, y + 4, label, "faint", anchor="end"))
    parts.append(rule(plot.left, plot.bottom, plot.right, plot.bottom, "#aab4c0"))
    return [*parts, text(plot.left, plot.top - 9, name, "name"), text(plot.right, plot.top - 9, unit, "faint", anchor="end")]


def _bottom(picture: Mapping[str, Any], plot: Plot) -> list[str]:
    """The labels of the common axis."""
    parts = []
    for x, label in _along(picture, plot):
        parts.append(rule(x, plot.bottom, x, plot.bottom + 5, "#aab4c0"))
        parts.append(text(x, plot.bottom + 19, label, "faint", anchor="middle"))
    name = "tokens trained on" if picture["unit"] == "tokens" else "steps of the training"
    return [*parts, text(plot.right, plot.bottom + 36, name, "faint", anchor="end")]


def _along(picture: Mapping[str, Any], plot: Plot) -> list[tuple[float, str]]:
    """The marks of the common axis, where they lie in the plot."""
    return [(plot.at(place, plot.y[0])[0], label) for place, label in marks_of(picture, room=36 / PLOT)]


def marks_of(picture: Mapping[str, Any], *, room: float) -> list[tuple[float, str]]:
    """Where the common axis has marks, and what they say; an untrained model lies at its left end, and says 0.

    `room` is the share of the axis that this mark takes.
    """
    low, high = _span(picture["range"])
    sizes = (1,) if high - low > MOST_DECADES else (1, 2, 5)
    places = [power + math.log10(size) for power in range(math.floor(low), math.floor(high) + 1) for size in sizes]
    places = [place for place in places if low <= place <= high]
    if len(places) < 2:
        places = [math.log10(value) for value in ticks_between(10**low, 10**high, 4) if value > 0]
    begin = [(picture["range"][0], "0")] if picture["begins_at_0"] else []
    least = low + room * (high - low) if begin else low
    return [*begin, *((place, amount(10**place)) for place in places if place >= least)]


def _labels(plot: Plot, labels: Sequence[tuple[str, float, str]]) -> list[str]:
    """Names of curves at their right ends, moved apart."""
    placed: list[tuple[float, str, str]] = []
    floor = plot.top - 4.0
    for words, value, colour in sorted(labels, key=lambda label: -label[1]):
        floor = max(plot.at(plot.x[1], value)[1] + 4, floor + 14)
        placed.append((floor, words, colour))
    over = max(0.0, floor - plot.bottom - 4) if placed else 0.0
    return [text(plot.right + 8, y - over, words, fill=colour) for y, words, colour in placed]


def _span(ends: Sequence[float]) -> tuple[float, float]:
    return (ends[0], ends[1]) if ends[1] > ends[0] else (ends[0] - 0.5, ends[0] + 0.5)
