"""What a session leaves in its reports, however it ended and however many processes ran it."""

import html
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_induction.report.session_records import read_records
from tests.conftest import FIXTURES, SHIPPED

RUN = str(FIXTURES / "runs" / "two-layers")
TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"
TESTS = """
import pytest


def test_heads(induction):
    induction.assert_has_induction_head()


def test_none(induction):
    induction.assert_no_induction_head()


def test_other():
    assert False


@pytest.mark.xfail(strict=True)
def test_expected(induction):
    induction.assert_no_induction_head()
"""


@pytest.fixture
def run(pytester):
    """Run pytest on four tests, three of them of a model with induction heads, with warnings as errors."""
    pytester.makeini(f"[pytest]\nfilterwarnings = error\ninduction_model = {SHIPPED['two-layers']}\n")
    pytester.makepyfile(test_model=TESTS)
    return lambda *arguments, **options: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments, **options)


def test_records_hold_every_verdict_and_what_is_drawn(run, pytester):
    """In order, with outcomes, messages, commands, and the charts of the model, measured once; of other tests what failed."""
    result = run("--induction-report=records.json", "--induction-report=page.html", "--induction-report=report.md")
    result.assert_outcomes(passed=1, failed=2, xfailed=1)
    result.stdout.fnmatch_lines(["report: records.json", "report: page.html", "report: report.md"])
    records = read_records(pytester.path / "records.json")
    found = [(test.nodeid, test.outcome, [str(each.verdict) for each in test.evidence]) for test in records.tests]
    assert found == [
        ("test_model.py::test_heads", "passed", ["SHOWN"]),
        ("test_model.py::test_none", "failed", ["REFUTED"]),
        ("test_model.py::test_other", "failed", []),
        ("test_model.py::test_expected", "xfailed", ["REFUTED"]),
    ]
    assert [test.nodeid for test in records.tests if not test.is_ours] == ["test_model.py::test_other"]
    assert records.tests[1].message.startswith("no_induction_head is REFUTED, expected SHOWN")
    assert all(test.again.startswith("pytest ") and test.nodeid in test.again for test in records.tests if test.is_ours)
    kinds = [chart.kind for chart in records.charts]
    assert kinds == ["heads", "attention", "repeats", "ablations", "composition"]
    assert not any(chart.missing for chart in records.charts)
    assert {(each.model, each.fingerprint) for each in records.charts} == {
        (each.provenance.model, each.provenance.fingerprint) for each in records.evidence
    }
    assert (records.exit_status, records.stopped) == (1, "")
    assert "--induction-report=records.json" in records.command
    assert records.environment["pytest"] == pytest.__version__
    assert "| ❌ failed | none | `test_other` |" in (pytester.path / "report.md").read_text()
    assert "<title>" in (pytester.path / "page.html").read_text()


def test_a_control_that_passes_is_shown_so(run, pytester):
    """In the terminal, the records, the page, and Markdown: a model without heads of which that is claimed."""
    gates = f"[control]\nmodel = {str(SHIPPED['one-layer'])!r}\nexpect = ['no_induction_head']\n"
    pytester.path.joinpath("control.gates.toml").write_text(gates)
    wanted = ["records.json", "page.html", "report.md"]
    result = run(
        "control.gates.toml", *(f"--induction-report={name}" for name in wanted), "--induction-charts=none", "--color=yes"
    )
    result.assert_outcomes(passed=1)
    (line,) = [line for line in result.outlines if "SHOWN, passed" in line]
    assert line.startswith("\x1b[32m")
    (test,) = read_records(pytester.path / "records.json").tests
    assert [(each.claim, each.verdict, each.outcome) for each in test.evidence] == [("no_induction_head", "SHOWN", "passed")]
    assert '"badge shown">SHOWN, passed<' in (pytester.path / "page.html").read_text()
    assert "| ✅ passed | SHOWN, passed |" in (pytester.path / "report.md").read_text()


def without_times(path):
    """Records but for what differs from one session to the next."""
    data = json.loads(path.read_text())
    for name in ("started", "seconds", "command"):
        del data[name]
    for test in data["tests"]:
        del test["seconds"]
    return data


def test_two_processes_leave_the_same_records_as_one(run, pytester):
    """The same tests, verdicts, order and charts, to the last digit."""
    both = ("--induction-run", RUN, "--induction-model", SHIPPED["two-layers"], ".")
    run("--induction-report=one.json", *both)
    run("--induction-report=two.json", *both, "-n", "2")
    one, two = (without_times(pytester.path / name) for name in ("one.json", "two.json"))
    assert one == two
    assert [each["kind"] for each in one["charts"]].count("run") == 1


def test_an_interrupted_session_leaves_what_it_measured(run, pytester):
    """The verdicts before it, and those of the test that it hit; the test after it was not run."""
    pytester.makepyfile(
        test_model="""
        def test_first(induction):
            induction.assert_has_induction_head()

        def test_hit(induction):
            induction.assert_copies_repeats()
            raise KeyboardInterrupt

        def test_never(induction):
            induction.assert_has_induction_head()
        """
    )
    result = run("--induction-report=records.json", "--induction-charts=none", no_reraise_ctrlc=True)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["report: records.json (partial: interrupted)"])
    records = read_records(pytester.path / "records.json")
    assert [(test.nodeid.rpartition("::")[2], len(test.evidence)) for test in records.tests] == [
        ("test_first", 1),
        ("test_hit", 1),
        ("test_never", 0),
    ]
    assert [test.outcome for test in records.tests] == ["passed", "error", "not run"]
    assert records.stopped == "interrupted"
    assert not records.charts


