"""`--induction-benchmark`: timed items on the user's model, with everything pytest-benchmark offers, and a bound on the ratio."""

import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import FIXTURES, SHIPPED

pytest.importorskip("pytest_benchmark")
TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"
CPU = torch.device("cpu")
QUICK = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=1")


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest in a directory with one ordinary test, with warnings as errors, on as few rounds as there may be."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # or pytest-benchmark disables itself in the inner run too
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(test_other="def test_other(): pass")
    pytester.makeconftest("def pytest_benchmark_generate_machine_info(): return {}")  # asking the processor takes seconds
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *QUICK, *arguments)


@pytest.fixture
def timed(run):
    """The same, timing the shipped Llama."""
    return lambda *arguments: run("--induction-model", SHIPPED["llama"], "--induction-benchmark", *arguments)


def test_every_analysis_is_timed_and_nothing_is_gated(timed, pytester):
    """No test file, no gates; lengths that do not fit are skipped with the reason; the ratios are shown."""
    result = timed("--benchmark-json=out.json", "-rs")
    result.assert_outcomes(passed=4, skipped=4)
    result.stdout.fnmatch_lines(
        [
            "*= induction benchmark =*",
            "*llama-2l: by sdpa, float32 on cpu, 1 thread, torch *",
            "  analysis *tokens/s  x forward *interval  pairs  peak MB  forward's",
            "  forward[[]probe[]] *",
            "  scores[[]probe[]] *",
            "  behaviour *",
            "  has_induction_head *",
            "SKIPPED*512 positions do not fit the context of 64",
        ]
    )
    assert "= induction =" not in result.stdout.str()
    found = {each["name"]: each for each in json.loads((pytester.path / "out.json").read_text())["benchmarks"]}
    assert {name: each["group"] for name, each in found.items()} == {
        "forward[probe]": "forward",
        "scores[probe]": "scores",
        "behaviour": "behaviour",
        "has_induction_head": "verdicts",
    }
    scores = found["scores[probe]"]
    assert scores["fullname"] == f"{SHIPPED['llama']}::scores[probe]"
    about = scores["extra_info"]
    assert (about["backend"], about["dtype"], about["device"], about["threads"]) == ("sdpa", "float32", "cpu", 1)
    assert about["torch"] == torch.__version__
    assert about["pairs"] == scores["stats"]["rounds"] >= 15
    assert about["ratio_low"] <= about["ratio_to_base"] <= about["ratio_high"]
    assert about["tokens"] == about["sequences"] * about["positions"] == 8 * 61
    assert about["tokens_per_second"] == pytest.approx(about["tokens"] / about["seconds"], rel=1e-3)
    assert about["seconds"] == pytest.approx(scores["stats"]["median"], rel=0.2)
    verdict = found["has_induction_head"]["extra_info"]
    assert verdict["forward_passes"] >= 12
    assert "ratio_low" not in verdict  # too few pairs for an interval: absent, not made up
    if sys.platform == "linux":
        assert 0 <= about["peak_memory_mb"] < 200
        assert "VmHWM" in about["peak_memory_is"]


def test_in_context_learning_is_timed_where_there_is_a_text(run, pytester):
    """Beside the others."""
    (pytester.path / "text.txt").write_text(TEXT.read_text()[:4000])
    result = run(
        *("--induction-model", SHIPPED["three-layers-text"], "--induction-text=text.txt", "--induction-benchmark"),
        *("-k", "learns", "--benchmark-only"),
    )
    result.assert_outcomes(passed=1, deselected=8)
    result.stdout.fnmatch_lines(["  learns_in_context *"])


