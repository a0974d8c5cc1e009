"""Losses along the context: of repeated tokens, copy by copy, and of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import (
    DASHES,
    WIDTH,
    Chart,
    around,
    band,
    dots,
    exact,
    frame,
    known,
    number,
    picture,
    span,
)
from pytest_induction.report.charts.drawing import GOLD, GREY, LINES, Plot, curve, dashed, legend, rule, text

HEIGHT = 330
MOST_DOTTED = 40  # points of a curve that each have a dot
MOST_COPIES = len(DASHES)
COPIES = (LINES[1], LINES[0], LINES[2], LINES[3], LINES[4], LINES[5])  # the first copy is the one that is told apart


def repeats(data: Mapping[str, Any]) -> list[Chart]:
    """The loss at each place of every copy."""
    copies = data["copies"][:MOST_COPIES]
    label = "; ".join(f"{copy['name']}: mean loss {number(_mean(copy['loss']))}" for copy in copies)
    return [Chart("loss by place in the copy", label, _copies(data, copies, label))]


def _mean(values: Sequence[Any]) -> float:
    there = known(values)
    return sum(there) / len(there) if there else math.nan


def _texts(data: Mapping[str, Any], places: Sequence[Any], what: str, name: str, unit: str) -> dict[str, Any]:
    """What each point of a curve says."""
    there = [place for place, value in enumerate(data["loss"]) if known([value])]
    values = [f"{exact(data['loss'][at])} ({number(data['low'][at])} to {number(data['high'][at])})" for at in there]
    return {"name": name, "values": values, "after": f" {unit}", "at": [f"{what} {places[place]}" for place in there]}


def _copies(data: Mapping[str, Any], copies: Sequence[Mapping[str, Any]], label: str) -> str:
    last = max((copy["place"][-1] for copy in copies if copy["place"]), default=1)
    uniform = data.get("uniform")
    heights = known(value for copy in copies for side in ("loss", "high") for value in copy[side])
    plot = Plot(52, 40, WIDTH - 140, HEIGHT - 92, (0.6, last + 0.4), span([*heights, *known([uniform])], least=0.0))
    ticks = [(float(at), str(at)) for at in range(1, last + 1, max(1, round(last / 14)))]
    parts = frame(plot, ("place in the copy", ticks), (f"loss ({data['unit']})", None))
    if uniform is not None:
        at = plot.at(0, uniform)[1]
        parts += [
            dashed(rule(plot.left, at, plot.right, at, GREY), "5 4"),
            text(plot.right, at - 5, "equally likely", "faint", anchor="end"),
        ]
    for index, copy in enumerate(copies):
        area = band(plot, copy["place"], copy["low"], copy["high"], COPIES[index])
        parts.append(f'<g data-of="k{index}">{area}</g>' if area else "")
    for index, copy in enumerate(copies):
        line = dashed(plot.line(copy["place"], copy["loss"], COPIES[index], 2), DASHES[index])
        points = dots(plot, copy["place"], copy["loss"], COPIES[index]) if len(copy["place"]) <= MOST_DOTTED else []
        parts.append(
            curve("".join([line, *points]), _texts(copy, copy["place"], "place", str(copy["name"]), data["unit"]), f"k{index}")
        )
    return picture([*parts, *_legend(plot, copies)], WIDTH, HEIGHT, label)


def _legend(plot: Plot, copies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Right of the plot."""
    parts = []
    for index, copy in enumerate(copies):
        y = plot.top + 8 + 20 * index
        line = dashed(rule(plot.right + 14, y, plot.right + 42, y, COPIES[index], 2), DASHES[index])
        parts.append(legend(f"k{index}", [line, text(plot.right + 48, y + 4, str(copy["name"])[:8])]))
    return parts


def losses_of_text(data: Mapping[str, Any]) -> list[Chart]:
    """The loss along a text, and the two windows that the in-context learning score compares."""
    score = data["score"]
    windows = [(name, ends) for name, ends in data["windows"].items() if len(ends) == 2 and ends[0] > 0]
    seen = number(score["value"], signed=True)
    if score.get("low") is not None:
        seen = around(score["value"], score["low"], score["high"], signed=True)
    shaded = "".join(f"; {name}: tokens {ends[0]} to {ends[1]}" for name, ends in windows)
    label = f"in-context learning score {seen} {data['unit']}{shaded}"
    return [Chart("loss by token number", label, _text(data, windows, label), label)]


_MARKS = [size * 10**power for power in range(7) for size in (1, 2, 5)]


def _text(data: Mapping[str, Any], windows: Sequence[tuple[str, Sequence[float]]], label: str) -> str:
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
        parts.append(text((left + right) / 2, plot.top - 8, str(name), "faint", anchor="middle"))
    parts += frame(plot, ("token number", marks), (f"loss ({data['unit']})", None))
    parts.append(band(plot, tokens, data["low"], data["high"], LINES[0]))
    line = curve(plot.line(tokens, data["loss"], LINES[0], 1.6), _texts(data, data["tokens"], "token", "loss", data["unit"]))
    return picture([*parts, line], WIDTH, HEIGHT, label)
