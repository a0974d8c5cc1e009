"""Curves of a run in characters, from the plain lists of `runs.picture.picture_of`. Standard library only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_induction.report.run_picture import marks_of
from pytest_induction.report.view import amount
from pytest_induction.wording import NARROW, for_terminal

ROWS = 5  # of characters, that a curve is high
LABEL = 9  # characters of the numbers left of it
NAMED_HEADS = 4
FIRST_DOTS = 0x2800  # the braille character without a dot; each dot is a bit
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
Curve = tuple[Sequence[float], Sequence[float | None]]


def chart_lines(picture: Mapping[str, Any], *, width: int, ascii: bool = False) -> list[str]:  # noqa: A002 - what it is
    """What changed over the training, a chart below another, on one axis: the logarithm of the tokens, or of the steps.

    No line is longer than `width` where that can be. With `ascii` curves are stars, for a terminal without braille characters.
    """
    columns = max(20, width - LABEL - 2)
    lines = []
    for title, curves, scale in _charts(picture):
        named = for_terminal(title, width) if width < NARROW else [title[:width]]
        lines += [*named, *_chart(curves, picture["range"], scale, columns, ascii=ascii)]
    return [*lines, *_axis(picture, columns, ascii=ascii)] if lines else []


def _charts(picture: Mapping[str, Any]) -> Iterator[tuple[str, list[Curve], tuple[float, float] | None]]:
    """Title, curves and scale of each chart; None for the scale of what is drawn."""
    for curve in picture["curves"]:
        if curve["y"]:
            yield f"{curve['name']} ({curve['unit']}), now {curve['y'][-1]:.3f}", [(curve["x"], curve["y"])], None
    heads = [head for head in picture["heads"] if head["y"]][:NAMED_HEADS]
    if heads:
        named = ", ".join(f"{head['name']} {head['y'][-1]:.2f}" for head in heads)
        yield f"prefix matching of the highest heads, now {named}", [(head["x"], head["y"]) for head in heads], (0.0, 1.0)


def _chart(
    curves: Sequence[Curve],
    across: Sequence[float],
    scale: tuple[float, float] | None,
    columns: int,
    *,
    ascii: bool,  # noqa: A002 - what it is
) -> Iterator[str]:
    known = [value for _, values in curves for value in values if value is not None]
    low, high = scale or (min(known), max(known))
    dots_across, dots_up = (columns, ROWS) if ascii else (2 * columns, 4 * ROWS)
    seen: set[tuple[int, int]] = set()
    for x, y in curves:
        places = [
            (_dot(at, across[0], across[1], dots_across), dots_up - 1 - _dot(value, low, high, dots_up))
            for at, value in zip(x, y, strict=True)
            if value is not None
        ]
        seen.update(places[:1])
        for one, two in itertools.pairwise(places):
            seen.update(_between(one, two))
    for row in range(ROWS):
        label = {0: f"{high:.3g}", ROWS - 1: f"{low:.3g}"}.get(row, "")
        drawn = "".join(_mark(seen, column, row, ascii=ascii) for column in range(columns))
        yield f"{label:>{LABEL}} {'|' if ascii else '│'}{drawn}".rstrip()


def _dot(value: float, low: float, high: float, count: int) -> int:
    share = (value - low) / (high - low) if high > low else 0.5
    return min(max(round(share * (count - 1)), 0), count - 1)


def _between(one: tuple[int, int], two: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots of a straight line."""
    steps = max(abs(two[0] - one[0]), abs(two[1] - one[1]), 1)
    for step in range(steps + 1):
        yield (
            round(one[0] + (two[0] - one[0]) * step / steps),
            round(one[1] + (two[1] - one[1]) * step / steps),
        )


def _mark(seen: set[tuple[int, int]], column: int, row: int, *, ascii: bool) -> str:  # noqa: A002 - what it is
    if ascii:
        return "*" if (column, row) in seen else " "
    bits = sum(DOTS[down][right] for down in range(4) for right in range(2) if (2 * column + right, 4 * row + down) in seen)
    return chr(FIRST_DOTS + bits) if bits else " "


def _axis(picture: Mapping[str, Any], columns: int, *, ascii: bool) -> list[str]:  # noqa: A002 - what it is
    """The common axis: heavy where induction forms, with its marks, and what it is of."""
    low, high = picture["range"]
    light, heavy = ("-", "=") if ascii else ("─", "━")
    line = [light] * columns
    window = picture["window"]
    if window is not None:
        first, last = (_dot(place, low, high, columns) for place in window)
        line[first : last + 1] = [heavy] * (last + 1 - first)
    labels, free = [" "] * columns, 0
    for place, words in marks_of(picture, room=6 / columns):
        at = min(_dot(place, low, high, columns), columns - len(words))
        if at >= free and math.isfinite(place):
            labels[at : at + len(words)] = words
            free = at + len(words) + 1
    lines = [f"{'':>{LABEL}} {'+' if ascii else '└'}{''.join(line)}", f"{picture['unit']:>{LABEL}}  {''.join(labels)}".rstrip()]
    if window is not None:
        ends = " to ".join(amount(10**place) for place in window)
        unsure = "" if picture["verdict"] == "FORMED" else f" ({picture['verdict']})"
        lines.append(f"{'':>{LABEL}}  {heavy * 2} window of induction{unsure}: {ends} {picture['unit']}")
    return lines
