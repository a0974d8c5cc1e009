"""The verdict on a whole run from its parts, on the shipped runs as they are and thinned, and on the largest."""

import dataclasses
import math
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.errors import ArgumentError, ExpectationFailed, RunError
from pytest_induction.records import Estimate, Verdict
from pytest_induction.runs.heads_over_training import assert_log_is_sane
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.finding import find_phase_changes, lag_between
from pytest_induction.runs.record import Axis, Snapshot, TrainingRun
from tests.runs.curves import STEPS, X, formed_series, logistic, noise_of, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
SHIPPED = {
    "two-layers": (SHOWN, "formed"),
    "one-layer-smeared": (SHOWN, "formed"),
    "one-layer": (REFUTED, "no_change"),
    "gradual": (REFUTED, "gradual"),
    "diverged": (REFUTED, "no_change"),
    "truncated": (UNDETERMINED, "not_over"),
}


@cache
def shipped(name):
    return load_run(RUNS / name)


@cache
def found_in(name):
    return find_phase_changes(shipped(name))


def series_with(**changed):
    """Series of a run in which induction forms, some of them replaced; None leaves one out."""
    return {name: values for name, values in {**formed_series(STEPS), **changed}.items() if values is not None}


FLAT_HEADS = 0.06 + noise_of(len(X), 0.003, 5)
FLAT_ADVANTAGE = 0.1 + noise_of(len(X), 0.03, 6)
SLOW_HEADS = 0.06 + 0.7 * logistic(X, 2.4, 0.9) + noise_of(len(X), 0.003, 7)
SLOW_ADVANTAGE = 0.1 + 6 * logistic(X, 2.4, 0.9) + noise_of(len(X), 0.03, 8)
UNCLEAR_HEADS = 0.06 + 0.7 * logistic(X, 2.4, 0.5) + noise_of(len(X), 0.02, 7)
LATE_ADVANTAGE = 0.1 + 6 * logistic(X, 3.3, 0.15) + noise_of(len(X), 0.03, 8)
EARLY = np.where(X < 1, FLAT_ADVANTAGE, np.nan)

PARTS = {
    "both": ({}, SHOWN, "formed"),
    "a head and slower behaviour": ({"advantage": SLOW_ADVANTAGE}, SHOWN, "formed"),
    "only heads": ({"advantage": None}, SHOWN, "abrupt"),
    "only behaviour": ({"prefix_matching": None}, SHOWN, "abrupt"),
    "only behaviour, flat": ({"prefix_matching": None, "advantage": FLAT_ADVANTAGE}, REFUTED, "no_change"),
    "behaviour without a head": ({"prefix_matching": FLAT_HEADS}, UNDETERMINED, "copies_without_a_head"),
    "a slow head, fast behaviour": ({"prefix_matching": SLOW_HEADS}, REFUTED, "gradual"),
    "both slow": ({"prefix_matching": SLOW_HEADS, "advantage": SLOW_ADVANTAGE}, REFUTED, "gradual"),
    "a head that nothing comes of": ({"advantage": FLAT_ADVANTAGE}, REFUTED, "matches_without_copying"),
    "neither": ({"prefix_matching": FLAT_HEADS, "advantage": FLAT_ADVANTAGE}, REFUTED, "no_change"),
    "heads unclear": ({"prefix_matching": UNCLEAR_HEADS}, UNDETERMINED, "width_unclear"),
    "heads unclear, no behaviour": (
        {"prefix_matching": UNCLEAR_HEADS, "advantage": FLAT_ADVANTAGE},
        UNDETERMINED,
        "width_unclear",
    ),
    "behaviour long after the head": ({"advantage": LATE_ADVANTAGE}, REFUTED, "behaviour_apart"),
    "behaviour hardly recorded": ({"advantage": np.where(X < 0.5, FLAT_ADVANTAGE, np.nan)}, UNDETERMINED, "few_snapshots"),
    "nothing": ({"prefix_matching": None, "advantage": None}, UNDETERMINED, "not_recorded"),
}


