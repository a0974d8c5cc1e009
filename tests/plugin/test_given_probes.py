"""`given_probes` in a test file: as a test of hypothesis in every respect, and as a test of pytest. And the hunts by call."""

import re

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from pytest_induction import check_property, find_counterexample, load_model, planted
from pytest_induction.errors import ArgumentError, ModelError, PropertyFailed
from pytest_induction.probes import ProbeSequence, strategies

MODEL = "pytest_induction.planted:induction_head"
HEAD = """
import sys
import pytest
from pathlib import Path
from hypothesis import HealthCheck, Phase, assume, event, example, note, seed, settings, strategies as st, target
from hypothesis.database import DirectoryBasedExampleDatabase
from pytest_induction.probes import ProbeSequence, strategies; from pytest_induction import given_probes
from pytest_induction.probes.strategies import distractor_pairs, period_pairs, repeated_sequences

plain = settings(database=None, derandomize=False)
stored = settings(database=DirectoryBasedExampleDatabase("stored"), derandomize=False)
SEEN = []


def log(outcome):
    with Path("calls.txt").open("a") as file:
        file.write(f"{outcome.probe}\\n")
"""
PACKAGE = "pytest_induction/(assertions|probes|models|outcomes|bound|measure|plugin)"


@pytest.fixture(autouse=True)
def _hypothesis_as_it_was(monkeypatch):
    """What an inner run tells hypothesis by options is forgotten."""
    monkeypatch.setattr(hypothesis.core, "global_force_seed", None)
    profile = settings.get_current_profile_name() if hasattr(settings, "get_current_profile_name") else "default"
    yield
    settings.load_profile(profile)


@pytest.fixture
def run(pytester):
    """Run a file that begins with the imports above."""
    pytester.makeini(f"[pytest]\nfilterwarnings = error\naddopts = --strict-markers\ninduction_model = {MODEL}\n")
    count = iter(range(99))

    def run_file(text, *arguments, name=None):
        pytester.makepyfile(**{name or f"test_inner_{next(count)}": f"{HEAD}\n{_dedented(text)}"})
        chosen = max(pytester.path.glob("test_inner_*.py"), key=lambda path: path.stat().st_mtime_ns)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", chosen.name, *arguments)

    return run_file


def _dedented(text):
    lines = text.strip("\n").splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[margin:] for line in lines)


def _frames_of_ours(result):
    return [line for line in result.outlines if re.search(PACKAGE + r"\S*\.py:\d+", line)]


