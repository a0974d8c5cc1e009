"""Gates and tests of models beside what else runs in a CI: JUnit, more processes, reruns, timeouts, coverage, selection, exit codes."""

import os
import re
import shlex
import xml.etree.ElementTree as ET

import pytest

from tests.conftest import FIXTURES, SHIPPED

RUN = FIXTURES / "runs" / "two-layers"
CONTROL = SHIPPED["one-layer"]
TESTS = """
def test_heads(induction):
    induction.assert_has_induction_head()

def test_none(induction):
    induction.assert_no_induction_head()

def test_copies(induction):
    induction.assert_copies_repeats()
"""


@pytest.fixture
def run(pytester):
    """Run pytest where three tests of a model with induction heads lie, the second of which fails."""
    pytester.makeini(f"[pytest]\nfilterwarnings = error\ninduction_model = {SHIPPED['two-layers']}\n")
    pytester.makepyfile(test_model=TESTS)
    return pytester.runpytest_inprocess


def section(result):
    """What stands in our section."""
    lines = result.outlines
    start = next(index for index, line in enumerate(lines) if re.fullmatch("=+ induction =+", line))
    end = next(
        index for index in range(start + 1, len(lines)) if lines[index].startswith("=") or lines[index].startswith("report")
    )
    return lines[start:end]


def cases(path):
    """The test cases of a JUnit file: name, properties in their order, message of the failure."""
    return [
        (
            case.get("name"),
            [(each.get("name"), each.get("value")) for each in case.iter("property")],
            [each.get("message") for each in case.iter("failure")],
        )
        for case in ET.parse(path).getroot().iter("testcase")
    ]


@pytest.mark.exhaustive
def test_two_processes_tell_a_ci_the_same_as_one(run, pytester, monkeypatch):
    """Section, short summary, JUnit cases with their properties and one-line messages; what is rerun counts once in either."""
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(test_model="def test_it(induction_run):\n    assert induction_run.name == 'two-layers', 'no'\n")
    options = [f"--induction-run={FIXTURES / 'runs' / 'one-layer'}", "--reruns=1", "--junitxml=report.xml", "test_model.py"]
    monkeypatch.setenv("COLUMNS", "1000")
    found = []
    for processes in ("0", "2"):
        result = run(*options, "-n", processes)
        assert result.ret == 1
        assert result.parseoutcomes() == {"failed": 5, "passed": 1, "rerun": 5}
        found.append((section(result), summary(result), sorted(cases(pytester.path / "report.xml"))))
    assert found[0] == found[1]
    lines, short, told = found[0]
    assert not [line for line in lines if "times)" in line]
    assert f"one-layer::phase_change - phase_change is REFUTED, expected SHOWN: {lines_of('phase_change', lines)}" in "".join(
        short
    )
    assert [message for _, _, messages in told for message in messages if "phase_change is" in message and "\n" not in message]
    verdicts = [key for _, keys, _ in told for key, _ in keys if key.endswith(".verdict")]
    assert len(verdicts) == len(set(verdicts)) == 5


def summary(result):
    """What the short summary says of failures, in an order of its own."""
    return sorted(line for line in result.outlines if line.startswith("FAILED "))


def lines_of(claim, lines):
    """What the section says of a claim."""
    return next(line.split(maxsplit=3)[3] for line in lines if line.split()[2:3] == [claim])


def test_junit_properties_hold_what_a_dashboard_plots(run, pytester):
    """Verdict, reason, and each number with its interval and threshold, of a failure the command that repeats it; each once."""
    run("--junitxml=report.xml", "-k", "heads or none")
    (name, told, failures), (_, second, _) = reversed(cases(pytester.path / "report.xml"))
    assert name == "test_none" and failures
    assert len(dict(told)) == len(told) and len(dict(second)) == len(second)
    found = {key.removeprefix("induction.no_induction_head."): value for key, value in told}
    assert (found["verdict"], found["reason"], found["seed"], found["confidence"]) == ("REFUTED", "formed", "0", "0.999")
    assert found["outcome"] == "failed" and dict(second)["induction.has_induction_head.outcome"] == "passed"
    assert found["summary"].startswith(f"{len(found['heads'].split())} heads with prefix matching above 0.300")
    for measure in ("prefix_matching", "advantage", "repeat_accuracy"):
        assert float(found[f"{measure}.low"]) <= float(found[measure]) <= float(found[f"{measure}.high"])
    assert float(found["threshold.min_prefix_matching"]) == 0.3 < float(found["prefix_matching.low"])
    assert found["induction.again"].startswith("pytest ") and found["induction.again"].endswith("test_none")


