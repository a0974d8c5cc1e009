"""What the loss loses without heads: each alone, together, and sets of others that were drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import WIDTH, Chart, axis, figure, frame, known, number, picture, span, tidy
from pytest_induction.report.drawing import GREY, LINES, Plot, mark, rule, text

MOST_HEADS = 16  # alone: those without which the loss rises most
ROW = 26


def ablations(data: Mapping[str, Any]) -> list[Chart]:
    """The chart of what ablations cost."""
    heads = sorted(data["heads"], key=lambda head: -(known([head["value"]]) or [-1e9])[0])[:MOST_HEADS]
    together, controls = data.get("together"), known(data.get("controls") or ())
    rows = [(str(head["name"]), head, LINES[0], "circle") for head in heads]
    if together:
        rows.append((_all(together), together, LINES[1], "diamond"))
    height = ROW * (len(rows) + bool(controls)) + 74
    traces = [_points(row) for row in rows]
    names = [name for name, *_ in rows]
    if controls:
        names.append(_random(controls))
        traces += _null(controls, names[-1])
    layout = {
        "xaxis": axis(f"rise of the loss ({data['unit']})", zeroline=True),
        "yaxis": axis(type="category", categoryorder="array", categoryarray=names[::-1], showgrid=False, ticks=""),
        "margin": {"l": 120, "r": 16, "t": 8, "b": 48},
    }
    label = _label(data, together, controls)
    note = _note(data, heads)
    return [
        Chart(
            "rise of the loss without heads",
            label,
            figure(traces, height, **layout),
            _static(data, rows, controls, label),
            height,
            note,
        )
    ]


def _all(together: Mapping[str, Any]) -> str:
    return f"all {len(together.get('names') or ())} together"


def _random(controls: Sequence[float]) -> str:
    return f"{len(controls)} random set{'s' if len(controls) != 1 else ''}"


def _points(row: tuple[str, Mapping[str, Any], str, str]) -> dict[str, Any]:
    name, value, colour, symbol = row
    low, high = value.get("low"), value.get("high")
    there = value["value"] if known([value["value"]]) else None
    said = [number(each, signed=True) for each in (there, low, high)]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [tidy(there)],
        "y": [name],
        "marker": {"color": colour, "size": 11, "symbol": symbol},
        "hovertemplate": f"<b>{name}</b><br>{said[0]} ({said[1]} to {said[2]})<extra></extra>",
    }
    if there is not None and known([low]) and known([high]):
        bars = {"type": "data", "symmetric": False, "thickness": 2, "width": 0, "color": colour}
        trace["error_x"] = {**bars, "array": [tidy(high - there)], "arrayminus": [tidy(there - low)]}
    return trace


def _null(controls: Sequence[float], name: str) -> list[dict[str, Any]]:
    """The random sets: a point each on their range."""
    ends = [min(controls), max(controls)]
    said = (
        f"<b>{name}</b> of as many heads in the same layers<br>{number(ends[0], signed=True)} to {number(ends[1], signed=True)}"
    )
    base = {"type": "scatter", "y": [name, name], "hovertemplate": f"{said}<extra></extra>"}
    return [
        {**base, "mode": "lines", "x": tidy(ends), "line": {"color": GREY, "width": 8}, "opacity": 0.4},
        {
            **base,
            "mode": "markers",
            "x": tidy(sorted(controls)),
            "y": [name] * len(controls),
            "marker": {"color": GREY, "size": 11, "symbol": "line-ns-open", "line": {"width": 1.5}},
            "hovertemplate": f"random set: %{{x:+.3f}}<br>{said}<extra></extra>",
        },
    ]


def _label(data: Mapping[str, Any], together: Mapping[str, Any] | None, controls: Sequence[float]) -> str:
    said = []
    if together:
        said.append(f"without {_all(together)} the loss rises by {number(together['value'], signed=True)} {data['unit']}")
    if controls:
        ends = f"{number(min(controls), signed=True)} to {number(max(controls), signed=True)}"
        said.append(f"without random sets of the same layers by {ends}")
    return "; ".join(said) or "the loss without heads"


def _note(data: Mapping[str, Any], heads: Sequence[Any]) -> str:
    said = [f"ablation by {data['how']}", f"the loss of the model is {number(data.get('loss'))} {data['unit']}"]
    if known([data.get("of_all")]):
        said.append(f"without any head it rises by {number(data['of_all'], signed=True)}")
    if len(heads) < len(data["heads"]):
        said.append(f"the {len(heads)} heads that matter most of {len(data['heads'])}")
    if data.get("relaxed"):
        said.append("too few other heads for sets of the same layers: some are of others")
    return "; ".join(said)


def _static(
    data: Mapping[str, Any], rows: Sequence[tuple[str, Mapping[str, Any], str, str]], controls: Sequence[float], label: str
) -> str:
    count = len(rows) + bool(controls)
    values = known(row[1].get(side) for row in rows for side in ("value", "low", "high"))
    plot = Plot(132, 10, WIDTH - 150, ROW * count, span([*values, *controls, 0.0]), (0.0, max(count, 1)))
    parts = frame(plot, (f"rise of the loss ({data['unit']})", None), ("", ()))
    zero = plot.at(0, 0)[0]
    parts.append(rule(zero, plot.top, zero, plot.bottom, GREY))
    for place, (name, value, colour, symbol) in enumerate(rows):
        y = plot.top + ROW * (place + 0.5)
        parts.append(text(plot.left - 10, y + 4, name, anchor="end"))
        if known([value.get("low")]) and known([value.get("high")]):
            parts.append(rule(plot.at(value["low"], 0)[0], y, plot.at(value["high"], 0)[0], y, colour, 2))
        parts += [mark(plot.at(x, 0)[0], y, 9, colour, symbol) for x in known([value["value"]])]
    if controls:
        y = plot.bottom - ROW / 2
        parts.append(text(plot.left - 10, y + 4, _random(controls), anchor="end"))
        low, high = (plot.at(end, 0)[0] for end in (min(controls), max(controls)))
        parts.append(
            f'<rect x="{low:.1f}" y="{y - 4:.1f}" width="{max(high - low, 1):.1f}" height="8" fill="{GREY}" fill-opacity=".4"/>'
        )
        parts += [rule(plot.at(x, 0)[0], y - 6, plot.at(x, 0)[0], y + 6, GREY, 1.5) for x in controls]
    return picture(parts, WIDTH, ROW * count + 54, label)
