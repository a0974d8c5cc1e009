"""Losses along the context: of repeated tokens, copy by copy, and of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import (
    DASHES,
    STROKES,
    WIDTH,
    Chart,
    axis,
    band,
    band_traces,
    figure,
    frame,
    known,
    number,
    picture,
    span,
    tidy,
)
from pytest_induction.report.drawing import GOLD, GREY, LINES, Plot, dashed, rule, text

HEIGHT = 330
MOST_COPIES = len(DASHES)
COPIES = (LINES[1], LINES[0], LINES[2], LINES[3], LINES[4], LINES[5])  # the first copy is the one that is told apart


def repeats(data: Mapping[str, Any]) -> list[Chart]:
    """The loss at each place of every copy, of a `repeats` chart."""
    copies = data["copies"][:MOST_COPIES]
    traces: list[dict[str, Any]] = []
    for place, copy in enumerate(copies):
        traces += band_traces(copy["place"], copy["low"], copy["high"], COPIES[place])
    for place, copy in enumerate(copies):
        traces.append(_line(copy, COPIES[place], DASHES[place], "place"))
    last = max((copy["place"][-1] for copy in copies if copy["place"]), default=1)
    uniform = data.get("uniform")
    layout: dict[str, Any] = {
        "xaxis": axis("place in the copy", showgrid=False, range=[0.6, last + 0.4], dtick=max(1, round(last / 14))),
        "yaxis": axis(f"loss ({data['unit']})", rangemode="tozero"),
        "showlegend": True,
        "margin": {"l": 52, "r": 16, "t": 36, "b": 44},
    }
    if uniform is not None:
        layout["shapes"] = [_across(uniform)]
        layout["annotations"] = [_said(1, uniform, "equally likely", x={"xref": "paper", "xanchor": "right", "x": 1})]
    label = "; ".join(f"{copy['name']}: mean loss {number(_mean(copy['loss']))}" for copy in copies)
    return [Chart("loss by place in the copy", label, figure(traces, HEIGHT, **layout), _static(data, copies, label), HEIGHT)]


def _mean(values: Sequence[Any]) -> float:
    there = known(values)
    return sum(there) / len(there) if there else math.nan


def _line(curve: Mapping[str, Any], colour: str, dash: str, x: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(curve[x]) <= 40 else "lines",
        "name": curve.get("name", "loss"),
        "x": list(curve[x]),
        "y": tidy(curve["loss"]),
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"size": 5},
        "customdata": [[number(low), number(high)] for low, high in zip(curve["low"], curve["high"], strict=True)],
        "hovertemplate": f"{x} %{{x}}<br><b>%{{y:.3f}}</b> (%{{customdata[0]}} to %{{customdata[1]}})",
    }


def _across(height: float) -> dict[str, Any]:
    line = {"color": GREY, "width": 1, "dash": "dash"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": tidy(height), "y1": tidy(height), "line": line}


def _said(_: float, y: float, words: str, x: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": words, "y": tidy(y), "yanchor": "bottom", "showarrow": False, "font": {"size": 11}, **x}


def _static(data: Mapping[str, Any], copies: Sequence[Mapping[str, Any]], label: str) -> str:
    last = max((copy["place"][-1] for copy in copies if copy["place"]), default=1)
    uniform = data.get("uniform")
    heights = known(value for copy in copies for side in ("loss", "high") for value in copy[side])
    plot = Plot(52, 40, WIDTH - 140, HEIGHT - 92, (0.6, last + 0.4), span([*heights, *known([uniform])], least=0.0))
    step = max(1, round(last / 14))
    parts = frame(
        plot, ("place in the copy", [(at, str(at)) for at in range(1, last + 1, step)]), (f"loss ({data['unit']})", None)
    )
    if uniform is not None:
        at = plot.at(0, uniform)[1]
        parts += [
            dashed(rule(plot.left, at, plot.right, at, GREY), "5 4"),
            text(plot.right, at - 5, "equally likely", "faint", anchor="end"),
        ]
    for place, copy in enumerate(copies):
        parts.append(band(plot, copy["place"], copy["low"], copy["high"], COPIES[place]))
    for place, copy in enumerate(copies):
        parts.append(dashed(plot.line(copy["place"], copy["loss"], COPIES[place], 2), STROKES[place]))
    return picture([*parts, *_key(plot, copies)], WIDTH, HEIGHT, label)


def _key(plot: Plot, copies: Sequence[Mapping[str, Any]]) -> list[str]:
    """The legend, right of the plot."""
    parts = []
    for place, copy in enumerate(copies):
        y = plot.top + 8 + 20 * place
        parts.append(dashed(rule(plot.right + 14, y, plot.right + 42, y, COPIES[place], 2), STROKES[place]))
        parts.append(text(plot.right + 48, y + 4, str(copy["name"])[:8]))
    return parts


def losses_of_text(data: Mapping[str, Any]) -> list[Chart]:
    """The loss along a text, of a `text` chart, and the two windows that the in-context learning score compares."""
    score = data["score"]
    windows = [(name, ends) for name, ends in data["windows"].items() if len(ends) == 2 and ends[0] > 0]
    curve = {**data, "token": data["tokens"], "name": "loss"}
    traces = [
        *band_traces(data["tokens"], data["low"], data["high"], LINES[0]),
        {**_line(curve, LINES[0], "solid", "token"), "mode": "lines"},
    ]
    first = max(1, data["tokens"][0]) if data["tokens"] else 1
    last = max(data["tokens"][-1] if data["tokens"] else 1, first + 1)
    shown = [mark for mark in _MARKS if first <= mark <= last]
    layout = {
        "xaxis": axis(
            "token number", type="log", tickangle=0, showgrid=False, tickvals=shown, ticktext=[str(mark) for mark in shown]
        ),
        "yaxis": axis(f"loss ({data['unit']})"),
        "shapes": [_shade(ends) for _, ends in windows],
        "annotations": [_window_name(name, ends) for name, ends in windows],
        "margin": {"l": 52, "r": 16, "t": 26, "b": 44},
    }
    seen = number(score["value"], signed=True)
    if score.get("low") is not None:
        seen += f" ({number(score['low'], signed=True)} to {number(score['high'], signed=True)})"
    said = "".join(f"; {name}: tokens {ends[0]} to {ends[1]}" for name, ends in windows)
    label = f"in-context learning score {seen} {data['unit']}{said}"
    return [
        Chart("loss by token number", label, figure(traces, HEIGHT, **layout), _text_static(data, windows, label), HEIGHT, label)
    ]


_MARKS = [size * 10**power for power in range(7) for size in (1, 2, 5)]


def _shade(ends: Sequence[float]) -> dict[str, Any]:
    look = {"fillcolor": GOLD, "opacity": 0.2, "line": {"width": 0}, "layer": "below"}
    return {"type": "rect", "xref": "x", "yref": "paper", "x0": ends[0], "x1": ends[1], "y0": 0, "y1": 1, **look}


def _window_name(name: str, ends: Sequence[float]) -> dict[str, Any]:
    middle = math.log10(math.sqrt(ends[0] * ends[1]))  # a place on a logarithmic axis
    return {
        "text": name,
        "x": tidy(middle),
        "xref": "x",
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11},
    }


def _text_static(data: Mapping[str, Any], windows: Sequence[tuple[str, Sequence[float]]], label: str) -> str:
    tokens = [math.log10(max(1, token)) for token in data["tokens"]]
    ends = (tokens[0], tokens[-1]) if len(tokens) > 1 and tokens[-1] > tokens[0] else (0.0, 1.0)
    heights = known(value for side in ("loss", "low", "high") for value in data[side])
    plot = Plot(52, 40, WIDTH - 80, HEIGHT - 92, ends, span(heights))
    marks = [(math.log10(mark), str(mark)) for mark in _MARKS if ends[0] <= math.log10(mark) <= ends[1]]
    parts = []
    for name, window in windows:
        left, right = (min(max(plot.at(math.log10(end), 0)[0], plot.left), plot.right) for end in window)
        size = f'width="{max(right - left, 1.5):.1f}" height="{plot.height}"'
        parts.append(f'<rect x="{left:.1f}" y="{plot.top}" {size} fill="{GOLD}" fill-opacity=".2"/>')
        parts.append(text((left + right) / 2, plot.top - 8, name, "faint", anchor="middle"))
    parts += frame(plot, ("token number", marks), (f"loss ({data['unit']})", None))
    parts.append(band(plot, tokens, data["low"], data["high"], LINES[0]))
    return picture([*parts, plot.line(tokens, data["loss"], LINES[0], 1.6)], WIDTH, HEIGHT, label)