def test_a_rerun_that_passes_is_one_verdict(run, pytester):
    """The last one; of the properties of others nothing is taken."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        test_model="""
        attempts = []

        def test_flaky(induction, record_property):
            record_property("mine", len(attempts))
            induction.assert_has_induction_head()
            attempts.append(1)
            assert len(attempts) > 1
        """
    )
    result = run("--reruns=1", "--junitxml=report.xml", "-ojunit_family=xunit1")
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    assert not [line for line in section(result) if "times)" in line]
    first, second = ([key for key, _ in keys] for _, keys, _ in cases(pytester.path / "report.xml"))
    assert first == ["mine"]
    assert second.count("mine") == 2
    assert second.count("induction.has_induction_head.verdict") == 1


def test_the_last_failed_gate_runs_alone(run):
    """`--lf` after a failure, and `--durations` names the gate and its model; `-p no:cacheprovider` takes only the memory."""
    gates = ["--induction-model", SHIPPED["three-layers-text"]]
    run(*gates).assert_outcomes(passed=1, failed=1)
    again = run(*gates, "--lf", "--durations=3", "--durations-min=0")
    again.assert_outcomes(failed=1, deselected=1)
    again.stdout.fnmatch_lines(["*s call *attention_only.py:three_layers_text::copies_repeats"])
    run(*gates, "-p", "no:cacheprovider").assert_outcomes(passed=1, failed=1)


def test_a_limit_on_failures_holds_for_gates(run):
    """`-x` and `--maxfail`: what came before is in the section."""
    gates = ["--induction-model", CONTROL, "--induction-run", str(FIXTURES / "runs" / "one-layer")]
    first = run(*gates, "-x")
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(["  REFUTED, failed *has_induction_head *", "*stopping after 1 failures*"])
    second = run(*gates, "--maxfail=3")
    second.assert_outcomes(passed=1, failed=3)
    assert second.ret == 1
    assert sum("REFUTED, failed" in line for line in section(second) if "prefix matching  " not in line) >= 3


def test_any_order_gives_the_same_verdicts(run, monkeypatch):
    """pytest-randomly, with two seeds that shuffle differently."""
    pytest.importorskip("pytest_randomly")
    monkeypatch.delenv("PYTEST_ADDOPTS")
    results = [run(f"--randomly-seed={seed}", "-v", "--induction-model", CONTROL, ".") for seed in (1, 2)]
    orders = [[line.split()[0] for line in result.outlines if re.search("(PASSED|FAILED) +\\[", line)] for result in results]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) and len(orders[0]) == 5
    assert section(results[0]) == section(results[1])


LATE = """
import os, signal, sys
sys.path.insert(0, {fixtures!r})
from attention_only import two_layers

def make():
    model = two_layers()
    late = iter([True])

    def alarm(module, given):
        if os.environ["PYTEST_CURRENT_TEST"].endswith("has_induction_head (call)") and next(late, False):
            signal.raise_signal(signal.SIGALRM)  # what pytest-timeout waits for, without the wait

    model.register_forward_pre_hook(alarm)
    return model
