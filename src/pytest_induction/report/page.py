"""The report as one HTML page: no network, and no scripts to be read. Jinja2 makes it, with Plotly's script for its charts."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_induction.errors import ReportError
from pytest_induction.printable import in_json, printable
from pytest_induction.report.charts.chart import Chart, tidy
from pytest_induction.report.colours import SHARES, SIGNED
from pytest_induction.report.drawing import address
from pytest_induction.report.sections import Section, sections
from pytest_induction.report.session_records import OUTCOMES, SessionRecords, counts, reasons, result
from pytest_induction.report.session_result import headline, unlisted
from pytest_induction.report.verdict_rows import test_rows, tiles
from pytest_induction.report.view import CHANGE_COLUMNS

if TYPE_CHECKING:
    from jinja2 import Environment

INSTALL = "pip install 'pytest-induction[report]'"
SCRIPT = ("package_data", "plotly.min.js")  # in the installed plotly
PAIRS = ("pair", "composed", "interval", "alone")
LEVEL = 6  # of compression: the highest takes a third longer and saves 4 kB
FEW = 12  # tests that need no filter


@dataclass(frozen=True)
class Placed:
    """A chart with its place in the page: `id` names its data."""

    id: str
    chart: Chart
    data: str

    @property
    def image(self) -> str:
        """The static picture as an address that holds it."""
        return address(self.chart.static)


def html_page(records: SessionRecords) -> str:
    """The whole page. Raises `ReportError` where the extra `report` is not installed."""
    check_installed()
    found, rows = sections(records), test_rows(records)
    placed = {section.anchor: _placed(section) for section in found}
    has_charts = any(each for panels in placed.values() for charts in panels for each in charts)
    return (
        _environment()
        .get_template("page.html")
        .render(
            records=records,
            groups=[(place, list(members)) for place, members in itertools.groupby(rows, key=lambda row: row.place)],
            sections=found,
            placed=placed,
            verdicts=tiles(records.evidence),
            outcomes=_outcomes(records),
            result=result(records),
            why=reasons(records)[bool(records.stopped) :],
            unlisted=unlisted(records),
            pair_columns=PAIRS,
            has_filter=len(rows) > FEW,
            has_charts=has_charts,
            change_columns=CHANGE_COLUMNS,
            headline=headline(records),
            css=_source("page.css").replace("RAMP_SHARE", ",".join(SHARES)).replace("RAMP_SIGNED", ",".join(SIGNED)),
            script=_source("page.js"),
            plotly=_plotly() if has_charts else "",
        )
    )


def _outcomes(records: SessionRecords) -> list[tuple[str, int]]:
    """How many tests have which outcome, and how many were deselected."""
    counted = {**counts(records), **({"deselected": records.deselected} if records.deselected else {})}
    return [(name, counted[name]) for name in (*OUTCOMES, *sorted(counted.keys() - set(OUTCOMES))) if counted.get(name)]


def check_installed() -> None:
    """Raise `ReportError` if the extra `report` is not installed. Imports nothing of it."""
    _plotly_path()
    if find_spec("jinja2") is None:
        raise ReportError(f"an HTML report needs jinja2, which is not installed: {INSTALL}")


def _plotly_path() -> Path:
    """Plotly's script in the installed package, whose Python modules are slow to import and are not needed."""
    spec = find_spec("plotly")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, *SCRIPT)
        if path.is_file():
            return path
    raise ReportError(f"an HTML report needs plotly, which is not installed: {INSTALL}")


def _plotly() -> str:
    """The script, compressed, in letters that an element may hold: two fifths of its size, and the same each time."""
    return base64.b64encode(gzip.compress(_plotly_path().read_bytes(), LEVEL, mtime=0)).decode("ascii")


def _environment() -> Environment:
    """Templates that escape whatever they show, and miss nothing silently."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


def _shown(value: Any) -> Any:
    """A text as the page shows it, escaped or not yet: printable, but for its line ends."""
    return type(value)(printable(value, keep="\n\t")) if isinstance(value, str) else value


def _source(name: str) -> str:
    """A file of templates/."""
    return resources.files("pytest_induction.report").joinpath("templates", name).read_text(encoding="utf-8")


def _placed(section: Section) -> list[list[Placed]]:
    """The charts of each panel, with their data as a script element may hold it."""
    return [
        [Placed(f"{panel.anchor}-{place + 1}", chart, embedded(chart.spec)) for place, chart in enumerate(panel.charts)]
        for panel in section.panels
    ]


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment there."""
    try:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:  # JSON has no word for what is not a number
        text = json.dumps(tidy(data, 6), ensure_ascii=False, separators=(",", ":"))
    return in_json(text).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
