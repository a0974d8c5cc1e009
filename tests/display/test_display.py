"""What records show of themselves: as text, as HTML, as pictures, and as columns."""

import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import pytest_induction
from pytest_induction.claims import Claim
from pytest_induction.display import Displayed, Plotted, arrays_table, rows_table
from pytest_induction.errors import ArgumentError, ReportError
from pytest_induction.records import Estimate, Evidence, Provenance, Verdict
from tests.display.samples import MADE, made

FEW_KB, WITH_A_RUN = 16_000, 64_000  # bytes of HTML: of a record, and of a run with its curves
ABOUT = Provenance("<script>alert(1)</script>", "f", "sdpa", 1, 1, "float32", "cpu", notes=("<img src=x onerror=alert(1)>",))
EVIL = Evidence(
    "<script>", Verdict.SHOWN, "r", "<b>summary</b>\n\x1b[31m", ABOUT, estimates={"<i>": Estimate(0.5, 0.4, 0.6, "share")}
)
NO_RECORD = {"check_property", "expose_attention", "given_probes"}  # what they give has no class, or several
PLOTTED = (
    *("Evidence", "HeadList", "HeadScores", "CopyingScores", "MatchLengthScores", "CompetingMatchScores", "DistanceScores"),
    *("AblationScores", "RecallCurve", "RuleCurve", "LossByMatch", "TrainingRun", "SideBySide"),
    *("GeneralityScores", "FunctionVectorScores", "HeadAttributions", "SuppressionScores", "RetrievalScores", "ConceptScores"),
)
VOID = {"img", "br", "meta", "hr", "link", "input"}


