"""The HTML report: what stands in it, in which order, and that nothing a user names can break out of it."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pytest_induction.errors import ReportError
from pytest_induction.records import ChartData, Estimate, Verdict
from pytest_induction.report import page, writing
from pytest_induction.report.charts.chart import Chart, exact, number
from pytest_induction.report.charts.drawing import GOLD, embedded
from pytest_induction.report.charts.head_map import head_map_of
from pytest_induction.report.charts.interval import interval
from pytest_induction.report.charts.run import run
from pytest_induction.report.page import html_page, sections
from pytest_induction.report.session_records import SessionRecords, TestRecord
from pytest_induction.report.verdict_rows import key_of
from pytest_induction.report.writing import check_path, render, write_report
from tests.conftest import FIXTURES
from tests.report import samples

WITHOUT_CLOSING = {"meta", "link", "img", "input", "br", "wbr", "path", "circle", "rect"}


class Reading(HTMLParser):
    """What a browser makes of a page: texts by the element they stand in, the values of attributes, what is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in WITHOUT_CLOSING:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in WITHOUT_CLOSING:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def said(self, *without: str) -> str:
        return " ".join(
            " ".join(text.split()) for tag, text in self.texts if tag not in ("script", "style", "metadata", *without)
        )


@pytest.fixture(scope="module")
def small():
    return Reading(html_page(samples.small()))


def test_a_page_is_well_formed(small):
    """Every element is closed, in its order, and every id is there once."""
    ids = [attrs["id"] for _, attrs in small.tags if "id" in attrs]
    assert not small.wrong and not small.open
    assert len(ids) == len(set(ids))
    targets = [attrs["href"][1:] for tag, attrs in small.tags if tag == "a" and attrs["href"].startswith("#")]
    assert targets and set(targets) <= set(ids)


def test_a_verdict_names_the_chart_that_shows_most_of_it(small):
    """As its claim's record says, where that was drawn."""
    targets = [attrs["href"] for tag, attrs in small.tags if tag == "a"]
    assert targets.count("#model-1-heads") == targets.count("#model-1-text") == 2  # of the contents, and of its verdict
    assert targets.count("#model-1-repeats") == 2 and targets.count("#model-1-composition") == 1


def test_nothing_is_loaded(small):
    """No element names an address outside the page."""
    named = [
        attrs[name] for tag, attrs in small.tags if tag != "a" for name in ("src", "href", "data", "action") if name in attrs
    ]
    assert named and all(address.startswith(("data:", "#")) for address in named)


def test_the_order_is_verdicts_models_environment(small):
    """What was run and how it went comes first; of a model the heads come before what rests on them."""
    headings = [text for tag, text in small.texts if tag in ("h1", "h2", "h3")]
    panels = ["Every head", "Attention on a probe", "Loss on repeated tokens", "Loss over text", "Without heads", "Composition"]
    assert headings == ["2 of 3 tests failed", "Verdicts", *panels, "Environment"]
    first = [text for tag, text in small.texts if tag in ("code", "h2")]
    assert first[:2] == ["pytest --induction-model models/small", "Verdicts"]


def test_a_verdict_stands_with_its_estimate_threshold_and_evidence(small):
    """The summary, the estimate that decides with interval and threshold, the heads, the next step, the command."""
    said = small.said()
    for words in (
        "the strongest, L1H0 has prefix matching 0.929",
        "L1H0 prefix matching 0.929 0.899 to 0.959; threshold 0.300",
        "repeat accuracy 0.431 0.390 to 0.470; threshold 0.500",
        "REFUTED",
        "L1H1 ✓ matches 0.910 0.880 to 0.940",
        "confidence of the verdict 0.999",
        "give 40 more rows of text",
        "pytest --induction-model models/small -k has",
        "early loss not known",
        "copies_repeats is REFUTED, expected SHOWN",
    ):
        assert words in said, words


