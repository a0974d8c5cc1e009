"""Tables of heads carry match length, reach and what heads write: terminal, Markdown and HTML."""

import re
from dataclasses import replace

import pytest

from pytest_induction import Claim, register_claim
from pytest_induction.expectations import failure_text
from pytest_induction.records import Estimate, Verdict
from pytest_induction.report.markdown import markdown
from pytest_induction.report.page import html_page
from pytest_induction.report.terminal import Style, section
from pytest_induction.report.verdict_rows import HEAD_COLUMNS, Noted, head_row, test_rows
from pytest_induction.report.view import HEAD_COLUMNS as VIEW_COLUMNS
from pytest_induction.report.view import views
from tests.report import samples

test_rows.__test__ = False


def masses(*values):
    return tuple(Estimate(value, value - 0.02, value + 0.02, "share") for value in values)


def told():
    """A verdict whose heads differ in what they need, how far they reach and what they write."""
    one, two, weak = (samples.head(1, number, 0.9, "matches") for number in range(3))
    nats = Estimate(0.004, -0.001, 0.009, "nats")
    return samples.evidence(
        heads=(
            replace(one, match_lengths=masses(0.8, 0.9, 0.92)),
            replace(two, match_lengths=masses(0.05, 0.62, 0.8), reach=17),
            replace(weak, match_lengths=masses(0.01, 0.02, 0.1), copy_effect=None, ablation_effect=replace(nats, value=0.12)),
        ),
        nearest=(
            replace(
                samples.head(0, 1, 0.8, "silent"), match_lengths=masses(0.8, 0.9, 0.92), copy_effect=nats, ablation_effect=nats
            ),
            replace(samples.head(0, 3, 0.8, "period_detector"), match_lengths=masses(0.01, 0.01, 0.02)),
            samples.head(0, 2, 0.12, "previous"),
        ),
    )


LENGTHS = ["1", "2", "more", "1", "", ""]
NOTES = ["0.80, 0.90, 0.92", "0.05, 0.62, 0.80", "0.01, 0.02, 0.10", "0.80, 0.90, 0.92", "0.01, 0.01, 0.02", ""]
TOLD = [
    "1 (0.80, 0.90, 0.92)",
    "2 (0.05, 0.62, 0.80)",
    "more (0.01, 0.02, 0.10)",
    "1 (0.80, 0.90, 0.92)",
    "(0.01, 0.01, 0.02)",
    "",
]
REACHES = ["all", "17", "all", "all", "", ""]
ABLATIONS = ["", "", "+0.12", "+0.00", "", ""]


def column(rows, names, name):
    return [row[list(names).index(name)] for row in rows]


def test_the_view_has_them_for_every_head():
    (view,) = views([told()])
    rows = [row.cells for row in view.heads]
    assert column(rows, VIEW_COLUMNS, "match length") == TOLD
    assert column(rows, VIEW_COLUMNS, "reach") == REACHES
    assert column(rows, VIEW_COLUMNS, "ablation (nats)") == ABLATIONS
    assert column(rows, VIEW_COLUMNS, "copy (nats)") == ["+2.31", "+2.31", "", "+0.00", "+2.31", "+2.31"]


def test_the_threshold_of_the_verdict_decides_the_match_length():
    (view,) = views([replace(told(), thresholds={"min_prefix_matching": 0.7})])
    assert [row.match_length.partition(" ")[0] for row in view.heads][:3] == ["1", "3+", "more"]


def test_verbose_terminal_has_the_columns():
    lines = [text for text, _ in section([told()], Style(verbose=True, width=200))]
    names = next(line for line in lines if line.startswith("    head  "))
    for name in ("match length", "reach", "copy (nats)", "ablation (nats)", "kind"):
        assert name in names
    found = next(line for line in lines if line.startswith("  * L1H1"))
    assert re.search(r"2 \(0\.05, 0\.62, 0\.80\) +17 +\+2\.31 +matches$", found)


def test_markdown_has_the_columns_that_have_something():
    text = markdown(samples.session(samples.TestRecord("a.py::test", "passed", evidence=(told(),))))
    table = [line for line in text.splitlines() if line.startswith("| head") or ("L1H1" in line and line.startswith("| **"))]
    assert "| first token | match length | reach | copy (nats) | ablation (nats) | kind |" in table[0]
    assert "| 2 (0.05, 0.62, 0.80) | 17 | +2.31 |  | matches |" in table[1]
    plain = markdown(samples.session(samples.TestRecord("a.py::test", "passed", evidence=(samples.evidence(),))))
    (names,) = [line for line in plain.splitlines() if line.startswith("| head")]
    assert "copy (nats)" in names and "match length" not in names and "reach" not in names and "ablation" not in names


