"""The attention of the top heads on a probe that was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.formatting import in_markup, printable
from pytest_induction.report.charts.chart import Chart, cells, exact, number, picture
from pytest_induction.report.charts.drawing import GOLD, GREY, SHARES, cell_words, rule, text

MOST_BYTES = 600_000  # of all patterns together, as they stand in a page; one is shown in any case
MOST_LABELS = 26  # tokens along an axis
SIZE = 400  # of a pattern, in pixels
FOOT = 74  # below it, for labels
MOST_LETTERS, LONGEST = 9, 80  # of a token, along an axis and where the pointer is
BLANKS = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}


def attention(data: Mapping[str, Any]) -> list[Chart]:
    """A chart for each head of an probe, as many as fit into a page."""
    left = MOST_BYTES
    drawn: list[Chart] = []
    for head in data["heads"]:
        chart = _pattern(data, head)
        left -= len(chart.svg)
        if drawn and left < 0:
            break
        drawn.append(chart)
    return drawn


def _pattern(data: Mapping[str, Any], head: Mapping[str, Any]) -> Chart:
    starts = [start for start in data["starts"] if 0 <= start < len(data["tokens"])]
    begin = f", copies begin at {', '.join(map(str, starts))}" if starts else ""
    label = f"attention pattern of {head['name']} over {len(data['tokens'])} tokens{begin}"
    words = f"{head['role']}, {number(head.get('score'), 'share')}"
    return Chart(str(head["name"]), label, _drawn(data, head, label), words, SIZE)


def _names(data: Mapping[str, Any]) -> list[str]:
    """What the hover calls each position: its number, its token, its copy."""
    starts = data["starts"]
    names = []
    texts = [
        f"\u201c{visible(text)}\u201d (token {token})" for text, token in zip(data.get("texts", ()), data["tokens"], strict=False)
    ]
    for place, token in enumerate(texts or [f"token {token}" for token in data["tokens"]]):
        copy = sum(place >= start for start in starts)
        where = f"copy {copy}" if copy else "first token" if data.get("bos") and place == 0 else "before the copies"
        names.append(f"{place}: {token}, {where}")
    return names


def visible(words: str, most: int = LONGEST) -> str:
    """The text of a token, printable and with its blanks to be seen, cut to so many letters."""
    shown = printable("".join(BLANKS.get(letter, letter) for letter in words))
    return shown if len(shown) <= most else f"{shown[: most - 1]}\u2026"


def _labels(data: Mapping[str, Any]) -> list[str]:
    """What stands beside each position: the text of its token, or its id."""
    return [visible(text, MOST_LETTERS) or "\u2205" for text in data.get("texts", ())] or list(map(str, data["tokens"]))


def _ticked(count: int, starts: Sequence[int]) -> list[int]:
    """The positions whose tokens are written: all, or the first of every copy and some between."""
    if count <= MOST_LABELS:
        return list(range(count))
    step = -(-count // MOST_LABELS)
    near = {place + off for place in starts for off in range(-step + 1, step)}
    return sorted({*starts, *(place for place in range(0, count, step) if place not in near)})


def _drawn(data: Mapping[str, Any], head: Mapping[str, Any], label: str) -> str:
    count, left, top = max(len(data["tokens"]), 1), 64, 6
    side = SIZE - left - 8
    unit = side / count
    shown = [[value if value is not None and value >= 1 / len(SHARES) / 2 else None for value in row] for row in head["pattern"]]
    ground = f'<path fill="{SHARES[0]}" d="M0 0L{count} {count}H0z"/>'
    names = _names(data)
    values = [[None if value is None else exact(value) for value in row] for row in head["pattern"]]
    words = cell_words(names, names, values, join=" attends to ", after=" of its attention")
    drawn = f'{words}{ground}<g shape-rendering="crispEdges">{cells(shown, SHARES, (0.0, 1.0))}</g>'
    parts = [f'<g class="cells" transform="translate({left} {top}) scale({unit:.4g})">{drawn}</g>']
    for start in data["starts"]:
        at = start * unit
        parts.append(rule(left + at, top + at, left + at, top + side, GOLD))
        parts.append(rule(left, top + at, left + at, top + at, GOLD))
    labels = _labels(data)
    for place in _ticked(count, data["starts"]):
        at, title = (place + 0.5) * unit, f"<title>{in_markup(names[place])}</title>"
        beside = text(left - 6, top + at + 3.5, labels[place], "faint tiny", anchor="end")
        turned = text(0, 0, labels[place], "faint tiny", anchor="end")
        parts.append(f"<g>{title}{beside}</g>")
        parts.append(f'<g transform="translate({left + at + 3.5:.1f} {top + side + 6:.1f}) rotate(-90)">{title}{turned}</g>')
    parts.append(rule(left, top, left, top + side, GREY))
    parts.append(text(SIZE - 8, top + side + FOOT - 8, "attended token", "faint", anchor="end"))
    return picture(parts, SIZE, top + side + FOOT, label)
