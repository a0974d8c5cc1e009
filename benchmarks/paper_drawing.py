"""The picture of the paper's table: a column for each kind of model, nine rows, all cells of a row on the same axes."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paper_rows import (
    BEFORE_AND_AFTER,
    BY_TOKEN,
    IN_CONTEXT,
    LOSS,
    MATCHING,
    PALE,
    SCORE,
    THRESHOLDS,
    TRACE,
    Column,
    Curve,
    Row,
    columns_of,
)
from paper_runs import Measured, Zoo, blocks
from pytest_induction.report.charts.chart import picture
from pytest_induction.report.charts.drawing import (
    AXIS,
    GOLD,
    GRID,
    INK,
    PAPER,
    Plot,
    as_file,
    rule,
    scaled,
    signed_colour,
    text,
    ticks_between,
)
from pytest_induction.report.charts.run import edges_of, steepest_of
from pytest_induction.report.view import amount
from pytest_induction.runs.trajectory import principal_path

NAMES, TICKS, CELL, GAP, BETWEEN, RIGHT = 212, 44, 138, 9, 30, 22  # widths: names of rows, labels of scales, cells, margins
TOP, HEAD, SQUARE, LOW, SPACE = 92, 92, 150, 100, 18  # heights: title, heads of columns, cells of the plane, others, between
GROUND = "#fbfcfd"
LEVELS = 24  # shades each way
MAP = Row("4", "dLoss / d ln token number", "upwards: token number")
PLANE = Row("1", "PCA of token losses", "nats per token", keys=((INK, "seed 0"), (PALE, "other seeds"), (GOLD, "window")))


@dataclass(frozen=True)
class Block:
    """Columns side by side that share their scales; `x` is the range of log10 tokens, `left` where the first cell begins."""

    title: str
    columns: Sequence[Column]
    left: float
    x: tuple[float, float]

    def plots(self, top: float, height: float) -> list[Plot]:
        """A cell for each column."""
        lefts = (self.left + place * (CELL + GAP) for place in range(len(self.columns)))
        return [Plot(left, top, CELL, height, self.x, (0.0, 1.0)) for left in lefts]

    @property
    def right(self) -> float:
        return self.left + len(self.columns) * (CELL + GAP) - GAP

    @property
    def runs(self) -> list[Measured]:
        return [one for column in self.columns for one in (column.shown, *column.others)]


def drawn(zoo: Zoo) -> str:
    """The whole picture as SVG."""
    parts, top = [], float(TOP)
    every = list(_blocks(zoo))
    for block in every:
        parts += _heads(block, top)
    top += HEAD
    for row in (PLANE, LOSS, BY_TOKEN, MAP, SCORE, MATCHING, TRACE, BEFORE_AND_AFTER, IN_CONTEXT):
        height = SQUARE if row is PLANE else LOW
        parts += _name(row, top, every)
        for block in every:
            parts += _cells(row, block, block.plots(top, height))
        top += height + SPACE + (50 if row is PLANE else 0)
    for block in every:
        parts += _axis(block, top - SPACE)
    wide, tall = every[-1].right + RIGHT, top + 52
    parts.append(text(16, tall - 14, THRESHOLDS, "faint"))
    title = "Model Analysis Table: what changes while the models of the zoo train"
    whole = [text(16, 36, title, "title"), *_legend(), *parts]
    return as_file(picture(whole, round(wide), round(tall), title)) + "\n"


def _blocks(zoo: Zoo) -> Iterator[Block]:
    left = float(NAMES + TICKS)
    for kinds in blocks(zoo):
        columns = columns_of(zoo, kinds)
        every = [one for column in columns for one in (column.shown, *column.others)]
        x = [each for one in every for each in one.x[one.drawn]]
        title = "natural text" if kinds[0].is_natural else "bigram text with copied spans"
        block = Block(title, columns, left, (float(min(x)), float(max(x))))
        yield block
        left = block.right + BETWEEN + TICKS


def _legend() -> list[str]:
    """Below the title: what gold is, and where a path begins."""
    swatch = f'<rect x="16" y="53" width="22" height="13" fill="{GOLD}" fill-opacity="0.3"/>'
    dashed = f'<rect x="300" y="53" width="22" height="13" fill="none" stroke="{GOLD}" stroke-dasharray="3 2"/>'
    start, end = _ring(732, 59.5), f'<circle cx="794" cy="59.5" r="4" fill="{INK}"/>'
    return [
        swatch,
        text(45, 64, "window in which induction heads form"),
        dashed,
        text(329, 64, "none here: that of the same kind of model with more layers"),
        start,
        text(741, 64, "start"),
        end,
        text(803, 64, "end of training"),
    ]


def _ring(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{PAPER}" stroke="{INK}" stroke-width="1.6"/>'


def _heads(block: Block, top: float) -> list[str]:
    """What the block is, and over each column what the model is."""
    parts = [text(block.left, top + 4, block.title, "faint"), rule(block.left, top + 12, block.right, top + 12, AXIS)]
    for column, plot in zip(block.columns, block.plots(top, HEAD), strict=True):
        middle, kind = (plot.left + plot.right) / 2, column.kind
        parts.append(text(middle, top + 36, kind.heading, "name", anchor="middle"))
        parts.append(text(middle, top + 53, kind.detail, anchor="middle"))
        parts.append(text(middle, top + 70, f"{kind.parameters:,} parameters", "faint", anchor="middle"))
    return parts


def _name(row: Row, top: float, every: Sequence[Block]) -> list[str]:
    """At the left: what the row is, its unit, and the meaning of its colours."""
    parts = [text(16, top + 12, row.number, "name"), text(32, top + 12, row.name, "name"), text(32, top + 29, row.unit, "faint")]
    return [*parts, *(_colours(top + 40, every) if row is MAP else _keys(row.keys, top + 47))]


def _keys(keys: Sequence[tuple[str, str]], y: float) -> list[str]:
    """Swatches with words, as many on a line as fit."""
    parts, x = [], 32.0
    for colour, words in keys:
        wide = 20 + 6.4 * len(words)
        if x > 32 and x + wide > NAMES:
            x, y = 32.0, y + 17
        parts += [rule(x, y - 4, x + 13, y - 4, colour, 3), text(x + 18, y, words, "faint")]
        x += wide + 7
    return parts


def _cells(row: Row, block: Block, plots: Sequence[Plot]) -> Iterator[str]:
    if row is PLANE:
        yield from _plane(block, plots)
    elif row is MAP:
        steepest = _steepest(block)
        for place, (column, plot) in enumerate(zip(block.columns, plots, strict=True)):
            yield from _map(column, plot, steepest, is_first=not place)
    else:
        curves = [row.curves(column) for column in block.columns]
        heights = [row.marks, *(curve.y for each in curves for curve in each)]
        for place, (column, plot, each) in enumerate(zip(block.columns, plots, curves, strict=True)):
            scale = scaled(plot, itertools.chain.from_iterable(heights))
            yield from _frame(scale, column.shown if each else None, is_first=not place)
            yield from _drawn(scale, each) if each else _absent(plot, row.absent(column))


def _drawn(plot: Plot, curves: Sequence[Curve]) -> Iterator[str]:
    for curve in curves:
        yield plot.line(curve.x, curve.y, curve.colour, curve.width)


def _absent(plot: Plot, words: tuple[str, str]) -> Iterator[str]:
    for place, line in enumerate(words):
        yield text((plot.left + plot.right) / 2, plot.top + plot.height / 2 - 3 + 16 * place, line, "faint", anchor="middle")


def _frame(plot: Plot, one: Measured | None, *, is_first: bool) -> Iterator[str]:
    """Ground, window and grid of a cell, and in the first the labels of the scale."""
    yield f'<rect x="{plot.left}" y="{plot.top}" width="{plot.width}" height="{plot.height}" fill="{GROUND}"/>'
    for power in range(math.ceil(plot.x[0]), math.floor(plot.x[1]) + 1):
        across = plot.at(power, 0)[0]
        yield rule(across, plot.top, across, plot.bottom)
    if one is not None:
        yield from _window(plot, one)
    for value in ticks_between(*plot.y, 3):
        up = plot.at(plot.x[0], value)[1]
        yield rule(plot.left, up, plot.right, up, GRID if value else AXIS)
        if is_first:
            yield text(plot.left - 7, up + 4, f"{value:g}", "faint", anchor="end")
    yield rule(plot.left, plot.bottom, plot.right, plot.bottom, AXIS)


def _window(plot: Plot, one: Measured, *, is_filled: bool = False) -> Iterator[str]:
    """The window in gold; over a filled cell its edges only, and dashed where the model has none of its own."""
    if one.window is None:
        return
    first, last = (min(max(plot.at(place, 0)[0], plot.left), plot.right) for place in one.window)
    place = f'x="{first:.1f}" y="{plot.top}" width="{last - first:.1f}" height="{plot.height}"'
    if not one.is_change:
        yield f'<rect {place} fill="none" stroke="{GOLD}" stroke-dasharray="3 2"/>'
    elif is_filled:
        yield f'<rect {place} fill="none" stroke="{GOLD}" stroke-width="2"/>'
    else:
        yield f'<rect {place} fill="{GOLD}" fill-opacity="0.28"/>'


def _axis(block: Block, top: float) -> Iterator[str]:
    """The labels of the common axis under every cell of the last row."""
    for plot in block.plots(top - LOW, LOW):
        low, high = plot.x
        for power, size in itertools.product(range(math.floor(low), math.ceil(high)), range(1, 10)):
            place = power + math.log10(size)
            if low <= place <= high:
                across = plot.at(place, 0)[0]
                yield rule(across, plot.bottom, across, plot.bottom + (6 if size == 1 else 3), AXIS)
                if size == 1:
                    yield text(across, plot.bottom + 19, amount(10**place), "faint", anchor="middle")
    yield text(block.right, top + 38, "tokens trained on", "faint", anchor="end")


# Row 1: the plane


def _plane(block: Block, plots: Sequence[Plot]) -> Iterator[str]:
    """Paths on the plane in which those of all runs of the block together vary most; one scale for both directions."""
    losses = [one.run.token_losses()[1] for one in block.runs]
    whole = principal_path(np.concatenate(losses), 2)
    ends = np.cumsum([len(each) for each in losses])[:-1]
    paths = dict(zip((one.name for one in block.runs), np.split(whole.places, ends), strict=True))
    low, high = whole.places.min(axis=0), whole.places.max(axis=0)
    half, middle = (high - low) * 0.56, (low + high) / 2
    x, y = zip((middle - half).tolist(), (middle + half).tolist(), strict=True)
    for place, (column, plot) in enumerate(zip(block.columns, plots, strict=True)):
        yield from _path(replace(plot, x=x, y=y), column, paths, is_first=not place)
    first, second = whole.shares
    larger = half[0] / half[1] * SQUARE / CELL
    for line, words in enumerate((f"\u2192 {first:.0%} of what varies", f"\u2191 {second:.0%}, {larger:.1f} \u00d7 as large")):
        yield text(block.left, plots[0].bottom + 32 + 15 * line, words, "faint")


def _path(plot: Plot, column: Column, paths: dict[str, np.ndarray], *, is_first: bool) -> Iterator[str]:
    yield f'<rect x="{plot.left}" y="{plot.top}" width="{plot.width}" height="{plot.height}" fill="{GROUND}"/>'
    for value in ticks_between(*plot.x, 3):
        across = plot.at(value, 0)[0]
        yield rule(across, plot.top, across, plot.bottom)
        yield text(across, plot.bottom + 15, f"{value:g}", "faint", anchor="middle")
    for value in ticks_between(*plot.y, 3):
        up = plot.at(0, value)[1]
        yield rule(plot.left, up, plot.right, up)
        if is_first:
            yield text(plot.left - 7, up + 4, f"{value:g}", "faint", anchor="end")
    for one in column.others:
        yield plot.line(*paths[one.name].T.tolist(), PALE, 1)
    path = paths[column.shown.name]
    yield from _inside(plot, column.shown, path)
    yield plot.line(*path.T.tolist(), INK, 1.5)
    for point in path[:: max(1, len(path) // 60)].tolist():
        across, up = plot.at(*point)
        yield f'<circle cx="{across:.1f}" cy="{up:.1f}" r="1.3" fill="{INK}"/>'
    yield _ring(*plot.at(*path[0].tolist()))
    across, up = plot.at(*path[-1].tolist())
    yield f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{INK}"/>'


def _inside(plot: Plot, one: Measured, path: np.ndarray) -> Iterator[str]:
    """The part of a path within the window, in gold."""
    if one.window is None or not one.is_change:
        return
    x = one.x[one.run.token_losses()[0]]
    inside = path[(x >= one.window[0] - 1e-9) & (x <= one.window[1] + 1e-9)]
    yield plot.line(*inside.T.tolist(), GOLD, 7)


# Row 4: the map


def _steepest(block: Block) -> float:
    """The end of the scale of colours: the first that nine of ten slopes of the block's models keep within."""
    slopes = []
    for column in block.columns:
        index, found = column.shown.run.loss_slopes()
        slopes.append(found.slopes[column.shown.drawn[index]].ravel())
    every = np.concatenate(slopes)
    return steepest_of(every[np.isfinite(every)].tolist())


