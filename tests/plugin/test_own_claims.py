"""Claims that a conftest.py or another distribution registers have all that built-in ones have."""

import json
import re
from pathlib import Path

import pytest

from pytest_induction.report.session_records import SessionRecords
from tests.conftest import FIXTURES, SHIPPED

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "own-claim.md").read_text()
BLOCKS = dict(re.findall(r'```\w+ title="(.+?)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
RUNS = FIXTURES / "runs"


@pytest.fixture
def run(pytester):
    """Run pytest in an empty project whose conftest.py is that of the page."""
    (pytester.path / "fixtures").symlink_to(FIXTURES)
    pytester.makeini("[pytest]\nfilterwarnings = error\nnorecursedirs = fixtures\n")
    (pytester.path / "conftest.py").write_text(BLOCKS["conftest.py"])
    return lambda *arguments, **options: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments, **options)


def test_the_files_of_the_page_run(run, pytester):
    """The gate file and the test, with the fixture's method."""
    for name in ("models.gates.toml", "test_model.py"):
        (pytester.path / name).write_text(BLOCKS[name])
    run(f"--rootdir={pytester.path}", "-o", f"induction_model={SHIPPED['llama']}").assert_outcomes(passed=2)


def test_it_is_a_gate_of_a_named_model_and_in_every_report(run, pytester):
    """After the built-in ones, with its deciding estimate, its threshold and its next step; in JUnit too."""
    reports = ["--induction-report=r.json", "--induction-report=r.md", "--induction-report=r.html", "--junitxml=r.xml"]
    result = run("--induction-model", SHIPPED["llama"], "-v", *reports, "--induction-charts=none")
    result.assert_outcomes(passed=3)
    lines = [line.split()[2] for line in result.outlines if line.startswith("  SHOWN, passed")]
    assert lines == ["has_induction_head", "copies_repeats", "attends_back"]
    (found,) = [
        each for each in SessionRecords.from_json((pytester.path / "r.json").read_text()).evidence if each.claim == "attends_back"
    ]
    assert (found.verdict, found.outcome) == ("SHOWN", "passed") and found.thresholds == {"min_previous_token": 0.5}
    assert "| ✅ passed | SHOWN, passed | `attends_back` |" in (pytester.path / "r.md").read_text()
    page = (pytester.path / "r.html").read_text()
    assert "previous token" in page and "threshold 0.500" in page
    assert 'name="induction.attends_back.previous_token.low"' in (pytester.path / "r.xml").read_text()
    run("--induction-model", SHIPPED["llama"], "-k", "attends_back").assert_outcomes(passed=1, deselected=2)


def test_one_that_fails_says_what_to_do(run):
    """In the order of the style guide, by the step of its reason, and with the command that repeats it."""
    result = run("--induction-model", f"{FIXTURES}/attention_only.py:one_layer_smeared", "-k", "attends_back")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(
        [
            "attends_back is REFUTED, expected SHOWN: L0H* attends to the token before with 0.*",
            "  behaviour: previous token 0.* threshold 0.50)",
            "  measured: *",
            "  next: see every head with `measure_heads(model)`; the threshold is `min_previous_token=`",
        ]
    )
    result.stdout.fnmatch_lines(["pytest --induction-model=* -k attends_back"])


@pytest.mark.exhaustive
def test_its_gates_are_collected_by_workers(run):
    """A worker has registered it for itself, and the section is the same."""
    pytest.importorskip("xdist")
    told = []
    for processes in ("0", "1"):
        result = run("--induction-model", SHIPPED["llama"], "-n", processes, "-k", "attends_back or copies_repeats")
        result.assert_outcomes(passed=2)
        told.append([line for line in result.outlines if line.startswith("  SHOWN")])
    assert told[0] == told[1] and len(told[0]) == 2


def test_arguments_in_a_gate_file_are_checked_by_its_signature(run, pytester):
    """Before anything is loaded."""
    gates = f"[small]\nmodel = {SHIPPED['llama']!r}\n"
    (pytester.path / "a.gates.toml").write_text(gates + "expect.attends_back = { min_previous_tokens = 0.4 }\n")
    result = run("--collect-only", "a.gates.toml")
    result.stdout.fnmatch_lines(["*attends_back: it has no argument `min_previous_tokens`; did you mean `min_previous_token`?"])
    (pytester.path / "a.gates.toml").write_text(gates + 'expect.attends_back = { min_previous_token = "high" }\n')
    run("--collect-only", "a.gates.toml").stdout.fnmatch_lines(["*`min_previous_token` must be a number, got 'high'"])


def test_a_baseline_keeps_its_numbers(run, pytester):
    """Written, compared, and different where they differ."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("least", [0.4])
        def test_it(induction, induction_baseline, least):
            induction_baseline.check(induction.assert_attends_back(min_previous_token=least))
        """
    )
    model = f"-oinduction_model={SHIPPED['llama']}"
    run(model, "--induction-update-baseline").assert_outcomes(failed=1)
    kept = json.loads((pytester.path / "induction-baseline.json").read_text())["entries"]
    assert [list(entry["fields"]) for entry in kept.values()] == [["previous_token"]]
    run(model).assert_outcomes(passed=1)
    run(f"-oinduction_model={SHIPPED['two-layers']}").assert_outcomes(failed=1)


