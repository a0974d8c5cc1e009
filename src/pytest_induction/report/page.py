"""The page of a session: its sections, and the charts of each panel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pytest_induction.errors import ReportError
from pytest_induction.expectations import COMPARED_COLUMNS
from pytest_induction.formatting import printable
from pytest_induction.records import ChartData, Evidence
from pytest_induction.report.charts.ablations import ablations
from pytest_induction.report.charts.attention import attention
from pytest_induction.report.charts.chart import Chart, number
from pytest_induction.report.charts.composition import composition
from pytest_induction.report.charts.drawing import (
    SHADES_DARK,
    SHADES_LIGHT,
    SHARES,
    SIGNED,
    SIGNED_DARK,
    SIGNED_LIGHT,
    STYLE,
    colours_in_css,
)
from pytest_induction.report.charts.head_map import ends_of, head_map, head_map_of, head_names, is_signed, least_width
from pytest_induction.report.charts.losses import losses_of_text, repeats
from pytest_induction.report.charts.run import run
from pytest_induction.report.session_records import OUTCOMES, SessionRecords, counts, headline, reasons, result, unlisted
from pytest_induction.report.verdict_rows import test_rows, tiles
from pytest_induction.report.view import CHANGE_COLUMNS, ChangeRow, by_model, views

if TYPE_CHECKING:
    from jinja2 import Environment

KINDS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], list[Chart]]]] = {
    "run": ("The training", "", run),
    "heads": ("Every head", "", head_map),
    "attention": (
        "Attention on a probe",
        "Rows are tokens, columns the tokens they attend to. Where tokens repeat, a head that matches prefixes shows diagonals.",
        attention,
    ),
    "repeats": (
        "Loss on repeated tokens",
        "From the second copy on, a model with induction heads knows what comes next.",
        repeats,
    ),
    "text": ("Loss over text", "How much better tokens are predicted late in the context than early.", losses_of_text),
    "ablations": (
        "Without heads",
        "How much the loss rises when heads are ablated, against random sets of other heads.",
        ablations,
    ),
    "composition": (
        "Composition",
        "How much later heads read, with their keys, of what previous-token heads write.",
        composition,
    ),
}
"""What is drawn, in the order in which it is shown: heading, what there is to see, and what draws them."""
GRIDS = ("heads", "attention")  # charts that stand beside each other
MOST_NAMES = 16  # heads of one kind that are named


@dataclass(frozen=True)
class Panel:
    """The charts of one measurement, or why there are none. `lines` stand below them, `legends` say what colours mean."""

    anchor: str
    title: str
    about: str
    charts: tuple[Chart, ...] = ()
    missing: str = ""
    source: str = ""
    lines: tuple[tuple[str, str], ...] = ()
    legends: tuple[tuple[str, str, str, str, float | None], ...] = ()
    is_grid: bool = False
    column: int = 0  # least width of a chart in a grid, in pixels


@dataclass(frozen=True)
class Section:
    """All that is shown of one model or run."""

    anchor: str
    title: str
    short: str
    fingerprint: str
    how: str
    is_run: bool
    panels: tuple[Panel, ...]
    provenance: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    changes: tuple[tuple[str, ...], ...]
    places: str


def sections(records: SessionRecords) -> list[Section]:
    """One for each model or run, in the order in which they were first measured."""
    evidence = by_model(records.evidence)
    charts: dict[tuple[str, str], list[ChartData]] = {}
    for each in records.charts:
        charts.setdefault((each.model, each.fingerprint), []).append(each)
    keys = dict.fromkeys([*evidence, *charts])
    return [_section(f"model-{at}", key, evidence.get(key, []), charts.get(key, [])) for at, key in enumerate(keys, 1)]


def _section(anchor: str, key: tuple[str, str], evidence: Sequence[Evidence], charts: Sequence[ChartData]) -> Section:
    model, fingerprint = key
    about = evidence[0].provenance if evidence else None
    view = views(evidence)[0] if evidence else None
    is_run = about.is_run if about else any(each.kind == "run" for each in charts)
    how = "" if about is None else about.probe if about.is_run else about.how
    return Section(
        anchor,
        model,
        model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or model,
        fingerprint,
        how,
        is_run,
        tuple(_panels(anchor, evidence, charts)),
        tuple(_provenance(evidence)),
        view.notes if view else (),
        tuple(_change(row) for row in view.changes) if view else (),
        view.places if view else "",
    )


def _change(row: ChangeRow) -> tuple[str, ...]:
    """What one series did, in the order of `CHANGE_COLUMNS`."""
    name, verdict, *rest = row.cells
    return name, verdict.replace("_", " "), *rest


def _panels(anchor: str, evidence: Sequence[Evidence], charts: Sequence[ChartData]) -> list[Panel]:
    by_kind = {each.kind: each for each in charts}
    panels: dict[str, Panel] = {}  # by anchor, or why there is nothing: charts that lack for one reason share a line
    for kind in KINDS:
        if kind in by_kind:
            panel = panel_of(f"{anchor}-{kind}", by_kind[kind])
            before = panels.get(panel.missing)
            title = panel.title if before is None else f"{before.title}, {panel.title}"
            panels[panel.missing or panel.anchor] = replace(before or panel, title=title)
        if kind == "heads" and (kind not in by_kind or by_kind[kind].missing):
            panels |= {each.anchor: each for each in _of_verdicts(f"{anchor}-verdicts", evidence)}
    return list(panels.values())


def panel_of(anchor: str, measured: ChartData) -> Panel:
    """What was measured, as it is drawn. One that is damaged is said to be, and the rest of the page stands."""
    title, about, draw = KINDS[measured.kind]
    if measured.missing or not measured.data:
        return Panel(anchor, title, "", missing=measured.missing or "nothing was measured")
    data = measured.data
    try:
        charts = draw(data)
        lines, legends = (_kinds(data), _legends(data)) if measured.kind == "heads" else ((), ())
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        return Panel(anchor, title, "", missing=f"its records are damaged: {type(error).__name__}: {error}")
    if not charts:
        return Panel(anchor, title, "", missing="there is nothing to draw")
    return Panel(
        anchor,
        title,
        about,
        tuple(charts),
        source=_source(measured.kind, data, len(charts)),
        lines=tuple(lines),
        legends=tuple(legends),
        is_grid=measured.kind in GRIDS,
        column=_column(measured.kind, data),
    )


def _source(kind: str, data: Mapping[str, Any], drawn: int) -> str:
    about = str(data.get("about", ""))
    if kind == "attention" and drawn < len(data["heads"]):
        return f"{about}; {drawn} of {len(data['heads'])} heads, the rest are in the records".removeprefix("; ")
    return about


def _column(kind: str, data: Mapping[str, Any]) -> int:
    if kind == "attention":
        return 340
    widest = max((len(row) for score in data.get("scores", ()) for row in score["value"]), default=0)
    return least_width(widest)


def _of_verdicts(anchor: str, evidence: Sequence[Evidence]) -> list[Panel]:
    """The head map that a verdict has, where nothing more was measured for the page."""
    matrix = max((each.head_map for each in evidence), key=lambda each: sum(map(len, each)), default=())
    if not matrix:
        return []
    threshold = next(
        (each.thresholds["min_prefix_matching"] for each in evidence if "min_prefix_matching" in each.thresholds), None
    )
    shares = ("share", "0", "1", "prefix matching", threshold)
    columns = _column("heads", {"scores": [{"value": matrix}]})
    title = f"{KINDS['heads'][0]}, in the last snapshot" if evidence[0].provenance.is_run else KINDS["heads"][0]
    return [Panel(anchor, title, "", tuple(head_map_of(matrix)), legends=(shares,), is_grid=True, column=columns)]


def _kinds(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The heads of each kind, in a line."""
    lines = []
    for kind, heads in head_names(data.get("kinds") or ()).items():
        more = f" and {len(heads) - MOST_NAMES} more" if len(heads) > MOST_NAMES else ""
        lines.append((kind, ", ".join(heads[:MOST_NAMES]) + more))
    return lines


