"""What was learned is kept, or lost again: planted trainings of known drops, row by row and without rows."""

from pathlib import Path

import numpy as np
import pytest

from pytest_induction import load_run
from pytest_induction.records import Verdict
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.transience import SERIES, assert_no_transience, assert_transience, drop_of
from pytest_induction.statistics import mean_interval
from tests.runs.claims import evidence_of, refusal
from tests.runs.curves import log_steps, logistic, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
STEPS = log_steps(60)
X = np.log10(STEPS)


def trained(drop, *, rise=6.0, n_rows=12, spread=0.5, wander=0.05, seed=0, name="advantage"):
    """A run whose advantage rises by `rise` and has lost `drop` at the end; rows differ by `spread`, and wander by themselves."""
    rng = np.random.default_rng(seed)
    shape = rise * logistic(X, 2.0, 0.3) - drop * logistic(X, 3.0, 0.3)
    rows = shape[:, None] * (1 + spread / 6 * rng.normal(size=n_rows)) + wander * rng.normal(size=(len(X), n_rows))
    shots = [
        Snapshot(int(step), rows={name: row.astype(np.float32)}, n_sequences=n_rows, **{name: float(row.mean())})
        for step, row in zip(STEPS, rows, strict=True)
    ]
    return TrainingRun("planted", tuple(shots))


@pytest.mark.parametrize(
    ("drop", "verdict", "reason"), [(0.0, SHOWN, "kept"), (3.0, REFUTED, "lost_again"), (0.5, UNDETERMINED, "drop_unclear")]
)
def test_a_drop_is_told_row_by_row(drop, verdict, reason):
    found = evidence_of(assert_no_transience, trained(drop))
    assert (found.claim, found.verdict, found.reason) == ("no_transience", verdict, reason)
    assert found.estimates["drop"].value == pytest.approx(drop, abs=0.25) and found.thresholds == {"max_drop": 0.5}
    assert "12 rows, each half of which chose the peak for the other" in found.summary
    denied = evidence_of(assert_transience, trained(drop))
    opposite = {SHOWN: REFUTED, REFUTED: SHOWN, UNDETERMINED: UNDETERMINED}
    assert (denied.claim, denied.verdict, denied.reason) == ("transience", opposite[verdict], reason)


def test_what_never_formed_was_neither_kept_nor_lost():
    for claim in (assert_no_transience, assert_transience):
        found = evidence_of(claim, trained(0.0, rise=0.1))
        assert (found.verdict, found.reason) == (UNDETERMINED, "never_formed")


def slow_drop(rows):
    """Each row's drop from a peak that rows of the other half have chosen; means of three snapshots."""
    points, count = rows.shape
    drops = []
    for row in range(count):
        others = [other for other in range(count) if other % 2 != row % 2]
        best, peak = -np.inf, None
        for place in range(points - 2):
            level = np.mean([rows[place + k, other] for k in range(3) for other in others])
            if level > best:
                best, peak = level, place
        drops.append(rows[peak : peak + 3, row].mean() - rows[-3:, row].mean())
    return np.array(drops)


@pytest.mark.parametrize("seed", range(4))
def test_the_drop_is_that_of_a_slow_reference(seed):
    run = trained(1.0, seed=seed, wander=0.4)
    expected = slow_drop(run.rows_of("advantage")[1])
    assert drop_of(run, "advantage", 0.05).drop == mean_interval(expected[:, None], 0.025, "nats")[0]


def test_a_peak_by_chance_is_no_peak():
    """Of sixty noisy snapshots the highest lies two standard deviations up: chosen and measured on the same rows it would be a drop."""
    drops, naive = [], []
    for seed in range(30):
        run = trained(0.0, wander=1.5, seed=seed)
        drops.append(drop_of(run, "advantage").drop.value)
        levels = np.convolve(run.column("advantage"), np.full(3, 1 / 3), mode="valid")
        naive.append(levels.max() - levels[-1])
    assert np.mean(naive) > 0.4 and abs(np.mean(drops)) < 0.15


def test_series_that_fall_are_turned_round():
    falling = trained(0.0).column("advantage") * -0.3
    lost = trained(3.0).column("advantage") * -0.3
    for values, verdict in ((falling, SHOWN), (lost, REFUTED)):
        rows = np.random.default_rng(0).normal(0, 0.02, (len(X), 40)) + values[:, None]
        run = run_of(STEPS, icl_score=rows.mean(axis=1), icl_rows=rows)
        assert evidence_of(assert_no_transience, run, series="icl_score").verdict is verdict


@pytest.mark.parametrize(("drop", "verdict"), [(0.0, SHOWN), (0.4, REFUTED)])
def test_without_rows_snapshots_are_divided_and_it_is_said(drop, verdict):
    values = 0.06 + 0.7 * logistic(X, 2.0, 0.3) - drop * logistic(X, 3.0, 0.3)
    values += np.random.default_rng(1).normal(0, 0.005, len(X))
    found = evidence_of(assert_no_transience, run_of(STEPS, prefix_matching=values), series="prefix_matching")
    assert found.verdict is verdict and "every other snapshot chose the peak" in found.summary
    assert found.estimates["drop"].value == pytest.approx(drop, abs=0.02)


def test_few_snapshots_and_lighter_ones_tell_less():
    run = trained(0.0)
    few = TrainingRun("few", run.snapshots[:7])
    assert evidence_of(assert_no_transience, few).reason == "few_snapshots"
    assert evidence_of(assert_no_transience, TrainingRun("one", run.snapshots[:1])).reason == "few_snapshots"
    other = trained(0.0, n_rows=6)
    mixed = TrainingRun("mixed", tuple(other.snapshots[i] if i % 2 else run.snapshots[i] for i in range(len(STEPS) - 1)))
    assert "12 rows" in drop_of(mixed, "advantage").how


def test_arguments_that_make_no_sense_are_refused():
    run = trained(0.0)
    assert f"`series` must be one of {', '.join(SERIES)}" in refusal(assert_no_transience, run, series="loss")
    for value in (0, -1, float("nan"), float("inf")):
        assert "`max_drop` must be above 0" in refusal(assert_no_transience, run, max_drop=value)
    assert "`error_rate`" in refusal(assert_transience, run, error_rate=0)


@pytest.mark.parametrize("name", ["two-layers", "one-layer-smeared"])
def test_shipped_runs_keep_what_they_have_learned(name):
    run = load_run(RUNS / name)
    for series in ("advantage", "icl_score", "prefix_matching"):
        found = evidence_of(assert_no_transience, run, series=series)
        assert found.verdict is SHOWN or (series == "advantage" and found.reason == "drop_unclear")


@pytest.mark.parametrize("series", ["advantage", "common_advantage", "prefix_matching", "icl_score", "repeat_accuracy"])
def test_a_training_whose_data_stop_repeating_loses_what_it_has_learned(series):
    found = evidence_of(assert_transience, RUNS / "lost", series=series)
    assert (found.verdict, found.reason) == (SHOWN, "lost_again") and found.estimates["drop"].low > 0.2


@pytest.mark.parametrize("series", ["rare_advantage", "match_gain"])
def test_what_that_training_never_had_it_could_not_lose(series):
    """Ids that no row of it has are never copied, and of several matches the longest never wins."""
    found = evidence_of(assert_no_transience, RUNS / "lost", series=series)
    assert (found.verdict, found.reason) == (UNDETERMINED, "never_formed")
