"""What a test file can use: fixtures, marker, assertions, and how they fail."""

import pytest

from tests.conftest import FIXTURES, SHIPPED

COUNTING = f"""
import sys
sys.path.insert(0, {str(FIXTURES)!r})
from pathlib import Path
from attention_only import two_layers

def make():
    count = Path("loaded.txt")
    count.write_text(count.read_text() + "x" if count.exists() else "x")
    model = two_layers()
    forward = model.forward
    def counted(tokens):
        runs = Path("runs.txt")
        runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
        return forward(tokens)
    model.forward = counted
    return model
"""


@pytest.fixture
def run(pytester):
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_the_example_of_the_readme_passes(run, pytester):
    """Assertions take the session's model, and return what they found."""
    pytester.makepyfile(
        """
        from pytest_induction import assert_has_induction_head, assert_no_induction_head, measure_heads

        def test_model(induction_model):
            found = assert_has_induction_head(induction_model, min_prefix_matching=0.4)
            assert found.heads[0].layer >= 1
            assert measure_heads(induction_model).prefix_matching.shape == (2, 4)
        """
    )
    run("test_the_example_of_the_readme_passes.py", "--induction-model", SHIPPED["llama"], "-k", "test_model").assert_outcomes(
        passed=1, deselected=2
    )


def test_a_model_is_loaded_and_measured_once_however_many_tests_ask(run, pytester):
    """Ten tests, by function and by fixture, make as many forward passes as one."""
    pytester.makepyfile(
        mine=COUNTING,
        test_many="""
        import pytest
        from pytest_induction import assert_copies_repeats, assert_has_induction_head

        @pytest.mark.parametrize("time", range(5))
        def test_function(induction_model, time):
            assert_has_induction_head(induction_model)
            assert_copies_repeats(induction_model)

        @pytest.mark.parametrize("time", range(5))
        def test_fixture(induction, time):
            induction.assert_has_induction_head()
            induction.assert_copies_repeats()
        """,
    )
    runs = {}
    for name, selection in {"one": "test_function and 0", "ten": "test_"}.items():
        for file in ("loaded.txt", "runs.txt"):
            pytester.path.joinpath(file).unlink(missing_ok=True)
        run("test_many.py", "--induction-model", "mine.py:make", "-k", selection)
        assert pytester.path.joinpath("loaded.txt").read_text() == "x"
        runs[name] = len(pytester.path.joinpath("runs.txt").read_text())
    assert runs["ten"] == runs["one"]


def test_conftest_may_override_the_model_with_any_module(run, pytester):
    """The user's own fixture returns the user's own object."""
    pytester.makeconftest(
        """
        import pytest
        from tests.models.zoo import build

        @pytest.fixture(scope="session")
        def induction_model():
            return build("llama")
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from pytest_induction import ExpectationFailed, assert_no_induction_head

        def test_function(induction_model):
            assert type(induction_model).__name__ == "LlamaForCausalLM"
            assert_no_induction_head(induction_model)

        def test_fixture(induction):
            with pytest.raises(ExpectationFailed):
                induction.assert_has_induction_head()
            assert induction.measure_heads().prefix_matching.shape == (3, 4)
        """
    )
    run().assert_outcomes(passed=2)


