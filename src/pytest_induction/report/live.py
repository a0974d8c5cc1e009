"""A run while it trains: a frame for the terminal, and a page that reloads itself. Standard library only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_induction.formatting import NARROW, for_terminal, in_markup
from pytest_induction.records import Evidence
from pytest_induction.report.charts.run import marks_of
from pytest_induction.report.charts.run_picture import svg
from pytest_induction.report.terminal import Line, Style, section
from pytest_induction.report.view import CHANGE_COLUMNS, amount, views

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
        unsure = "" if picture["verdict"] == "SHOWN" else f" ({picture['verdict']})"
        lines.append(f"{'':>{LABEL}}  {heavy * 2} window of induction{unsure}: {ends} {picture['unit']}")
    return lines


CLEAR = "\x1b[H\x1b[2J"
INKS = {"bold": "1", "green": "32", "red": "31", "yellow": "33"}
PAGE_STYLE = (
    "body{font:14px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;margin:24px;color:#1d2733;background:#fff}"
    "table{border-collapse:collapse;margin:16px 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:3px 12px;text-align:right;border-bottom:1px solid #e4e8ee}td:first-child,th:first-child{text-align:left}"
    "svg{max-width:100%;height:auto}.faint{color:#5f6b7a}"
)


def frame(evidence: Evidence | None, picture: Mapping[str, Any] | None, state: str, style: Style) -> list[Line]:
    """What is shown of a run now: its curves, the table of what changed, and a last line.

    Of a run that is too short to be judged there is the last line alone.
    """
    lines: list[Line] = []
    if picture is not None:
        lines += [(line, {}) for line in chart_lines(picture, width=style.width, ascii=style.ascii)]
    if evidence is not None:
        lines += [("", {}), *section([evidence], style)] if lines else section([evidence], style)
    return [(each, marks) for line, marks in [*lines, (state, {})] for each in for_terminal(line, style.width)]


def painted(lines: Iterable[Line], *, colour: bool) -> str:
    """Lines as a text, with the codes of a terminal that shows colours."""
    return "\n".join(_painted(line, marks) if colour else line for line, marks in lines) + "\n"


def _painted(line: str, marks: Mapping[str, bool]) -> str:
    inks = [INKS[name] for name, is_set in marks.items() if is_set and name in INKS]
    return f"\x1b[{';'.join(inks)}m{line}\x1b[0m" if inks and line else line


def live_page(title: str, evidence: Evidence | None, picture: Mapping[str, Any] | None, state: str, reload: float | None) -> str:
    """A page with the picture and the table of a run, whole in itself; it loads itself again after `reload` seconds, if any."""
    again = "" if reload is None else f'<meta http-equiv="refresh" content="{max(1, round(reload))}">'
    head = f'<meta charset="utf-8">{again}<title>{in_markup(title)}</title><style>{PAGE_STYLE}</style>'
    drawn = "" if picture is None else svg(picture)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{drawn}{_table(evidence)}'
        f'<p class="faint">{in_markup(state)}</p>\n</body></html>\n'
    )


def _table(evidence: Evidence | None) -> str:
    if evidence is None:
        return ""
    (view,) = views([evidence])
    claims = "".join(f"<p><b>{in_markup(claim.verdict)}</b> {in_markup(claim.summary)}</p>\n" for claim in view.claims)
    notes = "".join(f'<p class="faint">note: {in_markup(note)}</p>\n' for note in view.notes)
    if not view.changes:
        return claims + notes
    rows = [_row("td", row.cells) for row in view.changes]
    head = _row("th", [*CHANGE_COLUMNS[:4], *(f"{name} ({view.places})" for name in CHANGE_COLUMNS[4:7]), *CHANGE_COLUMNS[7:]])
    return f"{claims}<table>\n{head}{''.join(rows)}</table>\n{notes}"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{in_markup(cell)}</{tag}>' for cell in cells)}</tr>\n"
