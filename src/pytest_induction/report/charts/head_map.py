"""The head map: layers and heads, for each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import Chart, around, cells, known, level, map_step, number, picture
from pytest_induction.report.charts.drawing import INK, SHARES, SIGNED, cell_words, text

Matrix = Sequence[Sequence[Any]]
MOST_WRITTEN = (12, 8)  # layers and heads of a model whose numbers fit into their cells
LEFT = 42  # of the numbers of layers, in pixels
HIGH, LOW, LEAST, ALL = 34, 12, 2, 420  # of a row with numbers, of one without at most and at least, of all these; in pixels
NOTES = {
    "prefix_matching": "to what followed the token last time",
    "excess": "beyond chance",
    "previous_token": "to the token before",
    "duplicate_token": "to the same token before",
    "exactly_one": "at irregular distances, where one token matches",
    "exactly_two": "at irregular distances, where two match",
    "three_or_more": "at irregular distances, where three or more match",
    "first_token": "to the first token: at rest",
    "retrieval": "written of the fact that is asked for, beyond other facts",
    "concepts": "restored of a word that is not there, beyond meaningless strings",
    "suppression": "added to the logit of what is predicted, from where it stood",
    "copy_effect": "added to the logit of what it matches",
}
LOWEST = frozenset({"suppression"})  # scores that are looked at for how low they are
KINDS = {
    "matches": "matches",
    "suppresses": "matches and suppresses",
    "silent": "matches and writes nothing",
    "period_detector": "follows the period",
    "positional": "positional",
    "previous": "previous token",
    "duplicate": "duplicate token",
    "dormant": "dormant",
}
"""The kinds of heads, as they are told."""


def head_map(data: Mapping[str, Any]) -> list[Chart]:
    """A chart for each score."""
    return [_map(score, data.get("kinds") or ()) for score in data["scores"]]


def least_width(columns: int) -> int:
    """How wide a map of so many heads in a layer is at least, in pixels."""
    return 270 if columns <= 8 else 320 if columns <= 16 else 420


def head_map_of(matrix: Matrix) -> list[Chart]:
    """The chart of prefix matching alone, where a verdict is all that is known of the heads."""
    return [_map({"name": "prefix_matching", "words": "prefix matching", "unit": "share", "value": matrix}, ())]


def head_names(kinds: Matrix) -> dict[str, list[str]]:
    """The heads of each kind, in the order of the model."""
    found: dict[str, list[str]] = {KINDS[kind]: [] for kind in KINDS}
    for layer, row in enumerate(kinds):
        for head, kind in enumerate(row):
            if kind in KINDS:
                found[KINDS[kind]].append(f"L{layer}H{head}")
    return {kind: heads for kind, heads in found.items() if heads}


def is_signed(score: Mapping[str, Any]) -> bool:
    """Whether a score may lie below 0 in earnest, and has the colours for that."""
    return bool(score["unit"] != "share")


def ends_of(score: Mapping[str, Any]) -> tuple[float, float]:
    """What the ends of the colours stand for: all of a share, or the largest size there is."""
    if not is_signed(score):
        return 0.0, 1.0
    most = max(map(abs, known(value for row in score["value"] for value in row)), default=0.0) or 1.0
    return -most, most


def _map(score: Mapping[str, Any], kinds: Matrix) -> Chart:
    values, unit = score["value"], score["unit"]
    label = f"{score['words']} of {sum(len(known(row)) for row in values)} heads; {_foremost(score)}"
    title = score["words"] + (f" ({unit})" if unit != "share" else "")
    return Chart(title, label, _drawn(score, kinds, label), NOTES.get(score["name"], ""), least_width(_width(values)))


def _words(score: Mapping[str, Any], kinds: Matrix) -> str:
    """What is said of every head: value, interval, kind."""
    low, high, signed = score.get("low"), score.get("high"), is_signed(score)
    rows: list[list[str | None]] = []
    for layer, row in enumerate(score["value"]):
        rows.append([])
        for head, value in enumerate(row):
            words = number(value, score["unit"], signed=signed)
            if low and high:
                words = around(value, _at(low, layer, head), _at(high, layer, head), score["unit"], signed=signed)
            kind = _at(kinds, layer, head)
            label = f"{words}; {KINDS.get(kind, kind)}" if kind else words
            rows[-1].append(None if value is None else label)
    layers, heads = ([f"{letter}{place}" for place in range(count)] for letter, count in (("L", len(rows)), ("H", _width(rows))))
    return cell_words(layers, heads, rows, before=f"{score['words']} ")


def _width(rows: Matrix) -> int:
    return max(map(len, rows), default=0)


def _at(matrix: Matrix, layer: int, head: int) -> Any:
    """What a matrix has for a head; None beyond its end."""
    if layer >= len(matrix) or head >= len(matrix[layer]):
        return None
    return matrix[layer][head]


def _foremost(score: Mapping[str, Any]) -> str:
    ranked = [
        (value, f"L{layer}H{head}")
        for layer, row in enumerate(score["value"])
        for head, value in enumerate(row)
        if known([value])
    ]
    if not ranked:
        return "none is known"
    is_low = score["name"] in LOWEST
    value, name = min(ranked) if is_low else max(ranked)
    return f"the {'lowest' if is_low else 'highest'} is {name} with {number(value, score['unit'])}"


def _drawn(score: Mapping[str, Any], kinds: Matrix, label: str) -> str:
    values = score["value"]
    columns, rows = max(_width(values), 1), max(len(values), 1)
    high = HIGH if rows <= MOST_WRITTEN[0] else min(LOW, max(ALL / rows, LEAST))
    whole, height = least_width(columns), round(high * rows) + 46
    wide = (whole - LEFT - 4) / columns
    is_small = rows <= MOST_WRITTEN[0] and columns <= MOST_WRITTEN[1]
    colours, ends = (SIGNED if is_signed(score) else SHARES), ends_of(score)
    drawn = cells(values, colours, ends, gap=0.05 if is_small else 0.0)
    words = _words(score, kinds)
    look = f'class="cells" transform="translate({LEFT} 4) scale({wide:.4g} {high:.4g})" shape-rendering="crispEdges"'
    parts = [f"<g {look}>{words}{drawn}</g>"]
    parts += [
        text(LEFT + (at + 0.5) * wide, height - 26, str(at), "faint", anchor="middle")
        for at in range(0, columns, map_step(columns))
    ]
    parts += [text(LEFT - 7, 8 + (at + 0.5) * high, str(at), "faint", anchor="end") for at in range(0, rows, map_step(rows))]
    parts.append(text((LEFT + whole - 4) / 2, height - 8, "head", "faint", anchor="middle"))
    turned = text(0, 0, "layer", "faint", anchor="middle")
    parts.append(f'<g transform="translate(12 {4 + high * rows / 2:.1f}) rotate(-90)">{turned}</g>')
    if is_small:
        parts += _written(score, (wide, high), colours, ends)
    return picture(parts, whole, height, label)


def _written(score: Mapping[str, Any], size: tuple[float, float], colours: Sequence[str], ends: tuple[float, float]) -> list[str]:
    """The numbers, each in its cell."""
    wide, high = size
    parts = []
    for layer, row in enumerate(score["value"]):
        for head, value in enumerate(row):
            here = level(value, ends, len(colours))
            if here is not None:
                x, y = LEFT + (head + 0.475) * wide, 8 + (layer + 0.475) * high
                parts.append(text(x, y, _in_cell(value, score), anchor="middle", fill=_ink_on(here, score)))
    return parts


def _in_cell(value: float | None, score: Mapping[str, Any]) -> str:
    """Two decimals, and no sign where nothing is left of the number."""
    if not known([value]):
        return ""
    digits = f"{value:{'+' if is_signed(score) else ''}.2f}".replace("-", "\u2212")
    return "0.00" if digits in ("+0.00", "\u22120.00") else digits


def _ink_on(step: int, score: Mapping[str, Any]) -> str:
    """What is read on a colour."""
    if is_signed(score):
        return INK if 5 <= step <= 15 else "var(--on-end,#fff)"
    return "#fff" if step < 9 else "#1b2430"
