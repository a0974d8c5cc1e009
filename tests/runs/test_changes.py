"""Each reason for a verdict on one series is reached where it is right, and not by its neighbour."""

import dataclasses
import math

import numpy as np
import pytest

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.records import Verdict
from pytest_induction.runs.phase_change import changes
from pytest_induction.runs.phase_change.changes import POWER, confounders_of
from pytest_induction.runs.phase_change.finding import change_of
from pytest_induction.runs.record import Axis, TrainingRun, measuring_error, series_of
from tests.runs.curves import STEPS, X, abrupt, heads, logistic, noise_of, ramp, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED

EVEN = np.arange(0, 10_001, 100)

CASES = {
    "abrupt": (lambda: heads(abrupt()), SHOWN, "abrupt"),
    "abrupt, a ramp": (lambda: heads(ramp(X, 2.4, 0.3)), SHOWN, "abrupt"),
    "half a decade, nearly": (lambda: heads(ramp(X, 2.4, 0.44)), SHOWN, "abrupt"),
    "a little more": (lambda: heads(ramp(X, 2.4, 0.56)), REFUTED, "gradual"),
    "gradual": (lambda: heads(logistic(X, 2.4, 1.0)), REFUTED, "gradual"),
    "saturating": (lambda: heads(1 - np.exp(-STEPS / 200)), REFUTED, "gradual"),
    "steps in a stair": (lambda: heads(sum(logistic(X, place, 0.1) for place in (1.2, 2.2, 3.2)) / 3), REFUTED, "gradual"),
    "flat": (lambda: heads(0 * X), REFUTED, "no_change"),
    "constant": (lambda: heads(0 * X, noise=0), REFUTED, "no_change"),
    "below the threshold": (lambda: heads(0.2 * abrupt()), REFUTED, "no_change"),
    "lost": (lambda: heads(1 - abrupt()), REFUTED, "no_change"),
    "one wild value": (lambda: heads(np.arange(len(X)) == 50), REFUTED, "no_change"),
    "at the threshold": (lambda: heads(0.36 * abrupt(), noise=0.02), UNDETERMINED, "change_unclear"),
    "between two snapshots": (lambda: heads(X > 2.4), SHOWN, "abrupt"),
    "two steps": (lambda: heads(0.6 * logistic(X, 1.8, 0.1) + 0.4 * logistic(X, 2.8, 0.1)), REFUTED, "two_steps"),
    "and a smaller step": (lambda: heads(0.8 * logistic(X, 1.8, 0.1) + 0.2 * logistic(X, 2.8, 0.1)), SHOWN, "abrupt"),
    "width at the threshold": (lambda: heads(logistic(X, 2.4, 0.5), noise=0.02), UNDETERMINED, "width_unclear"),
    "still rising": (lambda: heads(logistic(X, 4.0, 0.2)), UNDETERMINED, "not_over"),
    "in the last snapshot": (lambda: heads(np.arange(len(X)) == len(X) - 1), UNDETERMINED, "not_over"),
    "in the last two": (lambda: heads(np.arange(len(X)) >= len(X) - 2), UNDETERMINED, "not_over"),
    "after the first snapshot": (lambda: heads(np.arange(len(X)) > 0), UNDETERMINED, "began_before"),
    "after the second": (lambda: heads(np.arange(len(X)) > 1), UNDETERMINED, "began_before"),
    "begun before": (lambda: heads(logistic(X, 0.25, 0.4)), UNDETERMINED, "began_before"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_reason_is_reached_where_it_is_right(case):
    make, verdict, reason = CASES[case]
    found = make()
    assert (found.verdict, found.reason) == (verdict, reason), found.summary
    expected = {"abrupt": "abrupt", "gradual": "gradual", "no_change": "flat"}.get(reason, "")
    assert found.shape == expected
    assert bool(found.next_step) == (verdict is UNDETERMINED)


def test_a_formed_change_says_what_the_curve_was_made_with():
    found = heads(abrupt(width=0.2))
    assert found.midpoint.step.value == pytest.approx(10**2.4, rel=0.01)
    assert found.onset.step.value == pytest.approx(10**2.3, rel=0.02)
    assert found.end.step.value == pytest.approx(10**2.5, rel=0.02)
    assert found.width.value == pytest.approx(0.2, rel=0.05)
    assert found.change.value == pytest.approx(0.56, rel=0.03)
    assert found.change.low < 0.56 < found.change.high
    assert found.share == pytest.approx(0.8, abs=0.03)
    first, last = found.onset.step.low, found.end.step.high
    inside = (first <= STEPS) & (last >= STEPS)
    assert found.n_inside == inside.sum() >= 3
    assert found.between[0] <= found.onset.step.high and found.between[1] >= found.end.step.low
    for estimate in (found.onset.step, found.midpoint.step, found.end.step, found.width, found.change):
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("first_step", [0, 100])
def test_a_head_that_is_there_from_the_second_snapshot_on_is_not_one_that_never_formed(first_step):
    """A record that is too coarse at the start: the change came before the second snapshot."""
    steps = first_step + np.arange(20) * 1000
    found = heads(np.arange(20) > 0, steps)
    assert (found.verdict, found.reason) == (UNDETERMINED, "began_before")
    assert "first" in found.next_step


def test_a_fall_is_no_change_and_is_told_as_a_fall():
    """A head that is lost does not form; it does not stay where it is either."""
    found = heads(1 - abrupt())
    assert (found.verdict, found.reason) == (REFUTED, "no_change")
    assert "goes from 0.76 to 0.05" in found.summary
    assert "stays between" in heads(0 * X).summary


def test_a_rise_beside_a_larger_fall_is_not_called_gradual():
    """What goes the other way fits best here, and says nothing of how fast the rise was."""
    steps = np.arange(81) * 125
    x = np.log10(np.maximum(steps, 0.5))
    for lost, width in ((0.6, 0.4), (0.8, 0.24), (1.0, 0.4)):
        found = heads(ramp(x, 2.44, 0.24) - lost * ramp(x, 2.94, width), steps)
        assert found.change.value < 0
        assert found.verdict is UNDETERMINED


def test_heads_that_are_lost_later_had_formed():
    """The change is that before they were lost, and the summary says that they were."""
    kept = heads(abrupt(place=2.0))
    lost = heads(abrupt(place=2.0) - abrupt(place=3.2))
    assert lost.verdict is SHOWN
    assert lost.midpoint.step.value == pytest.approx(kept.midpoint.step.value, rel=0.03)
    assert "later it is lost" in lost.summary
    assert "later it is lost" not in kept.summary


@pytest.mark.parametrize("count", range(2, 9))
def test_fewer_than_eight_snapshots_tell_nothing(count):
    """Seven are too few, whatever they are; eight over four decades lie farther apart than an abrupt change may last."""
    steps = np.unique(np.geomspace(1, 10_000, count).astype(int))
    found = heads(abrupt(steps), steps)
    assert found.verdict is UNDETERMINED
    assert found.reason == ("few_snapshots" if count < 8 else "width_unclear")
    if count < 8:
        assert f"at {count} snapshots" in found.summary and f"{8 - count} more" in found.next_step


@pytest.mark.parametrize("seed", [6, 7, 16])
def test_a_ramp_over_most_of_the_training_is_not_abrupt(seed, monkeypatch):
    """However few decades that is, as late as it comes: what tells is the part of the training that it takes."""
    rng = np.random.default_rng(seed)
    shape = np.clip((EVEN / EVEN[-1] - rng.uniform(0.05, 0.36)) / rng.choice([0.55, 0.63]), 0, 1)
    assert heads(shape, EVEN, noise=0.01, seed=seed).verdict is not SHOWN
    monkeypatch.setattr(changes, "MAX_PART", 1.0)
    assert heads(shape, EVEN, noise=0.01, seed=seed).verdict is SHOWN


def test_eight_snapshots_tell_where_they_lie_near_enough():
    """Three on either side, and two of which the change is between: as narrow as these are near, and censored by them."""
    steps = np.array([10, 30, 80, 150, 220, 500, 900, 2000])
    found = heads(abrupt(steps, 2.25, 0.1), steps)
    assert (found.verdict, found.between) == (SHOWN, (150, 220)), found.summary
    assert "between the snapshots at steps 150 and 220" in found.summary
    assert found.midpoint.step.low < 10**2.25 < found.midpoint.step.high
    assert found.width.high < np.log10(220 / 150) + 0.1
    wide = heads(abrupt(steps[[0, 1, 2, 5, 6, 7]], 2.25, 0.1), steps[[0, 1, 2, 5, 6, 7]])
    assert wide.verdict is UNDETERMINED


def test_four_snapshots_in_a_twentieth_of_a_decade_are_abrupt():
    """A jump from 0.12 over 0.42 and 0.75 to 0.83, with little inside and level before and after."""
    steps = np.array([1, 10, 50, 100, 200, 400, 415, 430, 450, 600, 900, 1500, 3000])
    levels = np.array([0.1, 0.11, 0.1, 0.12, 0.11, 0.12, 0.42, 0.75, 0.83, 0.84, 0.83, 0.85, 0.84])
    found = change_of(run_of(steps, prefix_matching=levels), "prefix_matching")
    assert found.verdict is SHOWN and found.width.high < 0.1, found.summary


@pytest.mark.parametrize(
    ("name", "start", "size", "noise"),
    [
        ("icl_score", -0.1, -1.5, 0.01),
        ("repeat_loss", 6.0, -5.0, 0.03),
        ("advantage", 0.0, 5.0, 0.03),
        ("repeat_accuracy", 0.0, 0.9, 0.01),
    ],
)
def test_what_falls_where_induction_forms_is_judged_like_what_rises(name, start, size, noise):
    good = change_of(run_of(STEPS, **{name: start + size * abrupt() + noise_of(len(X), noise, 1)}), name)
    assert (good.verdict, good.reason) == (SHOWN, "abrupt")
    assert good.change.value == pytest.approx(0.8 * abs(size), rel=0.05)
    assert good.midpoint.step.value == pytest.approx(10**2.4, rel=0.02)
    other_way = change_of(run_of(STEPS, **{name: start - size * abrupt() + noise_of(len(X), noise, 1)}), name)
    assert (other_way.verdict, other_way.reason) == (REFUTED, "no_change")
    small = change_of(run_of(STEPS, **{name: start + size / 30 * abrupt()}), name)
    assert (small.verdict, small.reason) == (REFUTED, "no_change")


def test_snapshots_without_a_value_are_left_out():
    """Every third, and those with NaN or infinite scores; the change is where it was."""
    values = 0.06 + 0.7 * abrupt() + noise_of(len(X), 0.003, 0)
    gaps = np.where(np.arange(len(X)) % 3 == 1, np.nan, values)
    run = run_of(STEPS, prefix_matching=gaps)
    broken = [
        dataclasses.replace(each, prefix_matching=np.full((2, 2), np.inf))
        for each in run_of(STEPS[-5:] + 10**5, loss=X[-5:]).snapshots
    ]
    found = change_of(TrainingRun("gaps", (*run.snapshots, *broken)), "prefix_matching")
    assert found.verdict is SHOWN
    assert found.midpoint.step.value == pytest.approx(10**2.4, rel=0.02)
    assert found.n_inside < heads(abrupt()).n_inside


def test_heads_of_other_shapes_at_some_snapshots_are_read_all_the_same():
    """Layers without the head have NaN, and errors of another shape are not known."""
    run = run_of(STEPS, prefix_matching=0.06 + 0.7 * abrupt() + noise_of(len(X), 0.003, 0))
    ragged = []
    for index, snapshot in enumerate(run.snapshots):
        scores = np.full((1 + index % 3, 2 + index % 2), 0.05)
        scores[0, 1], scores[-1, 0] = snapshot.prefix_matching[0, 1], np.nan
        ragged.append(dataclasses.replace(snapshot, prefix_matching=scores, errors={"prefix_matching": np.full((2, 2), 0.01)}))
    assert change_of(TrainingRun("ragged", tuple(ragged)), "prefix_matching").verdict is SHOWN


def test_no_number_at_all_is_not_recorded():
    run = run_of(STEPS, loss=X)
    empty = [dataclasses.replace(each, prefix_matching=np.full((2, 2), np.nan)) for each in run.snapshots]
    assert change_of(TrainingRun("empty", tuple(empty)), "prefix_matching") is None


@pytest.mark.parametrize(
    ("step", "named"), [(250, True), (160, True), (400, True), (120, False), (600, False), (10**7, False), (1, False)]
)
def test_only_scheduled_changes_that_are_near_are_named(step, named):
    found = heads(abrupt(), schedule=[(step, "the warm-up ends")])
    assert found.verdict is SHOWN
    assert found.confounders == ((f"the warm-up ends (step {step})",) if named else ())


def test_what_was_scheduled_long_after_the_last_snapshot_is_not_near_it():
    axis = Axis.of(run_of(STEPS, loss=X))
    last = float(axis.x[-1])
    schedule = run_of(STEPS, loss=X, schedule=[(11_000, "soon"), (1_000_000, "late")]).schedule
    assert confounders_of(schedule, axis, last - 0.2, last) == ("soon (step 11000)",)


def paired_rows(spread, seed=0, rows=40):
    """Scores of rows of text that differ among each other by `spread`, and change together."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=rows) * spread
    return -1.5 * abrupt()[:, None] + own + 0.05 * rng.normal(size=(len(X), rows))


def test_rows_of_the_same_text_are_compared_row_by_row():
    """However far rows differ among each other, the error of a difference is that of the rows' differences."""
    rows = paired_rows(2.0)
    errors = {"icl_score": float(rows[0].std(ddof=1) / math.sqrt(rows.shape[1]))}
    found = {}
    for name, given in (("paired", {"icl_rows": rows}), ("unpaired", {"icl_rows": None})):
        run = run_of(STEPS, icl_score=rows.mean(axis=1), errors=errors, **given)
        axis = Axis.of(run)
        found[name] = measuring_error(run, series_of(run, axis, "icl_score", {"icl_score": 0.15}), 0, len(X) - 1)
        change = change_of(run, "icl_score").change
        assert (change.high - change.low < 0.5) == (name == "paired")
    expected = (rows[-1] - rows[0]).std(ddof=1) / math.sqrt(40)
    assert found["paired"] == pytest.approx(expected)
    assert found["unpaired"] == pytest.approx(math.sqrt(2) * errors["icl_score"])
    assert found["paired"] < found["unpaired"] / 20


def test_rows_that_all_change_alike_are_sure_and_rows_that_do_not_are_unclear():
    """A guard: the same mean change, carried by a few rows, does not pass for a sure one."""
    share = np.r_[np.full(3, 40 / 3), np.zeros(37)]
    lonely = -0.35 * abrupt()[:, None] * share
    alike = -0.35 * abrupt()[:, None] * np.ones(40)
    verdicts = [change_of(run_of(STEPS, icl_score=rows.mean(axis=1), icl_rows=rows), "icl_score") for rows in (alike, lonely)]
    assert [change.reason for change in verdicts] == ["abrupt", "change_unclear"]


@pytest.mark.parametrize("name", ["prefix_matching", "previous_token"])
def test_the_error_of_the_best_head_is_that_head_s_own(name):
    """Which head is best is told by the scores that are asked for, not by another measure."""
    errors = {name: np.array([[0.3, 0.01], [0.4, 0.5]])}
    other = {"prefix_matching": "previous_token", "previous_token": "prefix_matching"}[name]
    run = run_of(STEPS, **{name: 0.06 + 0.7 * abrupt()}, errors=errors)
    swapped = [dataclasses.replace(each, **{other: getattr(each, name)[::-1, ::-1]}) for each in run.snapshots]
    run = TrainingRun("two measures", tuple(swapped))
    series = series_of(run, Axis.of(run), name, {name: 0.2})
    assert measuring_error(run, series, 0, len(X) - 1) == pytest.approx(0.01 * math.sqrt(2))
    blank = [dataclasses.replace(each, **{other: np.full((2, 2), np.nan)}) for each in run.snapshots]
    assert change_of(TrainingRun("blank", tuple(blank)), name).verdict is SHOWN


def test_an_error_that_is_large_makes_a_change_unclear():
    sure, unsure = (heads(abrupt(), errors={"prefix_matching": np.full((2, 2), size)}) for size in (0.01, 0.15))
    assert sure.verdict is SHOWN
    assert (unsure.verdict, unsure.reason) == (UNDETERMINED, "change_unclear")
    assert unsure.change.high - unsure.change.value >= POWER * 0.15


def test_the_interval_of_the_change_holds_what_the_curves_were_made_with():
    """Of 30 noisy curves 2.8 standard errors miss the change in one at most."""
    held = [(found := heads(abrupt(), noise=0.03, seed=seed)).change.low <= 0.56 <= found.change.high for seed in range(30)]
    assert sum(held) >= 29


@pytest.mark.parametrize("max_width", [0.1, 0.4])
def test_how_wide_is_abrupt_is_the_users(max_width):
    assert heads(abrupt(width=0.2), max_width=max_width).reason == ("abrupt" if max_width > 0.2 else "gradual")


def test_what_counts_as_a_change_is_the_users():
    assert heads(abrupt(), min_change={"prefix_matching": 0.9}).reason == "no_change"


def test_steps_and_tokens_agree():
    found = heads(abrupt())
    for moment in (found.onset, found.midpoint, found.end):
        for name in ("value", "low", "high"):
            assert getattr(moment.tokens, name) == pytest.approx(2048 * getattr(moment.step, name), rel=1e-9)
        assert (moment.step.unit, moment.tokens.unit) == ("steps", "tokens")


def test_batches_that_grow_are_told_by_the_tokens():
    """The width is in decades of tokens, and steps are those at which so many had been seen."""
    tokens = [int(step**1.5) + 10 for step in STEPS]
    found = heads(logistic(np.log10(tokens), 3.6, 0.25), tokens_per_step=None, tokens=tokens)
    assert found.verdict is SHOWN
    assert found.midpoint.tokens.value == pytest.approx(10**3.6, rel=0.02)
    assert found.midpoint.step.value == pytest.approx(10 ** (3.6 / 1.5), rel=0.02)
    assert found.width.value == pytest.approx(0.25, rel=0.05)


def broken_tokens(kind):
    tokens = [int(step) * 10 for step in STEPS]
    if kind == "some missing":
        tokens[40] = None
    elif kind == "a duplicate":
        tokens[40] = tokens[39]
    elif kind == "falling":
        tokens[40] = 1
    elif kind == "below zero":
        tokens[0] = -5
    return None if kind == "none" else tokens


@pytest.mark.parametrize("kind", ["none", "some missing", "a duplicate", "falling", "below zero"])
def test_tokens_that_are_not_known_are_none(kind):
    """Then steps are what is counted."""
    found = heads(abrupt(), tokens_per_step=None, tokens=broken_tokens(kind))
    assert found.verdict is SHOWN
    assert found.onset.tokens is found.midpoint.tokens is found.end.tokens is None
    assert found.midpoint.step.value == pytest.approx(10**2.4, rel=0.01)


@pytest.mark.parametrize("factor", [1, 10**9])
def test_a_first_snapshot_at_step_0_lies_before_all_others(factor):
    steps = np.r_[0, STEPS * factor]
    found = heads(np.r_[0, abrupt()], steps)
    assert found.verdict is SHOWN
    assert found.midpoint.step.value == pytest.approx(10**2.4 * factor, rel=0.01)
    assert Axis.of(run_of(steps, loss=steps)).steps[0] == STEPS[0] * factor / 2


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_values_of_another_size_are_held_to_the_same_threshold(scale):
    found = change_of(run_of(STEPS, advantage=scale * abrupt()), "advantage")
    assert found.verdict is (SHOWN if scale > 1 else REFUTED)


def test_steps_below_zero_are_refused():
    with pytest.raises(RunError, match="counted from 0, its first is -3"):
        heads(abrupt(), STEPS - 4)


def test_one_snapshot_is_refused():
    with pytest.raises(RunError, match="1 snapshots"):
        change_of(run_of([5], loss=[3.0]), "loss")


def test_a_series_that_is_none_of_a_run_is_refused_by_name():
    with pytest.raises(ArgumentError, match="no series 'entropy'"):
        change_of(run_of(STEPS, loss=X), "entropy")


def test_a_series_that_was_not_recorded_has_no_change():
    assert change_of(run_of(STEPS, loss=X), "previous_token") is None
