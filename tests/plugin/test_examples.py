"""Every file in examples/ does what it says, on what we ship."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from pytest_induction.report.session_records import read_records
from tests.conftest import FIXTURES, SHIPPED
from tests.runs.written_layouts import write_gguf

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
OURS = re.compile(r"(python -m )?pytest ")


@pytest.fixture
def place(pytester, monkeypatch):
    """A copy of what a repository would have, with no variable of a CI set that runs these tests."""
    pytest.importorskip("pytest_timeout")  # which the examples install
    for name in ("models", "runs"):
        (pytester.path / name).mkdir()
    (pytester.path / "models" / "candidate").symlink_to(SHIPPED["llama"])
    (pytester.path / "runs" / "candidate").symlink_to(FIXTURES / "runs" / "one-layer-smeared")
    (pytester.path / "runs" / "released").symlink_to(FIXTURES / "runs" / "two-layers")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    return pytester


def read(name):
    return pytest.importorskip("yaml").safe_load((EXAMPLES / name).read_text())


def perform(steps, place, environment, monkeypatch):
    """Run what steps of a CI run: ours in this process, the rest in a shell, all but what installs something.

    Returns the results of ours; a step that fails would end the job.
    """
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    results = []
    for line in "\n".join(steps).replace("\\\n", " ").splitlines():
        if line.startswith("pip install "):
            assert_installable(shlex.split(line)[2:])
        elif OURS.match(line):
            words = shlex.split(os.path.expandvars(line))
            results.append(place.runpytest_inprocess(*words[words.index("pytest") + 1 :]))
        else:
            subprocess.run(["bash", "-euc", line], cwd=place.path, check=True)
    return results


def assert_installable(names):
    """Ours has the extras, and what comes beside it is what we test with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name in names:
        package, _, extras = name.rstrip("]").partition("[")
        if package == "pytest-induction":
            assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
        else:
            assert any(each.startswith(package) for each in project["dependency-groups"]["dev"]), package


def verdicts(path):
    """Of a JUnit file: what each case says of its claim."""
    cases = ET.parse(path).getroot().iter("testcase")
    return {
        (case.get("name"), each.get("value"))
        for case in cases
        for each in case.iter("property")
        if each.get("name") == f"induction.{case.get('name')}.verdict"
    }


