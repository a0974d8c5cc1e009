"""Markers of gates, with arguments, the marker that all have, and gates that are skipped where something is missing."""

import pytest

from pytest_induction.plugin.gates.table import Mark, read_gates
from tests.conftest import FIXTURES

RUN = FIXTURES / "runs" / "two-layers"
OF_A_RUN = f'run = "{RUN}"\nexpect = ["log_is_sane"]\n'
TESTS = """
import pytest

def test_plain():
    pass

def test_with_a_model(induction):
    pass

@pytest.mark.induction(skip_if_missing=True)
def test_that_may_miss_it(induction):
    pass

@pytest.mark.induction(skip_if_missing=True)
def test_that_may_miss_a_run(induction_run):
    pass
"""


@pytest.fixture
def run(pytester):
    def run(source, *arguments, **files):
        (pytester.path / "all.gates.toml").write_text(source)
        for name, content in files.items():
            (pytester.path / f"{name}.py").write_text(content)
        return pytester.runpytest_inprocess("-p", "no:randomly", *arguments)

    return run


def marked(pytester, marks):
    (pytester.path / "a.gates.toml").write_text(f"[a]\nmarks = {marks}\n{OF_A_RUN}")
    return read_gates(pytester.path / "a.gates.toml")[0]


def test_marks_are_read_as_python_writes_them(pytester):
    """With literals as arguments."""
    gate = marked(pytester, """["slow", "timeout(600)", "flaky(reruns=2, only_rerun=['OSError'])", " xfail( ) "]""")
    assert gate.marks == (
        Mark("slow"),
        Mark("timeout", (600,)),
        Mark("flaky", (), {"reruns": 2, "only_rerun": ["OSError"]}),
        Mark("xfail"),
    )


@pytest.mark.parametrize(
    "written", ["timeout(600", "a.b", "timeout(open('x'))", "timeout(**{})", "1", "", "lambda: 0", "[" * 999]
)
def test_what_is_no_mark_is_one_line(written, pytester):
    """And nothing of it is run."""
    gate = marked(pytester, f'["{written}"]')
    expected = '`marks` must be a list of markers, such as "slow" or "timeout(600)", whose arguments are plain values, got'
    assert expected in gate.expectations[0].problem


def test_a_gate_runs_again_as_its_mark_says(run):
    """pytest-rerunfailures reads it, and --strict-markers knows it."""
    pytest.importorskip("pytest_rerunfailures")
    source = f'[a]\nmarks = ["flaky(reruns=2)"]\nrun = "{FIXTURES / "runs" / "diverged"}"\nexpect = ["log_is_sane"]\n'
    result = run(source, "--strict-markers")
    result.stdout.fnmatch_lines(["*1 failed, 2 rerun in *"])


def test_a_gate_ends_in_time_as_its_mark_says(run):
    """pytest-timeout reads it."""
    pytest.importorskip("pytest_timeout")
    slow = "import time\ndef make():\n    time.sleep(30)\n"
    result = run('[a]\nmarks = ["timeout(0.2)"]\nmodel = "own.py:make"\nexpect = ["copies_repeats"]\n', own=slow)
    assert result.duration < 20
    result.stdout.fnmatch_lines(["*Timeout (>0.2s) from pytest-timeout*"])


def test_every_gate_and_every_test_with_a_fixture_of_ours_has_the_marker(run):
    """So `-m induction` and `-m "not induction"` are the two halves of a session."""
    files = {"test_own": TESTS}
    ours = run(f"[a]\n{OF_A_RUN}", "-m", "induction", "--collect-only", "-q", "--strict-markers", **files).outlines
    others = run(f"[a]\n{OF_A_RUN}", "-m", "not induction", "--collect-only", "-q", "--strict-markers").outlines
    assert [line for line in ours if "::" in line] == [
        "all.gates.toml::a::log_is_sane",
        "test_own.py::test_with_a_model",
        "test_own.py::test_that_may_miss_it",
        "test_own.py::test_that_may_miss_a_run",
    ]
    assert [line for line in others if "::" in line] == ["test_own.py::test_plain"]


MISSING = '[a]\nskip_if_missing = {}\nmodel = "nowhere"\nexpect = ["copies_repeats"]\n[b]\nrun = "neither"\n{}expect = ["log_is_sane"]\n'


def test_gates_may_miss_what_they_are_about(run):
    """A model, a run; all others fail as before, and so does what is there and wrong."""
    result = run(MISSING.format("true", "skip_if_missing = true\n") + f"[c]\n{OF_A_RUN}", "-rs")
    result.assert_outcomes(skipped=2, passed=1)
    result.stdout.fnmatch_lines(["SKIPPED*all.gates.toml*gate `a`: `model`: no model at *nowhere*"])
    run(MISSING.format("false", "")).assert_outcomes(errors=2)


def test_a_mistake_is_not_skipped(run, pytester):
    """A model that is there and cannot be read; a key that nobody knows."""
    (pytester.path / "nowhere").mkdir()
    (pytester.path / "neither").mkdir()
    run(MISSING.format("true", "skip_if_missing = true\n")).assert_outcomes(errors=2)
    run('[a]\nskip_if_missing = "yes"\nmodel = "nowhere"\nexpect = ["copies_repeats"]\n').assert_outcomes(errors=1)


def test_a_gate_that_may_miss_its_model_is_no_error_of_a_list(run):
    """The file is right."""
    result = run(MISSING.format("true", "skip_if_missing = true\n"), "--collect-only", "-q")
    assert result.ret == 0


def test_tests_may_miss_a_model_by_their_marker(run):
    """The fixture is not told to everyone; and no default of an assertion becomes of it."""
    result = run(f"[a]\n{OF_A_RUN}", test_own=TESTS)
    result.assert_outcomes(passed=2, errors=1, skipped=2)
    result.stdout.fnmatch_lines(["ERROR test_own.py::test_with_a_model - no model: give*"])


def test_a_session_may_miss_what_its_command_line_names(run):
    """All that is not there is skipped, rather than a usage error."""
    option = "--induction-skip-if-missing"
    run(MISSING.format("false", ""), option, "all.gates.toml", test_own=TESTS).assert_outcomes(skipped=2)
    run("", option, "--induction-model=nowhere").assert_outcomes(skipped=2)
    run("", option, "--induction-run=nowhere").assert_outcomes(skipped=1)
    assert run("", "--induction-model=nowhere").ret == pytest.ExitCode.USAGE_ERROR


def test_a_hub_that_is_not_reached_is_missing(run, monkeypatch):
    """Where the model is not in its cache, and the session is offline."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run('[a]\nskip_if_missing = true\nmodel = "hf:nobody/none"\nexpect = ["copies_repeats"]\n', "-rs")
    result.assert_outcomes(skipped=1)