def test_results_are_saved_and_compared(timed, pytester):
    """--benchmark-autosave and --benchmark-compare find the same items again, and a regression fails."""
    timed("--benchmark-autosave", "-k", "scores").assert_outcomes(passed=1, skipped=2, deselected=5)
    saved = next((pytester.path / ".benchmarks").rglob("*.json"))
    result = timed("--benchmark-compare", "-k", "scores")
    result.stdout.fnmatch_lines_random(["scores[[]probe[]] (NOW) *", "scores[[]probe[]] (0001_*"])
    data = json.loads(saved.read_text())
    data["benchmarks"][0]["stats"]["median"] /= 100
    saved.write_text(json.dumps(data))
    result = timed("--benchmark-compare", "--benchmark-compare-fail=median:100%", "-k", "scores")
    assert "has regressed" in result.stdout.str() + result.stderr.str()
    assert result.ret != 0


def test_skipping_loads_no_model_and_disabling_runs_each_once(run, timed, pytester):
    """The options of pytest-benchmark mean what they mean elsewhere."""
    result = run("--induction-model", "no.such.module:factory", "--induction-benchmark", "--benchmark-skip")
    result.assert_outcomes(skipped=8)
    result = timed("--benchmark-disable", "-k", "not 512 and not 2048")
    result.assert_outcomes(passed=4, deselected=4)
    result.stdout.no_fnmatch_line("*induction benchmark*")


