"""Two models or runs side by side: lines for a terminal, Markdown, JSON and a page. Needs neither torch nor a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_induction.comparison.sides import Side, SideBySide
from pytest_induction.errors import ReportError, reason
from pytest_induction.expectations import COMPARED_COLUMNS, compared_lines, compared_rows, rest_of, words
from pytest_induction.files import replace_text
from pytest_induction.formatting import everywhere, in_json
from pytest_induction.report.charts.chart import WIDTH, Chart, bottom, exact, heights, picture, span
from pytest_induction.report.charts.drawing import LINES, Plot, curve, dashed, legend, text
from pytest_induction.report.charts.head_map import head_map, least_width
from pytest_induction.report.charts.run import marks_of
from pytest_induction.report.markdown import Part, code, side_by_side, table
from pytest_induction.report.markdown import text as in_markdown
from pytest_induction.report.page import environment, page_style, script
from pytest_induction.report.session_records import finite
from pytest_induction.report.verdict_rows import badge
from pytest_induction.report.view import CHANGE_COLUMNS, ComparedTable, change_row, without_empty
from pytest_induction.report.writing import check_path

MOST_ROWS = 10  # in a terminal
LOW, GAP, LEFT, RIGHT, TOP = 150, 40, 58, 120, 30  # of the plots of curves, in pixels
COLOURS, DASHES = (LINES[0], LINES[1]), ("", "6 3")
NAMES = ("before", "after")
UNPAIRED = (
    "Each was measured by itself: the interval of a difference lies between the nearest and the furthest ends of both intervals, "
    "and is not known where one of them is not."
)


@dataclass(frozen=True)
class ScorePanel:
    """One score of every head: before, after, and their difference."""

    anchor: str
    title: str
    charts: tuple[Chart, ...]
    legends: tuple[tuple[str, str, str, str, float | None], ...]
    column: int


def lines(found: SideBySide) -> list[str]:
    """What a terminal shows: both, the verdict, and what differs most."""
    found = everywhere(found)
    shown = [f"{name}: {side.name} ({side.kind}): {side.about}" for name, side in zip(NAMES, _sides(found), strict=True)]
    if found.evidence is not None:
        shown.append(f"{found.evidence.claim}: {found.evidence.verdict}, {found.evidence.summary}")
    shown += found.missing
    rows = compared_rows(found.rows)
    if rows:
        shown += ["", *compared_lines(rows[:MOST_ROWS]), *filter(None, [rest_of(rows, MOST_ROWS)])]
    for name, side in zip(NAMES, _sides(found), strict=True):
        shown += [f"{name}: {words(change.series)}: {change.verdict}, {change.summary}" for change in side.changes]
    return shown


def write_comparison(found: SideBySide, path: str | Path) -> None:
    """Write the kind of file that the suffix names, as reports are. Raises `ReportError` if it cannot be made or written."""
    check_path(path)
    path = Path(path)
    try:
        replace_text(path, KINDS[path.suffix.lower()](found))
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {reason(error)}") from None


def charts(found: SideBySide) -> list[Chart]:
    """All charts of both: scores of every head before, after and their difference, and the curves of runs."""
    found = everywhere(found)
    panels = (_panel(found, name, place) for place, name in enumerate(found.scores, 1))
    return [*(chart for panel in panels for chart in panel.charts), *_curves(found)]


def _sides(found: SideBySide) -> tuple[Side, Side]:
    return found.before, found.after


def _json(found: SideBySide) -> str:
    return in_json(json.dumps(finite(found.to_dict()), ensure_ascii=False, separators=(",", ":"), allow_nan=False)) + "\n"


def _markdown(found: SideBySide) -> str:
    return "\n\n".join(map(str, _parts(found))) + "\n"


def _parts(found: SideBySide) -> Iterator[Part]:
    yield Part((f"## {code(found.before.name)} and {code(found.after.name)}",))
    sides = ((name, code(side.name), side.kind, in_markdown(side.about)) for name, side in zip(NAMES, _sides(found), strict=True))
    yield Part(tuple(table(("", "name", "what it is", "measured on"), sides, left=4)))
    if found.evidence is not None:
        yield Part((f"**{found.evidence.claim} is {found.evidence.verdict}:** {in_markdown(found.evidence.summary)}",))
    if found.missing:
        yield Part(tuple(f"- {in_markdown(each)}" for each in found.missing))
    if found.rows:
        yield side_by_side(compared_rows(found.rows))
        if not found.is_paired:
            yield Part((UNPAIRED,))
    if changes := _changes(found):
        names, cells = without_empty(("run", *CHANGE_COLUMNS), changes)
        yield Part(tuple(table(names, [tuple(map(in_markdown, row)) for row in cells], left=4)))


def _changes(found: SideBySide) -> list[tuple[str, ...]]:
    """What every series of the runs did, a row each; both runs on one unit."""
    return [
        (name, *change_row(change, found.unit or "steps").cells)
        for name, side in zip(NAMES, _sides(found), strict=True)
        for change in side.changes
    ]


def _page(found: SideBySide) -> str:
    rows = tuple(compared_rows(found.rows))
    return (
        environment()
        .get_template("compared.html")
        .render(
            found=found,
            sides=[(name, side) for name, side in zip(NAMES, _sides(found), strict=True)],
            badge=None if found.evidence is None else badge(found.evidence.verdict),
            compared=ComparedTable("", "", rows) if rows else None,
            compared_columns=COMPARED_COLUMNS,
            unpaired="" if found.is_paired else UNPAIRED,
            panels=[_panel(found, name, place) for place, name in enumerate(found.scores, 1)],
            curves=_curves(found),
            changes=_changes(found),
            change_columns=("run", *CHANGE_COLUMNS),
            css=page_style(),
            script=script(),
        )
    )


KINDS: dict[str, Callable[[SideBySide], str]] = {".html": _page, ".md": _markdown, ".json": _json}


def _panel(found: SideBySide, name: str, place: int) -> ScorePanel:
    before, after = (side.matrix(name, found.layers) for side in _sides(found))
    difference = [
        [None if a is None or b is None else round(b - a, 6) for a, b in zip(one, other, strict=True)]
        for one, other in zip(before, after, strict=True)
    ]
    most = max((abs(value) for row in difference for value in row if value is not None), default=0.0) or 1.0
    scores = [
        {"name": name, "words": f"{words(name)}, {when}", "unit": "share", "value": values}
        for when, values in zip(NAMES, (before, after), strict=True)
    ]
    scores.append({"name": f"{name} difference", "words": words(name), "unit": "after minus before", "value": difference})
    legends = (
        ("share", "0", "1", "share of attention", None),
        ("signed", f"\u2212{most:.3f}", f"+{most:.3f}", "after minus before", None),
    )
    widest = max(found.layers, default=1)
    return ScorePanel(f"score-{place}", words(name), tuple(head_map({"scores": scores})), legends, least_width(widest))


def _curves(found: SideBySide) -> list[Chart]:
    """The curves that runs have, one plot for each that either has, both runs in it."""
    names = list(dict.fromkeys(name for side in _sides(found) for name in side.curves))
    if not names:
        return []
    places = [place for side in _sides(found) for points in side.curves.values() for place in points[0]]
    ends = (min(places), max(places)) if max(places) > min(places) else (min(places) - 0.5, max(places) + 0.5)
    parts, top, plot = list[str](), float(TOP), Plot(LEFT, TOP, WIDTH - LEFT - RIGHT, LOW, ends, (0.0, 1.0))
    for place, name in enumerate(names):
        values = [value for side in _sides(found) for value in side.curves.get(name, ((), ()))[1]]
        plot = Plot(LEFT, top, WIDTH - LEFT - RIGHT, LOW, ends, span(values))
        parts += [text(plot.left, plot.top - 9, words(name), "name"), *_windows(found, plot), *heights(plot)]
        parts += [_line(found, plot, which, name) for which in (0, 1) if name in _sides(found)[which].curves]
        parts += _keys(found, plot) if place == 0 else []
        top += LOW + GAP
    ticks = marks_of({"range": list(ends), "begins_at_0": False}, room=36 / plot.width)
    parts += bottom(plot, f"{found.unit} trained" if found.unit == "tokens" else "steps of the training", ticks)
    label = f"{', '.join(map(words, names))} of both runs over {found.unit}"
    return [Chart("over the training", label, picture(parts, WIDTH, plot.bottom + 50, label), _formed(found))]


def _windows(found: SideBySide, plot: Plot) -> Iterator[str]:
    """Where induction formed in each, in the colour of its curves."""
    for side, colour in zip(_sides(found), COLOURS, strict=True):
        if side.window is not None:
            first, last = (min(max(plot.at(place, plot.y[0])[0], plot.left), plot.right) for place in side.window)
            size = f'width="{max(last - first, 1.5):.1f}" height="{plot.height}"'
            yield f'<rect x="{first:.1f}" y="{plot.top}" {size} fill="{colour}" fill-opacity=".14"/>'


def _formed(found: SideBySide) -> str:
    is_any = any(side.window is not None for side in _sides(found))
    return "shaded: where induction forms, in the colour of each run" if is_any else ""


def _line(found: SideBySide, plot: Plot, which: int, name: str) -> str:
    x, y = _sides(found)[which].curves[name]
    drawn = dashed(plot.line(x, list(y), COLOURS[which], 2), DASHES[which])
    points = {"name": f"{NAMES[which]}: {words(name)}", "values": list(map(exact, y))}
    at = [f"{10**place:.4g} {found.unit}" for place in x]
    return curve(drawn, {**points, "after": "", "at": at}, f"side{which}")


def _keys(found: SideBySide, plot: Plot) -> Iterator[str]:
    """Which run is which, right of the first plot."""
    for which, name in enumerate(NAMES):
        y = plot.top + 10 + 20 * which
        line = dashed(f'<path d="M{plot.right + 10:.1f} {y}h26" stroke="{COLOURS[which]}" stroke-width="2"/>', DASHES[which])
        yield legend(f"side{which}", [line, text(plot.right + 42, y + 4, name)])
