"""A run while it trains: a frame for the terminal, and a page that reloads itself. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_induction.printable import in_markup
from pytest_induction.records import Evidence
from pytest_induction.report.run_picture import svg
from pytest_induction.report.terminal import Line, Style, section
from pytest_induction.report.terminal_chart import chart_lines
from pytest_induction.report.view import CHANGE_COLUMNS, views
from pytest_induction.wording import for_terminal

CLEAR = "\x1b[H\x1b[2J"
INKS = {"bold": "1", "green": "32", "red": "31", "yellow": "33"}
PAGE_STYLE = (
    "body{font:14px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;margin:24px;color:#1d2733;background:#fff}"
    "table{border-collapse:collapse;margin:16px 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:3px 12px;text-align:right;border-bottom:1px solid #e4e8ee}td:first-child,th:first-child{text-align:left}"
    "svg{max-width:100%;height:auto}.faint{color:#5f6b7a}"
)


def frame(evidence: Evidence | None, picture: Mapping[str, Any] | None, said: str, style: Style) -> list[Line]:
    """What is shown of a run now: its curves, the table of what changed, and a last line.

    Of a run that is too short to be judged there is the last line alone.
    """
    lines: list[Line] = []
    if picture is not None:
        lines += [(line, {}) for line in chart_lines(picture, width=style.width, ascii=style.ascii)]
    if evidence is not None:
        lines += [("", {}), *section([evidence], style)] if lines else section([evidence], style)
    return [(each, marks) for line, marks in [*lines, (said, {})] for each in for_terminal(line, style.width)]


def painted(lines: Iterable[Line], *, colour: bool) -> str:
    """Lines as a text, with the codes of a terminal that shows colours."""
    return "\n".join(_painted(line, marks) if colour else line for line, marks in lines) + "\n"


def _painted(line: str, marks: Mapping[str, bool]) -> str:
    inks = [INKS[name] for name, is_set in marks.items() if is_set and name in INKS]
    return f"\x1b[{';'.join(inks)}m{line}\x1b[0m" if inks and line else line


def live_page(title: str, evidence: Evidence | None, picture: Mapping[str, Any] | None, said: str, reload: float | None) -> str:
    """A page with the picture and the table of a run, whole in itself; it loads itself again after `reload` seconds, if any."""
    again = "" if reload is None else f'<meta http-equiv="refresh" content="{max(1, round(reload))}">'
    head = f'<meta charset="utf-8">{again}<title>{in_markup(title)}</title><style>{PAGE_STYLE}</style>'
    drawn = "" if picture is None else svg(picture)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{drawn}{_table(evidence)}'
        f'<p class="faint">{in_markup(said)}</p>\n</body></html>\n'
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