def _map(column: Column, plot: Plot, steepest: float, *, is_first: bool) -> Iterator[str]:
    """A cell for each snapshot and stretch of token numbers; those of one shade are one path."""
    one = column.shown
    index, slopes = one.run.loss_slopes()
    kept = one.drawn[index]
    across, up = edges_of(one.x[index][kept].tolist()), edges_of(np.log10(slopes.tokens).tolist())
    plot = replace(plot, y=(up[0], up[-1]))
    x = np.clip([plot.at(place, 0)[0] for place in across], plot.left, plot.right)
    y = [plot.at(0, place)[1] for place in up]
    shades: dict[int, list[str]] = {}
    for row, values in enumerate(slopes.slopes[kept].T):
        levels = np.rint(np.clip(values / steepest, -1, 1) * LEVELS).astype(int).tolist()
        begin = 0
        for level, same in itertools.groupby(levels):
            end = begin + len(list(same))
            wide, high = x[end] - x[begin], y[row] - y[row + 1]
            shades.setdefault(level, []).append(f"M{x[begin]:.1f} {y[row + 1]:.1f}h{wide:.1f}v{high:.1f}h{-wide:.1f}z")
            begin = end
    for level, places in sorted(shades.items()):
        colour = signed_colour(level / LEVELS)
        yield f'<path d="{"".join(places)}" style="fill:{colour}" stroke="{colour}" stroke-width="0.4"/>'
    for token in (1, 2, 5, 10, 20, 50, 100) if is_first else ():
        if plot.y[0] <= math.log10(token) <= plot.y[1]:
            yield text(plot.left - 7, plot.at(0, math.log10(token))[1] + 4, str(token), "faint", anchor="end")
    yield from _window(plot, one, is_filled=True)
    yield rule(plot.left, plot.bottom, plot.right, plot.bottom, AXIS)


def _colours(top: float, every: Sequence[Block]) -> Iterator[str]:
    """The bar of colours under the name of the row; further blocks may have other ends."""
    wide, steepest = 150 / (2 * LEVELS + 1), _steepest(every[0])
    for level in range(-LEVELS, LEVELS + 1):
        left = 32 + (level + LEVELS) * wide
        yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide + 0.3:.1f}" height="10" fill="{signed_colour(level / LEVELS)}"/>'
    for share, anchor in ((-1, "start"), (0, "middle"), (1, "end")):
        yield text(32 + 75 * (1 + share), top + 25, f"{share * steepest:+g}" if share else "0", "faint", anchor=anchor)
    others = "".join(f"; {block.title}: {_steepest(block):g}" for block in every[1:] if _steepest(block) != steepest)
    yield text(32, top + 42, f"nats per factor e{others}", "faint")
    yield text(32, top + 58, "below 0: context helps", "faint")