@pytest.mark.parametrize("case", PARTS)
def test_the_verdict_of_the_whole_follows_from_the_parts(case):
    changed, verdict, reason = PARTS[case]
    found = find_phase_changes(run_of(STEPS, **series_with(**changed)))
    assert (found.verdict, found.reason) == (verdict, reason), found.summary
    assert bool(found.next_step) == (verdict is UNDETERMINED)
    assert found.summary and "\n" not in found.summary


def test_what_was_not_recorded_is_none():
    found = find_phase_changes(run_of(STEPS, **series_with(prefix_matching=None, icl_score=None, loss=None)))
    assert found.prefix_matching is found.icl_score is found.loss_bump is found.lag is None
    assert found.induction is found.repeats
    assert found.changes == (found.repeats,)


def test_behaviour_is_told_by_the_most_telling_measure_that_was_recorded():
    accuracy = np.clip((formed_series(STEPS)["advantage"]) / 7, 0, 1)
    for given, name in (
        ({"repeat_accuracy": accuracy}, "advantage"),
        ({"repeat_accuracy": accuracy, "repeat_loss": 6 - 5 * accuracy, "advantage": None}, "repeat_accuracy"),
        ({"repeat_loss": 6 - 5 * accuracy, "advantage": None}, "repeat_loss"),
    ):
        found = find_phase_changes(run_of(STEPS, **series_with(**given)))
        assert (found.repeats.series, found.repeats.verdict) == (name, SHOWN)


def test_in_context_learning_and_the_bump_are_reported_and_not_required():
    """Neither decides whether induction formed."""
    found = find_phase_changes(run_of(STEPS, **series_with(icl_score=0.01 * X, loss=5 - X / 4)))
    assert (found.verdict, found.icl_score.verdict, found.loss_bump.verdict) == (SHOWN, REFUTED, REFUTED)
    alone = find_phase_changes(run_of(STEPS, **series_with(prefix_matching=FLAT_HEADS, advantage=FLAT_ADVANTAGE)))
    assert (alone.verdict, alone.icl_score.verdict) == (REFUTED, SHOWN)


def test_the_lag_is_in_context_learning_minus_induction():
    shifted = formed_series(STEPS, place=2.5, seed=9)["icl_score"]
    found = find_phase_changes(run_of(STEPS, **series_with(icl_score=shifted)))
    assert found.lag.value == pytest.approx(0.1, abs=0.01)
    assert found.lag.low < 0.1 < found.lag.high
    assert found.lag.unit == "decades"
    back = lag_between(found.icl_score, found.prefix_matching)
    assert (back.value, back.low, back.high) == pytest.approx((-found.lag.value, -found.lag.high, -found.lag.low))


def test_the_lag_is_in_tokens_where_both_know_them_and_else_in_steps():
    """Batches that grow: a decade of steps is two of tokens."""
    tokens = [int(step) ** 2 for step in STEPS]
    shifted = series_with(icl_score=formed_series(STEPS, place=2.5, seed=9)["icl_score"])
    known = find_phase_changes(run_of(STEPS, tokens=tokens, **shifted))
    unknown = find_phase_changes(run_of(STEPS, tokens_per_step=None, **shifted))
    assert known.lag.value == pytest.approx(2 * unknown.lag.value, rel=0.05)
    mixed = lag_between(known.prefix_matching, unknown.icl_score)
    assert mixed.value == pytest.approx(unknown.lag.value, rel=0.05)


@pytest.mark.parametrize("missing", ["first", "second", "place"])
def test_without_two_places_there_is_no_lag(missing):
    found = find_phase_changes(run_of(STEPS, **series_with()))
    pair = {"first": found.prefix_matching, "second": found.icl_score}
    if missing == "place":
        pair["second"] = dataclasses.replace(pair["second"], midpoint=None)
    else:
        pair[missing] = None
    assert lag_between(pair["first"], pair["second"]) is None


def test_half_widths_of_two_places_add_in_quadrature():
    change = found_in("two-layers").prefix_matching
    place = dataclasses.replace(change.midpoint, step=Estimate(100, 10**1.97, 10**2.04, "steps"), tokens=None)
    lag = lag_between(*[dataclasses.replace(change, midpoint=place)] * 2)
    assert lag.value == 0
    assert lag.low == pytest.approx(-0.05)
    assert lag.high == pytest.approx(0.05)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_runs_get_the_verdict_that_they_were_made_for(name):
    found = found_in(name)
    assert (found.verdict, found.reason) == SHIPPED[name], found.summary


