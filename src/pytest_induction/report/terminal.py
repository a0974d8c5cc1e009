"""The terminal section: each model's claims and a table of its heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_induction.records import Verdict
from pytest_induction.report.view import HeadRow, ModelView

Line = tuple[str, dict[str, bool]]
"""A line of text and how pytest's terminal writer is to mark it."""

COLOURS = {Verdict.FORMED: "green", Verdict.NOT_FORMED: "red", Verdict.UNDETERMINED: "yellow"}
COLUMNS = ("head", "prefix matching", "interval", "unrepeated", "previous", "duplicate", "first token", "copy (nats)", "kind")


CHANGE_COLUMNS = ("series", "verdict", "shape", "change", "onset", "midpoint", "end", "decades", "inside")


MOST_MODELS = 10


def section(views: Sequence[ModelView], *, brief: bool = False) -> Iterator[Line]:
    """The whole section; `brief` leaves out the tables of heads."""
    for view in views[:MOST_MODELS]:
        yield from _block(view, brief=brief)
    if len(views) > MOST_MODELS:
        yield f"and {len(views) - MOST_MODELS} more models", {}


def _block(view: ModelView, *, brief: bool) -> Iterator[Line]:
    yield view.title, {"bold": True}
    width = max(18, *(len(claim.name) for claim in view.claims))
    for claim in view.claims:
        times = f" ({claim.times} times)" if claim.times > 1 else ""
        yield f"  {claim.verdict:<12}  {claim.name:<{width}}  {claim.summary}{times}", {COLOURS[Verdict(claim.verdict)]: True}
    if brief:
        return
    for note in view.notes:
        yield f"  note          {note}", {}
    if view.changes:
        yield "", {}
        yield from _changes(view)
    if view.heads:
        yield "", {}
        yield from _table(view.heads)
    if view.heads_left_out:
        yield f"    and {view.heads_left_out} more induction heads", {}


def _changes(view: ModelView) -> Iterator[Line]:
    """A row for each series of a run; places in steps or tokens, with their intervals."""
    cells = [
        (row.name, row.verdict, row.shape, row.change, row.onset, row.midpoint, row.end, row.width, row.inside)
        for row in view.changes
    ]
    widths = [max(len(cell) for cell in column) for column in zip(CHANGE_COLUMNS, *cells, strict=True)]
    yield f"    {_aligned(CHANGE_COLUMNS, widths)}   ({view.places})", {}
    for texts in cells:
        yield "    " + _aligned(texts, widths), {COLOURS[Verdict(texts[1])]: True}


def _table(rows: tuple[HeadRow, ...]) -> Iterator[Line]:
    cells = [
        (
            row.name,
            row.prefix_matching,
            row.interval,
            row.control,
            row.previous_token,
            row.duplicate_token,
            row.first_token,
            row.copy_effect,
            row.kind,
        )
        for row in rows
    ]
    widths = [max(len(cell) for cell in column) for column in zip(COLUMNS, *cells, strict=True)]
    yield "    " + _aligned(COLUMNS, widths), {}
    for row, texts in zip(rows, cells, strict=True):
        yield f"  {'*' if row.found else ' '} {_aligned(texts, widths)}", {"bold": row.found}
    if any(row.found for row in rows):
        yield "  * induction head", {}


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
