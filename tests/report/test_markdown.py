"""The Markdown report as a Markdown reader sees it, and what of it GitHub gets."""

import html
import math
import re

import pytest

from pytest_induction.formatting import printable
from pytest_induction.records import ChartData, Estimate, Verdict
from pytest_induction.report.github import MOST_ERRORS, ROOM, annotations, step_summary
from pytest_induction.report.markdown import code, markdown, text
from pytest_induction.report.session_records import SessionRecords, TestRecord
from tests.report.samples import absent, copies, evidence, head, learns, provenance

MESSAGE = "copies_repeats is REFUTED, expected SHOWN: `x` | <b>\n```\nand a fence\n````\n  next: see docs"
RECORDS = SessionRecords(
    (
        TestRecord("models/small::has_induction_head", "passed", evidence=(evidence(),)),
        TestRecord("models/small::copies_repeats", "failed", 1.2, MESSAGE, "pytest -k 'a b'", (copies(),)),
        TestRecord("models/small::learns_in_context", "xfailed", evidence=(learns(),)),
        TestRecord("models/gone::has_induction_head", "error", message="no model at 'models/gone'\nsecond line"),
    ),
    (ChartData("text", "models/small", provenance().fingerprint, missing="no text was given"),),
    command="pytest --induction-report=report.md",
    started="2026-11-27T19:25:54+00:00",
    seconds=4.6,
    exit_status=1,
    environment={"python": "3.11.7"},
)
NASTY = [
    "a|b\\|c\\\\|d",
    "`tick` ``two`` `",
    "<script>alert(1)</script> <!-- &amp; &",
    "*bold* __init__ _x_ ~~gone~~ $e=mc^2$ [text](http://example.org)",
    "line\nbreak\r\nand\ttab \x1b[31mred \u2028 \u202e",
    "| --- | --- |",
]