@pytest.mark.parametrize("name", ["two-layers", "one-layer-smeared"])
def test_of_a_shipped_run_that_forms_every_series_changes_together(name):
    found = found_in(name)
    assert [change.series for change in found.changes] == ["prefix_matching", "advantage", "icl_score", "loss", "turn"]
    assert [change.verdict for change in found.changes] == [SHOWN] * 5
    assert abs(found.lag.value) < 0.1
    places = [change.midpoint.step.value for change in found.changes]
    assert max(places) < 1.3 * min(places)
    assert all(change.n_inside >= 3 for change in found.changes)
    assert all(change.share > 0.6 for change in found.changes[:3])


def test_the_end_of_the_warm_up_is_named_where_it_is_near():
    """It ends at step 100: the smeared model changes by then, the two layers long after."""
    assert found_in("one-layer-smeared").prefix_matching.confounders == ("the warm-up of the learning rate ends (step 100)",)
    assert found_in("two-layers").prefix_matching.confounders == ()


def test_a_diverged_run_is_not_sane():
    with pytest.raises(ExpectationFailed, match="diverged"):
        assert_log_is_sane(shipped("diverged"))
    assert assert_log_is_sane(shipped("two-layers")).verdict is SHOWN


def thin(run, count, seed):
    """So many snapshots, one at random in each of so many equal parts of the logarithm of the steps; the ends stay."""
    rng = np.random.default_rng(seed)
    x = Axis.of(run).x
    part = np.minimum(((x - x[0]) / (x[-1] - x[0]) * count).astype(int), count - 1)
    chosen = {0, len(x) - 1} | {int(rng.choice(np.flatnonzero(part == each))) for each in np.unique(part)}
    left = [place for place in range(len(x)) if place not in chosen]
    more = rng.permutation(left)[: max(0, count - len(chosen))]
    places = sorted(rng.permutation(sorted(chosen | set(more.tolist())))[:count])
    return dataclasses.replace(run, snapshots=tuple(run.snapshots[place] for place in places))


THINNED = {count: [(name, seed) for name in SHIPPED for seed in range(6)] for count in (40, 30, 15)}


@cache
def thinned_verdicts(count):
    return {(name, seed): find_phase_changes(thin(shipped(name), count, seed)) for name, seed in THINNED[count]}


@pytest.mark.parametrize("count", THINNED)
def test_a_thinned_run_never_gets_a_wrong_verdict(count):
    """SHOWN where none or only a gradual change is, REFUTED where an abrupt one is; undetermined is not wrong."""
    for (name, seed), found in thinned_verdicts(count).items():
        wrong = {SHOWN: REFUTED, REFUTED: SHOWN, UNDETERMINED: REFUTED}[SHIPPED[name][0]]
        assert found.verdict is not wrong, (name, seed, found.summary)


def test_abrupt_changes_are_found_in_sparse_records():
    """Though of 15 snapshots none lies inside; some lie farther apart there than an abrupt change may last."""
    for count, least in ((40, 1.0), (30, 1.0), (15, 0.5)):
        found = [each for (name, _), each in thinned_verdicts(count).items() if SHIPPED[name][0] is SHOWN]
        assert np.mean([each.verdict is SHOWN for each in found]) >= least, [each.summary for each in found]
        assert not any(each.verdict is REFUTED for each in found)
        assert all(each.next_step for each in found if each.verdict is UNDETERMINED)


def test_the_intervals_of_thinned_runs_hold_the_midpoint_of_the_dense_one():
    """Nine in ten of all at least, of every series; and of 30 snapshots and more the midpoint is off by a tenth at most."""
    held, off = [], []
    for count in THINNED:
        for (name, _), found in thinned_verdicts(count).items():
            if SHIPPED[name][0] is not SHOWN:
                continue
            for attribute in ("prefix_matching", "repeats", "icl_score"):
                change, dense = getattr(found, attribute), getattr(found_in(name), attribute).midpoint.step.value
                if change.midpoint is not None:
                    held.append(change.midpoint.step.low <= dense <= change.midpoint.step.high)
                    off.extend([abs(change.midpoint.step.value / dense - 1)] if count >= 30 else [])
    assert len(held) >= 100
    assert np.mean(held) >= 0.9
    assert np.quantile(off, 0.95) < 0.1