def test_rows_of_the_page_have_the_masses_below_the_match_length():
    (row,) = test_rows(samples.session(samples.TestRecord("a.py::test", "passed", evidence=(told(),))))
    (verdict,) = row.verdicts
    assert verdict.head_columns == HEAD_COLUMNS
    lengths = column(verdict.heads, HEAD_COLUMNS, "match length")
    assert [each.text for each in lengths] == LENGTHS and [each.note for each in lengths] == NOTES
    assert column(verdict.heads, HEAD_COLUMNS, "reach") == REACHES
    assert column(verdict.heads, HEAD_COLUMNS, "ablation (nats)") == ["", "", "+0.120", "+0.004", "", ""]
    heads = column(verdict.heads, HEAD_COLUMNS, "head")
    assert heads[0] == Noted("L1H0 ✓", "matches") and heads[3] == Noted("L0H1", "matches and writes nothing")
    assert [each.note for each in heads[4:]] == ["follows the period", "previous token"]
    assert column(verdict.heads, HEAD_COLUMNS, "prefix matching")[0] == Noted("0.900", "0.870 to 0.930")


def test_columns_with_nothing_in_them_are_left_out_of_the_page():
    """A run knows neither what its heads write nor what they match at irregular distances."""
    bare = replace(
        samples.evidence(), heads=tuple(replace(head, copy_effect=None) for head in samples.evidence().heads), nearest=()
    )
    (row,) = test_rows(samples.session(samples.TestRecord("a.py::test", "passed", evidence=(bare,))))
    assert set(HEAD_COLUMNS) - set(row.verdicts[0].head_columns) == {"match length", "reach", "copy (nats)", "ablation (nats)"}
    assert all(len(cells) == len(row.verdicts[0].head_columns) for cells in row.verdicts[0].heads)


def test_a_row_is_as_long_as_its_columns():
    assert len(head_row(told().heads[0], "", 0.3)) == len(HEAD_COLUMNS)
    assert not Noted("", "") and Noted("1", "") and Noted("", "0.10")


def test_the_page_shows_text_and_note_of_a_cell():
    pytest.importorskip("jinja2")
    page = html_page(samples.session(samples.TestRecord("a.py::test", "passed", evidence=(told(),))))
    assert '<td>2<span class="of">0.05, 0.62, 0.80</span></td><td>17</td>' in page
    assert '<th scope="row">L1H1 ✓<span class="of">matches</span></th>' in page
    assert '<th scope="col">match length</th><th scope="col">reach</th>' in page
    assert "Noted(" not in page


def test_a_head_that_does_not_count_is_a_near_miss_with_its_kind_in_words():
    verdict = replace(told(), verdict=Verdict.SHOWN)
    (view,) = views([verdict])
    assert any(line.startswith("L0H1 ") and line.endswith("does not count: silent") for line in view.near)
    assert any(line.startswith("L0H3 ") and line.endswith("does not count: period detector") for line in view.near)


def test_a_claim_shows_the_columns_of_heads_that_it_names():
    """Its own record says which; all that are known where it names none."""
    register_claim(Claim(name="mine", asserts="it is mine", assertion=told, columns=("reach", "previous")))
    records = samples.session(samples.TestRecord("a.py::test", "passed", evidence=(replace(told(), claim="mine"), told())))
    (row,) = test_rows(records)
    mine, others = row.verdicts
    assert mine.head_columns == ("head", "reach", "previous") and len(others.head_columns) > 3
    assert [cells[1] for cells in mine.heads] == REACHES


def test_the_score_that_a_claim_is_about_comes_first_in_the_table_and_in_the_message():
    """With its interval; prefix matching stands behind it, and is not what a failed claim is told of."""
    score = Estimate(0.4, 0.35, 0.45, "share")
    heads = tuple(replace(head, scores={"two_before": score}) for head in told().heads)
    verdict = replace(told(), claim="has_two_before_head", heads=heads, nearest=())
    (row,) = test_rows(samples.session(samples.TestRecord("a.py::test", "passed", evidence=(verdict,))))
    assert row.verdicts[0].head_columns[:3] == ("head", "two before", "prefix matching")
    assert row.verdicts[0].heads[0][1] == Noted("0.400", "0.350 to 0.450")
    said = failure_text(replace(verdict, verdict=Verdict.REFUTED))
    assert f"heads: {heads[0]} 0.400 (0.350..0.450)" in said
    (view,) = views([verdict])
    assert (view.mapped, view.found) == ("two before", "head with two before")
    assert (views([verdict, told()])[0].mapped, views([told()])[0].found) == ("prefix matching", "induction head")
    shown = [line for line, _ in section([replace(verdict, head_map=((0.4, 0.1),))], Style())]
    assert any(line.startswith("    two before, 0 ") for line in shown) and "  * head with two before" in shown
    page = markdown(samples.session(samples.TestRecord("a.py::test", "passed", evidence=(verdict,))))
    assert "Heads with two before are bold" in page and "| head | two before | prefix matching |" in page