@pytest.fixture
def read():
    """The tables of a page, as the texts of their cells, with the page as HTML."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def as_read(page):
        shown = reader.render(page)
        tables = re.findall(r"<table>(.*?)</table>", shown, re.DOTALL)
        return [[cells(row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)] for table in tables], shown

    return as_read


def cells(row):
    return [
        html.unescape(re.sub(r"</?(code|strong)>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
    ]


def test_the_verdicts_stand_in_a_table(read):
    """A row for each, in the order of the tests; a test without one says why it has none."""
    tables, shown = read(markdown(RECORDS))
    assert "<h2>❌ Induction: 1 failed, 1 error, 1 passed, 1 xfailed</h2>" in shown
    assert "<p>3 verdicts: 1 SHOWN, 1 REFUTED, 1 UNDETERMINED</p>" in shown
    assert tables[0] == [
        ["test", "verdict", "claim", "model", "what was found"],
        ["✅ passed", "SHOWN", "has_induction_head", "models/small", evidence().summary],
        ["❌ failed", "REFUTED", "copies_repeats", "models/small", copies().summary],
        ["✅ xfailed", "UNDETERMINED", "learns_in_context", "models/small", learns().summary],
        ["❌ error", "none", "has_induction_head", "models/gone", "no model at 'models/gone'"],
    ]


def test_a_control_that_passes_is_shown(read):
    """Its claim is that there is none; one that fails is refuted."""
    tests = (
        TestRecord("models/small::no_induction_head", "passed", evidence=(absent(),)),
        TestRecord("models/small::none_either", "failed", evidence=(absent(verdict=Verdict.REFUTED),), message="it is there"),
        TestRecord("models/small::has_induction_head", "passed", evidence=(evidence(is_asserted=True),)),
    )
    tables, shown = read(markdown(SessionRecords(tests)))
    assert "<p>3 verdicts: 2 SHOWN, 1 REFUTED</p>" in shown
    assert [row[:3] for row in tables[0][1:]] == [
        ["✅ passed", "SHOWN, passed", "no_induction_head"],
        ["❌ failed", "REFUTED, failed", "no_induction_head"],
        ["✅ passed", "SHOWN, passed", "has_induction_head"],
    ]


def test_a_summary_of_a_step_has_controls_as_passed():
    """GitHub gets the same table, and no annotation of a control that passed."""
    records = SessionRecords((TestRecord("models/small::no_induction_head", "passed", evidence=(absent(),)),))
    assert step_summary(records).startswith("## ✅ Induction: 1 passed\n\n1 verdict: 1 SHOWN\n")
    assert annotations(records) == []


def test_each_model_has_its_heads_and_where_they_were_measured(read):
    """Induction heads bold, a head map, what could not be drawn."""
    tables, shown = read(markdown(RECORDS))
    assert [row[0] for row in tables[1]] == ["head", "L1H0", "L1H1", "L0H2"]
    assert "<strong>L1H0</strong>" in shown and "<strong>L0H2</strong>" not in shown
    assert "\nL1  █" in shown
    assert "not drawn: text: no text was given" in shown
    assert "seed=0" in shown and "torch 2.13.0" in shown


def test_a_failure_is_shown_whole_whatever_is_in_it(read):
    """Folded, with the command that repeats it; a fence in a message ends no block."""
    _, shown = read(markdown(RECORDS))
    blocks = [html.unescape(block) for block in re.findall(r"<pre><code[^>]*>(.*?)</code></pre>", shown, re.DOTALL)]
    assert MESSAGE + "\n" in blocks
    assert "pytest -k 'a b'\n" in blocks
    assert shown.count("<details>") == shown.count("</details>") == 3
    assert "<b>" not in shown


@pytest.mark.parametrize("name", NASTY)
def test_names_mean_nothing_to_markdown(name, read):
    """They are read as they are, on one line, with escapes for what is not printable; a model may be called anything."""
    plain = " ".join(printable(name).split())
    about = provenance(name)
    page = markdown(
        SessionRecords((TestRecord(f"{name}::x", "failed", 0.0, name, "", (evidence(about=about, summary=name, reason=name),)),))
    )
    tables, shown = read(page)
    assert tables[0][1] == ["❌ failed", "SHOWN", "has_induction_head", plain, plain]
    assert not re.search(r"<(script|em|a|s|img)\b", shown)
    assert text(name).count("\n") == code(name).count("\n") == 0


def test_what_is_the_same_is_told_once(read):
    """A test that reaches one verdict many times has one row."""
    tables, _ = read(markdown(SessionRecords((TestRecord("t.py::x", "passed", evidence=(copies(),) * 3),))))
    assert len(tables[0]) == 2
    assert tables[0][1][-1].endswith("(3 times)")


def test_what_is_no_number_is_no_number(read):
    """Not zero, nor an empty cell."""
    nothing = Estimate(math.nan, math.nan, math.nan, "share")
    broken = evidence(heads=(), nearest=(type(head(0, 0, 0.5))(0, 0, nothing, nothing, math.nan, *[math.nan] * 4),))
    tables, _ = read(markdown(SessionRecords((TestRecord("t.py::x", "failed", evidence=(broken,)),))))
    assert tables[1][1][:4] == ["L0H0", "?", "?..?", "?"]


def test_nothing_and_a_part_are_said_to_be_that():
    """A session without a test, which is neither green nor red; one that was interrupted."""
    assert markdown(SessionRecords(())).startswith("## ⏭️ Induction: no tests\n")
    partial = markdown(SessionRecords(RECORDS.tests[:1], stopped="interrupted", exit_status=2))
    assert partial.startswith("## ❌ Induction: 1 passed\n\n**Partial:** interrupted")


def many(count):
    tests = [
        TestRecord(f"models/{n}::copies_repeats", "failed", 0.1, MESSAGE, "", (copies(provenance(f"models/{n}")),))
        for n in range(count)
    ]
    return SessionRecords(tuple(tests))


MANY = many(1000)


def test_the_summary_of_a_step_is_the_report_where_there_is_room():
    """With an empty line after it, for what comes next."""
    assert step_summary(RECORDS) == markdown(RECORDS) + "\n"


@pytest.mark.parametrize("room", [ROOM // 2, 100_000, 5_000])
def test_a_long_summary_is_cut_and_says_so(room, read):
    """Between parts and rows, so that it stays Markdown, and failures are not lost behind the table."""
    records = MANY
    cut = step_summary(records, room=room)
    assert room // 2 < len(cut.encode()) <= room < len(markdown(records).encode())
    tables, shown = read(cut)
    assert re.search(
        r"<strong>Cut, since GitHub takes 1 MiB:</strong> (\d+) rows of tables and (\d+) other parts are left out", shown
    )
    assert all(len(row) == 5 for row in tables[0])
    assert 0 < shown.count("<details>") == shown.count("</details>")
    assert f"{1000 - (len(tables[0]) - 1)} rows of tables" in cut


def test_no_room_is_no_summary():
    """Rather than one that makes GitHub drop what others wrote."""
    assert step_summary(RECORDS, room=50) == ""


def test_an_annotation_is_one_line_that_the_runner_reads_back():
    """Whatever a message or a name has in it; a test that passed has none."""
    message = "100% a\r\nb::error file=x::y\x1b[31m, z"
    lines = annotations(SessionRecords((TestRecord("a:b,c%::x\ny", "failed", 0.0, message, "pytest -k x"), *RECORDS.tests[:1])))
    said = r"100%25 a\r%0Ab::error file=x::y\x1b[31m, z%0Aagain, alone: pytest -k x"
    assert lines == [rf"::error title=x\ny (a%3Ab%2Cc%25)::{said}"]


def test_a_mark_stands_at_the_test(tmp_path, monkeypatch):
    """By its file in the workspace and the line of its function or gate; a gate without a file, or a file that is gone, has no place."""
    part = tmp_path / "part"
    part.mkdir()
    (part / "test_it.py").write_text("import x\n\nclass TestIt:\n    def test_a(self): pass\n\nasync def test_b(): pass\n")
    (part / "m.gates.toml").write_text("[other]\nmodel = 'small'\n[small.expect]\n")
    (part / "broken.py").write_text("def")
    places = {
        "test_it.py::TestIt::test_a[x::y]": ",file=part/test_it.py,line=4",
        "test_it.py::test_b": ",file=part/test_it.py,line=6",
        "test_it.py::made": ",file=part/test_it.py",
        "m.gates.toml::small::copies_repeats": ",file=part/m.gates.toml,line=3",
        "models/small::gate": "",
        "gone.py::test_c": "",
        "broken.py": "",
    }
    records = SessionRecords(tuple(TestRecord(nodeid, "error", message="no") for nodeid in places))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    found = [re.match(r"::error title=[^,]*(.*?)::no$", line)[1] for line in annotations(records, root=part)]
    assert found == list(places.values())


def test_more_failures_than_github_shows_are_counted():
    """Ten, and a notice."""
    lines = annotations(many(MOST_ERRORS + 1))
    assert [line.partition(" ")[0] for line in lines] == ["::error"] * MOST_ERRORS + ["::notice"]
    assert "11 tests failed" in lines[-1]
    assert len(annotations(many(MOST_ERRORS))) == MOST_ERRORS


def test_a_long_message_keeps_its_ends():
    """What failed stands first, what to do last."""
    message = "\n".join(f"line {n}" for n in range(200))
    (line,) = annotations(SessionRecords((TestRecord("m::x", "failed", message=message),)))
    lines = line.split("%0A")
    assert len(lines) == 31
    assert lines[0].endswith("line 0") and lines[-1] == "line 199" and "... 170 lines ..." in lines


def test_a_failed_verdict_alone_is_no_error():
    """A test may expect it."""
    records = SessionRecords((TestRecord("t.py::x", "passed", evidence=(copies(),)),))
    assert records.tests[0].evidence[0].verdict is Verdict.REFUTED
    assert annotations(records) == []
    assert markdown(records).startswith("## ✅ ")