def test_verdicts_and_tests_are_counted(small):
    """One of each verdict; one passed, two failed, one was skipped."""
    said = small.said()
    assert "SHOWN 1 REFUTED 1 UNDETERMINED 1 passed 1 failed 2 skipped 1" in said


def test_each_chart_is_one_picture_and_words_for_those_who_do_not_see_it(small):
    """And nothing else draws: two scripts of ours, no data for a third."""
    charts = [attrs["id"] for _, attrs in small.tags if attrs.get("class") == "chart"]
    pictures = [attrs for tag, attrs in small.tags if tag == "svg" and attrs.get("fill") == "none"]
    assert len(charts) == len(pictures) == 6 + 2 + 4
    assert all(attrs["aria-label"] and attrs["role"] == "img" for attrs in pictures)
    assert (
        len([attrs for tag, attrs in small.tags if tag == "script"]) == 3
    )  # one says that there are scripts, one folds the contents
    assert not {tag for tag, _ in small.tags} & {"canvas", "img", "iframe", "object"}


def test_a_missing_chart_says_why():
    """In one line, where its chart would be; a session that was stopped says so."""
    said = Reading(html_page(samples.missing())).said()
    for kind in samples.KINDS:
        assert f"Not shown: why {kind} is missing" in said
    assert "Stopped early: interrupted" in said


def test_a_damaged_chart_leaves_the_page_standing():
    """Records that somebody edited cost their own chart, and no other."""
    about = samples.provenance()
    damaged = [
        ChartData("heads", about.model, about.fingerprint, {"scores": [{"name": "x"}]}),
        *samples.charts(about, ["repeats"]),
    ]
    read = Reading(html_page(samples.session(TestRecord("a::b", "passed", evidence=(samples.evidence(),)), charts=damaged)))
    assert "Not shown: its records are damaged: KeyError: 'value'" in read.said()
    assert sum(attrs.get("class") == "chart" for _, attrs in read.tags) == 1


def test_prefix_matching_of_a_verdict_is_drawn_where_nothing_else_was_measured():
    """One map, with the threshold of the claim, from the head map of the evidence."""
    found = sections(samples.session(TestRecord("a::b", "passed", evidence=(samples.evidence(),))))
    (panel,) = found[0].panels
    assert [chart.title for chart in panel.charts] == ["prefix matching"]
    assert panel.legends[0][-1] == 0.3


def test_no_name_of_a_user_is_markup():
    """Names of models, tests, commands and versions, messages, notes and charts: all are text, wherever they stand."""
    text = html_page(samples.nasty())
    read, plain = Reading(text), Reading(html_page(samples.small()))
    assert not read.wrong and not read.open
    assert {tag for tag, _ in read.tags} <= {tag for tag, _ in plain.tags} | {"p", "pre"}
    assert sum(tag == "script" for tag, _ in read.tags) == 3
    assert read.said().count("{{ 7 * 7 }}") > 10 and "49" not in read.said("svg").split()
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    words = [json.loads(text) for tag, text in read.texts if tag == "metadata"]
    assert len(words) > 10 and all(set(each) >= {"values"} for each in words)


def test_data_cannot_end_its_element():
    """JSON in a picture holds no character that HTML or XML minds, and reads as it was."""
    data = {"a": "</script><!-- & \u2028"}
    assert not re.search("[<>&\u2028]", embedded(data))
    assert json.loads(embedded(data)) == data


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [each.text for each in drawn(svg).iter("text")]


def said_of(svg: str) -> list[dict]:
    """What a picture has to say of its curves and maps."""
    return [json.loads(each.text) for each in drawn(svg).iter("metadata")]


@functools.cache
def of_a_run() -> SessionRecords:
    from pytest_induction.runs.opening import load_run
    from pytest_induction.runs.phase_change.finding import find_phase_changes
    from pytest_induction.runs.picture import picture_of

    opened = load_run(FIXTURES / "runs" / "two-layers")
    found = find_phase_changes(opened)
    about = samples.provenance("two-layers", is_run=True)
    verdict = samples.evidence("phase_change", about=about, changes=found.changes, heads=(), nearest=())
    chart = ChartData("run", about.model, about.fingerprint, {**picture_of(opened, found), "about": "a shipped run"})
    return samples.session(TestRecord("run::phase_change", "passed", evidence=(verdict,)), charts=[chart])


