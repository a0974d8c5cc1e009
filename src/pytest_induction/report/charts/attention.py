"""The attention of the top heads on a probe that was run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import Chart, axis, cells, figure, number, picture, scale, tidy
from pytest_induction.report.drawing import GOLD, GREY, SHARES, rule, text

MOST_BYTES = 600_000  # of all patterns together, as they stand in a page; one is shown in any case
MOST_LABELS = 26  # tokens along an axis
SIZE = 400  # of a pattern, in pixels


def attention(data: Mapping[str, Any]) -> list[Chart]:
    """A chart for each head of an `attention` chart, as many as fit into a page."""
    left = MOST_BYTES
    drawn: list[Chart] = []
    for head in data["heads"]:
        chart = _pattern(data, head)
        left -= len(chart.static) + len(json.dumps(chart.spec, separators=(",", ":")))
        if drawn and left < 0:
            break
        drawn.append(chart)
    return drawn


def _pattern(data: Mapping[str, Any], head: Mapping[str, Any]) -> Chart:
    names, starts = _names(data), [start for start in data["starts"] if 0 <= start < len(data["tokens"])]
    ticks = [names[place] for place in _ticked(len(names), starts)]
    shown = [str(data["tokens"][place]) for place in _ticked(len(names), starts)]
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": tidy(head["pattern"], 3),
        "zmin": 0,
        "zmax": 1,
        "colorscale": scale(SHARES),
        "meta": {"scale": "share"},
        "showscale": False,
        "hoverongaps": False,
        "hovertemplate": "%{y}<br>attends to %{x}<br><b>%{z:.3f}</b><extra></extra>",
    }
    look = {"tickvals": ticks, "ticktext": shown, "showgrid": False, "type": "category", "tickfont": {"size": 10}}
    end = len(names) - 0.5
    layout = {
        "xaxis": axis("attended token", tickangle=-90, range=[-0.5, end], **look),
        "yaxis": axis("token", range=[end, -0.5], **look),
        "shapes": [each for start in starts for each in _edges(start - 0.5, end)],
        "margin": {"l": 56, "r": 4, "t": 4, "b": 56},
    }
    label = f"attention pattern of {head['name']} over {len(names)} tokens, copies begin at {', '.join(map(str, starts))}"
    words = f"{head['role']}, {number(head.get('score'), 'share')}"
    return Chart(str(head["name"]), label, figure([trace], SIZE, **layout), _static(data, head, label), SIZE, words)


def _edges(place: float, end: float) -> list[dict[str, Any]]:
    """Where a copy begins, down and across."""
    line = {"width": 1, "color": GOLD, "dash": "dot"}
    here = {"type": "line", "xref": "x", "yref": "y", "line": line}
    return [
        {**here, "x0": place, "x1": place, "y0": place, "y1": end},
        {**here, "x0": -0.5, "x1": place, "y0": place, "y1": place},
    ]


def _names(data: Mapping[str, Any]) -> list[str]:
    """What the hover calls each position: its number, its token, its copy."""
    starts = data["starts"]
    names = []
    for place, token in enumerate(data["tokens"]):
        copy = sum(place >= start for start in starts)
        where = f"copy {copy}" if copy else "first token" if data.get("bos") and place == 0 else "before the copies"
        names.append(f"{place}: token {token}, {where}")
    return names


def _ticked(count: int, starts: Sequence[int]) -> list[int]:
    """The positions whose tokens are written: all, or the first of every copy and some between."""
    if count <= MOST_LABELS:
        return list(range(count))
    step = -(-count // MOST_LABELS)
    near = {place + off for place in starts for off in range(-step + 1, step)}
    return sorted({*starts, *(place for place in range(0, count, step) if place not in near)})


def _static(data: Mapping[str, Any], head: Mapping[str, Any], label: str) -> str:
    count, left, top = max(len(data["tokens"]), 1), 52, 6
    side = SIZE - left - 8
    unit = side / count
    shown = [[value if value is not None and value >= 1 / 36 else None for value in row] for row in head["pattern"]]
    ground = f"M0 0L{count} {count}H0z"
    drawn = cells(shown, SHARES, (0.0, 1.0))
    inner = f'<path fill="{SHARES[0]}" d="{ground}"/><g shape-rendering="crispEdges">{drawn}</g>'
    parts = [f'<g transform="translate({left} {top}) scale({unit:.4g})">{inner}</g>']
    for start in data["starts"]:
        at = start * unit
        parts.append(rule(left + at, top + at, left + at, top + side, GOLD))
        parts.append(rule(left, top + at, left + at, top + at, GOLD))
    for place in _ticked(count, data["starts"]):
        at, token = (place + 0.5) * unit, str(data["tokens"][place])
        parts.append(text(left - 6, top + at + 3.5, token, "faint tiny", anchor="end"))
        turned = text(0, 0, token, "faint tiny", anchor="end")
        parts.append(f'<g transform="translate({left + at + 3.5:.1f} {top + side + 6:.1f}) rotate(-90)">{turned}</g>')
    parts.append(rule(left, top, left, top + side, GREY))
    return picture(parts, SIZE, top + side + 44, label)