def test_it_fits_wherever_a_test_does(run):
    """Functions, methods, static methods, parameters, fixtures, the model as an argument or in the decorator, pairs, settings."""
    result = run(
        """
        induction_twice = "pytest_induction.planted:redundant_induction_heads"

        @pytest.fixture
        def outcome():
            return "a fixture of the same name"

        @plain
        @given_probes(repeated_sequences)
        def test_function(outcome):
            SEEN.append("function")
            assert outcome.accuracy == 1

        @given_probes(repeated_sequences)
        def test_fixtures(tmp_path, induction, outcome):
            SEEN.append("fixtures")
            assert tmp_path.is_dir()
            assert outcome.prefix_matching.shape == (2, 4) and induction.seed == 0

        @given_probes(repeated_sequences)
        def test_model_as_argument(induction_model, outcome):
            SEEN.append("model")
            assert outcome.subject.module is induction_model.module

        @given_probes(repeated_sequences, model=induction_twice)
        def test_model_in_decorator(outcome):
            SEEN.append("decorator")
            assert outcome.subject.name == induction_twice

        @given_probes(repeated_sequences, model=induction_twice)
        def test_both_models(induction_model, outcome):
            SEEN.append("both")
            assert outcome.subject.name == induction_twice != induction_model.name

        @given_probes(repeated_sequences(64, period=3, bos=0))
        def test_strategy(outcome):
            SEEN.append("strategy")
            assert outcome.probe.period == 3

        @given_probes(repeated_sequences, period=range(2, 4), repeats=st.just(3), gap=(0, 2), exclude=[5, 5, 6])
        def test_options(outcome):
            SEEN.append("options")
            assert outcome.probe.period in (2, 3) and outcome.probe.repeats == 3
            assert not {5, 6} & set(outcome.probe.tokens)

        @given_probes(distractor_pairs)
        def test_pairs(pair):
            SEEN.append("pairs")
            before, after = pair
            assert len(before.probe) < len(after.probe) and before.accuracy == after.accuracy == 1

        @given_probes(st.tuples(*[repeated_sequences(64)] * 3))
        def test_triples(three):
            SEEN.append("triples")
            assert len(three) == 3

        @pytest.mark.parametrize("most", [3, 5])
        @given_probes(repeated_sequences, period=(2, 12))
        def test_parametrized(most, outcome):
            SEEN.append(f"parametrized {most}")

        class TestMethods:
            @given_probes(repeated_sequences)
            def test_method(self, induction_model, outcome):
                SEEN.append("method")
                assert isinstance(self, TestMethods)

            @staticmethod
            @given_probes(repeated_sequences)
            def test_static(outcome):
                SEEN.append("static")

        @given_probes(repeated_sequences)
        def test_keyword_only(*, outcome):
            SEEN.append("keyword")
            assert outcome.probe

        @given_probes(repeated_sequences)
        def test_default_arguments(extra=3, outcome=None):
            SEEN.append("default")
            assert extra == 3 and outcome.probe

        def test_all_of_them_ran_on_many_probes():
            expected = ["function", "fixtures", "model", "decorator", "both", "strategy", "options", "pairs", "triples",
                        "parametrized 3", "parametrized 5", "method", "static", "keyword", "default"]
            assert {name: SEEN.count(name) > 20 for name in expected} == dict.fromkeys(expected, True)
        """
    )
    result.assert_outcomes(passed=16)


def test_max_examples_counts_probes(run):
    """No more than so many, all different, and with few test cases no fewer."""
    run(
        """
        @pytest.mark.parametrize(("most", "batch", "least"), [(1, None, 1), (7, None, 7), (60, None, 45), (7, 1, 6), (60, 24, 45)])
        def test_counts(most, batch, least, induction_model):
            seen = []

            @settings(plain, max_examples=most)
            @given_probes(repeated_sequences, model=induction_model, batch=batch)
            def carried(outcome):
                seen.append(outcome.probe)

            carried()
            assert least <= len(set(seen)) == len(seen) <= most
        """
    ).assert_outcomes(passed=5)


def test_a_large_number_of_examples_is_about_reached(run):
    """Of six hundred asked for, three quarters at least are different and looked at."""
    run(
        """
        def test_counts(induction_model):
            seen = set()

            @settings(plain, max_examples=600)
            @seed(0)
            @given_probes(repeated_sequences, model=induction_model)
            def carried(outcome):
                seen.add(outcome.probe)

            carried()
            assert 450 < len(seen) <= 600
        """
    ).assert_outcomes(passed=1)