"""


def test_a_gate_over_its_time_fails_and_the_next_one_runs(run, pytester):
    """pytest-timeout breaks into a forward pass; the model is as it was, and what a test had found before its time was up is told."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(late=LATE.format(fixtures=str(FIXTURES)))
    pytester.makepyfile(
        test_model="""
        import signal

        from pytest_induction import assert_phase_change

        def test_late(induction_run):
            assert_phase_change(induction_run)
            signal.raise_signal(signal.SIGALRM)
        """
    )
    result = run("test_model.py", "--induction-model=late.py:make", f"-oinduction_run={RUN}", "--timeout=60")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["FAILED test_model.py::test_late* - Failed: Timeout*"])
    result.stdout.fnmatch_lines(["FAILED late.py:make::has_induction_head - Failed: Timeout*"])
    told = [line.split()[:3] for line in section(result)]
    assert ["SHOWN,", "passed", "phase_change"] in told and ["SHOWN,", "passed", "copies_repeats"] in told


def test_coverage_sees_through_us(run, pytester):
    """pytest-cov counts the lines of a module that a test of a model calls while we listen."""
    pytest.importorskip("pytest_cov")
    pytester.makepyfile(mine="def called(model):\n    return model.n_layers\n\ndef not_called():\n    return 1\n")
    pytester.makepyfile(
        test_model="import mine\n\ndef test_it(induction):\n    induction.assert_has_induction_head()\n    assert mine.called(induction.model) == 2\n"
    )
    result = run("--cov=mine", "--cov-report=term-missing", "-p", "no:rerunfailures")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["mine.py * 4 * 1 * 75% * 5"])


def test_the_command_of_a_test_of_a_run_names_the_run(run, pytester):
    """And runs it alone: of what the command line had, only what the test needs."""
    pytester.makepyfile(
        test_model="""
        from pytest_induction import assert_phase_change

        def test_it(induction_run):
            assert_phase_change(induction_run, before_step=1)
        """
    )
    runs = [f"--induction-run={RUN}", f"--induction-run={RUN.parent / 'one-layer-smeared'}"]
    run("test_model.py", *runs, "-k", "test_it and two", "--junitxml=report.xml").assert_outcomes(failed=1, deselected=11)
    ((_, told, _),) = cases(pytester.path / "report.xml")
    command = shlex.split(dict(told)["induction.again"])
    run(*command[1:]).assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["-k", "heads"], pytest.ExitCode.OK),
        (["-k", "none"], pytest.ExitCode.TESTS_FAILED),
        (["-k", "interrupts"], pytest.ExitCode.INTERRUPTED),
        (["--induction-model", "nowhere"], pytest.ExitCode.USAGE_ERROR),
        (["--induction-model", CONTROL, "-k", "nothing"], pytest.ExitCode.NO_TESTS_COLLECTED),
    ],
)
def test_exit_codes_are_those_of_pytest(options, code, run, pytester):
    """As a CI reads them."""
    pytester.makepyfile(test_model=TESTS + "\ndef test_interrupts(induction):\n    raise KeyboardInterrupt\n")
    assert run("-p", "no:cacheprovider", *options, no_reraise_ctrlc=True).ret == code


def test_a_failure_is_one_line_where_one_is_asked_for(run):
    """`--tb=line`."""
    result = run("--induction-model", CONTROL, "--tb=line", "-k", "has_induction_head")
    assert [line for line in result.outlines if line.startswith("has_induction_head is REFUTED")]
    result.stdout.no_fnmatch_line("  measured: *")


def test_settings_that_pytest_did_not_read_are_told(run, pytester):
    """It looks for them where a path lies that is a word of its own; as part of the option's word it does not see it."""
    elsewhere = pytester.mkdir("elsewhere")
    (pytester.path / "tox.ini").rename(pytester.mkdir("here") / "tox.ini")
    pytester.makeini("[other]")
    os.chdir(pytester.path / "here")
    options = ["-p", "no:cacheprovider", "--collect-only"]
    two = run(*options, "--induction-run", str(elsewhere), "-q")
    (told,) = [line for line in two.outlines if line.startswith("note: ")]
    assert told.startswith(f"note: {pytester.path / 'here' / 'tox.ini'} was not read")
    assert told.endswith(f": write --induction-run={elsewhere}")
    one = run(*options, f"--induction-run={elsewhere}", "-q")
    assert not [line for line in one.outlines if line.startswith("note: ")]
