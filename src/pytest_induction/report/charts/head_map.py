"""The induction mosaic: a map of layers and heads for each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_induction.report.charts.chart import (
    Chart,
    cells,
    figure,
    known,
    level,
    map_axis,
    map_step,
    number,
    picture,
    scale,
    tidy,
)
from pytest_induction.report.drawing import SHARES, SIGNED, SIGNED_LIGHT, text

Matrix = Sequence[Sequence[Any]]
MOST_WRITTEN = (12, 8)  # layers and heads of a model whose numbers fit into their cells
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
    "copy_effect": "added to the logit of what it matches",
}
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
    """A chart for each score of a `heads` chart."""
    return [_map(score, data.get("kinds") or ()) for score in data["scores"]]


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
    width = max(map(len, values), default=0)
    low, high = ends_of(score)
    row = HIGH if len(values) <= MOST_WRITTEN[0] else min(LOW, max(ALL / len(values), LEAST))
    height = round(row * len(values)) + 46
    is_small = len(values) <= MOST_WRITTEN[0] and width <= MOST_WRITTEN[1]
    trace = {
        "type": "heatmap",
        "z": tidy(values),
        "zmin": tidy(low),
        "zmax": tidy(high),
        "colorscale": scale(SIGNED_LIGHT if is_signed(score) else SHARES),
        "meta": {"scale": "signed" if is_signed(score) else "share"},
        "showscale": False,
        "hoverongaps": False,
        "customdata": _words(score, kinds, width),
        "hovertemplate": f"<b>L%{{y}}H%{{x}}</b><br>{score['words']} %{{customdata}}<extra></extra>",
        **({"xgap": 2, "ygap": 2} if is_small else {"xgap": 0.5, "ygap": 0.5}),
        **(
            {"text": [[_in_cell(value, score) for value in row] for row in values], "texttemplate": "%{text}"} if is_small else {}
        ),
    }
    layout = {
        "xaxis": map_axis(width, "head"),
        "yaxis": map_axis(len(values), "layer", range=[len(values) - 0.5, -0.5]),
        "margin": {"l": 40, "r": 4, "t": 4, "b": 42},
        "dragmode": False,
    }
    label = f"{score['words']} of {sum(len(known(row)) for row in values)} heads; {_highest(score)}"
    note = NOTES.get(score["name"], "")
    return Chart(
        score["words"] + (f" ({unit})" if unit != "share" else ""),
        label,
        figure([trace], height, **layout),
        _static(score, height, label, is_small=is_small),
        height,
        note,
    )


def _words(score: Mapping[str, Any], kinds: Matrix, width: int) -> list[list[str]]:
    """What the hover says of every head: value, interval, kind."""
    low, high = score.get("low"), score.get("high")
    rows = []
    for layer, row in enumerate(score["value"]):
        said = []
        for head, value in enumerate(row):
            words = number(value, score["unit"], signed=is_signed(score))
            if low and high:
                ends = [number(_at(side, layer, head), score["unit"], signed=is_signed(score)) for side in (low, high)]
                words += f" ({ends[0]} to {ends[1]})"
            kind = _at(kinds, layer, head)
            said.append(words + (f"<br>{KINDS.get(kind, kind)}" if kind else ""))
        rows.append(said + [""] * (width - len(said)))
    return rows


def _at(matrix: Matrix, layer: int, head: int) -> Any:
    """What a matrix has for a head; None beyond its end."""
    if layer >= len(matrix) or head >= len(matrix[layer]):
        return None
    return matrix[layer][head]


def _highest(score: Mapping[str, Any]) -> str:
    ranked = [
        (value, f"L{layer}H{head}")
        for layer, row in enumerate(score["value"])
        for head, value in enumerate(row)
        if known([value])
    ]
    if not ranked:
        return "none is known"
    value, name = max(ranked)
    return f"the highest is {name} with {number(value, score['unit'])}"


def _static(score: Mapping[str, Any], height: int, label: str, *, is_small: bool) -> str:
    values, width, left = score["value"], 360, 34
    columns, rows = max(max(map(len, values), default=0), 1), max(len(values), 1)
    wide, high = (width - left - 4) / columns, (height - 46) / rows
    colours, ends = (SIGNED if is_signed(score) else SHARES), ends_of(score)
    drawn = cells(values, colours, ends, gap=0.05 if is_small else 0.0)
    parts = [f'<g transform="translate({left} 4) scale({wide:.4g} {high:.4g})" shape-rendering="crispEdges">{drawn}</g>']
    parts += [
        text(left + (at + 0.5) * wide, height - 26, str(at), "faint", anchor="middle")
        for at in range(0, columns, map_step(columns))
    ]
    parts += [text(left - 7, 8 + (at + 0.5) * high, str(at), "faint", anchor="end") for at in range(0, rows, map_step(rows))]
    parts += [text(width - 4, height - 8, "head", "faint", anchor="end"), text(left, height - 8, "layer \u2191", "faint")]
    if is_small:
        parts += _written(score, (left, wide, high), colours, ends)
    return picture(parts, width, height, label)


def _written(
    score: Mapping[str, Any], place: tuple[float, float, float], colours: Sequence[str], ends: tuple[float, float]
) -> list[str]:
    """The numbers, each in its cell."""
    left, wide, high = place
    parts = []
    for layer, row in enumerate(score["value"]):
        for head, value in enumerate(row):
            here = level(value, ends, len(colours))
            if here is not None:
                x, y = left + (head + 0.475) * wide, 8 + (layer + 0.475) * high
                parts.append(text(x, y, _in_cell(value, score), anchor="middle", fill=_ink_on(here, score)))
    return parts


def _in_cell(value: float | None, score: Mapping[str, Any]) -> str:
    """Two decimals, and no sign where nothing is left of the number."""
    if not known([value]):
        return ""
    said = f"{value:{'+' if is_signed(score) else ''}.2f}".replace("-", "\u2212")
    return "0.00" if said in ("+0.00", "\u22120.00") else said


def _ink_on(place: int, score: Mapping[str, Any]) -> str:
    """What is read on a colour."""
    if is_signed(score):
        return "var(--ink,#1b2430)" if 3 <= place <= 7 else "var(--on-end,#fff)"
    return "#fff" if place < 9 else "#1b2430"
