"""What concerns records and training runs runs where torch cannot be imported, and never tries to: to the end of the last hook."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_induction
from pytest_induction.report.session_records import read_records
from pytest_induction.report.writing import write_report
from pytest_induction.runs.store import RunWriter
from tests.conftest import FIXTURES
from tests.fuzz import seeds
from tests.report import samples

RUN = FIXTURES / "runs" / "two-layers"
GUARD = """
import sys, traceback

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            with open({told!r}, "a") as file:
                file.writelines(traceback.format_stack()[-12:])
            raise ImportError("torch is forbidden")

sys.meta_path.insert(0, Guard())
"""
TESTS = """
import pytest
from pytest_induction import assert_phase_change, load_run

def test_run(induction_run):
    evidence = assert_phase_change(induction_run)
    assert evidence.changes

def test_numbers(induction_run, induction_baseline):
    induction_baseline.check({"steps": float(len(induction_run))})

def test_fails(induction_run):
    assert_phase_change(induction_run, before_step=1)
"""
GATES = f"""
[run]
run = {str(RUN)!r}

[run.expect]
phase_change = true
log_is_sane = true
cooccurrence = true
heads_kept = true
final_has_induction_head = true
formed = {{ before_step = 350 }}
"""
HUNTED = """
import pytest
import pytest_induction as induction
from pytest_induction import ExpectationFailed, load_run; from pytest_induction.errors import PropertyFailed

ASKED = {"property": "completes_repeats", "options": {"min_accuracy": 0.5}}
EVERY = {
    "phase_change": {},
    "cooccurrence": {},
    "formation_order": {},
    "no_transience": {},
    "transience": {},
    "no_phase_change": {},
    "onset_not_later": {"reference": "other"},
    "coperturbation": {"treated": "other"},
    "formed": {"before_step": 1000},
    "heads_kept": {},
    "final_has_induction_head": {},
    "log_is_sane": {},
    "property_holds_from": ASKED,
}

@pytest.mark.parametrize("name", EVERY)
def test_every_assertion_about_a_run(name):
    judge = getattr(induction, f"assert_{name}")
    for run in ("hunted", load_run("other")):
        try:
            evidence = judge(run, **EVERY[name])
        except ExpectationFailed as failed:
            evidence = failed.evidence
        assert evidence.verdict and evidence.provenance.model

def test_property():
    assert induction.assert_property_holds_from("hunted", **ASKED, before_step=1000).reason == "holds"
    with pytest.raises(ExpectationFailed):
        induction.assert_property_holds_from(
            "hunted", **ASKED, before_step=1, probes="repeated_sequences", probe_options={"period": [4, 6]}
        )

def test_checks_and_hunts():
    found = induction.check_property(load_run("hunted"), "completes_repeats", min_accuracy=0.5, holds_from=1000)
    assert found.holds_from and induction.find_counterexample("hunted", "completes_repeats", min_accuracy=0.5)[1]
    with pytest.raises(PropertyFailed, match="probes="):
        induction.check_property("hunted", "completes_repeats", min_accuracy=0.5, holds_from=1)

def test_family():
    with pytest.raises(ExpectationFailed):
        induction.assert_continuity([load_run("hunted"), "other"])
    margins = {"onset": None, "end": None}
    assert induction.assert_continuity(["hunted", "hunted"], margins=margins).reason == "alike"
"""
HUNTED_GATES = """
[run]
run = "hunted"