def test_github_actions_gates_a_model(place, monkeypatch):
    """The files that it uploads are there, and the summary of the step."""
    job = read("github-actions.yml")["jobs"]["gates"]
    environment = {**job["env"], "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "summary.md", "GITHUB_WORKSPACE": place.path}
    (result,) = perform([step["run"] for step in job["steps"] if "run" in step], place, environment, monkeypatch)
    assert result.ret == 0
    (upload,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact")]
    assert upload["if"] == "always()"
    reports = place.path / upload["with"]["path"]
    assert {each.name for each in reports.iterdir()} == {"induction.xml", "induction.html", "induction.json"}
    assert verdicts(reports / "induction.xml") == {("has_induction_head", "SHOWN"), ("copies_repeats", "SHOWN")}
    assert [test.outcome for test in read_records(reports / "induction.json").tests] == ["passed", "passed"]
    assert (place.path / "summary.md").read_text().startswith("## ✅ Induction: 2 passed")


def test_github_actions_keeps_verdicts(place):
    """What the job caches is where they are kept."""
    (step,) = [each for each in read("github-actions.yml")["jobs"]["gates"]["steps"] if "cache@" in each.get("uses", "")]
    assert f"--induction-cache={step['with']['path']} " in (EXAMPLES / "github-actions.yml").read_text()


def test_pre_commit_checks_gate_files_and_gates(place):
    """A file with a mistake is refused; a model that is not there is skipped, and a second push measures nothing."""
    check, gates = (shlex.split(hook["entry"]) for hook in read("pre-commit-config.yaml")["repos"][0]["hooks"])
    file = place.path / "models.gates.toml"
    file.write_text('[a]\nmodel = "models/candidate"\nexpect = ["copies_repeat"]\n')
    assert place.runpytest_inprocess(*check[1:], "models.gates.toml").ret == pytest.ExitCode.INTERRUPTED
    file.write_text(
        '[a]\nmodel = "models/candidate"\nexpect = ["copies_repeats"]\n[b]\nmodel = "none"\nexpect = ["copies_repeats"]\n'
    )
    assert place.runpytest_inprocess(*check[1:], "models.gates.toml", "--induction-skip-if-missing").ret == 0
    for _ in range(2):
        result = place.runpytest_inprocess(*gates[1:], "-v")
        result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*kept by --induction-cache: measured on *"])


def test_gitlab_gates_a_run(place, monkeypatch):
    """Against the one before; the JUnit file is where GitLab is told to find it."""
    job = read("gitlab-ci.yml")["induction"]
    steps = [*job["before_script"], *job["script"]]
    (result,) = perform(steps, place, job["variables"], monkeypatch)
    assert result.ret == 0
    told = verdicts(place.path / job["artifacts"]["reports"]["junit"])
    assert ("onset_not_later", "SHOWN") in told and len(told) == 6
    (reports,) = job["artifacts"]["paths"]
    assert (place.path / reports / "induction.md").read_text().startswith("## ✅ Induction: 6 passed")
    assert (place.path / reports / "induction.html").is_file()


def test_gitlab_keeps_what_a_sweep_measured(place):
    """What the job caches is where sweeps are kept."""
    checkpoints = place.mkdir("checkpoints")
    for step in ("000", "400"):
        shutil.copy(FIXTURES / "runs" / "two-layers-checkpoints" / f"step-{step}.safetensors", checkpoints)
    factory = f"--induction-factory={FIXTURES}/attention_only.py:two_layers"
    place.runpytest_inprocess("--induction-run=checkpoints", factory, "-k", "log_is_sane")
    paths = read("gitlab-ci.yml")["induction"]["cache"]["paths"]
    assert [each.relative_to(place.path).parts[0] for path in paths for each in place.path.glob(f"{path}/*/snapshots.jsonl")] == [
        ".pytest_cache"
    ]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Run the job on a run, with what Slurm sets; `python` may be another program."""
    run = tmp_path / "a run"
    shutil.copytree(FIXTURES / "runs" / "one-layer", run)
    (tmp_path / "bin").mkdir()
    variables = {
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": "1",
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "GITHUB"))}

    def job(*words, python=""):
        if python:
            (tmp_path / "bin" / "python").write_text(f"#!/bin/bash\n{python}\n")
            (tmp_path / "bin" / "python").chmod(0o755)
        command = ["bash", str(EXAMPLES / "slurm.sh"), *words]
        return subprocess.run(command, env={**inherited, **variables}, cwd=tmp_path, capture_output=True, text=True, check=False)

    return job


def test_slurm_gates_a_run_and_leaves_its_reports_beside_it(slurm, tmp_path):
    """A run that fails a gate fails the job, so that nothing that waits for it starts; whole reports are there all the same."""
    ended = slurm("a run", "-p", "no:randomly", "-k", "phase_change or log_is_sane")
    assert ended.returncode == 1, ended.stderr
    out = tmp_path / "a run-gates"
    assert {each.name for each in out.iterdir()} == {"gates.html", "gates.json", "gates.xml", ".pytest_cache"}
    assert verdicts(out / "gates.xml") == {("log_is_sane", "SHOWN"), ("phase_change", "REFUTED")}
    assert ended.stdout.splitlines()[-1] == f"gates of {tmp_path / 'a run'} ended with 1; reports are in {out}"


@pytest.mark.parametrize("status", [0, 4])
def test_slurm_ends_as_pytest_does(slurm, status, tmp_path):
    """Also where no report was written; options go to pytest as they are."""
    ended = slurm("a run", "-k", "a b", python=f'printf "%s\\n" "$@" > told; exit {status}')
    assert ended.returncode == status
    told = (tmp_path / "told").read_text().splitlines()
    assert told[:2] == ["-m", "pytest"] and told[-2:] == ["-k", "a b"]
    assert f"--induction-run={tmp_path / 'a run'}" in told


def test_slurm_wants_a_run(slurm):
    """In one line."""
    ended = slurm()
    assert ended.returncode == 1
    assert "name the run: sbatch slurm.sh /path/to/run" in ended.stderr


def test_a_quantised_model_is_checked_before_its_release(place, monkeypatch):
    """As it lies here, with the shipped model; with 8 bits it keeps its heads, with 2 it is told which it lost."""
    monkeypatch.delenv("MODEL", raising=False)
    result = place.runpytest_inprocess("-Werror", "-p", "no:cacheprovider", str(EXAMPLES / "quantised_release"))
    result.assert_outcomes(passed=3)
    told = [line.split(maxsplit=3) for line in result.outlines if "heads_preserved" in line]
    assert {line[0] for line in told} == {"SHOWN,", "REFUTED,"}
    assert any(line[:2] == ["REFUTED,", "failed"] and "L1H0 lost" in line[3] for line in told)


def test_quantised_files_are_held_against_what_they_were_made_of(place):
    """The gates of `release` as they are: a file whose heads write nothing fails, and what it is stands in the section."""
    pytest.importorskip("gguf")
    model = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(SHIPPED["llama"])
    gates = place.path / "release.gates.toml"
    shutil.copy(EXAMPLES / "release" / gates.name, gates)
    (place.path / "model").symlink_to(SHIPPED["llama"])
    write_gguf(place.path / "model.Q8_0.gguf", model, "Q8_0")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    write_gguf(place.path / "model.Q4_0.gguf", model, "Q4_0")
    result = place.runpytest_inprocess("-p", "no:cacheprovider", str(gates), "-k", "heads_preserved")
    result.assert_outcomes(passed=1, failed=1, deselected=2)
    result.stdout.fnmatch_lines(
        ["*heads_preserved is REFUTED*", "*weights Q8_0 in a GGUF file (99.7% Q8_0, 0.3% F32), widened to float32*"]
    )


def test_every_example_is_tested_here_and_told_of():
    """No file of them is without a test, nor without a word in the page on CI."""
    named = Path(__file__).read_text() + (ROOT / "tests" / "plugin" / "test_gate_files.py").read_text()
    named += (ROOT / "tests" / "heads" / "test_own.py").read_text()
    page = (ROOT / "docs" / "ci.md").read_text() + (ROOT / "docs" / "gates.md").read_text()
    page += (ROOT / "docs" / "how-to" / "own-claim.md").read_text().replace("../../examples", "../examples")
    for each in EXAMPLES.iterdir():
        assert each.name in named, each.name
        assert f"../examples/{each.name}" in page, each.name
