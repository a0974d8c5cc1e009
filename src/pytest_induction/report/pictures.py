"""The pictures of an exhibit for pages of other tools, such as that of pytest-html."""

from __future__ import annotations

from html import escape

from pytest_induction.records import Exhibit
from pytest_induction.report.drawing import address
from pytest_induction.report.sections import panel_of


def pictures(exhibit: Exhibit) -> list[str]:
    """Each chart as HTML that can stand anywhere; a line that says why, where nothing was measured."""
    panel = panel_of("", exhibit)
    about = escape(f"{exhibit.model}: {panel.title}")
    if not panel.charts:
        return [f"<p>{about}: {escape(panel.missing)}</p>"]
    return [
        f"<figure><figcaption>{about}, {escape(chart.title)}</figcaption>{_image(chart.static)}</figure>"
        for chart in panel.charts
    ]


def _image(svg: str) -> str:
    return f'<img alt="" style="background:#fff;max-width:100%" src="{address(svg)}">'
