"""Two things side by side: the table of rows in every place, and the page, Markdown and JSON of a comparison."""

import json
import math

import pytest

from pytest_induction.comparison.sides import Side, SideBySide, unpaired_rows
from pytest_induction.errors import ReportError
from pytest_induction.expectations import compared_rows, failure_text, rest_of
from pytest_induction.plugin.ci import properties
from pytest_induction.records import Compared, Estimate, Evidence, HeadId, Provenance, Verdict
from pytest_induction.report.compared import lines, write_comparison
from pytest_induction.report.markdown import markdown
from pytest_induction.report.page import html_page
from pytest_induction.report.session_records import SessionRecords, TestRecord
from pytest_induction.report.terminal import Style, section

ABOUT = Provenance("later", "ff", "sdpa", 2, 4, "float32", "cpu")
BEFORE = Provenance("earlier<b>", "aa", "sdpa", 2, 4, "float32", "cpu")
LOST = Compared("excess", "lost", 0.9, 0.05, Estimate(-0.85, -0.9, -0.8, "share"), 0.1, "induction", HeadId(1, 0), HeadId(1, 2))
MOVED = Compared(
    "previous_token", "moved", 0.7, 0.71, Estimate(0.01, -0.02, 0.03, "share"), 0.1, "previous_token", HeadId(0, 0), HeadId(0, 3)
)
WORSE = Compared("repeat_loss", "worse", 0.2, 1.4, Estimate(1.2, 1.0, 1.4, "nats"), 0.25)


def evidence(*rows):
    return Evidence(
        "heads_preserved", Verdict.REFUTED, "both_lost", "L1H0 lost", ABOUT, compared=rows, before=BEFORE, is_asserted=True
    )


def test_a_failure_is_a_table_with_both_models():
    """Aligned columns: each thing with both values, the difference and what became of it; of the rest how many."""
    kept = tuple(
        Compared("prefix_matching", "kept", 0.5, 0.5, Estimate(0, -0.01, 0.01), 0.1, "induction", HeadId(1, n)) for n in range(9)
    )
    text = failure_text(evidence(LOST, WORSE, *kept)).split("\n")
    assert text[1:4] == [
        "  head       measure                        before  after  difference        interval  margin  what became of it",
        "  L1H0       prefix matching beyond chance   0.900  0.050      -0.850  -0.900..-0.800   0.100  lost",
        "  the model  repeat loss (nats)              0.200  1.400      +1.200  +1.000..+1.400   0.250  worse",
    ]
    assert text[6] == "  and 7 more: 7 kept"
    assert len(text) == 9


def test_what_moved_says_where_to():
    """And a role that is not induction stands beside the head; nothing more is said where all is shown."""
    (row,) = compared_rows([MOVED])
    assert (row.cells[0], row.cells[-1], row.is_worse, row.is_changed) == ("L0H0 (previous token)", "moved to L0H3", False, True)
    assert rest_of([row], 1) == ""


def test_every_report_has_the_table():
    """Page, Markdown, terminal, JSON and JUnit; names are escaped."""
    found = evidence(LOST, MOVED, WORSE)
    records = SessionRecords((TestRecord("a::b", "failed", evidence=(found,)),), exit_status=1)
    assert SessionRecords.from_json(records.to_json()) == records
    page, md = html_page(records), markdown(records)
    assert "<td>-0.900..-0.800</td>" in page and '<tr class="lost">' in page and "earlier&lt;b&gt;" in page
    assert "| **L1H0** | prefix matching beyond chance | 0.900 | 0.050 | -0.850 |" in md and "earlier&lt;b&gt;" in md
    shown = [line for line, _ in section([found], Style(width=150))]
    assert any("-0.850  -0.900..-0.800" in line and line.endswith("lost") for line in shown)
    assert dict(properties(found))["induction.heads_preserved.compared.L1H0.excess.status"] == "lost"
    assert dict(properties(found))["induction.heads_preserved.compared.model.repeat_loss.after"] == 1.4


def side(name, value, **more):
    scores = {"prefix_matching": {HeadId(1, 0): value, HeadId(1, 1): Estimate(0.1, 0.05, 0.15, "share")}}
    return Side(name, "model", "2 layers", scores, {"repeat_loss": Estimate(1.0, 0.9, 1.1, "nats")}, (2, 2), **more)


def test_unpaired_differences_lie_between_the_ends_of_both():
    """Clear only where both intervals are apart; not known where one has none. Heads without a role are left out."""
    before = side("a", Estimate(0.8, 0.7, 0.9, "share"))
    loss, head = unpaired_rows(before, side("b", Estimate(0.4, 0.3, 0.5, "share")))
    assert (loss.status, head.status, head.head) == ("not clear", "lower", HeadId(1, 0))
    assert (head.difference.low, head.difference.high) == pytest.approx((-0.6, -0.2))
    _, unknown = unpaired_rows(before, side("b", Estimate(0.4, math.nan, math.nan, "share")))
    assert unknown.status == "not clear" and compared_rows([unknown])[0].cells[5] == "not known"


def test_a_comparison_is_written_by_its_suffix(tmp_path):
    """A page with maps of both and of the difference, curves and windows of both runs, Markdown, and JSON without NaN."""
    points = {"loss": ([0.5, 1.0, 2.0], [3.0, 2.0, 1.0])}
    one = side("<a>", Estimate(0.8, 0.7, 0.9, "share"), curves=points, window=(0.6, 1.2))
    other = side("b", Estimate(0.4, math.nan, math.nan, "share"), curves=points, window=(1.0, 1.5))
    found = SideBySide(one, other, unpaired_rows(one, other), unit="steps", missing=("no <verdict>",))
    for suffix in ("html", "md", "json"):
        write_comparison(found, tmp_path / f"x.{suffix}")
    page, md = (tmp_path / "x.html").read_text(), (tmp_path / "x.md").read_text()
    assert page.count('class="cells"') == 3 and "\u22120.40" in page and "<a>" not in page and "no &lt;verdict&gt;" in page
    assert page.count('data-of="side') == 2 and page.count('fill-opacity=".14"') == 2
    assert "| L1H0 | prefix matching | 0.800 | 0.400 | -0.400 | not known | not clear |" in md and "<a>" not in md.replace(
        "`<a>`", ""
    )
    data = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert data["before"]["scores"]["prefix_matching"] == [[None, None], [0.8, 0.1]]
    assert data["after"]["behaviour"]["repeat_loss"]["low"] == 0.9 and data["rows"][1]["difference"]["low"] is None
    with pytest.raises(ReportError, match=r"must be one of PATH\.html"):
        write_comparison(found, tmp_path / "x.txt")
    said = lines(found)
    assert said[0] == "before: <a> (model): 2 layers" and any(line.startswith("L1H0 ") for line in said)
