"""A training run: what changed over the tokens, and the path of the training; `runs.picture.picture_of` has the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pytest_induction.report.charts.chart import Chart, axis, figure, known, scale, span, tidy
from pytest_induction.report.drawing import GOLD, GREY, LINES, SHADES, SHARES, SIGNED_LIGHT
from pytest_induction.report.run_picture import HOLDS, marks_of, steepest_of, svg
from pytest_induction.report.view import amount

NAMED = 4  # heads whose lines have colours
ROW, TALL, GAP = 150, 210, 46  # heights of the plots, and what is between them, in pixels
PATH = 420
LABEL = 14  # least distance of labels, in pixels


def run(data: Mapping[str, Any]) -> list[Chart]:
    """What changed with the tokens, as panels over one axis; then the path."""
    charts = [_panels(data, data.get("reach"))]
    if data.get("path"):
        charts.append(_path(data))
    return charts


def _panels(data: Mapping[str, Any], unsure: Sequence[float] | None) -> Chart:
    rows = _rows(data)
    heights = [tall for _, tall, *_ in rows]
    whole = sum(heights) + GAP * len(rows) + 44
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"shapes": [], "annotations": [], "margin": {"l": 60, "r": 74, "t": 30, "b": 48}}
    inner, top = whole - 78, 0.0
    for place, (name, tall, unit, made, look) in enumerate(rows):
        end = "" if place == 0 else str(place + 1)
        high, low = 1 - top / inner, 1 - (top + tall) / inner
        layout[f"yaxis{end}"] = axis(unit, domain=[round(max(0.0, low), 4), round(high, 4)], anchor="x", **look)
        layout["annotations"].append(_name(name, high))
        if "range" in look and not name.startswith("slope"):
            layout["annotations"] += _ends(made[-NAMED:] if "heads" in name else made, look["range"], tall, f"y{end}")
        if data.get("window"):
            layout["shapes"] += _window(data["window"], unsure, f"y{end} domain", is_filled=name.startswith("slope"))
        traces += [{**trace, "xaxis": "x", "yaxis": f"y{end}"} for trace in made]
        top += tall + GAP
    low, high = data["range"]
    places = marks_of(data, room=0.05)
    layout["xaxis"] = axis(
        "tokens trained on" if data["unit"] == "tokens" else "steps of the training",
        range=[low, high] if high > low else [low - 0.5, high + 0.5],
        tickvals=[tidy(at) for at, _ in places],
        ticktext=[words for _, words in places],
        tickangle=0,
        anchor=f"y{len(rows)}" if len(rows) > 1 else "y",
    )
    few = [(at, words) for at, words in places if words == "0" or _is_round(at)]
    layout["meta"] = {
        "narrow": {"xaxis.tickvals": [tidy(at) for at, _ in few], "xaxis.ticktext": [words for _, words in few], "margin.l": 44}
    }
    return Chart(
        "over the training", _label(data), figure(traces, whole, **layout), svg(data), whole, _note(data, unsure), is_picture=True
    )


Row = tuple[str, int, str, list[dict[str, Any]], dict[str, Any]]
"""One plot: its name, height, the title of its axis, its traces, and what else its axis has."""


def _rows(data: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [
        (curve["name"], ROW, curve["unit"], [_curve(data, curve, curve["name"], LINES[place % len(LINES)], 2.2)], {})
        for place, curve in enumerate(data["curves"])
    ]
    if data["heads"]:
        rows.append(_heads(data))
    rows += [_hunt(data, hunt) for hunt in data.get("hunts", ())]
    if data["index"]:
        shades = SHADES[-len(data["index"]) :]
        curves = [
            _curve(data, curve, f"token {curve['token']:.0f}", shade, 1.8)
            for curve, shade in zip(data["index"][: len(SHADES)], shades, strict=False)
        ]
        rows.append(("loss by token number", TALL, "nats", curves, {"range": _range(curves)}))
    if data["map"]:
        rows.append(_slopes(data))
    return rows or [("nothing was recorded that can be drawn", ROW, "", [], {})]


def _curve(data: Mapping[str, Any], curve: Mapping[str, Any], name: str, colour: str, width: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": tidy(curve["x"]),
        "y": tidy(curve["y"]),
        "text": _places(data, curve["x"]),
        "line": {"color": colour, "width": width},
        "hovertemplate": f"{name} <b>%{{y:.3f}}</b><br>%{{text}}<extra></extra>",
    }


def _places(data: Mapping[str, Any], x: Sequence[float]) -> list[str]:
    """How the hover calls each place of the common axis."""
    begin = data["range"][0] if data.get("begins_at_0") else None
    return [f"{'0' if at == begin else amount(10**at)} {data['unit']}" for at in x]


def _heads(data: Mapping[str, Any]) -> Row:
    heads = data["heads"]
    rest = [_curve(data, head, head["name"], GREY, 1) | {"opacity": 0.55} for head in heads[NAMED:]]
    named = [_curve(data, head, head["name"], LINES[place], 2.2) for place, head in enumerate(heads[:NAMED])]
    many = f"prefix matching of {len(heads)} of {data['n_heads']} heads, the highest"
    words = "prefix matching of every head" if len(heads) == data["n_heads"] else many
    return words, TALL, "share", [*reversed(rest), *reversed(named)], {"range": _range([*rest, *named], 0.0)}


def _hunt(data: Mapping[str, Any], hunt: Mapping[str, Any]) -> Row:
    """The smallest failing sequences of a property over the training, and where none was found."""
    places = [f"{place}<br>{escape(said)}" for place, said in zip(_places(data, hunt["x"]), hunt["said"], strict=True)]
    curves: list[dict[str, Any]] = []
    for place, (name, key) in enumerate((("shortest period", "period"), ("fewest copies", "copies"))):
        if any(value is not None for value in hunt[key]):
            curve = _curve(data, {"x": hunt["x"], "y": hunt[key]}, name, LINES[place], 1.8)
            look: dict[str, Any] = {
                "mode": "lines+markers",
                "text": places,
                "hovertemplate": f"{name} <b>%{{y}}</b><br>%{{text}}<extra></extra>",
            }
            curves.append(curve | look)
    holds = {at: said for at, said in zip(hunt["x"], places, strict=True) if at in set(hunt["holds"])}
    if holds:
        dots = _curve(data, {"x": list(holds), "y": [0.0] * len(holds)}, "holds", HOLDS, 1.8)
        look = {"mode": "markers", "marker": {"size": 7, "color": HOLDS}, "text": list(holds.values())}
        curves.append(dots | look | {"hovertemplate": "%{text}<extra></extra>"})
    name = f"{escape(hunt['name'])}: the smallest sequence that fails; a dot where none does"
    return name, ROW, "tokens, copies", curves, {"range": _range(curves, 0.0)}


def _range(curves: Sequence[Mapping[str, Any]], least: float | None = None) -> list[float]:
    """The ends of the axis of these curves."""
    return tidy(list(span(known(value for curve in curves for value in curve["y"]), least=least)))


def _ends(curves: Sequence[Mapping[str, Any]], ends: Sequence[float], tall: int, ref: str) -> list[dict[str, Any]]:
    """The names of curves, right of where they end, moved apart."""
    last = [(known(curve["y"])[-1], curve) for curve in curves if known(curve["y"])]
    labels, floor = [], math.inf
    for value, curve in sorted(last, key=lambda each: -each[0]):
        at = (value - ends[0]) / (ends[1] - ends[0]) * tall
        floor = min(at, floor - LABEL)
        place = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 6, "y": tidy(value), "yref": ref, "yanchor": "middle"}
        look = {"showarrow": False, "font": {"size": 11, "color": curve["line"]["color"]}, "yshift": round(floor - at)}
        labels.append({"text": curve["name"], **place, **look})
    return labels


def _slopes(data: Mapping[str, Any]) -> Row:
    slopes = data["map"]
    steepest = steepest_of(known(slope for row in slopes["slopes"] for slope in row))
    trace = {
        "type": "heatmap",
        "x": tidy(slopes["x"]),
        "y": tidy([math.log10(token) for token in slopes["tokens"]]),
        "z": tidy(slopes["slopes"], 3),
        "zmin": -steepest,
        "zmax": steepest,
        "colorscale": scale(SIGNED_LIGHT),
        "meta": {"scale": "signed"},
        "hoverongaps": False,
        "customdata": [[f"token {token:.0f}"] * len(slopes["x"]) for token in slopes["tokens"]]
        if len(slopes["x"]) < 400
        else None,
        "text": [_places(data, slopes["x"]) for _ in slopes["tokens"]],
        "hovertemplate": "<b>%{z:+.2f}</b> nats per factor e<br>%{customdata}, %{text}<extra></extra>",
        "colorbar": {
            "len": 0.18,
            "lenmode": "fraction",
            "y": 0,
            "yanchor": "bottom",
            "thickness": 10,
            "outlinewidth": 0,
            "x": 1.01,
        },
    }
    marks = [size * 10**power for power in range(6) for size in (1, 2, 5)]
    shown = [mark for mark in marks if slopes["tokens"][0] <= mark <= slopes["tokens"][-1]]
    look = {"tickvals": [tidy(math.log10(mark)) for mark in shown], "ticktext": [str(mark) for mark in shown], "showgrid": False}
    return "slope of the loss along the context, blue where it falls", TALL, "token number", [trace], look


def _name(words: str, top: float) -> dict[str, Any]:
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": round(top, 4), "yref": "paper", "yanchor": "bottom"}
    return {"text": f"<b>{words}</b>", "showarrow": False, "font": {"size": 12}, "yshift": 3, **place}


def _window(window: Sequence[float], unsure: Sequence[float] | None, ref: str, *, is_filled: bool) -> list[dict[str, Any]]:
    """The window of induction over one plot: shaded, lighter where it is not sure; two lines over a map."""
    base = {"xref": "x", "yref": ref, "y0": 0, "y1": 1, "layer": "above" if is_filled else "below"}
    if is_filled:
        line = {"color": GOLD, "width": 2}
        return [{**base, "type": "line", "x0": tidy(at), "x1": tidy(at), "line": line} for at in window]
    shapes = []
    for ends, opacity in ((unsure, 0.14), (window, 0.26)):
        if ends is not None and known(ends) == [*ends]:
            area = {"fillcolor": GOLD, "opacity": opacity, "line": {"width": 0}}
            shapes.append({**base, "type": "rect", "x0": tidy(ends[0]), "x1": tidy(ends[1]), **area})
    return shapes


def _is_round(place: float) -> bool:
    """Whether a place on the axis is a power of ten."""
    return abs(place - round(place)) < 1e-6


def _label(data: Mapping[str, Any]) -> str:
    drawn = [curve["name"] for curve in data["curves"]]
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


def _note(data: Mapping[str, Any], unsure: Sequence[float] | None) -> str:
    said = []
    if data.get("window"):
        low, high = (amount(10**place) for place in data["window"])
        verdict = "" if data.get("verdict") == "SHOWN" else f" ({data.get('verdict')})"
        said.append(f"gold: the phase change{verdict}, {low} to {high} {data['unit']}")
        if unsure:
            said.append(f"lighter: what it may reach, {amount(10 ** unsure[0])} to {amount(10 ** unsure[1])}")
    if data.get("missing"):
        said.append(f"not recorded: {', '.join(data['missing'])}")
    return "; ".join(said)


def _path(data: Mapping[str, Any]) -> Chart:
    path = data["path"]
    x, y, inside = tidy(path["x"]), tidy(path["y"]), set(path["inside"])
    said = _places(data, path["at"])
    line = {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": {"color": GREY, "width": 1.5}, "hoverinfo": "skip"}
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "text": said,
        "hovertemplate": "%{text}<br>%{x:.2f}, %{y:.2f} nats<extra></extra>",
        "marker": {
            "size": 8,
            "color": tidy(path["at"]),
            "colorscale": scale(SHARES),
            "colorbar": _times(data),
            "line": {"width": 0.5, "color": GREY},
        },
    }
    window = sorted(inside)
    marked = {
        "type": "scatter",
        "mode": "markers",
        "x": [x[place] for place in window],
        "y": [y[place] for place in window],
        "marker": {"size": 15, "symbol": "circle-open", "color": GOLD, "line": {"width": 2.5}},
        "hoverinfo": "skip",
    }
    turn = [] if path["turn"] is None else [_turn(data, path, x, y)]
    first, second = (f"{share:.0%}" for share in path["shares"])
    layout = {
        "xaxis": axis(f"first direction (nats), {first} of what varies"),
        "yaxis": axis(f"second direction (nats), {second}", scaleanchor="x", scaleratio=1),
        "annotations": turn,
        "margin": {"l": 60, "r": 16, "t": 12, "b": 48},
    }
    label = (
        f"path of the training in the space of token losses; its first two directions hold {first} and {second} of what varies"
    )
    note = "gold rings: the phase change" if window else ""
    if turn:
        note += f"; the turn is at {amount(10 ** path['turn_at'])} {data['unit']}, in all directions, not in these two alone"
    return Chart("path of the token losses", label, figure([line, points, marked], PATH, **layout), "", PATH, note.lstrip("; "))


def _times(data: Mapping[str, Any]) -> dict[str, Any]:
    marks = marks_of(data, room=0.05)
    title = {"text": data["unit"], "side": "right"}
    look = {"thickness": 10, "outlinewidth": 0, "title": title, "len": 0.9}
    return {**look, "tickvals": [tidy(at) for at, _ in marks], "ticktext": [words for _, words in marks]}


def _turn(data: Mapping[str, Any], path: Mapping[str, Any], x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    arrow = {"showarrow": True, "arrowhead": 2, "arrowcolor": LINES[1], "ax": 46, "ay": -46, "arrowwidth": 1.5}
    return {"x": x[path["turn"]], "y": y[path["turn"]], "text": f"<b>turn</b>, {amount(10 ** path['turn_at'])}", **arrow}
