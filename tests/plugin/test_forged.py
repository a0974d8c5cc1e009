"""Nothing that a name or a file holds forges a line of a report: in pytest's terminal, on GitHub, in JUnit and JSON, in SVG and HTML."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_induction.formatting import for_terminal, printable
from pytest_induction.plugin.ci import properties
from pytest_induction.records import ChartData, Verdict
from pytest_induction.report.charts.drawing import as_file
from pytest_induction.report.charts.drawing import text as drawn_text
from pytest_induction.report.charts.interval import interval
from pytest_induction.report.charts.run_picture import svg
from pytest_induction.report.github import annotations, step_summary
from pytest_induction.report.live import frame, live_page, painted
from pytest_induction.report.page import panel_of
from pytest_induction.report.session_records import SessionRecords, TestRecord
from pytest_induction.report.terminal import Style, one_line, section
from pytest_induction.report.writing import pictures
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.picture import picture_of
from tests.conftest import FIXTURES
from tests.report.samples import charts, evidence, provenance

RUN = FIXTURES / "runs" / "two-layers"
ANY = st.text(st.characters(), max_size=30)
FORGED = "x\n::error file=a.py::forged\x1b[2J\x9b31m\r\u202e\u2028##[error]z"


def is_harmless(text):
    """No letter that is not printable, and no line that a CI takes for a command."""
    return all(letter.isprintable() or letter == "\n" for letter in text) and not any(
        line.lstrip().startswith("::") for line in text.split("\n")
    )


def hostile(text):
    """Verdicts in which each text is this one."""
    about = provenance(f"m{text}", notes=(text, "a note"), place=text)
    return evidence(
        f"claim{text}",
        Verdict.REFUTED,
        about,
        summary=text,
        reason=text,
        next_step=text,
        estimates={f"n{text}": evidence().estimates["advantage"]},
        thresholds={f"n{text}": 0.3, "min_prefix_matching": 0.3},
    )


@given(ANY)
@settings(deadline=None)
def test_the_terminal_section_is_harmless(text):
    for verbose in (False, True):
        for width in (40, 120):
            told = section([hostile(text)], Style(verbose=verbose, width=width))
            lines = [line for each, _ in told for line in for_terminal(each, width)]
            assert all("\n" not in line and is_harmless(line) for line in lines)
            assert width == 120 or all(len(line) <= width for line in lines)
    assert all(map(is_harmless, for_terminal(one_line([hostile(text)]), 120)))
    assert is_harmless(painted(frame(hostile(text), None, text, Style()), colour=False))


@given(ANY)
@settings(deadline=None)
def test_github_is_told_nothing_that_a_name_says(text):
    """Each annotation is one command, as many as tests failed, and one for what stopped the session."""
    test = TestRecord(f"{text}::t{text}", "failed", 1.0, f"no\n{text}", text, (hostile(text),))
    records = SessionRecords((test, test), command=text, environment={text: text}, stopped=text)
    lines = annotations(records)
    assert len(lines) == 2 + bool(text) and all(line.startswith("::error title=") for line in lines)
    assert "".join(lines).replace("\t", "").isprintable()
    assert all(letter.isprintable() or letter in "\n\t" for letter in step_summary(records))


@given(ANY)
@settings(deadline=None)
def test_junit_and_json_say_it_in_letters_that_they_may_have(text):
    names = properties(hostile(text))
    assert all(name.isprintable() and str(value).isprintable() for name, value in names)
    records = SessionRecords((TestRecord(text, "failed", 1.0, text, text, (hostile(text),)),), command=text)
    written = records.to_json()
    written.encode("utf-8")
    readable = text.encode("utf-8", "backslashreplace").decode()  # a byte of a name that is no UTF-8 is in no JSON
    assert json.loads(written)["tests"][0]["nodeid"] == readable
    assert SessionRecords.from_json(written).tests[0].evidence[0].provenance.model == f"m{readable}"


@pytest.fixture(scope="module")
def picture():
    return picture_of(load_run(RUN))


@given(text=ANY)
@settings(deadline=None, max_examples=25)
def test_a_picture_of_a_run_is_well_formed(picture, text):
    for title in (text, text * 4):
        told = {**picture, "title": title, "subtitle": text, "missing": [text], "verdict": text, "unit": text}
        told["curves"] = [{**curve, "name": text, "unit": text} for curve in picture["curves"]]
        told["heads"] = [{**head, "name": text} for head in picture["heads"]]
        told["changes"] = [{**change, "name": text, "verdict": text} for change in picture["changes"]]
        ET.fromstring(svg(told))
    ET.fromstring(f"<g>{drawn_text(1, 1, f'x{text}')}</g>")
    page = live_page(text, hostile(text), told, text, 2.0)
    assert all(letter.isprintable() or letter == "\n" for letter in page)


@given(text=ANY)
@settings(deadline=None, max_examples=25)
def test_charts_are_well_formed(text):
    """Every chart, with each of its texts replaced."""
    for measured in charts(provenance()):
        panel = panel_of("a", ChartData(measured.kind, text, measured.fingerprint, replaced(measured.data, text)))
        for chart in panel.charts:
            ET.fromstring(chart.svg)
            ET.fromstring(as_file(chart.svg))
        for each in pictures(measured):
            ET.fromstring(each)
    ET.fromstring(interval(evidence().estimates["advantage"], (0.3,)))


def replaced(data, text):
    """The same data, with the text behind each of its texts that are no words of ours for something."""
    if isinstance(data, str):
        return data + text
    if isinstance(data, dict):
        return {name: data[name] if name in ("kind", "unit", "kinds") else replaced(data[name], text) for name in data}
    return [replaced(each, text) for each in data] if isinstance(data, (list, tuple)) else data


class Read(HTMLParser):
    """What a page shows, and the data in it."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_shows_it_escaped():
    page_of = pytest.importorskip("pytest_induction.report.page").html_page
    pytest.importorskip("jinja2")
    records = SessionRecords(
        (TestRecord(FORGED, "failed", 1.0, FORGED, FORGED, (hostile(FORGED),)),),
        tuple(ChartData(each.kind, FORGED, each.fingerprint, replaced(each.data, FORGED)) for each in charts(provenance())),
        command=FORGED,
        environment={FORGED: FORGED},
    )
    page = page_of(records)
    assert all(letter.isprintable() or letter in "\n\t" for letter in page)
    reader = Read()
    reader.feed(page)
    assert r"\x1b[2J" in "".join(reader.texts)
    for data in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
        json.loads(data)