def test_many_probes_share_a_forward_pass_and_batch_says_how_many(run):
    """A hundred in fewer than thirty passes; with `batch=1` one each."""
    run(
        """
        from pytest_induction import load_model

        @pytest.mark.parametrize(("batch", "least", "most"), [(None, 1, 30), (1, 70, 100)])
        def test_passes(batch, least, most, monkeypatch, induction_model):
            module, passes, probes = induction_model.module, [], []
            module.register_forward_hook(lambda *_: passes.append(1))

            @settings(plain, max_examples=100)
            @given_probes(repeated_sequences, model=induction_model, batch=batch)
            def carried(outcome):
                probes.append(outcome.accuracy)

            carried()
            assert least <= len(passes) <= most
            assert len(probes) > 70
        """
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize("place", ["above", "below"])
def test_decorators_of_hypothesis_hold_above_and_below(place, run):
    """`@settings`, `@seed` and `@example`, in whichever order, as on a test of hypothesis's own."""
    given = "@given_probes(repeated_sequences)"

    def decorated(decorator):
        return "\n".join([decorator, given] if place == "above" else [given, decorator])

    run(
        f"""
SEEN = {{}}

{decorated("@settings(plain, max_examples=4)")}
def test_settings(outcome):
    SEEN.setdefault("settings", []).append(outcome.probe)

{decorated("@seed(5)")}
def test_seed(outcome):
    SEEN.setdefault("one", []).append(outcome.probe)

{decorated("@seed(5)").replace("seed(5)", "seed(6)")}
def test_other_seed(outcome):
    SEEN.setdefault("other", []).append(outcome.probe)

def test_same_seed(induction_model):
    @seed(5)
    @given_probes(repeated_sequences, model=induction_model)
    def carried(outcome):
        SEEN.setdefault("again", []).append(outcome.probe)
    carried()

{decorated("@example(ProbeSequence((0, 9, 8, 9, 8), period=2, repeats=2))")}
def test_example(outcome):
    SEEN.setdefault("example", []).append(outcome.probe)

def test_what_was_seen():
    assert len(SEEN["settings"]) == 4
    assert SEEN["one"] == SEEN["again"] != SEEN["other"]
    assert SEEN["example"][0].tokens == (0, 9, 8, 9, 8) and len(SEEN["example"]) > 20
"""
    ).assert_outcomes(passed=6)


def test_settings_keep_function_scoped_fixtures(run):
    """The `induction` fixture, and any other, in a test with settings of its own."""
    run(
        """
        @settings(plain, max_examples=5)
        @given_probes(repeated_sequences)
        def test_fixture(induction, tmp_path, outcome):
            assert induction.seed == 0
        """
    ).assert_outcomes(passed=1)


def test_a_failure_shows_the_smallest_probe_and_the_users_own_line(run):
    """With the notes of the test and what to paste; no frame of ours; and what is pasted replays it alone."""
    text = """
        @plain
        @given_probes(repeated_sequences, period=(2, 12))
        def test_short(outcome):
            log(outcome)
            note("as the user says")
            assert outcome.probe.period < 6, "too long"
        """
    result = run(text)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert outcome.probe.period < 6, ?too long?",
            "E*AssertionError: too long",
            "E*assert 6 < 6",
            "E*failing probe: BOS | 1 2 3 4 5 6 | 1 2 3 4 5 6",
            "E*@example(ProbeSequence((0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6), period=6, repeats=2*",
            "E*as the user says",
        ]
    )
    assert not _frames_of_ours(result)
    assert result.stdout.str().count("def test_short") == 1
    line = re.search(r"@example\(.*\)$", result.stdout.str(), re.MULTILINE)[0]
    again = run("Path('calls.txt').unlink()\n" + _dedented(text).replace("@plain", f"{line}\n@plain"))
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["*failing probe: BOS | 1 2 3 4 5 6 | 1 2 3 4 5 6"])
    run(
        """
        def test_calls():
            assert Path("calls.txt").read_text().splitlines() == ["BOS | 1 2 3 4 5 6 | 1 2 3 4 5 6"]
        """
    ).assert_outcomes(passed=1)


