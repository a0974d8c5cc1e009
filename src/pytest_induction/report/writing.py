"""Write a report: which kind is told by the name of its file. A file is there whole, or as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_induction.errors import ReportError, reason
from pytest_induction.files import is_directory, is_file, is_there, replace_text, seen_at
from pytest_induction.formatting import in_markup
from pytest_induction.records import ChartData
from pytest_induction.report.charts.drawing import address
from pytest_induction.report.page import panel_of
from pytest_induction.report.session_records import SessionRecords, read_records


def pictures(measured: ChartData) -> list[str]:
    """Each chart as HTML that can stand anywhere; a line that says why, where nothing was measured."""
    panel = panel_of("", measured)
    about = in_markup(f"{measured.model}: {panel.title}")
    if not panel.charts:
        return [f"<p>{about}: {in_markup(panel.missing)}</p>"]
    return [
        f"<figure><figcaption>{about}, {in_markup(chart.title)}</figcaption>{_image(chart.svg)}</figure>"
        for chart in panel.charts
    ]


def _image(svg: str) -> str:
    return f'<img alt="" style="background:#fff;max-width:100%" src="{address(svg)}"/>'


def _html(records: SessionRecords) -> str:
    from pytest_induction.report.page import html_page

    return html_page(records)


def _markdown(records: SessionRecords) -> str:
    from pytest_induction.report.markdown import markdown

    return markdown(records)


KINDS: dict[str, Callable[[SessionRecords], str]] = {".html": _html, ".json": SessionRecords.to_json, ".md": _markdown}
"""What a report is made by, for each suffix."""


def write_report(records: SessionRecords, path: str | Path) -> None:
    """Write the kind of report that the suffix names. Raises `ReportError` if it cannot be made or written."""
    check_path(path)
    path = Path(path)
    text = KINDS[path.suffix.lower()](records)
    try:
        replace_text(path, text)
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {reason(error)}") from None


def render(records_path: str | Path, out_path: str | Path) -> None:
    """Write a report of records that were kept as JSON. Raises `ReportError` if they cannot be read, or it cannot be written."""
    check_path(out_path)
    write_report(read_records(records_path), out_path)


def check_path(path: str | Path) -> None:
    """Raise `ReportError` for a report that could not be written: an unknown suffix, no such directory, no extra installed."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise ReportError(f"a report must be one of {', '.join(f'PATH{suffix}' for suffix in KINDS)}, got {str(path)!r}")
    if is_directory(path):
        raise ReportError(f"{path} is a directory: name a file")
    if is_there(path) and not is_file(path):
        raise ReportError(f"{path} {seen_at(path)}: name a regular file")
    if not is_directory(path.parent):
        raise ReportError(f"{path} cannot be written: there is no directory {str(path.parent)!r}")
    if suffix == ".html":
        from pytest_induction.report.page import check_installed

        check_installed()