[run.expect.property_holds_from]
property = "completes_repeats"
options = { min_accuracy = 0.5 }
"""


@pytest.fixture
def forbid(tmp_path, monkeypatch):
    """Run a command in processes that refuse to import torch, and return what they said; none of them may have tried."""
    told = tmp_path / "guard" / "told"
    told.parent.mkdir()
    (told.parent / "sitecustomize.py").write_text(GUARD.format(told=str(told)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(told.parent), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments, code=0, tries=False):
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert told.exists() is tries, told.read_text() if told.exists() else ""
        return done.stdout

    run.place = work
    return run


def test_the_guard_can_fail(forbid):
    """What needs torch is refused, and seen."""
    (forbid.place / "needs_torch.py").write_text("import torch\n")
    forbid("needs_torch", code=1, tries=True)


def test_records_are_rendered(forbid):
    """As a page, as Markdown, and as records again."""
    write_report(samples.small(), forbid.place / "records.json")
    for name in ("page.html", "report.md", "again.json"):
        forbid("pytest_induction", "report", "records.json", "-o", name)
    assert (forbid.place / "again.json").read_text() == (forbid.place / "records.json").read_text()


REPORTS = [f"--induction-report={name}" for name in ("page.html", "report.md", "records.json")]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="alone", marks=pytest.mark.exhaustive),
        pytest.param(("-v", "--junitxml=junit.xml"), id="verbose"),
        pytest.param(("-n", "1"), id="xdist"),
    ],
)
def test_gates_of_a_recorded_run(forbid, more):
    """With their reports, all that is drawn of the run, the section in the terminal, JUnit; in a worker too."""
    out = forbid("pytest", f"--induction-run={RUN}", "--induction-before-step=350", *REPORTS, *more)
    assert "6 passed" in out and "SHOWN" in out
    (chart,) = read_records(forbid.place / "records.json").charts
    assert chart.kind == "run" and not chart.missing


def test_gates_of_a_log(forbid):
    """Which holds nothing but losses."""
    steps = [{"step": step, "loss": 5.0 - step / 1000, "eval_loss": 5.1 - step / 1000} for step in range(0, 2000, 20)]
    (forbid.place / "trainer_state.json").write_text(json.dumps({"log_history": steps, "global_step": 1980}))
    out = forbid("pytest", "--induction-run=trainer_state.json", *REPORTS)
    assert "1 passed" in out


def test_no_assertion_about_a_run_is_left_out():
    """All that take one as their first argument are tried without torch."""
    first = {
        name.removeprefix("assert_"): next(iter(inspect.signature(getattr(pytest_induction, name)).parameters.values()))
        for name in pytest_induction.__all__
        if name.startswith("assert_")
    }
    kinds = ("RunLike", "TrainingLike", "Family")
    of_runs = {name for name, parameter in first.items() if any(kind in str(parameter.annotation) for kind in kinds)}
    assert len(of_runs) >= 11
    assert {name for name in of_runs if f'"{name}":' not in HUNTED and f"assert_{name}(" not in HUNTED} == set()


def test_properties_and_families_of_recorded_runs(forbid):
    """What was hunted while a run was recorded, and runs that are compared: in tests, and from a file of gates."""
    for name, count in (("hunted", 24), ("other", 12)):
        with RunWriter(forbid.place / name, source="recorder", tokens_per_step=2048.0, icl_windows=[[2, 6], [30, 40]]) as writer:
            for snapshot in seeds.run(count, seed=count):
                writer.append(snapshot)
    (forbid.place / "test_hunted.py").write_text(HUNTED)
    (forbid.place / "hunted.gates.toml").write_text(HUNTED_GATES)
    out = forbid("pytest", *REPORTS)
    assert "17 passed" in out


def test_gate_files_fixtures_and_baselines_of_runs(forbid):
    """What a project has of its own about runs."""
    (forbid.place / "runs.gates.toml").write_text(GATES)
    (forbid.place / "test_run.py").write_text(TESTS)
    (forbid.place / "pytest.ini").write_text(f"[pytest]\ninduction_run = {RUN}\n")
    out = forbid("pytest", "--induction-update-baseline", *REPORTS, code=1)
    assert "2 failed, 7 passed" in out
    out = forbid("pytest", *REPORTS, code=1)
    assert "1 failed, 8 passed" in out


@pytest.mark.parametrize(
    "command",
    [
        ("draw", "{run}", "-o", "run.svg"),
        ("watch", "{run}", "--once"),
        ("watch", "{run}", "--once", "--html", "run.html"),
        ("--help",),
        ("sweep", "--help"),
    ],
    ids=lambda command: "-".join(each.strip("-{}") for each in command),
)
def test_commands_that_read_runs(forbid, command):
    """They draw and show what was measured."""
    forbid("pytest_induction", *(each.format(run=RUN) for each in command))
    assert not command[-1].endswith((".svg", ".html")) or (Path(forbid.place) / command[-1]).exists()