def test_a_failing_pair_can_be_pasted_too(run):
    """The line makes both sequences of the pair, in a tuple."""
    text = """
        @plain
        @given_probes(period_pairs)
        def test_pair(pair):
            assert pair[1].probe.period < 8
        """
    result = run(text)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*failing probe: (BOS | 1 2 3 4 | 1 2 3 4, BOS | 1 2 3 4 5 6 7 8 | 1 2 3 4 5 6 7 8)"])
    line = re.search(r"@example\(.*\)$", result.stdout.str(), re.MULTILINE)[0]
    again = run(_dedented(text).replace("@plain", f"{line}\n@settings(plain, phases=[Phase.explicit])"))
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["E*assert 8 < 8"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pytest.fail('long')", "E*Failed: long"),
        ("pytest.raises(ValueError, lambda: None)", "E*DID NOT RAISE*"),
        ("raise ValueError('long')", "E*ValueError: long"),
        ("sys.exit(3)", "E*SystemExit: 3"),
    ],
)
def test_whatever_fails_a_test_is_shrunk(body, said, run):
    """Also what pytest itself fails it with, which is no ordinary exception."""
    result = run(
        f"""
        @settings(plain, max_examples=20)
        @given_probes(repeated_sequences, period=(2, 12))
        def test_short(outcome):
            if outcome.probe.period > 5:
                {body}
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said, "E*failing probe: BOS | 1 2 3 4 5 6 | 1 2 3 4 5 6"])
    result.stdout.no_re_match_line(r".*(Flaky|unreliable)")


def test_a_failing_test_is_replayed_first_and_small_already(run, pytester):
    """From the example database, with few examples until it is reported again."""
    text = """
        @settings(stored, max_examples=100)
        @given_probes(repeated_sequences, period=(2, 12))
        def test_short(outcome):
            log(outcome)
            assert outcome.probe.period < 6
        """
    calls = pytester.path / "calls.txt"
    run(text, name="test_inner_same").assert_outcomes(failed=1)
    first = calls.read_text().splitlines()
    calls.unlink()
    run(text, name="test_inner_same").assert_outcomes(failed=1)
    second = calls.read_text().splitlines()
    assert second[0] == first[-1] == "BOS | 1 2 3 4 5 6 | 1 2 3 4 5 6"
    assert len(second) < len(first)
    assert set(second) <= set(first)


def test_the_ci_profile_gives_the_same_examples_every_time(run, pytester):
    """And keeps no database."""
    text = """
        @given_probes(repeated_sequences)
        def test_it(outcome):
            log(outcome)
            assert outcome.probe.period < 8
        """
    pytester.makeconftest("from hypothesis import settings\nsettings.register_profile('ci', derandomize=True, database=None)")
    runs = []
    for _ in range(2):
        run(text, "--hypothesis-profile=ci", name="test_inner_same").assert_outcomes(failed=1)
        runs.append(pytester.path.joinpath("calls.txt").read_text())
        pytester.path.joinpath("calls.txt").unlink()
    assert runs[0] == runs[1] != ""
    assert len(set(runs[0].splitlines())) > 5


def test_the_seed_of_the_command_line_makes_runs_equal(run, pytester):
    """Another makes them differ."""
    text = """
        @plain
        @given_probes(repeated_sequences)
        def test_it(outcome):
            log(outcome)
        """
    runs = []
    for number in (4, 4, 5):
        run(text, f"--hypothesis-seed={number}", name="test_inner_same").assert_outcomes(passed=1)
        runs.append(pytester.path.joinpath("calls.txt").read_text())
        pytester.path.joinpath("calls.txt").unlink()
    assert runs[0] == runs[1] != runs[2]


def test_statistics_count_what_event_says(run):
    """`--hypothesis-show-statistics` lists the test, its events, and the reason it ended."""
    result = run(
        """
        @plain
        @given_probes(repeated_sequences)
        def test_it(outcome):
            event("of period four or more" if outcome.probe.period > 3 else "never seen")
        """,
        "--hypothesis-show-statistics",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_it:", "*passing*", "*Events:", "*of period four or more", "*Stopped because*"])
    result.stdout.no_fnmatch_line("*never seen*")


def test_assume_leaves_out_one_probe_and_not_its_batch(run):
    """The others are looked at; a failure among them is shrunk."""
    result = run(
        """
        KEPT = []

        @plain
        @given_probes(repeated_sequences)
        def test_rest(outcome):
            assume(outcome.probe.period != 5)
            KEPT.append(outcome.probe.period)

        def test_kept():
            assert len(KEPT) > 20 and 5 not in KEPT

        @plain
        @given_probes(repeated_sequences, period=(2, 12))
        def test_fails(outcome):
            assume(outcome.probe.period != 6)
            assert outcome.probe.period < 6
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["E*failing probe: BOS | 1 2 3 4 5 6 7 | 1 2 3 4 5 6 7"])


