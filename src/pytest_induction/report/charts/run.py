"""A training run: what changed over the tokens, in plots over one axis; `runs.picture.picture_of` has the data.

The axis is the logarithm of the tokens, with the window in which induction formed in gold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import (
    WIDTH,
    Chart,
    Ticks,
    bottom,
    cells,
    dots,
    exact,
    heights,
    known,
    number,
    picture,
)
from pytest_induction.report.charts.drawing import (
    AXIS,
    GOLD,
    GREY,
    LINES,
    SHADES,
    SIGNED,
    Plot,
    cell_words,
    curve,
    dot,
    legend,
    marked,
    rule,
    scaled,
    text,
    ticks_between,
)
from pytest_induction.report.charts.path import path
from pytest_induction.report.view import amount

LEFT, RIGHT, TOP, GAP, FOOT = 58, 104, 26, 36, 44  # margins: of the plots, between them, and below the last
LOW, TALL = 118, 168  # heights of plots
HOLDS = "#15803d"  # where a property does
NAMED_HEADS = 4  # have colours
LABEL = 14  # least distance of labels, in pixels
MOST_DECADES = 3.5  # with marks at 1, 2 and 5; of more only the powers of ten
STEEPEST = (0.3, 1.0, 3.0, 10.0)  # nats per factor e at either end of the colours: the paper's, or more where most are steeper

Label = tuple[str, float, str, str]
"""Beside the end of a curve: its name, its last value, its colour, and what it is in the legend."""


def run(data: Mapping[str, Any]) -> list[Chart]:
    """What changed with the tokens, as plots over one axis; then the path."""
    parts, height = plots(data)
    label = _label(data)
    charts = [Chart("over the training", label, picture(parts, WIDTH, height, label), _note(data))]
    return [*charts, path(data)] if data.get("path") else charts


def plots(data: Mapping[str, Any]) -> tuple[list[str], float]:
    """One plot below the other, and how high they are together. What was not recorded is left out."""
    x, parts, top = _span(data["range"]), list[str](), float(TOP)
    rows = _rows(data)
    plot = None
    for draw, height in rows:
        plot = Plot(LEFT, top, WIDTH - LEFT - RIGHT, height, x, (0.0, 1.0))
        parts += draw(data, plot)
        top += height + GAP
    if plot is None:
        return [text(LEFT, top, "nothing was recorded that can be drawn", "faint")], top + FOOT
    name = "tokens trained on" if data["unit"] == "tokens" else f"{data['unit']} of the training"
    return [*parts, *bottom(plot, name, _ticks(data, plot))], plot.bottom + FOOT


Draw = Callable[[Mapping[str, Any], Plot], list[str]]


def _rows(data: Mapping[str, Any]) -> list[tuple[Draw, int]]:
    """What is drawn below what, each with its height."""
    curves = [(_curve_of(index), LOW) for index in range(len(data["curves"]))]
    heads = [(_heads, TALL)] if data["heads"] else []
    hunts = [(_hunt_of(hunt), LOW) for hunt in data.get("hunts", ())]
    along = [(_index, TALL)] if data["index"] else []
    return [*curves, *heads, *hunts, *along, *([(_slopes, TALL)] if data["map"] else [])]


def _curve_of(index: int) -> Draw:
    def draw(data: Mapping[str, Any], plot: Plot) -> list[str]:
        shown = data["curves"][index]
        plot = scaled(plot, shown["y"])
        return [
            *_frame(data, plot, shown["name"], shown["unit"]),
            _line(data, plot, shown, shown["name"], LINES[index % len(LINES)]),
        ]

    return draw


def _line(
    data: Mapping[str, Any],
    plot: Plot,
    shown: Mapping[str, Any],
    name: str,
    colour: str,
    width: float = 1.8,
    *,
    unit: str = "",
    of: str = "",
    texts: Sequence[str] = (),
) -> str:
    """A curve, and what each of its points says."""
    there = [index for index, value in enumerate(shown["y"]) if known([value])]
    where = _places(data, shown["x"])
    at = [f"{where[index]}; {texts[index]}" if texts else where[index] for index in there]
    words = {"name": name, "values": [exact(shown["y"][index]) for index in there], "after": unit and f" {unit}", "at": at}
    return curve(plot.line(shown["x"], shown["y"], colour, width), words, of)


def _places(data: Mapping[str, Any], x: Sequence[float]) -> list[str]:
    """What each place of the common axis is called."""
    begin = data["range"][0] if data.get("begins_at_0") else None
    return [f"{'0' if at == begin else amount(10**at)} {data['unit']}" for at in x]


def _heads(data: Mapping[str, Any], plot: Plot) -> list[str]:
    heads = data["heads"]
    plot = scaled(plot, [0.0, 1.0, *(value for head in heads for value in head["y"])])
    lines = [_line(data, plot, head, head["name"], GREY, 0.8) for head in reversed(heads[NAMED_HEADS:])]
    named = list(enumerate(zip(heads[:NAMED_HEADS], LINES, strict=False)))
    lines += [_line(data, plot, head, head["name"], colour, of=f"h{index}") for index, (head, colour) in reversed(named)]
    labels = [(head["name"], head["y"][-1], colour, f"h{index}") for index, (head, colour) in named]
    many = f"prefix matching of {len(heads)} of {data['n_heads']} heads, the highest"
    name = "prefix matching of every head" if len(heads) == data["n_heads"] else many
    return [*_frame(data, plot, name, "share"), *lines, *_labels(plot, labels)]


def _hunt_of(hunt: Mapping[str, Any]) -> Draw:
    """The smallest failing sequences of a property, and a dot on the ground where it holds on all that was generated."""

    def draw(data: Mapping[str, Any], plot: Plot) -> list[str]:
        curves = [("shortest period", hunt["period"], LINES[0]), ("fewest copies", hunt["copies"], LINES[1])]
        plot = scaled(plot, [0.0, *known(value for _, values, _ in curves for value in values)])
        parts = _frame(data, plot, f"{hunt['name']}: the smallest sequence that fails; a dot where none does", "tokens, copies")
        labels: list[Label] = []
        for name, values, colour in curves:
            parts.append(_line(data, plot, {"x": hunt["x"], "y": values}, name, colour, texts=hunt["texts"]))
            parts += dots(plot, hunt["x"], values, colour)
            labels += [(name, last, colour, "") for last in known(values)[-1:]]
        texts = dict(zip(hunt["x"], zip(_places(data, hunt["x"]), hunt["texts"], strict=True), strict=True))
        holds = [marked(texts.get(x, ("holds",)), [dot(plot, (x, 0.0), 3, HOLDS)]) for x in hunt["holds"]]
        return [*parts, *holds, *_labels(plot, [*labels, *([("holds", 0.0, HOLDS, "")] if holds else [])])]

    return draw


def _index(data: Mapping[str, Any], plot: Plot) -> list[str]:
    curves = data["index"][-len(SHADES) :]
    plot = scaled(plot, [value for each in curves for value in each["y"]])
    lines, labels = [], list[Label]()
    for index, (each, shade) in enumerate(zip(curves, SHADES[-len(curves) :], strict=True)):
        name = f"token {each['token']:.0f}"
        lines.append(_line(data, plot, each, name, shade, unit="nats", of=f"t{index}"))
        labels += [(name, last, shade, f"t{index}") for last in known(each["y"])[-1:]]
    return [*_frame(data, plot, "loss by token number", "nats"), *lines, *_labels(plot, labels)]


def _slopes(data: Mapping[str, Any], plot: Plot) -> list[str]:
    """The derivative of the loss by the logarithm of the token number: a cell for each snapshot and place."""
    slopes = data["map"]
    rows = edges_of([math.log10(token) for token in slopes["tokens"]])
    plot = Plot(plot.left, plot.top, plot.width, plot.height, plot.x, (rows[0], rows[-1]))
    across = [min(max(plot.at(place, 0)[0], plot.left), plot.right) for place in edges_of(slopes["x"])]
    down = [plot.at(0, place)[1] for place in reversed(rows)]
    values = slopes["slopes"][::-1]
    steepest = steepest_of(known(slope for row in values for slope in row))
    texts = [[number(slope, "share", signed=True) if known([slope]) else None for slope in row] for row in values]
    words = cell_words(
        [f"token {token:.0f}" for token in reversed(slopes["tokens"])],
        _places(data, slopes["x"]),
        texts,
        join=", ",
        after=" nats per factor e",
        across=[round(place, 1) for place in across],
        down=[round(place, 1) for place in down],
    )
    drawn = cells(values, SIGNED, (-steepest, steepest), edges=(across, down))
    marks = [size * 10**power for power in range(6) for size in (1, 2, 5)]
    ticks = [(math.log10(mark), f"{mark:g}") for mark in marks if rows[0] <= math.log10(mark) <= rows[-1]]
    named = "slope of the loss along the context, blue where it falls"
    frame = _frame(data, plot, named, "token number", ticks=ticks, is_filled=True)
    return [f'<g class="cells" shape-rendering="crispEdges">{words}{drawn}</g>', *frame, *_colours(plot, steepest)]


def edges_of(places: Sequence[float]) -> list[float]:
    """Half-way between neighbours, and as far beyond the first and the last."""
    inner = [(one + two) / 2 for one, two in itertools.pairwise(places)]
    if not inner:
        return [places[0] - 0.1, places[0] + 0.1]
    return [2 * places[0] - inner[0], *inner, 2 * places[-1] - inner[-1]]


def steepest_of(slopes: Sequence[float]) -> float:
    """The scale of the colours: the first that nine of ten slopes keep within."""
    sizes = sorted(map(abs, slopes))
    most = sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0
    return next((scale for scale in STEEPEST if scale >= most), STEEPEST[-1])


def _colours(plot: Plot, steepest: float) -> list[str]:
    """The bar of colours, right of the map."""
    left, height = plot.right + 14, plot.height / len(SIGNED)
    size = f'width="11" height="{height + 0.4:.1f}"'
    parts = [
        f'<rect x="{left:.1f}" y="{plot.bottom - (step + 1) * height:.1f}" {size} fill="{colour}"/>'
        for step, colour in enumerate(SIGNED)
    ]
    for share, y in ((1, plot.top + 9), (0, plot.top + plot.height / 2 + 4), (-1, plot.bottom)):
        parts.append(text(left + 17, y, f"{share * steepest:+g}".replace("-", "\u2212") if share else "0", "faint"))
    return [*parts, text(left, plot.bottom + 17, "nats per factor e", "faint")]


def _frame(
    data: Mapping[str, Any], plot: Plot, name: str, unit: str, *, ticks: Ticks | None = None, is_filled: bool = False
) -> list[str]:
    """Window, grid, labels and name of a plot; over a filled one the window is two lines."""
    across = [] if is_filled else [plot.at(place, plot.y[0])[0] for place, _ in _ticks(data, plot)]
    parts = [rule(x, plot.top, x, plot.bottom) for x in across]
    parts += _window(data, plot, is_filled=is_filled)
    parts += heights(plot, ticks, ruled=not is_filled)
    parts.append(rule(plot.left, plot.bottom, plot.right, plot.bottom, AXIS))
    return [*parts, text(plot.left, plot.top - 9, name, "name"), text(plot.right, plot.top - 9, unit, "faint", anchor="end")]


def _window(data: Mapping[str, Any], plot: Plot, *, is_filled: bool) -> list[str]:
    """Where induction formed: shaded, lighter where it may reach; two lines over a map."""
    parts = []
    for ends, opacity in ((data.get("reach"), 0.14), (data["window"], 0.28)):
        if data["window"] is None or ends is None:
            continue
        first, last = (min(max(plot.at(place, 0)[0], plot.left), plot.right) for place in ends)
        if is_filled and ends == data["window"]:
            parts += [rule(x, plot.top, x, plot.bottom, GOLD, 2) for x in (first, last)]
        elif not is_filled:
            size = f'width="{max(last - first, 1.5):.1f}" height="{plot.height}"'
            parts.append(f'<rect x="{first:.1f}" y="{plot.top}" {size} fill="{GOLD}" fill-opacity="{opacity}"/>')
    return parts


def _ticks(data: Mapping[str, Any], plot: Plot) -> Ticks:
    return marks_of(data, room=36 / plot.width)


def marks_of(data: Mapping[str, Any], *, room: float) -> list[tuple[float, str]]:
    """Where the common axis has marks, and what they say; an untrained model lies at its left end, and says 0.

    `room` is the share of the axis that this mark takes.
    """
    low, high = _span(data["range"])
    sizes = (1,) if high - low > MOST_DECADES else (1, 2, 5)
    places = [power + math.log10(size) for power in range(math.floor(low), math.floor(high) + 1) for size in sizes]
    places = [place for place in places if low <= place <= high]
    if len(places) < 2:
        places = [math.log10(value) for value in ticks_between(10**low, 10**high, 4) if value > 0]
    begin = [(data["range"][0], "0")] if data["begins_at_0"] else []
    least = low + room * (high - low) if begin else low
    return [*begin, *((place, amount(10**place)) for place in places if place >= least)]


def _labels(plot: Plot, labels: Iterable[Label]) -> list[str]:
    """Names of curves at their right ends, moved apart; a click on one hides its curve."""
    placed: list[tuple[float, Label]] = []
    floor = plot.top - 4.0
    for label in sorted(labels, key=lambda label: -label[1]):
        floor = max(plot.at(plot.x[1], label[1])[1] + 4, floor + LABEL)
        placed.append((floor, label))
    over = max(0.0, floor - plot.bottom - 4) if placed else 0.0
    parts = []
    for y, (words, _, colour, of) in placed:
        name = text(plot.right + 8, y - over, words, fill=colour)
        parts.append(legend(of, [name]) if of else name)
    return parts


def _span(ends: Sequence[float]) -> tuple[float, float]:
    return (ends[0], ends[1]) if ends[1] > ends[0] else (ends[0] - 0.5, ends[0] + 0.5)


def _label(data: Mapping[str, Any]) -> str:
    drawn = [shown["name"] for shown in data["curves"]]
    if data["heads"]:
        drawn.append("prefix matching of heads")
    if data["map"]:
        drawn.append("slope of the loss along the context")
    drawn += [f"what fails of {hunt['name']}" for hunt in data.get("hunts", ())]
    window = data.get("window")
    when = ""
    if window:
        when = f"; induction forms between {amount(10 ** window[0])} and {amount(10 ** window[1])} {data['unit']}"
    return f"{', '.join(drawn) or 'nothing'} over {data['unit']}{when}"


def _note(data: Mapping[str, Any]) -> str:
    parts = []
    if data.get("window"):
        parts.append(f"gold: {window_text(data)}")
        if data.get("reach"):
            parts.append(f"lighter: {reach_text(data)}")
    if data.get("missing"):
        parts.append(f"not recorded: {', '.join(data['missing'])}")
    return "; ".join(parts)


def window_text(data: Mapping[str, Any]) -> str:
    """What gold is, where there is a window."""
    unsure = "" if data.get("verdict") == "SHOWN" else f" ({data.get('verdict')})"
    return f"window of induction{unsure}: {' to '.join(amount(10**place) for place in data['window'])} {data['unit']}"


def reach_text(data: Mapping[str, Any]) -> str:
    """What the lighter gold around it is."""
    return f"what it may reach, {' to '.join(amount(10**place) for place in data['reach'])}"
