"""How records are shown outside reports: as text in a terminal, as HTML in a notebook, and as pictures. Standard library only.

The HTML has its own style and ground, so that it reads alike on light and on dark, and neither script nor address. The marks by
which Jupyter, VS Code, Colab and Sphinx say that they are dark choose its colours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_induction.display import ENDS, Picture, Table, View
from pytest_induction.errors import ReportError, reason
from pytest_induction.expectations import words
from pytest_induction.files import replace_text
from pytest_induction.formatting import aligned, as_line, in_markup
from pytest_induction.records import HeadId
from pytest_induction.report.charts.chart import Chart, around, number, picture
from pytest_induction.report.charts.composition import composition
from pytest_induction.report.charts.curves import curves, estimates
from pytest_induction.report.charts.drawing import (
    SHADES_DARK,
    SHADES_LIGHT,
    SIGNED_DARK,
    SIGNED_LIGHT,
    STYLE,
    as_file,
    colours_in_css,
    text,
)
from pytest_induction.report.charts.head_map import KINDS, head_map
from pytest_induction.report.charts.path import path
from pytest_induction.report.charts.run import run

MOST_LINES, MOST_ROWS, MOST_COLUMNS = 40, 10, 8  # of text; rows and columns also of HTML
MOST_FACTS, WIDEST = 6, 100  # facts of a record; characters of a cell
LARGEST_PICTURE = 60_000  # bytes of a picture in the HTML of a record: `plot` draws larger ones

LIGHT = "--card:#fff;--ink:#1b2430;--faint:#5b6675;--line:#e4e6ea;--grid:#e8ebf0;--axis:#aab4c0;--on-end:#fff"
DARK = "--card:#151a21;--ink:#e4e8ee;--faint:#98a4b3;--line:#272f3a;--grid:#252d38;--axis:#566172;--on-end:#10151b"
ROOT = ".pytest-induction"
IS_DARK = (
    "[data-jp-theme-light=false]",  # JupyterLab and Notebook
    "body.vscode-dark",
    "body.vscode-high-contrast",
    "html[theme=dark]",  # Colab
    "[data-theme=dark]",  # Sphinx
    "[data-md-color-scheme=slate]",  # Material for MkDocs
)
LOOK = (
    f"{ROOT}{{background:var(--card);color:var(--ink);border:1px solid var(--line);border-radius:6px;padding:.7em 1em;"
    "font:13px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;overflow-x:auto;font-variant-numeric:tabular-nums}"
    f"{ROOT} p{{margin:0;color:var(--faint);overflow-wrap:anywhere}}{ROOT} .t{{font-weight:600;color:var(--ink)}}"
    f"{ROOT} table{{border-collapse:collapse;margin:.6em 0 0;color:var(--ink);border:0;font-size:inherit}}"
    f"{ROOT} caption{{caption-side:top;text-align:left;color:var(--faint);padding:0 0 .2em;white-space:nowrap}}"
    f"{ROOT} tr{{background:none;border:0}}"
    f"{ROOT} td,{ROOT} th{{padding:.15em .8em .15em 0;text-align:right;white-space:nowrap;border:0;background:none}}"
    f"{ROOT} th{{font-weight:600;color:var(--faint);border-bottom:1px solid var(--line);white-space:normal}}"
    f"{ROOT} th{{vertical-align:bottom}}"
    f"{ROOT} .l{{text-align:left}}"
    f"{ROOT} figure{{display:inline-block;margin:.7em 1.2em 0 0;vertical-align:top;max-width:100%}}"
    f"{ROOT} figcaption{{color:var(--faint)}}{ROOT} b{{color:var(--ink);font-weight:600}}{ROOT} svg{{max-width:100%;height:auto}}"
    + "".join(f"{ROOT} svg {names}{{{look}}}" for names, look in STYLE.items())
)


def _compared(data: Mapping[str, Any]) -> list[Chart]:
    from pytest_induction.report.compared import charts

    return charts(data["found"])


DRAWN: Mapping[str, Callable[[Any], list[Chart]]] = {
    "heads": head_map,
    "curves": curves,
    "estimates": estimates,
    "composition": composition,
    "compared": _compared,
    "run": lambda data: [*run(data), *([path(data)] if data["path"] is not None else [])],
}
"""How each kind of picture is drawn."""


@dataclass(frozen=True)
class Drawing:
    """Pictures of a record. A notebook shows them; `save` writes them into a file that needs nothing else."""

    title: str
    charts: tuple[Chart, ...]

    def __repr__(self) -> str:
        return f"<Drawing of {as_line(self.title)}: {', '.join(chart.title for chart in self.charts)}; .save(PATH) writes it>"

    def _repr_html_(self) -> str:
        return _page([_title(self.title), *map(_figure, self.charts)])

    def _repr_svg_(self) -> str:
        """All pictures below one another, light, as one that needs nothing else."""
        parts, top, widest = list[str](), 0.0, 0.0
        for chart in self.charts:
            width, height = _size(chart.svg)
            parts.append(text(12, top + 22, f"{chart.title}: {chart.note}" if chart.note else chart.title, "name"))
            parts.append(f'<g transform="translate(0 {top + 34:g})">{_inside(chart.svg)}</g>')
            top, widest = top + height + 46, max(widest, width)
        label = "; ".join(chart.label for chart in self.charts)
        return as_file(picture(parts, max(widest, 320), top, label))

    def save(self, path: str | Path) -> Path:
        """Write it: a picture where the name ends in .svg, a page where it ends in .html. Gives the path.

        Raises `ReportError` for another ending, and where it cannot be written.
        """
        path = Path(path)
        kinds: dict[str, Callable[[], str]] = {".svg": self._repr_svg_, ".html": self._document}
        if path.suffix.lower() not in kinds:
            raise ReportError(f"`path` must end in .svg or .html, got {str(path)!r}")
        try:
            replace_text(path, kinds[path.suffix.lower()]() + "\n")
        except OSError as error:
            raise ReportError(f"{path} cannot be written: {reason(error)}") from None
        return path

    def _document(self) -> str:
        head = f'<meta charset="utf-8"><title>{in_markup(self.title)}</title>'
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{self._repr_html_()}</body></html>'


def drawing_of(view: View) -> Drawing | None:
    """All pictures of a view; None where it has none."""
    charts = tuple(chart for each in view.pictures() for chart in drawn(each))
    return Drawing(view.title, charts) if charts else None


def drawn(each: Picture) -> list[Chart]:
    """The charts of one picture."""
    kind, data = each
    return DRAWN[kind](data)


def as_text(view: View) -> str:
    """A view in at most 40 lines: the title, facts, and the first rows of each table."""
    lines = [as_line(view.title), *(f"  {_cut(as_line(fact), 160)}" for fact in view.facts[:MOST_FACTS])]
    for table in view.tables:
        if not table.n_rows:
            continue
        names, rows, is_text = _shown(table)
        lines.append(f"{table.name}{_rest(table, len(rows))}")
        left = [place for place, each in enumerate(is_text) if each]
        lines += [f"  {line}" for line in aligned(names, rows, left=left)]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"and {len(lines) - MOST_LINES + 1} more lines: `to_columns` has every row"]
    return "\n".join(lines)


def as_html(view: View) -> str:
    """A view as HTML: title, facts, the first picture where it is small enough, and the first rows of each table."""
    parts = [_title(view.title), *(f"<p>{in_markup(_cut(fact, 300))}</p>" for fact in view.facts[:MOST_FACTS])]
    charts = [chart for each in view.pictures() for chart in drawn(each)]
    if charts:
        figure = _figure(charts[0])
        more = f"<p>{len(charts)} pictures: <code>.plot()</code></p>" if len(charts) > 1 else ""
        parts += [figure, more] if len(figure) <= LARGEST_PICTURE else ["<p>its pictures: <code>.plot()</code></p>"]
    parts += [_table(table) for table in view.tables if table.n_rows]
    return _page(parts)


def _title(title: str) -> str:
    return f'<p class="t">{in_markup(title)}</p>'


def _page(parts: Sequence[str]) -> str:
    """What is shown, in an element with its own style: of the colours that depend on the ground those that occur in it."""
    body = "".join(parts)
    light, dark = (
        ";".join([colours, *(each for each in colours_in_css(*more).split(";") if f"var({each.partition(':')[0]}," in body)])
        for colours, more in ((LIGHT, (SHADES_LIGHT, SIGNED_LIGHT)), (DARK, (SHADES_DARK, SIGNED_DARK)))
    )
    is_dark = ",".join(f"{mark} {ROOT}" for mark in IS_DARK)
    style = f"{ROOT}{{{light}}}{is_dark}{{{dark}}}{LOOK}"
    return f'<div class="pytest-induction"><style>{style}</style>{body}</div>'


def _figure(chart: Chart) -> str:
    note = f" {in_markup(chart.note)}" if chart.note else ""
    svg = re.sub(r"<metadata>[^<]*</metadata>", "", chart.svg)  # what a report's script says
    return f"<figure><figcaption><b>{in_markup(chart.title)}</b>{note}</figcaption>{svg}</figure>"


def _table(table: Table) -> str:
    names, rows, is_text = _shown(table)
    sides = [' class="l"' if each else "" for each in is_text]
    head = "".join(f"<th{side}>{in_markup(name)}</th>" for name, side in zip(names, sides, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{side}>{in_markup(cell)}</td>' for cell, side in zip(row, sides, strict=True))}</tr>" for row in rows
    )
    caption = in_markup(table.name.replace("_", " ") + _rest(table, len(rows)))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _rest(table: Table, count: int) -> str:
    return "" if count == table.n_rows else f", {count} of {table.n_rows}"


def _shown(table: Table) -> tuple[list[str], list[list[str]], list[bool]]:
    """Names, rows and whether a column is text: of the first rows, heads and intervals in a cell each, empty columns left out."""
    columns = table.columns(table.top(MOST_ROWS))
    count = len(next(iter(columns.values()), []))
    cells: dict[str, list[str]] = {}
    texts = set[str]()
    for name, values in columns.items():
        low, high = (columns.get(end if name == "value" else f"{name}_{end}") for end in ENDS)
        layers = columns.get(name.replace("head", "layer")) if name in ("head", "earlier_head") else None
        if (
            (name in ("layer", "earlier_layer") and name.replace("layer", "head") in columns)
            or _is_end(name, columns)
            or not any(value not in (None, "") for value in values)
        ):
            continue
        if layers is not None:
            cells[name] = [str(HeadId(layer, head)) for layer, head in zip(layers, values, strict=True)]
        elif low is not None and high is not None:
            cells[name] = [_interval(*each) for each in zip(values, low, high, strict=True)]
        else:
            cells[name] = [_cell(name, value) for value in values]
        if layers is not None or any(isinstance(value, str) for value in values):
            texts.add(name)
    first = [name for name in cells if name in ("head", "earlier_head", "role")]
    names = [*first, *(name for name in table.shown or cells if name in cells and name not in first)][:MOST_COLUMNS]
    rows = [[cells[name][place] for name in names] for place in range(count)]
    return [words(name) for name in names], rows, [name in texts for name in names]


def _is_end(name: str, columns: Mapping[str, Any]) -> bool:
    """Whether a column is an end of the interval of another."""
    base, _, end = name.rpartition("_")
    return end in ENDS and (base or "value") in columns


def _interval(value: Any, low: Any, high: Any) -> str:
    return number(value) if low is None or high is None else around(value, low, high)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value) if abs(value) < 1e6 else f"{value:.3g}"
    return _cut(as_line(KINDS.get(value, value) if name == "kind" else str(value)), WIDEST)


def _cut(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}\u2026"


def _size(svg: str) -> tuple[float, float]:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    return (float(found[1]), float(found[2])) if found else (0.0, 0.0)


def _inside(svg: str) -> str:
    """What is in a picture, without its element."""
    return svg.partition(">")[2].removesuffix("</svg>")