def test_an_overhead_within_the_bound_passes_and_one_above_it_fails(timed, pytester):
    """One line with the ratio, the bound and the pairs; what was measured is saved all the same."""
    timed("--induction-max-overhead=1000", "-k", "scores and probe").assert_outcomes(passed=1, deselected=7)
    result = timed("--induction-max-overhead=0.01", "--benchmark-json=out.json", "-k", "probe")
    result.assert_outcomes(passed=1, failed=1, deselected=6)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["scores[[]probe[]] takes * times the bare forward pass (99.9 % interval *..*), * pairs: above *-max-overhead=0.01"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*suite.py:*: Failed*")
    names = [each["name"] for each in json.loads((pytester.path / "out.json").read_text())["benchmarks"]]
    assert sorted(names) == ["forward[probe]", "scores[probe]"]


def test_the_ini_file_may_hold_model_and_bound(pytester, run):
    """So that CI needs one option only; it still collects nothing without it."""
    pytester.makeini(f"[pytest]\ninduction_model = {SHIPPED['llama']}\ninduction_max_overhead = 0.01\n")
    run("--induction-benchmark", "-k", "scores and probe").assert_outcomes(failed=1, deselected=7)
    run().assert_outcomes(passed=1)


def test_a_bound_is_not_passed_where_nothing_is_timed(timed):
    """Disabled benchmarks show nothing."""
    result = timed("--induction-max-overhead=1000", "--benchmark-disable", "-k", "scores and probe")
    result.assert_outcomes(failed=1, deselected=7)
    result.stdout.fnmatch_lines(["benchmarks are disabled (*), so --induction-max-overhead cannot be checked: *"])


USAGE = {
    "no model": (["--induction-benchmark"], "--induction-benchmark: no model, give --induction-model or the ini key"),
    "no pytest-benchmark": (
        ["--induction-benchmark", "--induction-model", SHIPPED["llama"], "-p", "no:benchmark"],
        "--induction-benchmark needs pytest-benchmark: pip install 'pytest-induction[benchmark]'",
    ),
    "no number": (
        ["--induction-benchmark", "--induction-model", SHIPPED["llama"], "--induction-max-overhead", "much"],
        "--induction-max-overhead: it must be a number above 0, got 'much'",
    ),
    "NaN": (
        ["--induction-benchmark", "--induction-model", SHIPPED["llama"], "--induction-max-overhead", "nan"],
        "--induction-max-overhead: it must be a number above 0, got 'nan'",
    ),
    "nothing to judge": (
        ["--induction-model", SHIPPED["llama"], "--induction-max-overhead", "1.2"],
        "--induction-max-overhead needs --induction-benchmark",
    ),
}


@pytest.mark.parametrize("kind", USAGE)
def test_what_is_wrong_on_the_command_line_is_a_usage_error(kind, pytester):
    """Exit code 4 and one line, before anything is loaded."""
    arguments, message = USAGE[kind]
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in [*result.outlines, *result.errlines] if line.startswith("ERROR")]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_model_that_cannot_be_loaded_is_one_line(run):
    """For each item, and without a traceback or a warning on top."""
    result = run("--induction-model", "no.such.module:factory", "--induction-benchmark", "-k", "behaviour")
    result.assert_outcomes(errors=1, deselected=7)
    result.stdout.fnmatch_lines(["*no.such.module*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*suite.py:*: in *")


def test_what_needs_no_attention_is_timed_where_none_can_be_read(run, pytester):
    """The rest is one line each, and does not stop them."""
    pytester.makepyfile(
        mine="""
        import torch
        from torch import nn

        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.cell, self.unembed = nn.Embedding(50, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 50)

            def forward(self, tokens):
                return self.unembed(self.cell(self.embed(tokens))[0])

        def make():
            torch.manual_seed(0)
            return Recurrent()
        """
    )
    result = run("--induction-model", "mine.py:make", "--induction-benchmark", "-k", "not 512 and not 2048")
    result.assert_outcomes(passed=2, errors=2, deselected=4)
    result.stdout.fnmatch_lines(
        ["the attention of mine.py:make cannot be read*", "mine.py:make: attention not read, *", "  behaviour *"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_model_that_fails_while_it_is_timed_is_one_line(run, pytester):
    """Though it ran when it was tried out."""
    pytester.makepyfile(
        mine="""
        import torch
        from tests.model.plain import Plain

        class Tired(Plain):
            runs = 0

            def forward(self, tokens):
                self.runs += len(tokens) == 8  # rows of the probe that is timed
                if self.runs > 6:  # tried once, four times to warm up, once as the base of the first pair
                    raise RuntimeError("no more")
                return super().forward(tokens)

        def make():
            torch.manual_seed(0)
            return Tired(n_ctx=101)
        """
    )
    result = run("--induction-model", "mine.py:make", "--induction-benchmark", "-k", "behaviour")
    result.assert_outcomes(failed=1, deselected=7)
    result.stdout.fnmatch_lines(["mine.py:make failed on token ids (*): no more"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_lengths_are_tried_where_a_model_does_not_tell_its_context(run, pytester):
    """What does not run is skipped, what runs is timed; nothing is guessed."""
    pytester.makepyfile(
        mine="""
        import torch
        from tests.model.plain import Plain

        class Short(Plain):
            def forward(self, tokens):
                if tokens.shape[1] > 600:
                    raise RuntimeError("no more than 600 positions")
                return super().forward(tokens)

        def make():
            torch.manual_seed(0)
            return Short(n_ctx=600)
        """
    )
    result = run("--induction-model", "mine.py:make", "--induction-benchmark", "-k", "512 or 2048", "-rs", "-v")
    result.assert_outcomes(passed=2, skipped=2, deselected=4)
    result.stdout.fnmatch_lines(["*does not tell its context, and 2048 positions do not run: no more than 600 positions"])


@pytest.fixture
def fixture_like():
    """What `Turns` needs of pytest-benchmark's fixture."""

    def pedantic(target, setup=lambda: None, rounds=1):
        for _ in range(rounds):
            setup()
            target()

    return SimpleNamespace(disabled=False, pedantic=pedantic)


@pytest.mark.parametrize("pairs", [1, 4, 5])
def test_the_sides_take_turns_and_the_first_changes_from_pair_to_pair(pairs, fixture_like):
    """So that neither side gains from coming first."""
    from pytest_induction.plugin.benchmarks.timing import Turns

    order = []
    turns = Turns(lambda: order.append("ours"), lambda: order.append("base"), CPU)
    paired = turns.take(fixture_like, fewest=pairs, seconds=0)
    assert len(paired.ours) == len(paired.base) == pairs
    expected = [side for pair in range(pairs) for side in (("base", "ours"), ("ours", "base"))[pair % 2]]
    assert order[4:] == expected  # after two pairs of warm-up


def test_more_pairs_are_taken_while_there_is_time(fixture_like):
    """Cheap runs are repeated more often."""
    from pytest_induction.plugin.benchmarks.timing import MOST_PAIRS, Turns

    paired = Turns(lambda: None, lambda: None, CPU).take(fixture_like, fewest=3, seconds=1)
    assert len(paired.ours) == MOST_PAIRS


def test_neither_side_pays_for_a_tracer_or_the_garbage_collector():
    """And both are as before afterwards."""
    import gc

    from pytest_induction.plugin.benchmarks.timing import timed

    seen = {}
    before, tracer = sys.gettrace(), lambda *arguments: None
    sys.settrace(tracer)
    try:
        timed(lambda: seen.update(trace=sys.gettrace(), collects=gc.isenabled()), CPU)
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert seen == {"trace": None, "collects": False}
    assert after is tracer
    assert gc.isenabled()


def test_a_bound_is_broken_only_where_the_whole_interval_lies_above_it():
    """Noise of any shape around the bound fails fewer than one run in a thousand; a clear excess fails every time."""
    from pytest_induction.plugin.benchmarks.timing import Paired, objection

    rng = np.random.default_rng(0)

    def fails(true_ratio, runs):
        base = np.ones(15)
        noisy = true_ratio * np.exp(rng.standard_cauchy((runs, 15)).clip(-3, 3) * 0.05)
        return sum(objection("scores", Paired(tuple(ours), tuple(base)), 1.2) is not None for ours in noisy)

    assert fails(1.2, 4000) <= 8
    assert fails(1.1, 1000) == 0
    assert fails(2.0, 200) >= 198
    assert (
        objection("scores", Paired((1.0,) * 5, (1.0,) * 5), 1.2)
        == "scores: 5 pairs show nothing about --induction-max-overhead=1.2"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells peaks on Linux only")
def test_the_peak_is_that_of_the_run_alone():
    """A temporary of 64 MB is seen; what was allocated and freed before is not."""
    from pytest_induction.plugin.benchmarks.timing import measured_by, peak_megabytes

    torch.zeros(2**25).sum()
    assert measured_by(CPU)
    assert peak_megabytes(lambda: None, CPU) < 4
    assert peak_megabytes(lambda: torch.ones(2**24).sum(), CPU) == pytest.approx(64, abs=4)


def test_analyses_are_measured_anew_each_time_and_leave_the_model_as_it_was():
    """A remembered verdict would take no time; and nothing is remembered for the caller either."""
    import pytest_induction
    from pytest_induction.fixture import Induction
    from pytest_induction.plugin.benchmarks.analyses import analyses, batches_of, fresh

    model = pytest_induction.load_model(SHIPPED["two-layers"])
    weights = model.fingerprint()
    analysis = {each.name: each for each in analyses(with_text=False)}["has_induction_head"]
    measure = analysis.prepare(Induction(model))
    first, second = batches_of(measure, fresh(model)), batches_of(measure, fresh(model))
    assert len(first) == len(second) > 0
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert model.fingerprint() == weights
    assert not model._known


def test_a_long_row_repeats_what_the_vocabulary_has():
    """Four copies, or more of fewer tokens; scored by diagonals either way."""
    from pytest_induction.attention.scores import PeriodicScores, scores_for
    from pytest_induction.plugin.benchmarks.analyses import _long_row
    from pytest_induction.records import TokenSpace

    for d_vocab, period in ((1000, 128), (41, 40)):
        row = torch.from_numpy(_long_row(TokenSpace(d_vocab, None, 0, frozenset()), 512, seed=0))
        scores = scores_for(row)
        assert isinstance(scores, PeriodicScores)
        assert (scores.period, scores.n_positions) == (period, 512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(row, torch.from_numpy(_long_row(TokenSpace(41, 512, 0, frozenset()), 512, seed=0)))