@pytest.mark.parametrize("most", [5, 100])
@pytest.mark.parametrize("batch", [None, 1])
def test_a_test_that_looks_at_no_probe_fails(most, batch, run):
    """All rejected by `assume` is no success, as for hypothesis."""
    result = run(
        f"""
        @settings(plain, max_examples={most})
        @given_probes(repeated_sequences, batch={batch})
        def test_it(outcome):
            assume(False)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"E .*(Unsatisfiable|filtering out|FailedHealthCheck|Unable to satisfy)"])


def test_target_climbs_with_a_batch_of_one(run):
    """As hypothesis has it: the score is seen in the statistics."""
    result = run(
        """
        @plain
        @given_probes(repeated_sequences, batch=1)
        def test_it(outcome):
            target(float(outcome.probe.period), label="period")
        """,
        "--hypothesis-show-statistics",
    )
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r".*Highest target score: \d+ .*label='period'"])


def test_target_in_a_batch_says_what_to_do(run):
    """One error that names `batch=1`, and nothing about flaky tests."""
    result = run(
        """
        @plain
        @given_probes(repeated_sequences)
        def test_it(outcome):
            target(float(outcome.probe.period))
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*target(*", "E*batch=1*"])
    result.stdout.no_re_match_line(r".*(Flaky|unreliable)")


def test_a_slow_model_meets_no_deadline(run):
    """However short it is."""
    run(
        """
        import time
        from pytest_induction.planted import induction_head

        @pytest.fixture(scope="session")
        def induction_model():
            model = induction_head()
            model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
            return model

        @settings(plain, max_examples=10, deadline=2)
        @given_probes(repeated_sequences)
        def test_own(outcome):
            assert outcome.accuracy == 1
        """
    ).assert_outcomes(passed=1)


def test_skip_and_xfail_in_the_body_are_what_they_are(run):
    """The first probe that skips the test skips it."""
    run(
        """
        @given_probes(repeated_sequences)
        def test_skips(outcome):
            pytest.skip("not today")

        @given_probes(repeated_sequences)
        def test_xfails(outcome):
            pytest.xfail("not yet")

        @pytest.mark.xfail(strict=True)
        @given_probes(repeated_sequences)
        def test_marked(outcome):
            assert outcome.accuracy < 1

        @pytest.mark.skip
        @given_probes(repeated_sequences)
        def test_marked_skip(outcome):
            assert False
        """
    ).assert_outcomes(skipped=2, xfailed=2)


@pytest.mark.parametrize(
    "test",
    [
        "async def test_it(outcome): assert False",
        "def test_it(outcome): yield",
        "def test_it(outcome): return outcome.accuracy < 0",
    ],
)
def test_what_cannot_fail_is_refused(test, run):
    """A coroutine that nobody awaits, a generator that nobody runs, a comparison that is returned and not asserted."""
    result = run(f"@plain\n@given_probes(repeated_sequences)\n{test}", "-W", "ignore")
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed", 0) == 0
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1


@pytest.mark.parametrize(
    ("decorator", "test", "said"),
    [
        ("given_probes(repeated_sequences)", "def test_it():", "must take the outcome as its last argument, it takes none"),
        ("given_probes(repeated_sequences, batch=0)", "def test_it(outcome):", "`batch` must be a whole number from 1 up, got 0"),
        (
            "given_probes(3)",
            "def test_it(outcome):",
            "`probes` must be a strategy or a function that gives one for a model, got 3",
        ),
        ("given_probes(lambda model: 3)", "def test_it(outcome):", "must return a strategy, it returned `int`"),
        ("given_probes(st.integers())", "def test_it(outcome):", "must be of `ProbeSequence`, or tuples of them, got `int`"),
        ("given_probes(repeated_sequences(64), period=3)", "def test_it(outcome):", "a strategy takes no options, got period"),
        ("given_probes(repeated_sequences, perod=3)", "def test_it(outcome):", "unexpected keyword argument 'perod'"),
        (
            "given_probes(repeated_sequences, period=1)",
            "def test_it(outcome):",
            "`period` must be a whole number from 2 up, got 1",
        ),
        (
            "given_probes(repeated_sequences, period=90)",
            "def test_it(outcome):",
            "need at least 90 usable token ids, there are 63",
        ),
        ("given_probes(repeated_sequences(999))", "def test_it(outcome):", "token ids must lie from 0 to 63"),
        ("given_probes(repeated_sequences(64, period=(60, 64), repeats=3))", "def test_it(outcome):", "does not fit the context"),
        (
            "given_probes(repeated_sequences, model='no.such:model')",
            "def test_it(outcome):",
            "cannot be made: ModuleNotFoundError",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(decorator, test, said, run):
    """Without a frame of ours, and without a word about flaky tests."""
    result = run(f"@plain\n@{decorator}\n{test}\n    pass")
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    result.stdout.fnmatch_lines([f"*{said}*"])
    assert not _frames_of_ours(result)
    result.stdout.no_re_match_line(r".*(Flaky|unreliable)")


def test_no_model_configured_is_told_in_one_line(run, pytester):
    """As for every other test that asks for the model."""
    text = """
        @given_probes(repeated_sequences)
        def test_it(outcome):
            pass
        """
    result = run(text, "-o", "induction_model=")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*--induction-model*"])
    assert not _frames_of_ours(result)


def test_an_example_that_the_model_cannot_be_given_is_told_in_one_line(run):
    """An id outside its vocabulary, or something that is no sequence."""
    result = run(
        """
        @plain
        @example(ProbeSequence((0, 5000, 3, 5000)))
        @given_probes(repeated_sequences)
        def test_outside(outcome):
            pass

        @plain
        @example(3)
        @given_probes(repeated_sequences)
        def test_number(outcome):
            pass
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines_random(["*token ids must lie from 0 to 63, got 0 to 5000*", "*got `int`*"])
    assert not _frames_of_ours(result)


def test_a_model_that_fails_ends_the_test_with_what_it_said(run):
    """With what the model said, whether it fails always or on long sequences only."""
    result = run(
        """
        from pytest_induction.planted import induction_head

        @pytest.fixture(scope="session", params=[0, 14])
        def induction_model(request):
            model = induction_head()

            def check(module, arguments):
                if request.param and arguments[0].shape[1] > request.param:
                    raise RuntimeError("out of something")
                if not request.param:
                    raise RuntimeError("out of something")

            model.register_forward_pre_hook(check)
            return model

        @settings(plain, max_examples=20)
        @given_probes(repeated_sequences, period=(2, 12))
        def test_it(outcome):
            assert outcome.accuracy == 1
        """
    )
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 2
    result.stdout.fnmatch_lines(["*raised RuntimeError: out of something*"])
    result.stdout.no_re_match_line(r".*(Flaky|unreliable)")


def test_a_failure_of_the_model_is_not_blamed_on_a_probe_it_can_do(run):
    """No number on sequences above a length: a shorter one is not what is shown."""
    result = run(
        """
        import torch
        from pytest_induction.planted import induction_head
        from pytest_induction import load_model

        @pytest.fixture(scope="session")
        def induction_model():
            broken = []
            model = induction_head()
            model.register_forward_hook(lambda _, given, out: out * torch.nan if broken and given[0].shape[1] > 15 else out)
            subject = load_model(model)
            broken.append(1)
            return subject

        @settings(plain, max_examples=50)
        @seed(0)
        @given_probes(repeated_sequences)
        def test_it(outcome):
            assert outcome.accuracy == 1
        """
    )
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    result.stdout.fnmatch_lines(["*not finite*"])
    blamed = re.search(r"failing probe: (.*)", result.stdout.str())
    assert blamed is None or len(blamed[1].replace("| ", "").split()) > 15
    result.stdout.no_re_match_line(r".*(Flaky|unreliable)")


def test_methods_of_unittest_take_a_model_in_the_decorator(run):
    """Where there are no fixtures, it must be given; one line says so."""
    result = run(
        f"""
        import unittest

        class TestIt(unittest.TestCase):
            @plain
            @given_probes(repeated_sequences, model="{MODEL}")
            def test_given(self, outcome):
                self.assertEqual(outcome.accuracy, 1)

            @plain
            @given_probes(repeated_sequences)
            def test_not_given(self, outcome):
                pass
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*`model=`*"])


@pytest.mark.exhaustive
def test_two_workers_of_xdist_run_them_as_one(run):
    """Each its own tests, with the same failure."""
    result = run(
        """
        @plain
        @given_probes(repeated_sequences)
        def test_passes(induction, outcome):
            assert outcome.accuracy == 1

        @plain
        @given_probes(repeated_sequences, period=(2, 12))
        def test_fails(outcome):
            assert outcome.probe.period < 6
        """,
        "-n",
        "2",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E*failing probe: BOS | 1 2 3 4 5 6 | 1 2 3 4 5 6"])


def test_a_hunt_replays_its_counterexample_from_the_database(tmp_path):
    """The next one finds the same with one example; another property of the same name and options looks at it first too."""
    settings.register_profile("stored", database=DirectoryBasedExampleDatabase(tmp_path / "stored"), derandomize=False)
    settings.load_profile("stored")
    seen = []

    def is_short(outcome):
        seen.append(outcome.probe)
        return outcome.probe.period < 7

    found = find_counterexample(planted.induction_head(), is_short, probes=strategies.repeated_sequences)
    first = len(seen)
    assert found.period == 7 and first > 1
    seen.clear()
    assert find_counterexample(planted.induction_head(), is_short, probes=strategies.repeated_sequences) == found
    assert seen[0] == found and len(seen) < 5


def test_a_hunt_works_inside_a_test_of_hypothesis():
    """As any other function does."""
    held, model = [], load_model(planted.induction_head())

    @settings(max_examples=2, database=None, deadline=None)
    @given(st.integers(2, 5))
    def check(period):
        probes = strategies.repeated_sequences(64, period=period, bos=0)
        held.append(check_property(model, "completes_repeats", probes=probes, max_examples=5))

    check()
    assert held


@pytest.mark.parametrize("said", [torch.tensor(False), np.array(False), np.bool_(False), torch.tensor(-1.0), False])
def test_false_is_false_whatever_says_it(said):
    """Also a tensor's or an array's."""
    with pytest.raises(PropertyFailed):
        check_property(planted.induction_head(), lambda _: said, probes=strategies.repeated_sequences, max_examples=5, seed=0)


def test_a_property_may_assume():
    """What it rejects counts for nothing, and the rest of the batch is looked at; all rejected is no success."""
    model = planted.induction_head()

    def is_short(outcome):
        assume(outcome.probe.period > 5)
        assert outcome.probe.period < 8

    with pytest.raises(PropertyFailed) as failed:
        check_property(model, is_short, probes=strategies.repeated_sequences, max_examples=100, seed=0)
    assert failed.value.probe.period == 8
    with pytest.raises(Exception, match="asked nothing of any"):
        check_property(model, lambda _: assume(False), probes=strategies.repeated_sequences, max_examples=20, seed=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attends_to_successor", {"heads": []}),
        ("prefers_longer_match", {"probes": strategies.repeated_sequences}),
        ("completes_repeats", {"probes": strategies.unrepeated_sequences}),
    ],
)
def test_a_check_in_which_nothing_was_asked_does_not_pass(name, options):
    """No head, no conflict, no repeat in any of the examples: nothing was shown to hold."""
    with pytest.raises((ArgumentError, AssertionError)):
        check_property(planted.induction_head(), name, max_examples=10, seed=0, **options)


def test_heads_may_come_from_a_generator():
    """Every example asks about each of them, not the first alone."""
    long_only = [ProbeSequence((0, 1, 2, 1, 2)), ProbeSequence((0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7))]
    model = planted.count_back_head(distance=6)  # right on the second, wrong on the first
    with pytest.raises(PropertyFailed):
        check_property(model, "attends_to_successor", probes=long_only[::-1], heads=(head for head in ["L0H0"]))


def test_the_next_step_of_a_failure_has_the_options():
    """What it says to paste fails as the check did."""
    with pytest.raises(PropertyFailed) as failed:
        check_property(planted.induction_head(), "attends_to_successor", heads=["L0H0"], max_examples=5, seed=0)
    assert "heads=['L0H0']" in str(failed.value).splitlines()[-1]


@pytest.mark.parametrize(
    ("claim", "options", "said"),
    [
        ("attends_to_successor", {"heads": [(0, -1)]}, "head"),
        ("attends_to_successor", {"heads": [3]}, "heads"),
        ("attends_to_successor", {"heads": 3}, "heads"),
        ("attends_to_successor", {"heads": [("a", "b")]}, "heads"),
        ("completes_repeats", {"probes": strategies.period_pairs}, "probes|pair|sequence"),
        ("is_period_invariant", {"probes": strategies.repeated_sequences}, "probes|pair"),
        ("completes_repeats", {"probes": st.lists(strategies.repeated_sequences(64), min_size=1)}, "ProbeSequence"),
        (lambda _: "yes", {"probes": strategies.repeated_sequences}, "return"),
    ],
)
def test_mistakes_in_a_check_are_told_in_one_line(claim, options, said):
    """As an argument error, and none of Python's own from somewhere inside."""
    with pytest.raises(ArgumentError, match=said) as raised:
        check_property(planted.induction_head(), claim, max_examples=5, seed=0, **options)
    assert "\n" not in str(raised.value)


def test_a_model_that_fails_on_some_lengths_ends_a_hunt():
    """With what it said, at once."""
    fails = []

    def check(_, arguments):
        if fails and arguments[0].shape[1] > 12:
            raise RuntimeError("out of something")

    model = planted.induction_head()
    model.register_forward_pre_hook(check)
    check_property(model, "completes_repeats", max_examples=5, seed=0)
    fails.append(1)
    for hunt in (check_property, find_counterexample):
        with pytest.raises(ModelError, match="out of something"):
            hunt(model, "completes_repeats", seed=0)


def test_the_line_of_a_sequence_needs_no_numpy():
    """Whatever whole numbers it was made of: it can be pasted, and equals the one of Python's own."""
    one = ProbeSequence(
        np.array([0, 5, 6, 5, 6]),
        period=np.int64(2),
        repeats=np.int64(2),
        breaks=(np.int64(1),),
        lures=((np.int64(2), np.int64(1)),),
    )
    other = ProbeSequence((0, 5, 6, 5, 6), period=2, repeats=2, breaks=(1,), lures=((2, 1),))
    assert one == other and hash(one) == hash(other)
    assert one.line == other.line and eval(one.line) == other


def test_lists_of_breaks_and_lures_are_as_good_as_tuples():
    """The sequence can be looked up, as one of tuples."""
    one = ProbeSequence([0, 5, 6, 5, 6], breaks=[1, 3], lures=[[2, 1]])
    assert one == ProbeSequence((0, 5, 6, 5, 6), breaks=(1, 3), lures=((2, 1),))
    assert len({one, one}) == 1


@pytest.mark.parametrize("breaks", [(9,), (-1,), (3, 1)])
def test_breaks_that_are_no_ascending_positions_are_refused(breaks):
    """In one line, where the sequence is made and not where it is printed."""
    with pytest.raises(ArgumentError, match="breaks"):
        ProbeSequence((0, 5, 6, 5, 6), breaks=breaks)