@pytest.fixture(scope="module")
def recorded():
    return of_a_run()


def test_a_curve_says_as_much_as_it_has_points_and_a_map_as_it_has_cells(recorded):
    """Every one of every chart, of a model and of a run."""
    curves = maps = 0
    for svg in (chart.svg for records in (samples.small(), recorded) for chart in charts_of(records)):
        for group in drawn(svg).iter("g"):
            words = [json.loads(each.text) for each in group if each.tag == "metadata"]
            if group.get("class") == "curve":
                points = re.findall(r"[ML][\d.-]+ [\d.-]+", group.find("path").get("d"))
                assert len(words[0]["values"]) == len(words[0]["at"]) == len(points) and words[0]["name"]
                curves += 1
            elif group.get("class") == "cells":
                assert len(words[0]["values"]) == len(words[0]["rows"])
                assert max(map(len, words[0]["values"])) == len(words[0]["columns"])
                maps += 1
    assert (curves, maps) == (4 + 1 + 2 + 9 + 5, 6 + 2 + 1 + 1)


def charts_of(records: SessionRecords) -> list[Chart]:
    return [chart for section in sections(records) for panel in section.panels for chart in panel.charts]


def test_a_run_is_drawn_with_its_window_and_how_sure_it_is(recorded):
    """Loss, score, heads, losses along the context, the map and the path; the window in all of them, lighter where it may reach."""
    panels, path = sections(recorded)[0].panels[0].charts
    names = [each.text for each in drawn(panels.svg).iter("text") if each.get("class") == "name"]
    assert names == [
        "loss",
        "in-context learning score",
        "advantage on repeated tokens",
        "prefix matching of every head",
        "loss by token number",
        "slope of the loss along the context, blue where it falls",
    ]
    gold = [each for each in drawn(panels.svg).iter("rect") if each.get("fill") == GOLD]
    narrow, wide = ([each for each in gold if each.get("fill-opacity") == opacity] for opacity in ("0.28", "0.14"))
    assert len(narrow) == len(wide) == 5
    ends = [(float(each.get("x")), float(each.get("x")) + float(each.get("width"))) for each in (wide[0], narrow[0])]
    assert ends[0][0] < ends[1][0] < ends[1][1] < ends[0][1]
    assert "460k to 525k tokens" in panels.note and "the turn is at" in path.note
    table = Reading(html_page(recorded)).said()
    assert "What every series of the run did; places in tokens" in table and "491k (489k..494k)" in table


def test_a_run_of_steps_without_a_change_is_drawn():
    """No tokens, no heads, no path, no window: what there is."""
    picture = {
        "title": "r",
        "subtitle": "",
        "unit": "steps",
        "range": [1.0, 1.0],
        "begins_at_0": False,
        "verdict": None,
        "window": None,
    }
    curves = [{"name": "loss", "unit": "nats", "x": [1.0], "y": [2.5]}]
    rest = {"changes": [], "heads": [], "n_heads": 0, "index": [], "map": None, "path": None, "missing": ["scores of heads"]}
    (chart,) = run({**picture, "curves": curves, **rest})
    assert "steps of the training" in texts(chart.svg)
    assert chart.note == "not recorded: scores of heads" and GOLD not in chart.svg


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.92871, "share", "0.929"),
        (7.326, "nats", "7.33"),
        (-0.0801, "nats", "\u22120.080"),
        (12.34, "nats", "12.3"),
        (491.2, "", "491"),
        (float("nan"), "", "\u2013"),
        (None, "", "\u2013"),
    ],
)
def test_numbers_have_three_digits(value, unit, words):
    """However large they are; a share has three decimals; what is not known is a dash."""
    assert number(value, unit) == words


