"""Generated probes in gate files and in tests over the snapshots of a run."""

import json
import shutil

import hypothesis
import pytest
from hypothesis import settings

from tests.conftest import FIXTURES, SHIPPED

CHECKPOINTS = FIXTURES / "runs" / "two-layers-checkpoints"
FACTORY = f"{FIXTURES}/attention_only.py:two_layers"


@pytest.fixture(autouse=True)
def _hypothesis_as_it_was(monkeypatch):
    monkeypatch.setattr(hypothesis.core, "global_force_seed", None)
    profile = settings.get_current_profile_name()
    yield
    settings.load_profile(profile)


@pytest.fixture
def few(pytester):
    """Five of the checkpoints: the phase change lies between the second and the third."""
    place = pytester.path / "few"
    place.mkdir()
    for step in ("000", "200", "300", "370", "400"):
        shutil.copy(CHECKPOINTS / f"step-{step}.safetensors", place)
    return place


def gates(pytester, text):
    (pytester.path / "some.gates.toml").write_text(text)
    return ["some.gates.toml", "-p", "no:cacheprovider"]


def test_a_model_is_gated_by_what_hypothesis_generates(pytester):
    """No line of Python: one that completes its repeats passes, one that cannot fails with the smallest sequence."""
    text = f"""
[good]
model = "{SHIPPED["two-layers"]}"
[good.expect.property_holds]
property = "completes_repeats"
options = {{ min_accuracy = 0.5 }}
probe_options = {{ period = [10, 15] }}
max_examples = 60
seed = 0
[bad]
model = "{SHIPPED["one-layer"]}"
expect.property_holds = [
  {{ property = "completes_repeats", max_examples = 60, seed = 0 }},
  {{ property = "attends_to_successor", options = {{ heads = ["L0H0"] }}, max_examples = 60, seed = 0 }},
]
"""
    result = pytester.runpytest_inprocess(*gates(pytester, text))
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["property_holds is REFUTED, expected SHOWN: completes_repeats fails: after position 7 comes 4*"])
    result.stdout.fnmatch_lines(
        ["*next: look at this one alone: check_property(model, 'completes_repeats', probes=[[]ProbeSequence*"]
    )
    lines = ["*REFUTED*property_holds*attends_to_successor(heads=*", "*REFUTED*property_holds*completes_repeats fails*"]
    result.stdout.fnmatch_lines_random(lines)
    result.stdout.fnmatch_lines(["*SHOWN*property_holds*completes_repeats(min_accuracy=0.5) holds on all of 60 generated*"])


def test_a_training_is_gated_by_when_a_property_begins_to_hold(pytester, few):
    """Its checkpoints are swept once; the weights are looked at again for what is generated. The page draws it."""
    text = f"""
[run]
run = "few"
factory = "{FACTORY}"
expect.final_has_induction_head = true
expect.property_holds_from = [
  {{ property = "completes_repeats", options = {{ min_accuracy = 0.5 }}, probe_options = {{ period = [10, 15] }}, before_step = 300, max_examples = 60, seed = 0 }},
  {{ property = "completes_repeats", options = {{ min_accuracy = 0.5 }}, probe_options = {{ period = [10, 15] }}, before_step = 250, max_examples = 60, seed = 0 }},
  {{ property = "completes_repeats", options = {{ min_accuracy = 0.5 }}, probe_options = {{ period = [10, 15] }}, before_step = 200, max_examples = 60, seed = 0 }},
]
"""
    result = pytester.runpytest_inprocess(*gates(pytester, text), "--induction-report=out.json")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*is UNDETERMINED*begins to hold after 200 steps and by 300, and must by 250"])
    result.stdout.fnmatch_lines(
        ["*is REFUTED*begins to hold after 200 steps and by 300, and must by 200; at step 200 this fails:*"]
    )
    result.stdout.fnmatch_lines(["*SHOWN*property_holds_from*holds from step 300 on: on all of 60 sequences generated at *"])
    records = json.loads((pytester.path / "out.json").read_text())
    (chart,) = [each for each in records["charts"] if each["kind"] == "run"]
    assert [hunt["name"] for hunt in chart["data"]["hunts"]] == ["completes_repeats(min_accuracy=0.5)"]
    assert chart["data"]["heads"]


