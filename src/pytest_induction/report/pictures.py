"""The pictures of an exhibit for pages of other tools, such as that of pytest-html."""

from __future__ import annotations

from pytest_induction.printable import in_markup
from pytest_induction.records import Exhibit
from pytest_induction.report.drawing import address
from pytest_induction.report.sections import panel_of


def pictures(exhibit: Exhibit) -> list[str]:
    """Each chart as HTML that can stand anywhere; a line that says why, where nothing was measured."""
    panel = panel_of("", exhibit)
    about = in_markup(f"{exhibit.model}: {panel.title}")
    if not panel.charts:
        return [f"<p>{about}: {in_markup(panel.missing)}</p>"]
    return [
        f"<figure><figcaption>{about}, {in_markup(chart.title)}</figcaption>{_image(chart.static)}</figure>"
        for chart in panel.charts
    ]


def _image(svg: str) -> str:
    return f'<img alt="" style="background:#fff;max-width:100%" src="{address(svg)}"/>'