def test_one_about_runs_is_a_gate_of_a_named_run(run, pytester):
    """And not of a model; one that must be asked for is in gate files alone."""
    (pytester.path / "conftest.py").write_text(
        """
from pytest_induction import Claim, Evidence, Verdict, expect, load_run, register_claim
from pytest_induction.runs.phase_change.claims import provenance_of

def assert_long(run, *, min_snapshots: int = 10) -> Evidence:
    opened = load_run(run)
    verdict = Verdict.SHOWN if len(opened) >= min_snapshots else Verdict.REFUTED
    return expect(Evidence("long", verdict, "counted", f"{len(opened)} snapshots", provenance_of(opened)))

register_claim(Claim(name="long", asserts="it is long", assertion=assert_long, subject="run"))
register_claim(Claim(name="longer", asserts="it is long", assertion=assert_long, subject="run", needs=("asking",)))
"""
    )
    (pytester.path / "a.gates.toml").write_text(
        f'[r]\nrun = "{RUNS / "two-layers"}"\nexpect.longer = {{ min_snapshots = 100 }}\n'
    )
    run(f"--induction-run={RUNS / 'two-layers'}", "-k", "long").assert_outcomes(passed=1, deselected=5)
    run("a.gates.toml").assert_outcomes(failed=1)


def test_a_session_after_it_does_not_know_it(run, pytester):
    """In one process; so the same conftest.py is read again without a complaint."""
    for _ in range(2):
        run("--induction-model", SHIPPED["llama"], "--collect-only", "-q").stdout.fnmatch_lines(["*::attends_back"])
    (pytester.path / "conftest.py").unlink()
    run("--induction-model", SHIPPED["llama"], "--collect-only", "-q").stdout.no_fnmatch_line("*attends_back*")


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ('name="formed", asserts="", assertion="json.tool:main"', "claim `formed`: the name is taken, by *"),
        ('name="own", asserts="", assertion="json.tool:mane"', "claim `own`: there is no function `mane` in json.tool*"),
    ],
)
def test_what_a_conftest_registers_wrongly_is_said(run, pytester, claim, said):
    (pytester.path / "conftest.py").write_text(
        f"from pytest_induction import Claim, register_claim\nregister_claim(Claim({claim}))\n"
    )
    result = run("--induction-model", SHIPPED["llama"])
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*ArgumentError: {said}"])


def distribution(pytester, value):
    """One that is installed beside the tests and brings claims."""
    info = pytester.path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pytest_induction.claims]\ntheirs = {value}\n")
    pytester.syspathinsert()


def test_a_distribution_brings_claims(run, pytester):
    """Its record by its entry point, its assertion when it is asked for."""
    distribution(pytester, "their_records:CLAIMS")
    pytester.path.joinpath("conftest.py").rename(pytester.path / "their_heads.py")
    heads = (pytester.path / "their_heads.py").read_text()
    (pytester.path / "their_heads.py").write_text(heads.partition("register_claim(\n")[0])
    record = 'name="attends_back", asserts="some head attends back", assertion="their_heads:assert_attends_back"'
    pytester.makepyfile(their_records=f"from pytest_induction import Claim\nCLAIMS = [Claim({record})]\n")
    pytester.makepyfile(
        conftest="""
        import sys

        def pytest_collection_finish():
            assert "their_records" in sys.modules and "their_heads" not in sys.modules
        """
    )
    run("--induction-model", SHIPPED["llama"], "-k", "attends_back").assert_outcomes(passed=1, deselected=2)
    (pytester.path / "models.gates.toml").write_text(BLOCKS["models.gates.toml"])
    run("models.gates.toml").assert_outcomes(passed=1)


def test_a_distribution_that_is_broken_is_named(run, pytester):
    distribution(pytester, "no_such_module:CLAIMS")
    result = run("--induction-model", SHIPPED["llama"])
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        [
            "ERROR: the entry point `theirs` of pytest_induction.claims (no_such_module:CLAIMS) brings no claim: ModuleNotFoundError: *"
        ]
    )
    assert len(result.errlines) <= 2