def many(count, heads):
    rng = np.random.default_rng(0)
    level = 0.8 * logistic(np.log10(np.arange(count) + 1), 3.0, 0.2)
    shape = (1, heads)
    return TrainingRun(
        "many",
        tuple(
            Snapshot(
                step,
                step * 2048,
                loss=float(5 - value + 0.01 * rng.normal()),
                advantage=float(8 * value + 0.1 * rng.normal()),
                icl_score=float(-2 * value + 0.02 * rng.normal()),
                prefix_matching=0.05 * rng.random(shape) + value,
            )
            for step, value in enumerate(level)
        ),
    )


def test_ten_thousand_snapshots_take_less_than_two_seconds():
    """Of processor time, so that a busy machine does not fail it."""
    run = many(10_000, 64)
    began = time.process_time()
    found = find_phase_changes(run)
    assert time.process_time() - began < 2
    assert found.verdict is SHOWN
    assert found.prefix_matching.midpoint.step.value == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("count", [1, 0])
def test_a_run_without_two_snapshots_is_refused_in_one_line(count):
    with pytest.raises(RunError, match=f"{count} snapshots") as caught:
        find_phase_changes(run_of(range(count), loss=np.ones(count)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_run_of_few_snapshots_is_undetermined(count):
    steps = np.arange(count) * 1000
    found = find_phase_changes(run_of(steps, **formed_series(steps)))
    assert (found.verdict, found.reason) == (UNDETERMINED, "few_snapshots")
    assert {change.reason for change in found.changes} == {"few_snapshots"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_width": 0}, "max_width"),
        ({"max_width": math.nan}, "max_width"),
        ({"max_width": 10}, "max_width"),
        ({"error_rate": 0}, "error_rate"),
        ({"error_rate": 1}, "error_rate"),
        ({"error_rate": math.nan}, "error_rate"),
        ({"min_change": {"prefix_matching": 0}}, "prefix_matching"),
        ({"min_change": {"prefix_matching": math.nan}}, "prefix_matching"),
        ({"min_change": {"loss": math.inf}}, "loss"),
        ({"min_change": {"heads": 0.1}}, "'heads'"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused_in_one_line(options, named):
    with pytest.raises(ArgumentError, match=named) as caught:
        find_phase_changes(shipped("truncated"), **options)
    assert "\n" not in str(caught.value)


def test_the_thresholds_that_were_used_are_told():
    found = find_phase_changes(shipped("one-layer"), min_change={"advantage": 2.0}, max_width=0.4)
    assert (found.thresholds["advantage"], found.thresholds["max_width"], found.thresholds["prefix_matching"]) == (2.0, 0.4, 0.2)


def test_the_same_run_gets_the_same_answer_and_is_left_as_it_was():
    run = run_of(STEPS, **formed_series(STEPS))
    before = [dataclasses.replace(each, prefix_matching=each.prefix_matching.copy()) for each in run.snapshots]
    assert find_phase_changes(run) == find_phase_changes(run)
    assert list(run.snapshots) == before


@pytest.mark.parametrize(
    ("cost", "is_named"),
    [
        ({"max_overhead": 0.02, "skipped": 70}, True),
        ({"max_overhead": 0.02}, True),  # the recorder was not closed: how many were left out is not known
        ({"max_overhead": 0.02, "skipped": 0}, False),
        ({"max_overhead": None, "skipped": 0}, False),
        ({}, False),
    ],
)
def test_where_snapshots_are_wanting_that_were_left_out_the_budget_is_named(cost, is_named):
    steps = np.array([0, 100, 200, 300, 1000])
    run = dataclasses.replace(run_of(steps, **formed_series(steps)), cost=cost)
    found = find_phase_changes(run)
    assert found.reason == "few_snapshots" and ("`max_overhead` (0.02)" in found.next_step) is is_named
    jump = dataclasses.replace(run_of(STEPS, **series_with(prefix_matching=UNCLEAR_HEADS)), cost=cost)
    found = find_phase_changes(jump)
    assert found.reason == "width_unclear" and ("`max_overhead`" in found.next_step) is is_named


def test_a_verdict_that_no_snapshot_would_change_does_not_name_the_budget():
    run = run_of(STEPS, **series_with(prefix_matching=FLAT_HEADS))
    found = find_phase_changes(dataclasses.replace(run, cost={"max_overhead": 0.02, "skipped": 70}))
    assert found.reason == "copies_without_a_head" and "max_overhead" not in found.next_step


def lightly(run, errors, seed, count=3):
    """The same run, every other snapshot of few sequences, and moved by as much as that may do."""
    rng = np.random.default_rng(seed)
    moved = []
    for index, shot in enumerate(run.snapshots):
        size, own = (count, errors) if index % 2 else (12, errors / 2)
        scores = shot.prefix_matching + (rng.normal() * errors if index % 2 else 0.0)
        known = {"prefix_matching": np.full_like(scores, own)}
        moved.append(dataclasses.replace(shot, prefix_matching=scores, n_sequences=size, errors=known))
    return dataclasses.replace(run, snapshots=tuple(moved))


def test_snapshots_of_few_sequences_count_for_less():
    """The place of a change is known better than where all count alike, and its interval holds the truth."""
    weighed, alike = [], []
    for seed in range(6):
        run = run_of(STEPS, **formed_series(STEPS, place=2.4, seed=seed))
        light = lightly(run, 0.06, seed)
        blind = dataclasses.replace(light, snapshots=tuple(dataclasses.replace(each, n_sequences=12) for each in light.snapshots))
        for found, errors in ((find_phase_changes(light), weighed), (find_phase_changes(blind), alike)):
            step = found.prefix_matching.midpoint.step
            errors.append(math.log10(step.high / step.low))
            assert step.low <= 10**2.4 <= step.high
    assert np.mean(weighed) < 0.6 * np.mean(alike)


@pytest.mark.parametrize("name", SHIPPED)
def test_where_all_snapshots_have_as_many_sequences_the_answer_is_that_of_equal_weights(name):
    """How many they have does not matter then, nor whether it is known: to the bit."""
    run = shipped(name)
    assert len({each.n_sequences for each in run.snapshots}) == 1
    for count in (0, 3):
        same = tuple(dataclasses.replace(each, n_sequences=count) for each in run.snapshots)
        assert find_phase_changes(dataclasses.replace(run, snapshots=same)) == found_in(name)
    mixed = tuple(dataclasses.replace(each, n_sequences=3 + 9 * (index % 2)) for index, each in enumerate(run.snapshots))
    assert find_phase_changes(dataclasses.replace(run, snapshots=mixed)) != found_in(name) or name == "diverged"


# Of the fit in which every snapshot counted alike, before any was weighed: onset, midpoint and end in steps, and the change.
OF_EQUAL_WEIGHTS = [
    ("two-layers", "prefix_matching", (224.459335, 239.889514, 256.380421, 0.660443)),
    ("two-layers", "advantage", (226.276306, 243.334919, 261.679554, 5.503168)),
    ("two-layers", "icl_score", (222.130489, 249.167449, 279.495255, 1.610878)),
    ("one-layer-smeared", "prefix_matching", (55.907994, 72.308068, 93.518947, 0.585197)),
    ("one-layer-smeared", "advantage", (56.490277, 77.189492, 105.473331, 5.481427)),
    ("one-layer-smeared", "icl_score", (54.432767, 70.036913, 90.114274, 1.951146)),
    ("gradual", "prefix_matching", (18.235595, 39.521647, 85.654488, 0.518238)),
    ("gradual", "advantage", (19.67764, 52.315302, 139.086335, 5.426885)),
    ("gradual", "icl_score", (18.132582, 37.558183, 77.794606, 1.886505)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "series", "expected"), OF_EQUAL_WEIGHTS)
def test_shipped_runs_get_the_answers_of_the_fit_with_equal_weights(name, series, expected):
    found = found_in(name)
    change = {"prefix_matching": found.prefix_matching, "advantage": found.repeats, "icl_score": found.icl_score}[series]
    places = [moment.step for moment in (change.onset, change.midpoint, change.end)]
    assert [each.value for each in (*places, change.change)] == pytest.approx(expected, rel=5e-3)