def _legends(data: Mapping[str, Any]) -> list[tuple[str, str, str, str, float | None]]:
    """What the colours mean: those of shares, with the threshold, and those of signed scores."""
    scores, found = data["scores"], []
    if any(not is_signed(score) for score in scores):
        found.append(("share", "0", "1", "share of attention", data.get("threshold")))
    for score in scores:
        if is_signed(score):
            low, high = (number(end, signed=True) for end in ends_of(score))
            found.append(("signed", low, high, f"{score['words']} ({score['unit']})", None))
    return found


def _provenance(evidence: Sequence[Evidence]) -> list[tuple[str, str]]:
    """Where measurements come from, and where that differs between verdicts, each."""
    facts: dict[str, list[str]] = {}
    for each in evidence:
        about = each.provenance
        known = {
            "model" if not about.is_run else "run": about.model,
            "fingerprint": about.fingerprint,
            "backend": about.backend,
            "size": f"{about.n_layers} layers x {about.n_heads} heads" if about.n_layers else "",
            "layers": ", ".join(about.layers),
            "type and device": f"{about.dtype} on {about.device}",
            "seed": "" if about.seed is None else str(about.seed),
            "probe": about.probe,
            "sequences": str(about.n_sequences) if about.n_sequences else "",
            "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
        }
        for name, value in known.items():
            if value and value not in facts.setdefault(name, []):
                facts[name].append(value)
    return [(name, "; ".join(values)) for name, values in facts.items() if values]