def test_what_a_chart_says_of_a_point_is_what_was_recorded():
    """Five digits, as records have, and the sign that is printed."""
    assert [exact(value) for value in (0.93, -1.23456, 1e-7, 12345.6)] == ["0.93", "\u22121.2346", "1e\u221207", "12346"]
    (words,) = said_of(head_map_of([[0.931, None], [0.02]])[0].svg)
    assert words["values"] == [["0.931", None], ["0.020"]] and words["before"] == "prefix matching "


def test_the_threshold_of_a_lag_has_two_ends():
    """A lag is held against a lag on both sides, a delay on one; an estimate against the threshold of its name."""

    def threshold(claim, name, **thresholds):
        return key_of(
            samples.evidence(claim, estimates={name: Estimate(0.05, 0.0, 0.1, "decades")}, thresholds=thresholds)
        ).threshold

    assert threshold("cooccurrence", "lag", max_lag=0.15) == "\u00b10.150"
    assert threshold("onset_not_later", "onset_lag", max_lag=0.15) == "0.150"
    assert threshold("copies_repeats", "repeat_accuracy", min_accuracy=0.5) == "0.500"
    assert threshold("a_new_claim", "advantage", min_accuracy=0.5) == ""


def test_the_estimate_that_decides_is_told():
    """By claim; else the first with a threshold; else the first; none where there are no numbers."""
    unknown = {"first": Estimate(1, 0, 2), "second": Estimate(0.5, 0.4, 0.6)}
    assert key_of(samples.evidence()).name == "L1H0 prefix matching"
    assert key_of(samples.copies()).name == "repeat accuracy"
    assert key_of(samples.evidence("a_new_claim", estimates=unknown, thresholds={"min_second": 0.3})).name == "second"
    assert key_of(samples.evidence("a_new_claim", estimates=unknown, thresholds={})).name == "first"
    assert key_of(samples.evidence("a_new_claim", estimates={})) is None


def test_an_interval_is_drawn_to_scale():
    """A share from 0 to 1, with its threshold; an end that is not known ends at the value; nothing for what is not known."""
    drawn = interval(Estimate(0.5, 0.25, 0.75, "share"), (0.3,))
    assert 'cx="66.0"' in drawn and "M36.0 11.0H96.0" in drawn and 'd="M42.0 2V20"' in drawn
    assert "M66.0 11.0H66.5" in interval(Estimate(0.5, float("nan"), float("nan"), "share"))
    assert interval(Estimate(float("nan"), 0, 1)) == ""


def test_many_tests_get_a_filter_and_few_do_not(small):
    """With a field and a box, found by their names."""
    many = samples.session(*(TestRecord(f"a::test[{place}]", "passed") for place in range(40)))
    read = Reading(html_page(many))
    assert sum(tag == "input" for tag, _ in read.tags) == 2
    assert not any(tag == "input" for tag, _ in small.tags)


def test_a_session_without_tests_or_verdicts_has_a_page():
    """It says that no test was run; a test that broke before any verdict says what it broke with."""
    assert "No test was run" in Reading(html_page(samples.session())).said()
    broken = samples.session(TestRecord("a.py::b", "error", message="cannot be loaded\nat all", again="pytest -k b"))
    said = Reading(html_page(broken)).said()
    assert "The test failed" in said and "no verdict" in said and "cannot be loaded" in said and "pytest -k b" in said


def test_one_function_makes_pictures():
    """Whatever shows a chart takes it from there: a page, a file, an extra of pytest-html. The other is of an interval in a table."""
    package = Path(page.__file__).parents[1]
    makers = {str(path.relative_to(package)) for path in package.rglob("*.py") if 'role="img"' in path.read_text()}
    assert makers == {"report/charts/chart.py", "report/charts/interval.py"}


