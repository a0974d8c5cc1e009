"""The mosaic of a model in characters: prefix matching of every head, a row for each layer, a mark for each head."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from pytest_induction.wording import LEAST

Mosaic = Sequence[Sequence[float | None]]
BLOCKS = "▁▂▃▄▅▆▇█"  # each stands for an eighth of the range
DIGITS = ".123456789"  # and of these each for a tenth
UNKNOWN = "?"  # what was measured is no number
MOST_ROWS = 64
RULED = 8  # heads between two numbers of the ruler


def mosaic_lines(mosaic: Mosaic, *, width: int, ascii: bool = False) -> list[str]:  # noqa: A002 - what it is
    """Prefix matching in [0, 1] of every head, as its marks, with its scale; no line is longer than `width` where that can be.

    `mosaic` has a row for each layer, None where it has no such head: a blank. Where heads are more than fit, a mark stands for
    several of them, and so do rows for more than 64 layers: for the highest. With `ascii` marks are digits, for a terminal
    without block characters.
    """
    marks = DIGITS if ascii else BLOCKS
    n_heads = max(map(len, mosaic), default=0)
    if not n_heads:
        return []
    label = len(f"L{len(mosaic) - 1}") + 2
    per_mark = math.ceil(n_heads / max(1, width - label))
    per_row = math.ceil(len(mosaic) / MOST_ROWS)
    rows = [
        f"{f'L{layer}':<{label}}{''.join(_marks(mosaic[layer : layer + per_row], per_mark, marks))}".rstrip()
        for layer in range(0, len(mosaic), per_row)
    ]
    return [*_legend(marks, per_mark, per_row, width), *_ruler(n_heads, per_mark, label, width), *rows]


def _legend(marks: str, per_mark: int, per_row: int, width: int) -> Iterator[str]:
    scale = f"prefix matching, 0 {marks} 1"
    row = "layer" if per_row == 1 else f"{per_row} layers"
    mark = "head" if per_mark == 1 else f"{per_mark} heads"
    highest = "" if per_mark == per_row == 1 else ", the highest"
    about = f"a row for each {row}, a mark for each {mark}{highest}"
    if len(scale) + len(about) + 2 <= width:
        yield f"{scale}: {about}"
        return
    yield from (line for each in (scale, about) for line in textwrap.wrap(each, max(width, LEAST)))


def _ruler(n_heads: int, per_mark: int, label: int, width: int) -> Iterator[str]:
    """Numbers of heads above the marks, where there are too many to be counted at a glance."""
    if n_heads > RULED and width > label + RULED:
        numbers = [f"H{head}" for head in range(0, n_heads, RULED * per_mark)]
        if label + RULED * (len(numbers) - 1) + len(numbers[-1]) > width:
            numbers.pop()
        yield " " * label + "".join(f"{number:<{RULED}}" for number in numbers).rstrip()


def _marks(rows: Mosaic, per_mark: int, marks: str) -> Iterator[str]:
    """A mark for each so many heads of these layers together."""
    for start in range(0, max(map(len, rows)), per_mark):
        yield _mark([score for row in rows for score in row[start : start + per_mark] if score is not None], marks)


def _mark(scores: Sequence[float], marks: str) -> str:
    """That of the highest score; a blank where there is no head."""
    if not scores:
        return " "
    if any(math.isnan(score) for score in scores):
        return UNKNOWN
    return marks[min(len(marks) - 1, max(0, int(max(scores) * len(marks))))]