def test_the_marker_gives_defaults_and_a_call_has_the_last_word(run, pytester):
    """The closest marker wins; arguments of the call itself come before it."""
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.induction(seed=3, max_sequences=56)

        @pytest.mark.induction(seed=5)
        def test_marker(induction, induction_probe):
            found = induction.assert_has_induction_head()
            assert (induction.seed, found.provenance.seed) == (5, 5)
            assert induction.assert_has_induction_head(seed=7).provenance.seed == 7

        @pytest.mark.induction(period=6, repeats=3, n_sequences=2)
        def test_probe(induction_probe):
            assert induction_probe.tokens.shape == (2, 1 + 18)
            assert (induction_probe.tokens[:, 1:7] == induction_probe.tokens[:, 7:13]).all()
        """
    )
    result = run(
        "--induction-model",
        SHIPPED["two-layers"],
        "test_the_marker_gives_defaults_and_a_call_has_the_last_word.py",
        "-k",
        "test_",
    )
    result.assert_outcomes(passed=2, deselected=2)


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("min_prefix_maching=0.4", "has no argument `min_prefix_maching`; did you mean `min_prefix_matching`?"),
        ("zzz=1", "has no argument `zzz`; known are seed, max_sequences"),
        ("0.4", "takes keyword arguments only, got (0.4,)"),
    ],
)
def test_a_marker_with_unknown_arguments_is_a_usage_error(marker, message, run, pytester):
    """Misspelt defaults would silently be none."""
    pytester.makepyfile(f"import pytest\n@pytest.mark.induction({marker})\ndef test_it(): pass")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *::test_it: the marker `induction` {message.replace('[', '[[]')}*"])


def test_without_a_model_the_fixture_says_what_to_do(run, pytester):
    """One line, no traceback."""
    pytester.makepyfile("def test_it(induction_model): pass")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["no model: give --induction-model or the ini key induction_model, or override the fixture *"])
    result.stdout.no_fnmatch_line("*plugin.py*")


def test_a_failure_shows_the_users_line_and_none_of_ours(run, pytester):
    """The message after the line that made it."""
    pytester.makepyfile(
        """
        from pytest_induction import assert_has_induction_head

        def test_it(induction_model):
            assert_has_induction_head(induction_model)

        def test_bound(induction):
            induction.assert_has_induction_head()
        """
    )
    result = run(
        "--induction-model", SHIPPED["one-layer"], "test_a_failure_shows_the_users_line_and_none_of_ours.py", "-k", "test_"
    )
    result.assert_outcomes(failed=2, deselected=2)
    result.stdout.fnmatch_lines(
        [">       assert_has_induction_head(induction_model)", "E * has_induction_head is REFUTED, expected SHOWN: *"]
    )
    result.stdout.no_fnmatch_line("*src/pytest_induction*")
    result.stdout.no_fnmatch_line("*boundary.py*")


def test_errors_of_ours_show_no_frame_of_ours_either(run, pytester):
    """A model that cannot be measured is told of in the user's own line."""
    pytester.makepyfile(
        """
        from torch import nn
        from pytest_induction import assert_has_induction_head, measure_heads

        def test_it():
            assert_has_induction_head(nn.Identity())

        def test_measure():
            measure_heads(nn.Identity())
        """
    )
    result = run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E *ModelError: * returned *; expected next-token logits of every position*"])
    result.stdout.no_fnmatch_line("*adapt.py*")


def test_the_text_of_the_session_is_the_default(run, pytester):
    """Without one the error says where to give it."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_induction import TextError

        def test_it(induction):
            found = induction.assert_learns_in_context()
            assert found.estimates["icl_score"].high < -0.15

        def test_other(induction):
            with pytest.raises(TextError, match="the text is empty"):
                induction.assert_learns_in_context("   ")
        """
    )
    text = str(FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt")
    pytester.makeini(f"[pytest]\ninduction_model = {SHIPPED['three-layers-text']}\n")
    result = run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E *no text: give `assert_learns_in_context` one, or the option --induction-text"])
    run(f"--induction-text={text}").assert_outcomes(passed=2)


def test_nothing_is_printed_where_nothing_was_measured(run, pytester):
    """A session of other tests does not see the plugin."""
    pytester.makepyfile("def test_it(): pass")
    run().stdout.no_fnmatch_line("*= induction =*")


def test_properties_are_reported_like_verdicts(run, pytester):
    """In the terminal section and in JUnit; one that fails with its first line, and with the command that runs it alone."""
    pytester.makepyfile(
        """
        from pytest_induction import check_property, strategies

        def test_holds(induction):
            induction.check_property("completes_repeats", max_loss=50.0, max_examples=20, seed=0)

        def test_fails(induction_model):
            def never(outcome):
                raise AssertionError("not so\\nat all")
            check_property(induction_model, never, probes=strategies.repeated_sequences, seed=0)
        """
    )
    result = run("-o", f"induction_model={SHIPPED['two-layers']}", "--junit-xml=report.xml", "-o", "junit_family=xunit2")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines(
        [
            r".*two_layers: 2 layers x 4 heads by sdpa",
            r"  SHOWN        completes_repeats   holds on all of \d+ examples, by \d.* at least: BOS \| ",
            r"  REFUTED    never               not so$",
        ]
    )
    result.stdout.fnmatch_lines(["*induction: again, alone*", "pytest *::test_fails*"])
    report = (pytester.path / "report.xml").read_text()
    assert 'name="induction.completes_repeats.verdict" value="SHOWN"' in report
    assert 'name="induction.never.reason" value="fails"' in report and "never.seed" not in report


def test_a_suppressor_is_no_induction_head_in_the_table(run, pytester):
    """Its kind and its effect are shown, and nothing is marked."""
    pytester.makepyfile(
        """
        from pytest_induction import assert_has_induction_head
        from pytest_induction.models import planted

        def test_it():
            assert_has_induction_head(planted.copy_suppression_head(d_vocab=40))
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"    L1H0 .*-16\.00  suppresses"])
    result.stdout.no_fnmatch_line("*[*] induction head*")