@pytest.mark.parametrize(("name", "most"), [("small", 250_000), ("large", 1_500_000)])
def test_a_page_is_small(name, most):
    """With everything that can be drawn of a model, of 2 x 4 heads and of 32 x 32."""
    assert len(html_page(getattr(samples, name)()).encode()) < most


def test_patterns_are_left_out_before_a_page_gets_too_large():
    """Of many heads on a long probe those that fit are drawn, and the page says how many were."""
    about = samples.provenance()
    data = samples._attention([f"L1H{place}" for place in range(20)], period=50)
    found = sections(samples.session(charts=[ChartData("attention", about.model, about.fingerprint, data)]))
    (panel,) = found[0].panels
    assert 0 < len(panel.charts) < 20
    assert f"{len(panel.charts)} of 20 heads, the rest are in the records" in panel.source


def test_a_page_is_the_same_again():
    """Nothing in it depends on the clock, or on the order of a set."""
    assert html_page(samples.small()) == html_page(SessionRecords.from_json(samples.small().to_json()))


def test_writing_is_by_suffix(tmp_path):
    """A page, or the records, which render to the same page later."""
    write_report(samples.small(), tmp_path / "records.json")
    write_report(samples.small(), tmp_path / "page.HTML")
    render(tmp_path / "records.json", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text("utf-8").startswith("<!doctype html>")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.HTML").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.html", "page.HTML", "records.json"]


def test_what_cannot_be_written_is_told_before_and_after(tmp_path):
    """In one line each: another suffix, a directory that is not there, one in place of a file."""
    for path, words in (("a.pdf", "must be one of"), ("no/a.html", "there is no directory"), (".", "must be one of")):
        with pytest.raises(ReportError, match=words):
            check_path(tmp_path / path)
    (tmp_path / "d.html").mkdir()
    with pytest.raises(ReportError, match="is a directory"):
        write_report(samples.small(), tmp_path / "d.html")


