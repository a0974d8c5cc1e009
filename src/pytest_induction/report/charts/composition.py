"""From previous-token heads to induction heads: which output of an earlier head is read as the key of a later one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import WIDTH, Chart, axis, figure, known, number, picture, tidy
from pytest_induction.report.drawing import GREY, LINES, Plot, mark, text

MOST_EDGES = 40
ROLES = {"previous token": (LINES[0], "square"), "induction": (LINES[1], "circle"), "other": (GREY, "diamond")}
Places = dict[str, tuple[float, float]]


def composition(data: Mapping[str, Any]) -> list[Chart]:
    """The graph of a `composition` chart: nodes by layer, edges as wide as their key composition."""
    edges = sorted(data["edges"], key=lambda edge: -_strength(edge))[:MOST_EDGES]
    named = {name for edge in edges for name in (edge["from"], edge["to"])}
    heads = [
        {**head, "role": head["role"] if head["role"] in ROLES else "other"}
        for head in data["heads"]
        if head["name"] in named or not edges
    ]
    if not heads:
        return []
    places = _places(heads)
    layers = sorted({head["layer"] for head in heads})
    tallest = max(sum(head["layer"] == layer for head in heads) for layer in layers)
    height = min(620, max(220, 56 * tallest + 60))
    edges = [edge for edge in edges if edge["from"] in places and edge["to"] in places]
    widest = _widest(edges)
    traces = [_line(edge, places, widest) for edge in reversed(edges)]
    traces += [_handles(edges, places, data), *_nodes(heads, places)]
    layout = {
        "xaxis": axis(
            "layer",
            tickvals=list(range(len(layers))),
            ticktext=[str(layer) for layer in layers],
            range=[-0.35, len(layers) - 0.65],
            showgrid=False,
        ),
        "yaxis": {"visible": False, "range": [-0.75, tallest - 0.25], "fixedrange": True},
        "showlegend": True,
        "margin": {"l": 16, "r": 16, "t": 34, "b": 44},
    }
    best = f"; the strongest is {edges[0]['from']} to {edges[0]['to']} with {number(edges[0].get('key'))}" if edges else ""
    label = f"key composition along {len(edges)} edges between {len(heads)} heads{best}"
    return [
        Chart(
            "key composition",
            label,
            figure(traces, height, **layout),
            _static(heads, edges, places, label),
            height,
            _note(data, edges),
        )
    ]


def _places(heads: Sequence[Mapping[str, Any]]) -> Places:
    """Layers from left to right, the heads of each in the middle."""
    layers = sorted({head["layer"] for head in heads})
    by_layer = {layer: [head for head in heads if head["layer"] == layer] for layer in layers}
    tallest = max(map(len, by_layer.values()))
    places = {}
    for column, layer in enumerate(layers):
        among = sorted(by_layer[layer], key=lambda head: head["head"])
        for row, head in enumerate(among):
            places[head["name"]] = (float(column), (tallest - len(among)) / 2 + len(among) - 1 - row)
    return places


def _wide(edge: Mapping[str, Any], widest: float) -> float:
    return round(0.75 + 7 * max(0.0, _strength(edge)) / (widest or 1.0), 2)


def _widest(edges: Sequence[Mapping[str, Any]]) -> float:
    return max(map(_strength, edges), default=1.0)


def _strength(edge: Mapping[str, Any]) -> float:
    """The key composition along an edge, 0 where it is not known."""
    return (known([edge.get("key")]) or [0.0])[0]


def _line(edge: Mapping[str, Any], places: Places, widest: float) -> dict[str, Any]:
    (x, y), (to_x, to_y) = places[edge["from"]], places[edge["to"]]
    look = {"color": GREY, "width": _wide(edge, widest)}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x, to_x],
        "y": [y, to_y],
        "line": look,
        "opacity": 0.55,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _handles(edges: Sequence[Mapping[str, Any]], places: Places, data: Mapping[str, Any]) -> dict[str, Any]:
    """What the hover takes hold of: a point on every edge, nearer to its end, where edges lie apart."""
    points = []
    for edge in edges:
        (x, y), (to_x, to_y) = places[edge["from"]], places[edge["to"]]
        points.append((x + 0.62 * (to_x - x), y + 0.62 * (to_y - y)))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [tidy(x) for x, _ in points],
        "y": [tidy(y) for _, y in points],
        "marker": {"size": 14, "color": GREY, "opacity": 0.01},
        "customdata": [_numbers(edge) for edge in edges],
        "hovertemplate": "%{customdata}<extra></extra>",
        "showlegend": False,
    }


def _numbers(edge: Mapping[str, Any]) -> str:
    said = [f"<b>{edge['from']} \u2192 {edge['to']}</b>"]
    for way in ("key", "query", "value"):
        beyond = edge.get(f"{way}_z")
        z = f", {number(beyond, signed=True)} sd from random" if known([beyond]) else ""
        said.append(f"{way} composition {number(edge.get(way))}{z}")
    return "<br>".join(said)


def _nodes(heads: Sequence[Mapping[str, Any]], places: Places) -> list[dict[str, Any]]:
    traces = []
    for role, (colour, symbol) in ROLES.items():
        among = [head for head in heads if head["role"] == role]
        if among:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers+text",
                    "name": f"{role} head",
                    "x": [places[head["name"]][0] for head in among],
                    "y": [places[head["name"]][1] for head in among],
                    "text": [head["name"] for head in among],
                    "textposition": "top center",
                    "marker": {"size": 15, "color": colour, "symbol": symbol},
                    "customdata": [number(head.get("score"), "share") for head in among],
                    "hovertemplate": f"<b>%{{text}}</b><br>{role} score %{{customdata}}<extra></extra>",
                }
            )
    return traces


def _note(data: Mapping[str, Any], edges: Sequence[Any]) -> str:
    mean = data.get("random_mean")
    shown = mean.get("key") if isinstance(mean, Mapping) else mean
    said = ["wider is stronger"]
    if known([shown]):
        said.append(f"what random weights of these sizes have, {number(shown)}, is taken off")
    if len(edges) < len(data["edges"]):
        said.append(f"the {len(edges)} strongest of {len(data['edges'])} edges")
    return "; ".join(said)


def _static(heads: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]], places: Places, label: str) -> str:
    columns = max(x for x, _ in places.values())
    rows = max(y for _, y in places.values())
    height = min(620, max(200, 56 * (rows + 1) + 60))
    plot = Plot(20, 34, WIDTH - 40, height - 74, (-0.35, columns + 0.35), (-0.5, rows + 0.7))
    widest = _widest(edges)
    parts = []
    for edge in reversed(edges):
        (x, y), (to_x, to_y) = plot.at(*places[edge["from"]]), plot.at(*places[edge["to"]])
        wide = _wide(edge, widest)
        parts.append(
            f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{GREY}" stroke-opacity=".55" stroke-width="{wide:g}"/>'
        )
    for head in heads:
        (x, y), (colour, symbol) = plot.at(*places[head["name"]]), ROLES[head["role"]]
        parts.append(mark(x, y, 14, colour, symbol))
        parts.append(text(x, y - 12, str(head["name"]), anchor="middle"))
    for column, layer in enumerate(sorted({head["layer"] for head in heads})):
        parts.append(text(plot.at(column, 0)[0], height - 14, f"layer {layer}", "faint", anchor="middle"))
    return picture([*parts, *_key(heads)], WIDTH, height, label)


def _key(heads: Sequence[Mapping[str, Any]]) -> list[str]:
    """The legend, above the graph."""
    parts: list[str] = []
    there = [role for role in ROLES if any(head["role"] == role for head in heads)]
    for place, role in enumerate(there):
        (colour, symbol), x = ROLES[role], 20 + 150 * place
        parts.append(mark(x + 5.5, 13.5, 11, colour, symbol))
        parts.append(text(x + 17, 18, f"{role} head"))
    return parts
