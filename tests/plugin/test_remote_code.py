"""Code that came with weights, by the command line, the ini file and gate files: who may let it run, and that nobody is asked."""

import os
import subprocess
import sys

import pytest

from tests.conftest import SHIPPED
from tests.model.custom_code import IN_CONFIG, IN_TOKENIZER, has_run, with_code

pytest.importorskip("transformers")

OPTION = "--induction-trust-remote-code"
REFUSED = "config.json of *asks to run code that came with it*it was not run*"


@pytest.fixture
def brings_code(pytester):
    return with_code(pytester.path / "model", **IN_CONFIG)


@pytest.fixture
def alone(pytester, monkeypatch):
    """Run pytest in a process of its own, for classes that came with a model stay registered in transformers."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(pytester.path / "modules"))
    return lambda *arguments: pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


def test_the_option_reaches_gates_and_models_that_fixtures_name(pytester, brings_code, alone):
    """Named by the ini key, by the command line, or by a fixture of the user's; on a worker too. Without it each is refused."""
    pytester.makeini(f"[pytest]\ninduction_model = {brings_code}\n")
    pytester.makepyfile(
        test_named="def test_it(induction):\n    induction.measure_heads()\n",
        test_own=f"""
            import pytest
            @pytest.fixture(scope="session")
            def induction_model():
                return {str(brings_code)!r}
            def test_it(induction):
                induction.measure_heads()
        """,
    )
    gated = ("--induction-model", str(brings_code), "-k", "copies_repeats or test_it", ".")
    for command, count in (((), 2), (gated, 3)):
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *command)
        result.stdout.fnmatch_lines([REFUSED])
        assert result.parseoutcomes()["errors"] == count and not has_run(brings_code)
    alone(OPTION, "-n1", *gated).assert_outcomes(passed=3)
    assert has_run(brings_code)


@pytest.mark.parametrize(
    "ini", ["addopts = --induction-trust-remote-code", "induction_trust_remote_code = true", "trust_remote_code = true"]
)
def test_the_ini_file_cannot_say_so(pytester, brings_code, ini):
    """It may have come with the code: options of its own are refused, and there is no key."""
    pytester.makeini(f"[pytest]\n{ini}\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--induction-model", str(brings_code))
    if "addopts" in ini:
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*{OPTION} must be given on the command line: the ini file may not say it"])
    elif ini.startswith("induction_"):
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*induction_trust_remote_code*"])
    else:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([REFUSED])
    assert not has_run(brings_code)


def test_the_environment_of_a_person_can_say_so(pytester, monkeypatch):
    """PYTEST_ADDOPTS is no file of a project's."""
    monkeypatch.setenv("PYTEST_ADDOPTS", f"{os.environ['PYTEST_ADDOPTS']} {OPTION}")
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "--induction-model", SHIPPED["llama"]).assert_outcomes(passed=2)


@pytest.mark.parametrize("says", ["", "trust_remote_code = false\n"])
def test_a_gate_refuses_where_its_file_does_not_say_so(pytester, brings_code, says):
    """Nothing and false are no consent; false holds against the option too."""
    pytester.path.joinpath("a.gates.toml").write_text(f'[mine]\nmodel = "model"\n{says}expect = ["has_induction_head"]\n')
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *([OPTION] if says else []))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([REFUSED])
    assert not has_run(brings_code)


def test_a_gate_file_can_say_so(pytester, brings_code, alone):
    """Of the model, of that before, and of checkpoints that are swept."""
    with_code(pytester.path / "t" / "checkpoint-1", **IN_TOKENIZER)
    with_code(pytester.path / "t" / "checkpoint-2", **IN_TOKENIZER)
    pytester.path.joinpath("a.gates.toml").write_text(
        """
[mine]
model = "model"
trust_remote_code = true
expect = { heads_preserved = { before = "model" } }
[training]
run = "t"
trust_remote_code = true
expect = ["log_is_sane"]
"""
    )
    result = alone("a.gates.toml")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["* log_is_sane * 2 snapshots; at least 8 are needed*"])
    assert has_run(brings_code) and has_run(pytester.path / "t" / "checkpoint-2")


def test_the_command_that_repeats_a_test_has_the_option(pytester):
    """Else it would be refused."""
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--induction-model", SHIPPED["one-layer"], OPTION)
    result.stdout.fnmatch_lines([f"*pytest * {OPTION} *-k has_induction_head*"])


@pytest.mark.exhaustive
def test_runs_are_swept_with_the_option(pytester, alone):
    """The checkpoints that --induction-run names."""
    place = with_code(pytester.path / "t" / "checkpoint-1", **IN_TOKENIZER)
    with_code(pytester.path / "t" / "checkpoint-2", **IN_TOKENIZER)
    result = alone("--induction-run", str(place.parent), OPTION, "-k", "log_is_sane")
    result.stdout.fnmatch_lines(["t: 2 snapshots, steps 1 to 2, from a sweep", "* 2 snapshots; at least 8 are needed*"])
    assert has_run(place)


def test_a_refused_model_leaves_the_alarm_of_a_timeout_alone(pytester, brings_code):
    """The question of transformers would cancel it; the test after that sleeps, and is ended. `-s`, with a yes on the terminal."""
    with_code(pytester.path / "other", **IN_TOKENIZER)
    pytester.makepyfile(
        """
        import time, pytest
        from transformers import AutoModelForCausalLM, AutoTokenizer  # which takes seconds
        from pytest_induction.errors import ModelError; from pytest_induction import load_model
        def test_it():
            for place in ("model", "other"):
                with pytest.raises(ModelError, match="asks to run code"):
                    load_model(place)
            time.sleep(600)
        """
    )
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "--timeout=4", "--timeout-method=signal"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, input="y\n" * 1000, cwd=pytester.path
    )
    assert done.returncode == 1 and "Timeout (>4.0s) from pytest-timeout" in done.stdout
    assert "Do you wish to run" not in done.stdout + done.stderr and not has_run(brings_code)