def test_a_report_that_breaks_leaves_what_was_there(tmp_path, monkeypatch):
    """The old file stays whole, and nothing is left beside it."""
    target = tmp_path / "records.json"
    target.write_text("old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ReportError, match=r"records\.json cannot be written: No space left on device"):
        write_report(samples.small(), target)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_an_extra_that_is_missing_is_named(monkeypatch, tmp_path):
    """Before anything is measured, with the command that installs it; other kinds of report need none."""
    monkeypatch.setattr(page, "find_spec", lambda wanted: None)
    with pytest.raises(ReportError, match=r"needs jinja2, which is not installed: pip install 'pytest-induction\[report\]'"):
        check_path(tmp_path / "page.html")
    check_path(tmp_path / "records.json")


def test_rendering_imports_little(tmp_path):
    """From records to a page without the libraries that are slow to load; the check can fail."""
    write_report(samples.small(), tmp_path / "r.json")
    code = (
        "import sys; from pytest_induction.report.writing import render; "
        f"render({str(tmp_path / 'r.json')!r}, {str(tmp_path / 'p.html')!r}); "
        "print(sorted({'torch', 'numpy', 'transformers', 'pytest', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['jinja2']"


def test_kinds_of_reports_are_what_the_option_says():
    """HTML, JSON and Markdown."""
    assert sorted(writing.KINDS) == [".html", ".json", ".md"]


def test_verdicts_are_never_told_by_colour_alone(small):
    """Each has its word and a shape of its own, each outcome its word and a sign."""
    css = next(text for tag, text in small.texts if tag == "style")
    badges = {attrs["class"].split()[-1] for _, attrs in small.tags if attrs.get("class", "").startswith("badge")}
    assert badges == {"shown", "refuted", "undetermined"} and len(badges) == len(Verdict)
    assert all(f".badge.{name}{{color:" in css for name in badges)
    assert ".badge.shown::before" in css and ".badge.undetermined::before" in css and ".outcome.failed::before" in css


def badges_of(records: SessionRecords) -> list[tuple[str, str]]:
    """Classes and words of the badges, those of the table alone."""
    found = re.findall(r'<td role="cell"><span class="badge ([\w -]+)">([^<]+)<', html_page(records))
    return [(kind, words) for kind, words in found]


def test_a_badge_says_what_the_verdict_is_and_whether_it_passed():
    """A control that passes is shown, and one that fails refuted, with the heads that there were not to be."""
    records = samples.session(
        TestRecord("a::no_induction_head", "passed", evidence=(samples.absent(),)),
        TestRecord("b::no_induction_head", "failed", evidence=(samples.absent(verdict=Verdict.REFUTED),)),
        TestRecord("a::has_induction_head", "passed", evidence=(samples.evidence(is_asserted=True),)),
        TestRecord("a::copies_repeats", "failed", evidence=(replace(samples.copies(), is_asserted=True),)),
        TestRecord("a::report", "passed", evidence=(samples.copies(),)),
    )
    assert badges_of(records) == [
        ("shown", "SHOWN, passed"),
        ("refuted", "REFUTED, failed"),
        ("shown", "SHOWN, passed"),
        ("refuted", "REFUTED, failed"),
        ("refuted", "REFUTED"),
    ]
    said = Reading(html_page(records)).said()
    assert "SHOWN 2 REFUTED 3 UNDETERMINED 0 passed 3 failed 2" in said
    assert "L1H0 ✗" in said and "where there was to be none" in said


def test_two_models_of_one_name_have_a_section_each():
    """Their weights tell them apart."""
    one, two = samples.provenance(), replace(samples.provenance(), fingerprint="other")
    tests = [
        TestRecord(f"a::{place}", "passed", evidence=(samples.evidence(about=about),))
        for place, about in enumerate((one, two, one))
    ]
    found = sections(samples.session(*tests, charts=samples.charts(two, ["repeats"])))
    assert [(each.fingerprint, len(each.panels)) for each in found] == [(one.fingerprint, 1), ("other", 2)]


LITTLE = {
    "heads": {
        "scores": [{"name": "prefix_matching", "words": "prefix matching", "unit": "share", "value": [[None], []]}],
        "threshold": None,
    },
    "attention": {
        "tokens": [5],
        "starts": [],
        "period": 1,
        "bos": False,
        "heads": [{"name": "L0H0", "role": "strongest", "score": None, "pattern": [[1.0]]}],
    },
    "repeats": {
        "period": 1,
        "unit": "nats",
        "copies": [{"name": "copy 1", "place": [1], "loss": [None], "low": [None], "high": [None]}],
        "uniform": None,
    },
    "text": {
        "tokens": [1],
        "loss": [3.0],
        "low": [None],
        "high": [None],
        "unit": "nats",
        "windows": {},
        "score": {"value": None},
    },
    "ablations": {
        "unit": "nats",
        "how": "zero",
        "loss": None,
        "of_all": None,
        "heads": [{"name": "L0H0", "value": None, "low": None, "high": None}],
        "together": None,
        "controls": [],
    },
    "composition": {
        "random_mean": None,
        "heads": [{"name": "L1H0", "layer": 1, "head": 0, "role": "strange", "score": None}],
        "edges": [],
    },
}


@pytest.mark.parametrize("kind", LITTLE)
def test_the_least_that_a_chart_may_hold_is_drawn(kind):
    """One token, one head, no interval, no control, nothing known of a number: a chart, and no error."""
    about = samples.provenance()
    (section,) = sections(samples.session(charts=[ChartData(kind, about.model, about.fingerprint, LITTLE[kind])]))
    (panel,) = section.panels
    assert not panel.missing and len(panel.charts) == 1
    assert panel.charts[0].svg.startswith("<svg") and "nan" not in panel.charts[0].svg.lower()


def test_a_chart_of_nothing_says_so():
    """Not an empty frame."""
    about, data = samples.provenance(), {"heads": [], "edges": []}
    (section,) = sections(samples.session(charts=[ChartData("composition", about.model, about.fingerprint, data)]))
    assert section.panels[0].missing == "there is nothing to draw"
