"""The verdict on a whole run from its parts, on the shipped runs as they are and thinned, and on the largest."""

import dataclasses
import math
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.assertions.run_state import assert_log_is_sane
from pytest_induction.errors import ArgumentError, ExpectationFailed, RunError
from pytest_induction.records import Estimate, Verdict
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change import find_phase_changes, lag_between
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.series import Axis
from tests.runs.curves import STEPS, X, formed_series, logistic, noise_of, run_of

FORMED, NOT_FORMED, UNDETERMINED = Verdict.FORMED, Verdict.NOT_FORMED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
SHIPPED = {
    "two-layers": (FORMED, "formed"),
    "one-layer-smeared": (FORMED, "formed"),
    "one-layer": (NOT_FORMED, "no_change"),
    "gradual": (NOT_FORMED, "gradual"),
    "diverged": (NOT_FORMED, "no_change"),
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
JUMP_HEADS = 0.06 + 0.7 * (X > 2.4)
EARLY = np.where(X < 1, FLAT_ADVANTAGE, np.nan)

PARTS = {
    "both": ({}, FORMED, "formed"),
    "a head and slower behaviour": ({"advantage": SLOW_ADVANTAGE}, FORMED, "formed"),
    "only heads": ({"advantage": None}, FORMED, "abrupt"),
    "only behaviour": ({"prefix_matching": None}, FORMED, "abrupt"),
    "only behaviour, flat": ({"prefix_matching": None, "advantage": FLAT_ADVANTAGE}, NOT_FORMED, "no_change"),
    "behaviour without a head": ({"prefix_matching": FLAT_HEADS}, UNDETERMINED, "copies_without_a_head"),
    "a slow head, fast behaviour": ({"prefix_matching": SLOW_HEADS}, NOT_FORMED, "gradual"),
    "both slow": ({"prefix_matching": SLOW_HEADS, "advantage": SLOW_ADVANTAGE}, NOT_FORMED, "gradual"),
    "a head that nothing comes of": ({"advantage": FLAT_ADVANTAGE}, NOT_FORMED, "matches_without_copying"),
    "neither": ({"prefix_matching": FLAT_HEADS, "advantage": FLAT_ADVANTAGE}, NOT_FORMED, "no_change"),
    "heads unclear": ({"prefix_matching": JUMP_HEADS}, UNDETERMINED, "few_inside"),
    "heads unclear, no behaviour": ({"prefix_matching": JUMP_HEADS, "advantage": FLAT_ADVANTAGE}, UNDETERMINED, "few_inside"),
    "behaviour hardly recorded": ({"advantage": np.where(X < 0.5, FLAT_ADVANTAGE, np.nan)}, UNDETERMINED, "few_snapshots"),
    "nothing": ({"prefix_matching": None, "advantage": None}, UNDETERMINED, "not_recorded"),
}


@pytest.mark.parametrize("case", PARTS)
def test_the_verdict_of_the_whole_follows_from_the_parts(case):
    changed, verdict, reason = PARTS[case]
    found = find_phase_changes(run_of(STEPS, **series_with(**changed)))
    assert (found.verdict, found.reason) == (verdict, reason), found.summary
    assert bool(found.settle) == (verdict is UNDETERMINED)
    assert found.summary and "\n" not in found.summary


def test_what_was_not_recorded_is_none():
    found = find_phase_changes(run_of(STEPS, **series_with(prefix_matching=None, icl_score=None, loss=None)))
    assert found.prefix_matching is found.in_context_learning is found.loss_bump is found.lag is None
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
        assert (found.repeats.series, found.repeats.verdict) == (name, FORMED)


def test_in_context_learning_and_the_bump_are_reported_and_not_required():
    """Neither decides whether induction formed."""
    found = find_phase_changes(run_of(STEPS, **series_with(icl_score=0.01 * X, loss=5 - X / 4)))
    assert (found.verdict, found.in_context_learning.verdict, found.loss_bump.verdict) == (FORMED, NOT_FORMED, NOT_FORMED)
    alone = find_phase_changes(run_of(STEPS, **series_with(prefix_matching=FLAT_HEADS, advantage=FLAT_ADVANTAGE)))
    assert (alone.verdict, alone.in_context_learning.verdict) == (NOT_FORMED, FORMED)


def test_the_lag_is_in_context_learning_minus_induction():
    shifted = formed_series(STEPS, place=2.5, seed=9)["icl_score"]
    found = find_phase_changes(run_of(STEPS, **series_with(icl_score=shifted)))
    assert found.lag.value == pytest.approx(0.1, abs=0.01)
    assert found.lag.low < 0.1 < found.lag.high
    assert found.lag.unit == "decades"
    back = lag_between(found.in_context_learning, found.prefix_matching)
    assert (back.value, back.low, back.high) == pytest.approx((-found.lag.value, -found.lag.high, -found.lag.low))


def test_the_lag_is_in_tokens_where_both_know_them_and_else_in_steps():
    """Batches that grow: a decade of steps is two of tokens."""
    tokens = [int(step) ** 2 for step in STEPS]
    shifted = series_with(icl_score=formed_series(STEPS, place=2.5, seed=9)["icl_score"])
    known = find_phase_changes(run_of(STEPS, tokens=tokens, **shifted))
    unknown = find_phase_changes(run_of(STEPS, tokens_per_step=None, **shifted))
    assert known.lag.value == pytest.approx(2 * unknown.lag.value, rel=0.05)
    mixed = lag_between(known.prefix_matching, unknown.in_context_learning)
    assert mixed.value == pytest.approx(unknown.lag.value, rel=0.05)


@pytest.mark.parametrize("missing", ["first", "second", "place"])
def test_without_two_places_there_is_no_lag(missing):
    found = find_phase_changes(run_of(STEPS, **series_with()))
    pair = {"first": found.prefix_matching, "second": found.in_context_learning}
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
    assert [change.verdict for change in found.changes] == [FORMED] * 5
    assert abs(found.lag.value) < 0.1
    places = [change.midpoint.step.value for change in found.changes]
    assert max(places) < 1.3 * min(places)
    assert all(change.n_inside >= 3 for change in found.changes)
    assert all(change.share > 0.6 for change in found.changes[:3])


def test_the_end_of_the_warm_up_is_named_where_it_is_near():
    """It ends at step 100: the smeared model changes by then, the two layers long after."""
    assert found_in("one-layer-smeared").prefix_matching.rivals == ("the warm-up of the learning rate ends (step 100)",)
    assert found_in("two-layers").prefix_matching.rivals == ()


def test_a_diverged_run_is_not_sane():
    with pytest.raises(ExpectationFailed, match="diverged"):
        assert_log_is_sane(shipped("diverged"))
    assert assert_log_is_sane(shipped("two-layers")).verdict is FORMED


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
    """FORMED where none or only a gradual change is, NOT_FORMED where an abrupt one is; undetermined is not wrong."""
    for (name, seed), found in thinned_verdicts(count).items():
        wrong = {FORMED: NOT_FORMED, NOT_FORMED: FORMED, UNDETERMINED: NOT_FORMED}[SHIPPED[name][0]]
        assert found.verdict is not wrong, (name, seed, found.summary)


def test_how_often_an_abrupt_change_is_found_goes_with_how_dense_the_record_is():
    """Of 40 snapshots three fall inside the wider change (0.22 decades) and not inside the narrower (0.06); of 15 inside neither."""
    formed = {count: [name for (name, _), each in thinned_verdicts(count).items() if each.verdict is FORMED] for count in THINNED}
    assert formed[40].count("one-layer-smeared") >= 5
    assert len(formed[15]) <= 2
    narrow = [each for (name, _), each in thinned_verdicts(15).items() if name == "two-layers"]
    assert {each.verdict for each in narrow} == {UNDETERMINED}
    assert all("more snapshots" in each.settle or "first steps" in each.settle for each in narrow)


def test_the_intervals_of_thinned_runs_hold_the_midpoint_of_the_dense_one():
    """Nine in ten of all at least, of every series; and of 30 snapshots and more the midpoint is off by a tenth at most."""
    held, off = [], []
    for count in THINNED:
        for (name, _), found in thinned_verdicts(count).items():
            if SHIPPED[name][0] is not FORMED:
                continue
            for attribute in ("prefix_matching", "repeats", "in_context_learning"):
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
    assert found.verdict is FORMED
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
def test_bars_that_make_no_sense_are_refused_in_one_line(options, named):
    with pytest.raises(ArgumentError, match=named) as caught:
        find_phase_changes(shipped("truncated"), **options)
    assert "\n" not in str(caught.value)


def test_the_bars_that_were_used_are_told():
    found = find_phase_changes(shipped("one-layer"), min_change={"advantage": 2.0}, max_width=0.4)
    assert (found.bars["advantage"], found.bars["max_width"], found.bars["prefix_matching"]) == (2.0, 0.4, 0.2)


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
    assert found.reason == "few_snapshots" and ("`max_overhead` (0.02)" in found.settle) is is_named
    jump = dataclasses.replace(run_of(STEPS, **series_with(prefix_matching=JUMP_HEADS)), cost=cost)
    found = find_phase_changes(jump)
    assert found.reason == "few_inside" and ("`max_overhead`" in found.settle) is is_named


def test_a_verdict_that_no_snapshot_would_change_does_not_name_the_budget():
    run = run_of(STEPS, **series_with(prefix_matching=FLAT_HEADS))
    found = find_phase_changes(dataclasses.replace(run, cost={"max_overhead": 0.02, "skipped": 70}))
    assert found.reason == "copies_without_a_head" and "max_overhead" not in found.settle


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


# Of the fit in which every snapshot counted alike, before any was weighed: onset, midpoint and end in steps, and the change,
# each with its interval.
OF_EQUAL_WEIGHTS = [
    ("two-layers", "prefix_matching", ((224.459335, 222.307199, 226.509236), (239.889514, 238.600578, 241.185412), (256.380421, 253.852924, 259.07377), (0.660443, 0.603748, 0.717138))),
    ("two-layers", "advantage", ((226.276306, 223.654031, 229.365368), (243.334919, 241.696694, 245.190131), (261.679554, 257.505526, 265.806184), (5.503168, 4.963223, 6.043112))),
    ("two-layers", "icl_score", ((222.130489, 203.608184, 236.855877), (249.167449, 237.944261, 261.888104), (279.495255, 253.526226, 316.425394), (1.610878, 1.265498, 1.956257))),
    ("one-layer-smeared", "prefix_matching", ((55.907994, 50.663184, 60.894253), (72.308068, 69.361247, 75.157902), (93.518947, 87.028062, 102.33347), (0.585197, 0.517178, 0.653216))),
    ("one-layer-smeared", "advantage", ((56.490277, 54.31653, 58.20237), (77.189492, 75.889359, 78.621706), (105.473331, 102.227731, 109.807639), (5.481427, 5.028508, 5.934347))),
    ("one-layer-smeared", "icl_score", ((54.432767, 47.389825, 60.179052), (70.036913, 66.066884, 73.826417), (90.114274, 81.062866, 102.341583), (1.951146, 1.575001, 2.32729))),
    ("gradual", "prefix_matching", ((18.235595, 14.891315, 21.585106), (39.521647, 36.160414, 42.780981), (85.654488, 76.271098, 98.276131), (0.518238, 0.467628, 0.568847))),
    ("gradual", "advantage", ((19.67764, 11.783701, 28.715322), (52.315302, 42.531488, 63.163295), (139.086335, 103.87101, 197.628134), (5.426885, 4.792229, 6.061541))),
    ("gradual", "icl_score", ((18.132582, 13.675852, 23.446555), (37.558183, 33.265993, 42.404178), (77.794606, 64.693959, 95.617722), (1.886505, 1.550813, 2.222198))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "series", "expected"), OF_EQUAL_WEIGHTS)
def test_shipped_runs_get_the_answers_of_the_fit_with_equal_weights(name, series, expected):
    found = found_in(name)
    change = {"prefix_matching": found.prefix_matching, "advantage": found.repeats, "icl_score": found.in_context_learning}[
        series
    ]
    places = [moment.step for moment in (change.onset, change.midpoint, change.end)]
    for seen, known in zip([*places, change.change], expected, strict=True):
        assert (seen.value, seen.low, seen.high) == pytest.approx(known, rel=1e-5)