class Elements(HTMLParser):
    """The elements and attributes of a page; fails where it is not well formed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.names, self.attributes = [], set(), {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes |= dict(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.names.add(tag)
        self.attributes |= dict(attributes)


def given_back():
    """The records that public functions give, by what these are annotated with."""
    for name in pytest_induction.__all__:
        found = getattr(pytest_induction, name)
        if inspect.isfunction(found):
            found = inspect.unwrap(found)
            kind = getattr(sys.modules[found.__module__], found.__annotations__["return"], None)
            if kind is None or dataclasses.is_dataclass(kind):
                yield name, kind


def test_every_record_that_a_public_function_gives_is_shown():
    """A new measure whose record nobody can look at fails here."""
    found = dict(given_back())
    assert {name for name, kind in found.items() if kind is None} == NO_RECORD
    kinds = {kind for kind in found.values() if kind not in (None, Claim)}
    assert len(kinds) > 15
    assert [kind.__name__ for kind in kinds if not issubclass(kind, Displayed)] == []
    assert {kind.__name__ for kind in kinds} <= set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_a_record_is_shown_in_few_lines_and_few_kilobytes(name):
    record = made(name)
    lines = repr(record).splitlines()
    assert 2 <= len(lines) <= 40 and max(map(len, lines)) <= 300
    html = record._repr_html_()
    assert len(html.encode()) <= (WITH_A_RUN if name in ("TrainingRun", "SideBySide") else FEW_KB)
    page = Elements(html)
    assert not page.names & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|//|@import|url\(", html)
    assert not any(attribute.startswith("on") or attribute in ("src", "href") for attribute in page.attributes)


@pytest.mark.parametrize("name", MADE)
def test_columns_are_plain_and_of_one_length(name):
    """So that JSON, pandas and Arrow take them as they are."""
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    record = made(name)
    for table in record.tables:
        columns = record.to_columns(table)
        json.dumps(columns, allow_nan=False)
        assert len({len(values) for values in columns.values()}) <= 1
        frame = record.to_dataframe(table)
        assert isinstance(frame, pandas.DataFrame) and list(frame.columns) == list(columns)
        taken = arrow.table(columns)
        assert taken.num_rows == len(frame) and taken.to_pydict() == columns


def test_the_records_that_are_drawn_are_known():
    assert {name for name in MADE if isinstance(made(name), Plotted)} == set(PLOTTED)


@pytest.mark.parametrize("name", PLOTTED)
def test_pictures_are_written_and_need_nothing_else(name, tmp_path):
    drawn = made(name).plot()
    svg, page = (drawn.save(tmp_path / f"picture{suffix}").read_text() for suffix in (".svg", ".html"))
    assert svg.count("<svg") == 1 and "var(" not in svg and 'xmlns="http://www.w3.org/2000/svg"' in svg
    assert drawn.charts and all(chart.title in repr(drawn) for chart in drawn.charts)
    assert page.startswith("<!doctype html>") and "<script" not in page
    assert Elements(drawn._repr_html_()).names >= {"svg", "figure"}


def test_only_svg_and_html_are_written(tmp_path):
    with pytest.raises(ReportError, match=r"`path` must end in .svg or .html, got '.*picture.png'"):
        made("HeadScores").plot().save(tmp_path / "picture.png")


def test_what_a_record_quotes_is_text():
    """A name that is markup is shown, and does nothing."""
    html = EVIL._repr_html_()
    assert Elements(html).names.isdisjoint({"script", "b", "i", "img"} - {"b"}) and "<b>summary" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "&lt;img src=x" in html
    assert "\x1b" not in html + repr(EVIL) and len(repr(EVIL).splitlines()) < 12
    assert "<script" not in EVIL.plot()._repr_svg_() + EVIL.plot()._repr_html_()


def test_the_page_reader_finds_what_must_not_be_there():
    """The guard of these tests can fail."""
    assert "script" in Elements("<div><script>1</script></div>").names
    with pytest.raises(AssertionError):
        Elements("<div><p></div>")


def test_colours_are_those_of_the_ground():
    """The card has its own ground and ink, and others where Jupyter, VS Code or Colab say that they are dark."""
    html = made("CopyingScores")._repr_html_()
    light, dark = (
        re.search(rule, html)[1] for rule in (r"<style>\.pytest-induction\{([^}]*)\}", r"slate\] \.pytest-induction\{([^}]*)\}")
    )
    names = [[each.partition(":")[0] for each in colours.split(";")] for colours in (light, dark)]
    assert names[0] == names[1] and "--s10" in names[0]
    assert "--card:#fff" in light and "--card:#151a21" in dark
    for mark in ("[data-jp-theme-light=false]", "body.vscode-dark", "html[theme=dark]", "[data-theme=dark]"):
        assert f"{mark} .pytest-induction" in html


def test_columns_have_the_numbers_that_the_record_has():
    scores = made("HeadScores")
    columns = scores.to_columns()
    assert columns["layer"] == [0, 0, 0, 0, 1, 1, 1, 1] and columns["head"] == [0, 1, 2, 3] * 2
    assert columns["prefix_matching"] == scores.prefix_matching.ravel().tolist()
    first = repr(scores).splitlines()[5].split()[0]
    layer, head = divmod(int(scores.prefix_matching.argmax()), 4)
    assert first == f"L{layer}H{head}", "the strongest comes first"


def test_evidence_has_a_table_for_each_of_its_parts():
    evidence = made("Evidence")
    assert evidence.tables == ("heads", "estimates", "pairs", "changes", "compared")
    heads, estimates = evidence.to_columns(), evidence.to_columns("estimates")
    assert heads["holds"] == [True] * len(evidence.heads) + [False] * len(evidence.nearest)
    best = evidence.heads[0].prefix_matching
    assert (heads["prefix_matching"][0], heads["prefix_matching_low"][0]) == (best.value, best.low)
    assert dict(zip(estimates["estimate"], estimates["value"], strict=True)) == {
        name: found.value for name, found in evidence.estimates.items()
    }
    with pytest.raises(ArgumentError, match="`table` must be one of heads, estimates, pairs, changes, compared, got 'head'"):
        evidence.to_columns("head")


def test_a_head_that_is_not_there_is_in_no_row():
    """Of layers with different numbers of heads; one that has no number in one column alone stays, with None."""
    nan = float("nan")
    table = arrays_table("heads", {"one": np.array([[0.5, nan], [nan, 0.7]]), "other": np.array([[1.0, nan], [2.0, 3.0]])})
    assert table.columns(None) == {"layer": [0, 1, 1], "head": [0, 0, 1], "one": [0.5, None, 0.7], "other": [1.0, 2.0, 3.0]}
    assert table.top(2) == [2, 0] and table.columns([2])["other"] == [3.0]


def test_a_table_of_many_rows_is_cut_and_says_so():
    class Many(Displayed):
        def view(self):
            from pytest_induction.display import View

            return View("many", (), tuple(rows_table(f"t{place}", [{"n": n} for n in range(50)]) for place in range(9)))

    lines = repr(Many()).splitlines()
    assert len(lines) == 40 and lines[1] == "t0, 10 of 50" and lines[-1].startswith("and ")
    assert Many()._repr_html_().count("<tr>") == 9 * 11


def test_without_pandas_there_is_a_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr("pytest_induction.display.find_spec", lambda name: None)
    with pytest.raises(
        ArgumentError, match=r"`to_dataframe` needs pandas, which is not installed: pip install pandas, or take `to_columns`"
    ):
        made("HeadScores").to_dataframe()


def test_a_record_without_anything_to_draw_says_so():
    with pytest.raises(ArgumentError, match="this `Evidence` has nothing to draw"):
        dataclasses.replace(EVIL, estimates={}).plot()


def test_showing_a_record_loads_neither_torch_nor_a_drawing_library():
    """Records of a file are shown where there is no model."""
    code = """
import sys
from pytest_induction.records import Evidence, Provenance, Verdict, Estimate
about = Provenance("m", "f", "sdpa", 1, 1, "float32", "cpu")
one = Evidence("c", Verdict.SHOWN, "r", "s", about, estimates={"loss": Estimate(1, 0, 2, "nats")})
assert "svg" in one._repr_html_() and repr(one) and one.to_columns()
print([name for name in ("torch", "numpy", "matplotlib", "jinja2", "pandas") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_every_shown_class_has_the_short_repr():
    """A dataclass that forgets `repr=False` writes one of its own over it."""
    modules = [importlib.import_module(type(made(name)).__module__) for name in MADE]
    shown = {
        each for module in modules for each in vars(module).values() if inspect.isclass(each) and issubclass(each, Displayed)
    }
    assert len(shown) > 20
    assert [each.__name__ for each in shown if each.__repr__ is not Displayed.__repr__] == []
