"""`assert_formed`: is induction there by some point, whatever the shape, of few checkpoints too."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pytest_induction import assert_formed, load_run
from pytest_induction.records import Verdict
from pytest_induction.runs.phase_change.finding import find_phase_changes
from pytest_induction.runs.record import Snapshot, TrainingRun
from tests.runs.claims import evidence_of, refusal
from tests.runs.curves import logistic, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"


def measured(levels, *, per_step=2048, error=0.01, advantages=None):
    """A run whose best head has these levels of prefix matching by step, with standard errors; one of advantage goes with them."""
    snapshots = []
    for step, level in levels.items():
        scores = np.array([[0.02, level], [0.03, 0.04]], dtype=np.float32)
        advantage = 8 * (level - 0.05) if advantages is None else advantages[step]
        errors = {"prefix_matching": np.full((2, 2), error), "excess": np.full((2, 2), error), "advantage": 0.05}
        snapshots.append(
            Snapshot(
                step,
                prefix_matching=scores,
                excess=scores - 0.02,
                advantage=advantage,
                errors=errors,
                n_sequences=24,
            )
        )
    return TrainingRun("levels", tuple(snapshots), tokens_per_step=per_step)


LEVELS = {0: 0.03, 512: 0.05, 1000: 0.1, 2000: 0.7, 4000: 0.8, 143_000: 0.85}


@pytest.mark.parametrize(
    ("before", "verdict", "reason"),
    [
        (None, SHOWN, "formed"),
        (2000, SHOWN, "formed"),
        (3000, SHOWN, "formed"),
        (1000, REFUTED, "too_late"),
        (600, REFUTED, "too_late"),
        (1500, UNDETERMINED, "between_snapshots"),
    ],
)
def test_the_last_snapshot_before_the_bound_counts(before, verdict, reason):
    """Six checkpoints are enough, which tell nothing of how fast it was."""
    run = measured(LEVELS)
    assert len(run) < 8 and find_phase_changes(run).reason == "few_snapshots"
    for options in ({"before_step": before}, {"before_tokens": before and before * 2048}):
        found = evidence_of(assert_formed, run, **options)
        assert (found.verdict, found.reason) == (verdict, reason), found.summary
        assert bool(found.next_step) == (verdict is UNDETERMINED)
        assert found.estimates["formed"].value == 2000 and found.estimates["formed"].low == 1000


def test_gradual_changes_count_too():
    steps = [int(step) for step in np.geomspace(1, 10_000, 40)]
    run = measured({step: 0.05 + 0.7 * logistic(np.log10(step), 2.0, 1.5) for step in dict.fromkeys(steps)})
    assert find_phase_changes(run).reason == "gradual"
    assert assert_formed(run, before_step=1000).verdict is SHOWN


def test_what_is_lost_again_has_not_formed():
    found = evidence_of(assert_formed, measured({**LEVELS, 143_000: 0.04}), before_step=4000)
    assert (found.verdict, found.reason) == (REFUTED, "lost")
    assert "at step 4000" in found.summary and "at step 143000" in found.summary


def test_heads_that_nothing_comes_of_do_not_count():
    run = measured(LEVELS, advantages=dict.fromkeys(LEVELS, 0.0))
    found = evidence_of(assert_formed, run, before_step=4000)
    assert (found.verdict, found.reason) == (REFUTED, "matches_without_copying")


def test_a_run_that_ends_before_the_bound_without_it_is_not_over():
    short = measured({step: level for step, level in LEVELS.items() if step <= 1000})
    found = evidence_of(assert_formed, short, before_step=2000)
    assert (found.verdict, found.reason, found.next_step) == (UNDETERMINED, "not_over", "train further")
    assert evidence_of(assert_formed, short).verdict is REFUTED
    assert assert_formed(measured(LEVELS), before_step=10**9).verdict is SHOWN


def test_what_is_not_known_is_said():
    run = measured(LEVELS)
    first = dataclasses.replace(run, snapshots=run.snapshots[2:])
    assert evidence_of(assert_formed, first, before_step=600).reason == "not_recorded"
    unknown = evidence_of(assert_formed, dataclasses.replace(run, tokens_per_step=None), before_tokens=1e6)
    assert (unknown.verdict, unknown.reason) == (UNDETERMINED, "tokens_not_known") and "before_step" in unknown.next_step
    nothing = evidence_of(assert_formed, run_of(np.arange(1, 20), loss=np.linspace(5, 3, 19)))
    assert (nothing.verdict, nothing.reason) == (UNDETERMINED, "not_recorded")


def test_levels_that_are_not_clear_of_the_threshold_are_undetermined():
    found = evidence_of(assert_formed, measured({0: 0.02, 100: 0.31}, error=0.03))
    assert (found.verdict, found.reason) == (UNDETERMINED, "heads_unclear")


@pytest.mark.parametrize(("noise", "verdict"), [(0.01, SHOWN), (0.5, UNDETERMINED)])
def test_a_log_without_standard_errors_is_judged_by_its_scatter(noise, verdict):
    steps = np.arange(0, 4000, 100)
    rng = np.random.default_rng(0)
    scores = 0.05 + 0.6 * (steps > 1500) + rng.normal(0, noise, len(steps))
    scores[-1] = 0.65
    found = evidence_of(assert_formed, run_of(steps, prefix_matching=scores))
    assert found.verdict is verdict and "advantage of the successor on repeated tokens not recorded" in found.summary
    flat = run_of(steps, prefix_matching=0.05 + rng.normal(0, 0.01, len(steps)), advantage=0.0 * steps)
    assert evidence_of(assert_formed, flat).reason == "not_there"


def test_recorded_runs():
    assert assert_formed(RUNS / "two-layers", before_step=300).verdict is SHOWN
    assert evidence_of(assert_formed, load_run(RUNS / "two-layers"), before_step=200).reason == "too_late"
    assert evidence_of(assert_formed, RUNS / "one-layer").verdict is REFUTED
    assert assert_formed(RUNS / "gradual").verdict is SHOWN


@pytest.mark.parametrize("options", [{"before_step": 0}, {"before_tokens": -1}, {"before_tokens": float("nan")}])
def test_bounds_that_make_no_sense_are_refused(options):
    assert next(iter(options)) in refusal(assert_formed, measured(LEVELS), **options)
