"""From previous-token heads to induction heads: which output of an earlier head is read as the key of a later one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import WIDTH, Chart, known, number, picture
from pytest_induction.report.charts.drawing import GREY, LINES, Plot, legend, mark, marked, text

MOST_EDGES = 40
ROLES = {"previous token": (LINES[0], "square"), "induction": (LINES[1], "circle"), "other": (GREY, "diamond")}
Places = dict[str, tuple[float, float]]


def composition(data: Mapping[str, Any]) -> list[Chart]:
    """The graph of composition: nodes by layer, edges as wide as their key composition."""
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
    edges = [edge for edge in edges if edge["from"] in places and edge["to"] in places]
    best = f"; the strongest is {edges[0]['from']} to {edges[0]['to']} with {number(edges[0].get('key'))}" if edges else ""
    label = f"key composition along {len(edges)} edges between {len(heads)} heads{best}"
    return [Chart("key composition", label, _drawn(heads, edges, places, label), _note(data, edges))]


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


def _numbers(edge: Mapping[str, Any]) -> list[str]:
    parts = [f"{edge['from']} \u2192 {edge['to']}"]
    for way in ("key", "query", "value"):
        beyond = edge.get(f"{way}_z")
        z = f", {number(beyond, signed=True)} sd from random" if known([beyond]) else ""
        parts.append(f"{way} composition {number(edge.get(way))}{z}")
    return parts


def _note(data: Mapping[str, Any], edges: Sequence[Any]) -> str:
    mean = data.get("random_mean")
    shown = mean.get("key") if isinstance(mean, Mapping) else mean
    parts = ["wider is stronger"]
    if known([shown]):
        parts.append(f"what random weights of these sizes have, {number(shown)}, is taken off")
    if len(edges) < len(data["edges"]):
        parts.append(f"the {len(edges)} strongest of {len(data['edges'])} edges")
    return "; ".join(parts)


def _drawn(heads: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]], places: Places, label: str) -> str:
    columns = max(x for x, _ in places.values())
    rows = max(y for _, y in places.values())
    height = min(620, max(200, 56 * (rows + 1) + 60))
    plot = Plot(20, 34, WIDTH - 40, height - 74, (-0.35, columns + 0.35), (-0.5, rows + 0.7))
    there = [role for role in ROLES if any(head["role"] == role for head in heads)]
    of = {head["name"]: f"k{there.index(head['role'])}" for head in heads}
    widest = _widest(edges)
    parts = [_line(plot, edge, places, widest, f"{of[edge['from']]} {of[edge['to']]}") for edge in reversed(edges)]
    for head in heads:
        (x, y), (colour, symbol) = plot.at(*places[head["name"]]), ROLES[head["role"]]
        shapes = [mark(x, y, 14, colour, symbol), text(x, y - 12, str(head["name"]), anchor="middle")]
        about = f"{head['role']} score {number(head.get('score'), 'share')}" if known([head.get("score")]) else head["role"]
        parts.append(marked([str(head["name"]), about], shapes, of[head["name"]]))
    for column, layer in enumerate(sorted({head["layer"] for head in heads})):
        parts.append(text(plot.at(column, 0)[0], height - 14, f"layer {layer}", "faint", anchor="middle"))
    return picture([*parts, *_roles(there)], WIDTH, height, label)


def _line(plot: Plot, edge: Mapping[str, Any], places: Places, widest: float, of: str) -> str:
    """An edge, and around it, unseen, what the pointer takes hold of."""
    (x, y), (to_x, to_y) = plot.at(*places[edge["from"]]), plot.at(*places[edge["to"]])
    line = f'd="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"'
    seen = f'<path {line} stroke="{GREY}" stroke-opacity=".55" stroke-width="{_wide(edge, widest):g}" stroke-linecap="butt"/>'
    return marked(_numbers(edge), [seen, f'<path {line} stroke="#000" stroke-opacity="0" stroke-width="10"/>'], of)


def _roles(there: Sequence[str]) -> list[str]:
    """The legend, above the graph."""
    parts: list[str] = []
    for place, role in enumerate(there):
        (colour, symbol), x = ROLES[role], 20 + 150 * place
        parts.append(legend(f"k{place}", [mark(x + 5.5, 13.5, 11, colour, symbol), text(x + 17, 18, f"{role} head")]))
    return parts