def hostile_gates(pytester):
    """A gate of such a name, on a model that lies in a directory of such a name."""
    name = json.dumps(FORGED)
    (pytester.path / "m.gates.toml").write_text(
        f"[{name}]\nmodel = {json.dumps('gone/' + FORGED)}\n[{name}.expect]\nhas_induction_head = true\n"
    )


@pytest.mark.parametrize("verbosity", ["-q", "-v", "--collect-only"])
def test_a_gate_forges_nothing(pytester, verbosity):
    hostile_gates(pytester)
    result = pytester.runpytest_inprocess(
        verbosity, "--junitxml=junit.xml", "--induction-report=r.json", "-p", "no:cacheprovider"
    )
    assert result.ret == (2 if verbosity == "--collect-only" else 1)
    assert is_harmless(str(result.stdout)) and is_harmless(str(result.stderr))
    assert not re.search(r"^\s*x?$\n::error", str(result.stdout), re.MULTILINE)
    ET.parse(pytester.path / "junit.xml")


def test_a_run_in_a_directory_with_a_line_break_forges_nothing(pytester, monkeypatch):
    """Its gates are named by it, and can be run again by the command that is told."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    place = shutil.copytree(FIXTURES / "runs" / "one-layer", pytester.path / "a\n::error::b\x1b[2J")
    result = pytester.runpytest_inprocess("-v", f"--induction-run={place}", "-p", "no:cacheprovider")
    said = str(result.stdout)
    commands = [line for line in said.splitlines() if line.lstrip().startswith("::")]
    assert commands and all(line.startswith("::error title=") for line in commands)
    assert is_harmless("\n".join(line for line in said.splitlines() if line not in commands))
    assert r"/a\n\x3a:error\x3a:b\x1b[2J::phase_change FAILED" in said
    again = [line for line in said.splitlines() if line.startswith("pytest $'--induction-run=")]
    assert again[0].endswith(r"/a\n::error::b\x1b[2J' -k phase_change")


@pytest.mark.parametrize("option", ["model", "run", "reference", "baseline", "report", "device", "dtype", "column"])
def test_a_usage_error_forges_nothing(pytester, option):
    result = pytester.runpytest_inprocess(f"--induction-{option}={FORGED}")
    assert result.ret == 4
    said = str(result.stderr)
    assert "ERROR: --induction-" in said and printable(FORGED)[:8] in said
    assert is_harmless(said)