def test_what_cannot_be_written_is_kept_elsewhere_and_fails_the_session(run, pytester):
    """A directory that is gone at the end costs the report its place, not its content."""
    (pytester.path / "out").mkdir()
    pytester.makepyfile(
        test_model="""
        import shutil

        def test_heads(induction):
            induction.assert_has_induction_head()
            shutil.rmtree("out")
        """
    )
    result = run("--induction-report=out/page.html", "--induction-charts=heads")
    assert result.ret == 1
    result.assert_outcomes(passed=1)
    kept = next(line for line in result.outlines if line.startswith("report: the records are in ")).split()[5].rstrip(";")
    assert len(read_records(kept).tests) == 1
    Path(kept).unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--induction-report=page.pdf"], "*--induction-report: *.html*.json*.md*page.pdf*"),
        (["--induction-report=nowhere/page.html"], "*--induction-report: *nowhere*"),
        (["--induction-report=page.html", "--induction-charts=head"], "*--induction-charts: *head*heads*"),
        (["--induction-charts=heads"], "*--induction-charts*--induction-report*"),
    ],
)
def test_a_report_that_cannot_be_made_is_refused_at_once(run, arguments, said):
    """In one line, with the exit code of a wrong command line."""
    result = run(*arguments)
    assert result.ret == 4
    result.stderr.fnmatch_lines([said])


def test_a_gate_whose_model_cannot_be_loaded_is_in_the_report(run, pytester):
    """It failed, and says why."""
    run("--induction-model", "no.such.module:factory", "--induction-report=records.json")
    records = read_records(pytester.path / "records.json")
    assert [test.outcome for test in records.tests] == ["error", "error"]
    assert "no.such.module" in records.tests[0].message


RENDER = """
import builtins, sys
real = builtins.__import__
def guarded(name, *args, **kwargs):
    if name.split(".")[0] in ("torch", "transformers"):
        raise ImportError(f"{name} is not here")
    return real(name, *args, **kwargs)
builtins.__import__ = guarded
from pytest_induction.__main__ import main
sys.exit(main(["report", *sys.argv[1:]]))
"""


def test_records_are_rendered_again_without_torch(run, pytester):
    """As the same page that the session wrote; what are no records is refused in one line."""
    run("--induction-report=records.json", "--induction-report=page.html", "--induction-charts=heads")
    command = [sys.executable, "-c", RENDER]
    subprocess.run([*command, "records.json", "-o", "again.html"], cwd=pytester.path, check=True, capture_output=True)
    assert (pytester.path / "again.html").read_text() == (pytester.path / "page.html").read_text()
    (pytester.path / "broken.json").write_text((pytester.path / "records.json").read_text()[:500])
    result = subprocess.run(
        [*command, "broken.json", "-o", "x.html"], cwd=pytester.path, check=False, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: broken.json: ")
    assert result.stderr.count("\n") == 1


def test_pytest_html_gets_the_figures(run, pytester):
    """The head map of the model stands in its page, beside the test."""
    pytest.importorskip("pytest_html")
    run("--html=tests.html", "--self-contained-html", "-k", "heads")
    page = html.unescape((pytester.path / "tests.html").read_text())
    assert "Every head, prefix matching" in page
    assert page.count("data:image/svg+xml;base64,") >= 10


def test_a_rerun_test_is_recorded_once(run, pytester):
    """With the verdicts of its last run."""
    pytest.importorskip("pytest_rerunfailures")
    run("--reruns=1", "-k", "none", "--induction-report=records.json", "--induction-charts=none")
    (test,) = read_records(pytester.path / "records.json").tests
    assert len(test.evidence) == 1


def test_charts_are_those_of_models_with_a_verdict(run, pytester):
    """What is only measured is not drawn; what a later test has a verdict on, is, and what only a later gate has a text for."""
    gates = f"""
        [without]
        model = {SHIPPED["three-layers-text"]!r}
        expect = ["has_induction_head"]
        [with]
        model = {SHIPPED["three-layers-text"]!r}
        text = {str(TEXT)!r}
        expect = ["learns_in_context"]
    """
    pytester.path.joinpath("text.gates.toml").write_text(gates)
    pytester.makepyfile(
        test_model="""
        def test_measured(induction):
            induction.measure_heads()
        """
    )
    run("--induction-report=records.json", "--induction-charts=heads,text").assert_outcomes(passed=3)
    charts = read_records(pytester.path / "records.json").charts
    assert [(each.model.rpartition(":")[2], each.kind) for each in charts] == [
        ("three_layers_text", "heads"),
        ("three_layers_text", "text"),
    ]


def test_github_gets_a_summary_and_annotations(run, pytester, monkeypatch):
    """Without any option, where its variables are set."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run()
    result.stdout.fnmatch_lines(["::error *test_none*"])
    assert "has_induction_head" in (pytester.path / "summary.md").read_text()
    shutil.rmtree(pytester.path / "out", ignore_errors=True)