INSTALL = "pip install 'pytest-induction[report]'"
PAIRS = ("pair", "composed", "interval", "alone")
FEW = 12  # tests that need no filter


def html_page(records: SessionRecords) -> str:
    """The whole page. Raises `ReportError` where the extra `report` is not installed."""
    check_installed()
    found, rows = sections(records), test_rows(records)
    return (
        environment()
        .get_template("page.html")
        .render(
            records=records,
            groups=[(place, list(members)) for place, members in itertools.groupby(rows, key=lambda row: row.place)],
            sections=found,
            verdicts=tiles(records.evidence),
            outcomes=_outcomes(records),
            result=result(records),
            why=reasons(records)[bool(records.stopped) :],
            unlisted=unlisted(records),
            pair_columns=PAIRS,
            compared_columns=COMPARED_COLUMNS,
            drawn=_drawn(found),
            has_filter=len(rows) > FEW,
            change_columns=CHANGE_COLUMNS,
            headline=headline(records),
            css=page_style(),
            script=script(),
        )
    )


def _drawn(found: Iterable[Section]) -> dict[tuple[str, str, str], tuple[str, str]]:
    """Model, fingerprint and kind of chart -> where in the page that is, and what it is called."""
    return {
        (section.title, section.fingerprint, panel.anchor.removeprefix(f"{section.anchor}-")): (panel.anchor, panel.title)
        for section in found
        for panel in section.panels
        if not panel.missing
    }


def _outcomes(records: SessionRecords) -> list[tuple[str, int]]:
    """How many tests have which outcome, and how many were deselected."""
    counted = {**counts(records), **({"deselected": records.deselected} if records.deselected else {})}
    return [(name, counted[name]) for name in (*OUTCOMES, *sorted(counted.keys() - set(OUTCOMES))) if counted.get(name)]


def check_installed() -> None:
    """Raise `ReportError` if the extra `report` is not installed. Imports nothing of it."""
    if find_spec("jinja2") is None:
        raise ReportError(f"an HTML report needs jinja2, which is not installed: {INSTALL}")


def script() -> str:
    """What pages do beyond what they show."""
    return _template("page.js") + _template("hover.js")


def page_style() -> str:
    """The style of the page, with the colours of maps and the look of texts in charts."""
    css = _template("page.css")
    texts = "".join(f".chart {names}{{{look}}}" for names, look in STYLE.items())
    filled = {"RAMP_SHARE": ",".join(SHARES), "RAMP_SIGNED": ",".join(SIGNED), "CHART_TEXTS{}": texts}
    filled["COLOURS_ON_LIGHT"] = colours_in_css(SHADES_LIGHT, SIGNED_LIGHT)
    filled["COLOURS_ON_DARK"] = colours_in_css(SHADES_DARK, SIGNED_DARK)
    for name, text in filled.items():
        css = css.replace(name, text)
    return css


def environment() -> Environment:
    """Templates that escape whatever they show, and miss nothing silently."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


def _shown(value: Any) -> Any:
    """A text as the page shows it, escaped or not yet: printable, but for its line ends."""
    return type(value)(printable(value, keep="\n\t")) if isinstance(value, str) else value


def _template(name: str) -> str:
    """A file of templates/."""
    return resources.files("pytest_induction.report").joinpath("templates", name).read_text(encoding="utf-8")
