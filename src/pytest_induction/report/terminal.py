"""The terminal section: each model's claims, its head map, its heads and near misses; one line where pytest is quiet."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_induction.expectations import COMPARED_COLUMNS, LEFT_COMPARED, rest_of
from pytest_induction.formatting import LEAST, NARROW, aligned, everywhere
from pytest_induction.records import Evidence, Verdict
from pytest_induction.report.view import (
    CHANGE_COLUMNS,
    MOST_HEADS,
    ClaimRow,
    ComparedTable,
    HeadRow,
    ModelView,
    from_cache,
    views,
    without_empty,
)

Matrix = Sequence[Sequence[float | None]]
BLOCKS = "▁▂▃▄▅▆▇█"  # each stands for an eighth of the range
DIGITS = ".123456789"  # and of these each for a tenth
UNKNOWN = "?"  # what was measured is no number
MOST_ROWS = 64
RULED = 8  # heads between two numbers of the ruler
SAME = 3  # rows of nothing but the lowest mark that are drawn as one


def head_map_lines(
    head_map: Matrix,
    *,
    width: int,
    ascii: bool = False,  # noqa: A002 - what it is
    shows: str = "prefix matching",
) -> list[str]:
    """What the map shows of every head, in [0, 1], with its scale; no line is longer than `width` where that can be.

    `head_map` has a row for each layer, None where it has no such head: a blank. Where heads are more than fit, a mark stands for
    several of them, and so do rows for more than 64 layers: for the highest. Three layers and more in a row with nothing but
    the lowest mark are one row. With `ascii` marks are digits, for a terminal without block characters.
    """
    marks = DIGITS if ascii else BLOCKS
    n_heads = max(map(len, head_map), default=0)
    if not n_heads:
        return []
    label = len(f"L{len(head_map) - 1}") + 2
    per_mark = math.ceil(n_heads / max(1, width - label))
    per_row = math.ceil(len(head_map) / MOST_ROWS)
    drawn = [
        (layer, "".join(_marks(head_map[layer : layer + per_row], per_mark, marks))) for layer in range(0, len(head_map), per_row)
    ]
    named = list(_collapsed(drawn, len(head_map), per_row, marks[0]))
    collapsed = max(len(layers) for layers, _ in named) + 2
    if collapsed + math.ceil(n_heads / per_mark) <= width:
        label = max(label, collapsed)
    else:
        named = [(f"L{layer}", row) for layer, row in drawn]
    rows = [f"{layers:<{label}}{row}".rstrip() for layers, row in named]
    return [*_legend(f"{shows}, 0 {marks} 1", per_mark, per_row, width), *_ruler(n_heads, per_mark, label, width), *rows]


def _legend(scale: str, per_mark: int, per_row: int, width: int) -> Iterator[str]:
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


def _collapsed(drawn: Sequence[tuple[int, str]], n_layers: int, per_row: int, lowest: str) -> Iterator[tuple[str, str]]:
    """Each row with its layers: `L3`, or `L3-L9` where so many in a row have nothing but the lowest mark."""
    for row, same in itertools.groupby(drawn, key=lambda each: each[1]):
        layers = [layer for layer, _ in same]
        if len(layers) >= SAME and set(row) == {lowest}:
            yield f"L{layers[0]}-L{min(layers[-1] + per_row, n_layers) - 1}", row
        else:
            yield from ((f"L{layer}", row) for layer in layers)


def _marks(rows: Matrix, per_mark: int, marks: str) -> Iterator[str]:
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


Line = tuple[str, dict[str, bool]]
"""A line of text and how pytest's terminal writer is to mark it."""

COLOURS = {Verdict.SHOWN: "green", Verdict.REFUTED: "red", Verdict.UNDETERMINED: "yellow"}
COLUMNS = ("head", "prefix matching", "interval", "copy (nats)", "kind")
MEASURE_COLUMNS = ("claim", "estimate", "value", "interval", "threshold")
MOST_MODELS = 10
MOST_NAMED = 3  # claims in the one line
LONGEST_NAME = 60
MOST_NEAR = 4
VERBOSE_HEADS = 64
MOST_COMPARED = 10  # rows of two models side by side
INDENT = 4  # of tables


@dataclass(frozen=True)
class Style:
    """How much is said, how wide the terminal is, and whether it can show no more than ASCII."""

    verbose: bool = False
    width: int = 80
    ascii: bool = False


def style_for(verbosity: int, width: int, encoding: str | None) -> Style:
    """That of a terminal; of one whose encoding is not known nothing but ASCII is asked."""
    try:
        BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return Style(verbosity > 0, width, ascii=True)
    return Style(verbosity > 0, width)


def section(evidence: Iterable[Evidence], style: Style) -> Iterator[Line]:
    """The whole section; a table that is wider than a narrow terminal has its rows one below the other, cell by cell."""
    shown = views(evidence, most_heads=VERBOSE_HEADS if style.verbose else MOST_HEADS)
    for view in shown[:MOST_MODELS]:
        yield from _block(everywhere(view), style)
    if len(shown) > MOST_MODELS:
        yield f"and {len(shown) - MOST_MODELS} more models", {}


def one_line(evidence: Iterable[Evidence]) -> str:
    """The session in a line: how many verdicts of each kind, and which claims are not shown."""
    every = list(evidence)
    counts = (_counted([each for each in every if each.verdict is verdict], verdict) for verdict in Verdict)
    return f"induction: {', '.join(counts)}{from_cache(every)}"


