"""What the loss loses without heads: each alone, together, and sets of others that were drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import WIDTH, Chart, around, frame, known, number, picture, span
from pytest_induction.report.charts.drawing import GREY, LINES, Plot, mark, marked, rule, text

MOST_HEADS = 16  # alone: those without which the loss rises most
ROW = 26
LEFT = 132
Row = tuple[str, Mapping[str, Any], str, str]
"""What is ablated, the rise of the loss, a colour and a shape."""


def ablations(data: Mapping[str, Any]) -> list[Chart]:
    """The chart of what ablations cost."""
    heads = sorted(data["heads"], key=lambda head: -(known([head["value"]]) or [-1e9])[0])[:MOST_HEADS]
    together, controls = data.get("together"), known(data.get("controls") or ())
    rows: list[Row] = [(str(head["name"]), head, LINES[0], "circle") for head in heads]
    if together:
        rows.append((_all(together), together, LINES[1], "diamond"))
    label = _label(data, together, controls)
    return [Chart("rise of the loss without heads", label, _drawn(data, rows, controls, label), _note(data, heads))]


def _all(together: Mapping[str, Any]) -> str:
    return f"all {len(together.get('names') or ())} together"


def _random(controls: Sequence[float]) -> str:
    return f"{len(controls)} random set{'s' if len(controls) != 1 else ''}"


def _label(data: Mapping[str, Any], together: Mapping[str, Any] | None, controls: Sequence[float]) -> str:
    parts = []
    if together:
        parts.append(f"without {_all(together)} the loss rises by {number(together['value'], signed=True)} {data['unit']}")
    if controls:
        ends = f"{number(min(controls), signed=True)} to {number(max(controls), signed=True)}"
        parts.append(f"without random sets of the same layers by {ends}")
    return "; ".join(parts) or "the loss without heads"


def _note(data: Mapping[str, Any], heads: Sequence[Any]) -> str:
    parts = [f"ablation by {data['how']}", f"the loss of the model is {number(data.get('loss'))} {data['unit']}"]
    if known([data.get("of_all")]):
        parts.append(f"without any head it rises by {number(data['of_all'], signed=True)}")
    if len(heads) < len(data["heads"]):
        parts.append(f"the {len(heads)} heads that matter most of {len(data['heads'])}")
    if data.get("relaxed"):
        parts.append("too few other heads for sets of the same layers: some are of others")
    return "; ".join(parts)


def _drawn(data: Mapping[str, Any], rows: Sequence[Row], controls: Sequence[float], label: str) -> str:
    count = len(rows) + bool(controls)
    values = known(row[1].get(side) for row in rows for side in ("value", "low", "high"))
    plot = Plot(LEFT, 10, WIDTH - LEFT - 18, ROW * count, span([*values, *controls, 0.0]), (0.0, max(count, 1)))
    parts = frame(plot, (f"rise of the loss ({data['unit']})", None), ("", ()))
    zero = plot.at(0, 0)[0]
    parts.append(rule(zero, plot.top, zero, plot.bottom, GREY))
    parts += [_row(plot, plot.top + ROW * (place + 0.5), row) for place, row in enumerate(rows)]
    parts += _random_sets(plot, controls) if controls else []
    return picture(parts, WIDTH, ROW * count + 54, label)


def _row(plot: Plot, y: float, row: Row) -> str:
    """The rise without one head, or without all: a mark on its interval."""
    name, value, colour, symbol = row
    parts = [text(plot.left - 10, y + 4, name, anchor="end")]
    if known([value.get("low")]) and known([value.get("high")]):
        parts.append(rule(plot.at(value["low"], 0)[0], y, plot.at(value["high"], 0)[0], y, colour, 2))
    parts += [mark(plot.at(x, 0)[0], y, 9, colour, symbol) for x in known([value["value"]])]
    return marked([name, around(value["value"], value.get("low"), value.get("high"), signed=True)], parts)


def _random_sets(plot: Plot, controls: Sequence[float]) -> list[str]:
    """A stroke for each random set, on the range of all."""
    y, ends = plot.bottom - ROW / 2, [min(controls), max(controls)]
    low, high = (plot.at(end, 0)[0] for end in ends)
    size = f'width="{max(high - low, 1):.1f}" height="8"'
    shapes = [
        text(plot.left - 10, y + 4, _random(controls), anchor="end"),
        f'<rect x="{low:.1f}" y="{y - 4:.1f}" {size} fill="{GREY}" fill-opacity=".4"/>',
    ]
    line = f"of as many heads in the same layers: {' to '.join(number(end, signed=True) for end in ends)}"
    strokes = [
        marked(["random set", number(x, signed=True)], [rule(plot.at(x, 0)[0], y - 6, plot.at(x, 0)[0], y + 6, GREY, 1.5)])
        for x in sorted(controls)
    ]
    return [marked([_random(controls), line], shapes), *strokes]