def test_a_recorded_run_is_gated_by_what_its_recorder_hunted(pytester):
    """And one in which nothing was hunted says what to do."""
    text = (
        f'[run]\nrun = "{FIXTURES / "runs" / "two-layers"}"\nexpect.property_holds_from = {{ property = "completes_repeats" }}\n'
    )
    result = pytester.runpytest_inprocess(*gates(pytester, text))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*has no weights, and `completes_repeats` was not hunted while it was recorded: name its checkpoints*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('property = "completes_repeat"', "there is no property `completes_repeat`; did you mean `completes_repeats`?"),
        ("property = 3", "`property` must be the name of a property, got 3"),
        ("max_examples = 3", "it needs `property`: write property_holds = { property = ... } under `expect`"),
        ('property = "completes_repeats", options = 3', "`options` must be a table of arguments, got 3"),
        ('property = "no_such.py:mine"', "no_such.py"),
    ],
)
def test_mistakes_in_a_file_are_told_before_anything_is_loaded(pytester, arguments, said):
    text = f'[small]\nmodel = "{SHIPPED["llama"]}"\nexpect.property_holds = {{ {arguments} }}\n'
    result = pytester.runpytest_inprocess(*gates(pytester, text), "--collect-only")
    result.stdout.fnmatch_lines([f"*{said}*"])


def test_a_property_of_ones_own_is_named_by_its_file(pytester):
    """Beside the gate file."""
    pytester.makepyfile(mine="def never(outcome):\n    return outcome.probe.period > 5\n")
    text = f"""
[small]
model = "{SHIPPED["llama"]}"
expect.property_holds = {{ property = "mine.py:never", probes = "repeated_sequences", max_examples = 30, seed = 0 }}
"""
    result = pytester.runpytest_inprocess(*gates(pytester, text))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*never fails: `never` returned False; on BOS | *"])


HEAD = """
from pathlib import Path
import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase
from pytest_induction import given_probes
from pytest_induction.probes.strategies import repeated_sequences

few = settings(max_examples=25, database=None, derandomize=True)
"""


def run_tests(pytester, text, *arguments, place="few"):
    pytester.makepyfile(test_inner=HEAD + text)
    options = [f"--induction-factory={FACTORY}", "-o", f"induction_run={place}", "-p", "no:cacheprovider"]
    return pytester.runpytest_inprocess("test_inner.py", *options, *arguments)


def test_a_test_of_ones_own_runs_over_the_snapshots_of_the_run(pytester, few):
    """From a step on; it fails at the first at which it does, and says at which."""
    result = run_tests(
        pytester,
        """
SEEN = []

@few
@given_probes(repeated_sequences, period=(10, 15), over="induction_run", holds_from=300)
def test_after(outcome):
    SEEN.append(outcome.subject.name)
    assert outcome.accuracy >= 0.5

@few
@given_probes(repeated_sequences, period=(10, 15), over="induction_run")
def test_always(induction_run, tmp_path, outcome):
    assert len(induction_run) == 5
    assert outcome.accuracy >= 0.5

def test_names():
    assert list(dict.fromkeys(SEEN)) == ["step-300.safetensors", "step-370.safetensors", "step-400.safetensors"]
""",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*failing probe at step 0 of few: BOS | 1 2 3 4 5 6 7 8 9 10 | 1 2 3 4 5 6 7 8 9 10"])


def test_failures_at_each_snapshot_are_kept_apart(pytester, few):
    """What fails at a later snapshot is replayed there, however many before it do not fail."""
    text = """
stored = settings(max_examples=25, database=DirectoryBasedExampleDatabase("stored"), derandomize=False)

@stored
@given_probes(repeated_sequences, over="induction_run", holds_from=300)
def test_late(outcome):
    with Path("calls.txt").open("a") as file:
        file.write(f"{outcome.subject.name} {outcome.probe.period}\\n")
    assert "400" not in outcome.subject.name or outcome.probe.period < 7
"""
    run_tests(pytester, text).assert_outcomes(failed=1)
    for _ in range(2):
        (pytester.path / "calls.txt").unlink()
        run_tests(pytester, text).assert_outcomes(failed=1)
        last = [line for line in (pytester.path / "calls.txt").read_text().splitlines() if "400" in line]
        assert set(last) == {"step-400.safetensors 7"}


@pytest.mark.parametrize(
    ("decorator", "said"),
    [
        ('over="induction_run", model="x"', "takes a `model` or a training, `over`, not both"),
        ("holds_from=3", "`holds_from` is for a training: name one with `over`"),
        ('over="induction_run", holds_from=401', "has no snapshot from step 401 on, its last is of 400"),
        ("over={}", "a training must have a model at one step at least"),
    ],
)
def test_mistakes_are_told_in_one_line(pytester, few, decorator, said):
    result = run_tests(pytester, f"@few\n@given_probes(repeated_sequences, {decorator})\ndef test_it(outcome):\n    pass\n")
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    result.stdout.fnmatch_lines([f"*{said}*"])


def test_a_recorded_run_has_no_models(pytester):
    text = '@few\n@given_probes(repeated_sequences, over="induction_run")\ndef test_it(outcome):\n    pass\n'
    result = run_tests(pytester, text, place=FIXTURES / "runs" / "two-layers")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*`over`: run 'two-layers' has no weights: name its checkpoints*"])