def _counted(found: Sequence[Evidence], verdict: Verdict) -> str:
    """How many verdicts of a kind; of what is not shown the claims are named."""
    names = list(dict.fromkeys(f"{each.claim} of {_end(each.provenance.model)}" for each in found))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    about = f" ({', '.join(names[:MOST_NAMED])}{more})" if names and verdict is not Verdict.SHOWN else ""
    return f"{len(found)} {verdict}{about}"


def _end(name: str) -> str:
    """The end of a long name, which tells paths apart."""
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"


def _block(view: ModelView, style: Style) -> Iterator[Line]:
    yield view.title, {"bold": True}
    yield from _claims(view.claims, style)
    for note in view.notes:
        yield f"  note          {note}", {}
    if view.changes:
        yield "", {}
        yield from _changes(view, style)
    for table in view.compared:
        yield "", {}
        yield from _side_by_side(table, style)
    if view.head_map:
        yield "", {}
        drawn = head_map_lines(view.head_map, width=style.width - 4, ascii=style.ascii, shows=view.mapped)
        yield from ((f"    {line}", {}) for line in drawn)
    if view.heads:
        yield "", {}
        yield from _heads(view, style)
    yield from _near(view, style)
    if style.verbose:
        yield from _grounds(view, style)


def _claims(claims: Sequence[ClaimRow], style: Style) -> Iterator[Line]:
    width, widest = 0, 0
    if style.width >= NARROW:
        width = max(18, *(len(claim.name) for claim in claims))
        widest = max(12, *(len(claim.words) for claim in claims))
    for claim in claims:
        times = f" ({claim.times} times)" if claim.times > 1 else ""
        line = f"  {claim.words:<{widest}}  {claim.name:<{width}}  {claim.summary}{times}"
        yield line, {COLOURS[claim.verdict]: True}


def _changes(view: ModelView, style: Style) -> Iterator[Line]:
    """A row for each series of a run; places in steps or tokens, with their intervals."""
    head, *lines = _aligned(CHANGE_COLUMNS, [row.cells for row in view.changes], style)
    yield f"    {head}   ({view.places})", {}
    for row, line in zip(view.changes, lines, strict=True):
        yield f"    {line}", {COLOURS[row.counts_as]: True}


def _side_by_side(table: ComparedTable, style: Style) -> Iterator[Line]:
    """Both models: what is not as it was, or all of it."""
    yield f"    before: {table.before}", {}
    rows = table.rows if style.verbose else table.changed[:MOST_COMPARED]
    if rows:
        head, *lines = _aligned(COMPARED_COLUMNS, [row.cells for row in rows], style, left=LEFT_COMPARED)
        yield f"    {head}", {}
        for row, line in zip(rows, lines, strict=True):
            yield f"    {line}", {"red": True} if row.is_worse else {}
    if more := rest_of(table.rows, len(rows)):
        yield f"    {more}", {}


def _heads(view: ModelView, style: Style) -> Iterator[Line]:
    """The induction heads; all others that are known where there are none, or where all is shown."""
    found = [row for row in view.heads if row.found]
    if style.verbose:
        rows = list(view.heads)
        names, cells = view.head_table
    else:
        rows = found or list(view.heads)
        names, cells = ("head", view.score) if view.score else COLUMNS, list(map(_some_scores, rows))
    head, *lines = _aligned(*without_empty(names, cells), style)
    yield f"    {head}", {}
    for row, line in zip(rows, lines, strict=True):
        yield f"  {'*' if row.found else ' '} {line}", {"bold": row.found}
    if view.heads_left_out:
        yield f"    and {view.heads_left_out} more {_plural(view.found)}", {}
    if found:
        yield f"  * {view.found}", {}


def _plural(heads: str) -> str:
    return heads.replace("head", "heads", 1)


def _some_scores(row: HeadRow) -> tuple[str, ...]:
    return (row.name, row.score) if row.score else (row.name, row.prefix_matching, row.interval, row.copy_effect, row.kind)


def _near(view: ModelView, style: Style) -> Iterator[Line]:
    for pair in view.pairs if style.verbose else view.pairs[:MOST_NEAR]:
        yield f"  pair          {pair}", {}
    for near in view.near if style.verbose else view.near[:MOST_NEAR]:
        yield f"  near          {near}", {}
    left_out = 0 if style.verbose else sum(max(0, len(each) - MOST_NEAR) for each in (view.pairs, view.near))
    if left_out:
        yield f"                and {left_out} more with -v", {}


def _grounds(view: ModelView, style: Style) -> Iterator[Line]:
    """Every estimate, and where it was measured."""
    if view.measures:
        yield "", {}
        rows = [(row.claim, row.name, row.value, row.interval, row.threshold) for row in view.measures]
        yield from ((f"    {line}", {}) for line in _aligned(MEASURE_COLUMNS, rows, style, left=(0, 1)))
    yield "", {}
    for line in view.measured:
        yield f"  measured      {line}", {}


def _aligned(names: Sequence[str], rows: Sequence[Sequence[str]], style: Style, *, left: Collection[int] = ()) -> list[str]:
    """Names and rows as lines with columns, or in words where the terminal is too narrow."""
    lines = aligned(names, rows, left=left)
    if style.width < min(NARROW, INDENT + max(map(len, lines))):
        return [names[0], *(_cell_by_cell(names, cells) for cells in rows)]
    return lines


def _cell_by_cell(names: Sequence[str], cells: Sequence[str]) -> str:
    """A row of a table in words."""
    pairs = (f"{name} {cell}" for name, cell in zip(names[1:], cells[1:], strict=True) if cell)
    return f"{cells[0]}: {', '.join(pairs)}"
