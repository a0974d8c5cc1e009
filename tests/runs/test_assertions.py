"""Every assertion about the change of a run: where it passes, fails and cannot tell, what it returns, and what it says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.errors import ExpectationFailed, RunError
from pytest_induction.expectations import failure_text
from pytest_induction.records import Evidence, Verdict
from pytest_induction.runs.phase_change.claims import (
    assert_cooccurrence,
    assert_no_phase_change,
    assert_onset_not_later,
    assert_phase_change,
)
from pytest_induction.runs.phase_change.finding import find_phase_changes
from tests.runs.claims import evidence_of, refusal
from tests.runs.curves import PER_STEP, STEPS, X, formed_series, logistic, noise_of, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
GAIN = 10**2.4  # the step in the middle of the change


def made(name="made", *, place=2.4, icl=None, seed=0, steps=STEPS, tokens_per_step=PER_STEP, schedule=(), **changed):
    """A run in which induction forms, in-context learning at a place of its own; None leaves one out."""
    series = formed_series(steps, place, seed=seed)
    if icl is not None:
        series["icl_score"] = formed_series(steps, icl, seed=seed + 50)["icl_score"]
    series = {key: values for key, values in {**series, **changed}.items() if values is not None}
    return run_of(steps, name=name, tokens_per_step=tokens_per_step, schedule=schedule, **series)


def flat(name="flat", size=0.003):
    return made(name, prefix_matching=0.06 + noise_of(len(X), size, 5), advantage=0.1 + noise_of(len(X), 0.03, 6))


def coarse(name="coarse"):
    """How fast induction came is not clear."""
    return made(name, prefix_matching=0.06 + 0.7 * logistic(X, 2.4, 0.5) + noise_of(len(X), 0.02, 7))


class TestPhaseChange:
    def test_a_run_that_went_through_it_passes_with_its_evidence(self):
        found = assert_phase_change(made("good"))
        assert (found.claim, found.verdict) == ("phase_change", SHOWN)
        assert [change.series for change in found.changes] == ["prefix_matching", "advantage", "icl_score", "loss"]
        assert found.estimates["midpoint"].unit == "tokens"
        assert found.estimates["midpoint"].value == pytest.approx(GAIN * PER_STEP, rel=0.02)
        assert found.estimates["width"].value == pytest.approx(0.15, rel=0.1)
        assert abs(found.estimates["lag"].value) < 0.02
        assert found.confidence == pytest.approx(0.95)
        assert found.thresholds["max_width"] == 0.5
        assert found.provenance.is_run and found.provenance.model == "good"
        assert found.provenance.probe == f"{len(STEPS)} snapshots, steps 1 to 10000, from a recorder"

    def test_a_run_may_be_named_by_its_path(self):
        assert assert_phase_change(RUNS / "two-layers") == assert_phase_change(str(RUNS / "two-layers"))

    def test_a_path_where_nothing_is_is_a_run_error(self, tmp_path):
        assert "is not there" in refusal(assert_phase_change, tmp_path / "none", kind=RunError)

    @pytest.mark.parametrize(("threshold", "verdict"), [(1.6, SHOWN), (1.1, REFUTED)])
    @pytest.mark.parametrize(("name", "unit"), [("before_tokens", PER_STEP), ("before_step", 1)])
    def test_it_must_have_ended_in_time(self, name, unit, threshold, verdict):
        """The change ends at step 299."""
        found = evidence_of(assert_phase_change, made(), **{name: GAIN * threshold * unit})
        assert found.verdict is verdict
        assert found.reason == ("too_late" if verdict is REFUTED else "formed")
        assert found.thresholds[name] == pytest.approx(GAIN * threshold * unit)
        assert found.estimates[f"end_{'tokens' if name == 'before_tokens' else 'steps'}"].value == pytest.approx(
            299 * unit, rel=0.02
        )

    def test_an_end_whose_interval_holds_the_threshold_is_undetermined(self):
        end = find_phase_changes(made()).prefix_matching.end.step
        found = evidence_of(assert_phase_change, made(), before_step=end.value)
        assert (found.verdict, found.reason) == (UNDETERMINED, "end_unclear")
        assert "around the end" in found.next_step

    def test_tokens_that_are_not_known_cannot_be_held_to_a_threshold(self):
        found = evidence_of(assert_phase_change, made(tokens_per_step=None), before_tokens=1e9)
        assert (found.verdict, found.reason) == (UNDETERMINED, "tokens_not_known")
        assert "before_step" in found.next_step
        assert assert_phase_change(made(tokens_per_step=None), before_step=1e9).estimates["midpoint"].unit == "steps"

    def test_both_thresholds_may_be_set_and_the_stricter_counts(self):
        found = evidence_of(assert_phase_change, made(), before_step=GAIN * 2, before_tokens=GAIN)
        assert found.reason == "too_late" and "tokens" in found.summary

    @pytest.mark.parametrize("co_occurring", [None, True])
    def test_in_context_learning_that_changes_elsewhere_fails(self, co_occurring):
        found = evidence_of(assert_phase_change, made(icl=2.9), co_occurring=co_occurring)
        assert (found.verdict, found.reason) == (REFUTED, "apart")
        assert found.estimates["lag"].value == pytest.approx(0.5, abs=0.02)

    def test_in_context_learning_is_left_aside_when_told_so(self):
        assert assert_phase_change(made(icl=2.9), co_occurring=False).verdict is SHOWN

    def test_in_context_learning_that_does_not_change_fails(self):
        found = evidence_of(assert_phase_change, made(icl_score=0.01 * X))
        assert (found.verdict, found.reason) == (REFUTED, "icl_no_change")

    def test_in_context_learning_that_is_unclear_is_undetermined(self):
        found = evidence_of(assert_phase_change, made(icl_score=-1.5 * logistic(X, 2.4, 0.48) + noise_of(len(X), 0.04, 7)))
        assert (found.verdict, found.reason) == (UNDETERMINED, "icl_width_unclear")
        assert "more snapshots" in found.next_step

    def test_in_context_learning_that_falls_for_other_reasons_too_counts(self):
        """As much again long before, as where a model learns which tokens are frequent: what falls with the heads is as sudden."""
        falls = -0.8 * logistic(X, 0.9, 0.5) - 0.7 * logistic(X, 2.4, 0.1)
        found = evidence_of(assert_phase_change, made(icl_score=falls + noise_of(len(X), 0.003, 3)))
        assert found.verdict is SHOWN, found.summary

    def test_behaviour_that_changes_elsewhere_fails(self):
        """A head at step 320 and its advantage at step 3,200."""
        late = 0.1 + 6 * logistic(X, 3.5, 0.1)
        for claim in (assert_phase_change, assert_cooccurrence):
            found = evidence_of(claim, made(advantage=late))
            assert (found.verdict, found.reason) == (REFUTED, "behaviour_apart")
            assert found.estimates["behaviour_lag"].value == pytest.approx(1.1, abs=0.05)

    def test_all_distances_are_there(self):
        found = evidence_of(assert_cooccurrence, made())
        assert {"lag", "behaviour_lag", "icl_behaviour_lag"} <= set(found.estimates)

    def test_a_sparse_grid_tells_as_far_as_it_can(self):
        """Everything between two snapshots a third of a decade apart: together, which a strict distance cannot say."""
        steps = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 8000])
        run = run_of(steps, **formed_series(steps, place=2.55, width=0.1))
        assert evidence_of(assert_phase_change, run).verdict is SHOWN
        assert evidence_of(assert_cooccurrence, run).reason in ("formed", "lag_unclear")

    def test_the_series_that_decided_are_named(self):
        assert "the advantage of the successor on repeated tokens changes with it" in assert_phase_change(made()).summary
        only = assert_phase_change(made(advantage=None, icl_score=None)).summary
        assert "behaviour on repeated tokens was not recorded" in only and "in-context learning was not recorded" in only

    def test_without_in_context_learning_it_is_asked_for_only_when_told_so(self):
        assert assert_phase_change(made(icl_score=None)).verdict is SHOWN
        found = evidence_of(assert_phase_change, made(icl_score=None), co_occurring=True)
        assert (found.verdict, found.reason) == (UNDETERMINED, "icl_not_recorded")
        assert "co_occurring=False" in found.next_step

    def test_a_run_without_a_change_fails_and_says_what_was_seen(self):
        with pytest.raises(ExpectationFailed) as caught:
            assert_phase_change(flat("flat run"))
        text = str(caught.value)
        assert text.startswith("phase_change is REFUTED, expected SHOWN: prefix matching of the best head stays between 0.05")
        assert f"  measured: flat run, {len(STEPS)} snapshots, steps 1 to 10000, from a recorder" in text
        assert "next: if you expect a change, train further; `min_change=` says how large it must be" in text
        assert "\n  icl score: SHOWN, the in-context learning score changes by" in text

    def test_a_run_that_does_not_tell_fails_too_and_says_what_would(self):
        found = evidence_of(assert_phase_change, coarse())
        assert (found.verdict, found.reason) == (UNDETERMINED, "width_unclear")
        assert found.next_step.startswith("record more snapshots between steps ")

    def test_how_wide_a_change_may_be_is_an_option(self):
        assert evidence_of(assert_phase_change, made(), max_width=0.1).reason == "gradual"
        assert evidence_of(assert_phase_change, made(), max_width=0.1).thresholds["max_width"] == 0.1

    def test_rivals_are_named_in_the_message(self):
        unclear = 0.06 + 0.7 * logistic(X, 2.4, 0.5) + noise_of(len(X), 0.02, 7)
        run = made(prefix_matching=unclear, schedule=[(240, "the warm-up ends"), (3, "it starts")])
        with pytest.raises(ExpectationFailed, match=r"may be due to the warm-up ends \(step 240\)\n"):
            assert_phase_change(run)

    @pytest.mark.parametrize("value", [0, -5, math.nan, math.inf])
    @pytest.mark.parametrize("name", ["before_tokens", "before_step"])
    def test_a_threshold_that_is_none_is_refused(self, name, value):
        assert refusal(assert_phase_change, made(), **{name: value}).startswith(f"`{name}` must be above 0")


class TestNoPhaseChange:
    @pytest.mark.parametrize("name", ["one-layer", "gradual", "diverged"])
    def test_what_is_flat_or_gradual_passes(self, name):
        found = assert_no_phase_change(RUNS / name)
        assert (found.claim, found.verdict, found.outcome) == ("no_phase_change", SHOWN, "passed")

    def test_a_phase_change_fails(self):
        found = evidence_of(assert_no_phase_change, made())
        assert (found.verdict, found.outcome) == (REFUTED, "failed")
        with pytest.raises(
            ExpectationFailed, match="no_phase_change is REFUTED, expected SHOWN: prefix matching of the best head changes"
        ):
            assert_no_phase_change(made())

    @pytest.mark.parametrize("run", [coarse(), made(steps=STEPS[STEPS < 270])], ids=["coarse", "cut off"])
    def test_what_is_not_shown_fails(self, run):
        """Absence of evidence is not evidence of absence."""
        assert evidence_of(assert_no_phase_change, run).verdict is UNDETERMINED

    def test_a_change_before_the_second_snapshot_is_not_none(self):
        steps = np.arange(20) * 1000
        there = (np.arange(20) > 0).astype(float)
        run = run_of(steps, prefix_matching=0.06 + 0.7 * there, advantage=6 * there, icl_score=-1.5 * there)
        assert evidence_of(assert_no_phase_change, run).reason == "began_before"


class TestCooccurrence:
    @pytest.mark.parametrize(
        ("icl", "verdict", "reason"),
        [(2.4, SHOWN, "formed"), (2.5, SHOWN, "formed"), (2.7, REFUTED, "apart"), (2.1, REFUTED, "apart")],
    )
    def test_midpoints_that_are_near_pass_and_others_fail(self, icl, verdict, reason):
        found = evidence_of(assert_cooccurrence, made(icl=icl))
        assert (found.claim, found.verdict, found.reason) == ("cooccurrence", verdict, reason)
        assert found.estimates["lag"].value == pytest.approx(icl - 2.4, abs=0.02)
        assert found.thresholds["max_lag"] == 0.15

    def test_the_lag_is_an_option_and_an_interval_that_holds_it_is_undetermined(self):
        lag = find_phase_changes(made(icl=2.5)).lag
        assert evidence_of(assert_cooccurrence, made(icl=2.5), max_lag=lag.high * 1.01).verdict is SHOWN
        unclear = evidence_of(assert_cooccurrence, made(icl=2.5), max_lag=lag.value)
        assert (unclear.verdict, unclear.reason) == (UNDETERMINED, "lag_unclear")
        assert evidence_of(assert_cooccurrence, made(icl=2.5), max_lag=lag.low * 0.99).verdict is REFUTED

    def test_a_run_without_two_changes_does_not_pass(self):
        assert evidence_of(assert_cooccurrence, flat()).verdict is REFUTED
        assert evidence_of(assert_cooccurrence, coarse()).verdict is UNDETERMINED
        assert evidence_of(assert_cooccurrence, made(icl_score=None)).reason == "icl_not_recorded"

    @pytest.mark.exhaustive
    def test_several_runs_are_judged_by_the_mean_of_their_distances(self):
        """One by one 0.14 and -0.1 might pass or fail; together the mean is near 0."""
        places = [2.3, 2.34, 2.4, 2.42, 2.46, 2.5]
        runs = [made(f"seed {index}", icl=place, seed=10 * index) for index, place in enumerate(places)]
        found = evidence_of(assert_cooccurrence, runs)
        lags = [find_phase_changes(run).lag.value for run in runs]
        assert found.verdict is SHOWN
        assert found.estimates["lag"].value == pytest.approx(np.mean(lags))
        half = 2.571 * np.std(lags, ddof=1) / math.sqrt(6)  # Student's, 5 degrees of freedom
        assert found.estimates["lag"].high - found.estimates["lag"].value == pytest.approx(half, rel=0.01)
        assert found.provenance.model == "seed 0, seed 1, seed 2, seed 3, seed 4, seed 5"
        assert found.provenance.probe == "6 runs" and len(found.changes) == 24
        assert found.summary.startswith("over 6 runs in-context learning changes ")

    def test_several_runs_whose_distances_are_far_fail(self):
        runs = [made(f"seed {index}", icl=2.75, seed=10 * index) for index in range(3)]
        found = evidence_of(assert_cooccurrence, runs)
        assert (found.verdict, found.reason) == (REFUTED, "apart")

    def test_two_runs_that_differ_do_not_tell(self):
        found = evidence_of(assert_cooccurrence, [made("a", icl=2.3), made("b", icl=2.5)])
        assert (found.verdict, found.reason) == (UNDETERMINED, "lag_unclear")

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    @pytest.mark.parametrize("name", ["made", "other"])
    def test_one_run_without_a_change_among_several_does_not_pass(self, name, order):
        """Also where both bear the same name, as runs of one script in directories of their own do."""
        pair = [made(), flat(name)]
        found = evidence_of(assert_cooccurrence, [pair[place] for place in order])
        assert found.verdict is REFUTED
        assert f"1 of 2 runs have no two changes to compare, the first is {name}: prefix matching" in found.summary

    def test_a_list_of_one_is_that_one(self):
        assert assert_cooccurrence([made()]) == assert_cooccurrence(made())

    def test_a_noisier_series_is_not_called_later(self):
        """In-context learning with five times the noise, at the same place: over 24 seeds the mean distance is 0 within its error."""
        lags = []
        for seed in range(24):
            shape = logistic(X, 2.4, 0.2)
            run = run_of(
                STEPS,
                prefix_matching=0.06 + 0.7 * shape + noise_of(len(X), 0.005, seed),
                icl_score=-0.1 - 1.5 * shape + noise_of(len(X), 0.15, 100 + seed, 0.3),
            )
            lags.append(find_phase_changes(run).lag)
        values = np.array([lag.value for lag in lags])
        assert abs(values.mean()) < 2.5 * values.std(ddof=1) / math.sqrt(24)
        assert values.std(ddof=1) / math.sqrt(24) < 0.01
        assert sum(lag.low <= 0 <= lag.high for lag in lags) >= 21

    @pytest.mark.parametrize("max_lag", [0, -0.1, math.nan, math.inf])
    def test_a_lag_that_is_none_is_refused(self, max_lag):
        assert "`max_lag` must be above 0 decades" in refusal(assert_cooccurrence, made(), max_lag=max_lag)

    def test_no_run_is_refused(self):
        assert refusal(assert_cooccurrence, []) == "`run` must be a run or several, got none"


class TestOnsetNotLater:
    @pytest.mark.parametrize(
        ("place", "verdict", "reason"), [(2.4, SHOWN, "formed"), (2.2, SHOWN, "formed"), (2.6, REFUTED, "later")]
    )
    def test_a_run_that_begins_no_later_passes(self, place, verdict, reason):
        found = evidence_of(assert_onset_not_later, made("new", place=place, seed=4), made("old"))
        assert (found.claim, found.verdict, found.reason) == ("onset_not_later", verdict, reason)
        assert found.estimates["onset_lag"].value == pytest.approx(place - 2.4, abs=0.02)
        assert "after the reference old" in found.summary

    def test_a_reference_of_the_same_name_is_called_by_its_path(self):
        found = assert_onset_not_later(made(seed=4), replace(made(), place="old/made"), max_lag=0.5)
        assert found.summary.endswith("after the reference old/made")

    def test_an_interval_that_holds_the_lag_is_undetermined(self):
        lag = assert_onset_not_later(made(place=2.45), made(), max_lag=0.5).estimates["onset_lag"]
        found = evidence_of(assert_onset_not_later, made(place=2.45), made(), max_lag=lag.value)
        assert (found.verdict, found.reason) == (UNDETERMINED, "onset_unclear")
        assert "both runs" in found.next_step

    def test_a_reference_without_a_change_tells_nothing(self):
        found = evidence_of(assert_onset_not_later, made(), flat("old"))
        assert (found.verdict, found.reason) == (UNDETERMINED, "reference_has_none")
        assert "the reference old is REFUTED" in found.summary and "choose a reference" in found.next_step

    @pytest.mark.parametrize(("run", "verdict"), [(flat(), REFUTED), (coarse(), UNDETERMINED)])
    def test_a_run_without_a_change_does_not_pass(self, run, verdict):
        assert evidence_of(assert_onset_not_later, run, made()).verdict is verdict

    def test_tokens_count_and_steps_only_where_they_are_asked_for(self):
        """The same steps with four times the tokens: later in tokens, not in steps."""
        larger = made(tokens_per_step=4 * PER_STEP, seed=4)
        assert evidence_of(assert_onset_not_later, larger, made()).reason == "later"
        found = assert_onset_not_later(larger, made(), in_steps=True)
        assert found.verdict is SHOWN and found.summary.endswith("after the reference made (of steps, not tokens, as asked)")

    @pytest.mark.parametrize("both", [False, True])
    def test_without_tokens_nothing_is_compared(self, both):
        """A batch of twice the size makes half the steps."""
        run, other = made(tokens_per_step=None if both else PER_STEP), made(tokens_per_step=None)
        found = evidence_of(assert_onset_not_later, run, other)
        assert (found.verdict, found.reason) == (UNDETERMINED, "tokens_not_known") and "`in_steps=True`" in found.next_step
        assert assert_onset_not_later(run, other, in_steps=True).verdict is SHOWN

    @pytest.mark.parametrize("max_lag", [-0.1, math.nan, math.inf])
    def test_a_lag_that_is_none_is_refused(self, max_lag):
        assert "`max_lag` must be at least 0 decades" in refusal(assert_onset_not_later, made(), made(), max_lag=max_lag)


class TestAllOfThem:
    CLAIMS = (
        assert_phase_change,
        assert_no_phase_change,
        assert_cooccurrence,
        lambda run, **options: assert_onset_not_later(run, made(), **options),
    )

    @pytest.mark.parametrize("claim", CLAIMS, ids=range(4))
    def test_thresholds_that_make_no_sense_are_refused_by_all(self, claim):
        assert "`max_width`" in refusal(claim, made(), max_width=-1)
        assert "`error_rate`" in refusal(claim, made(), error_rate=2)
        assert "'heads'" in refusal(claim, made(), min_change={"heads": 1})

    @pytest.mark.parametrize("claim", CLAIMS, ids=range(4))
    def test_a_run_of_one_snapshot_is_refused_by_all(self, claim):
        assert "1 snapshots" in refusal(claim, run_of([5], loss=[1.0]), kind=RunError)

    def test_evidence_survives_json_with_its_changes(self):
        found = assert_phase_change(made(schedule=[(240, "the warm-up ends")]))
        again = Evidence.from_dict(json.loads(json.dumps(found.to_dict())))
        assert again == found
        assert again.changes[0].midpoint.tokens == found.changes[0].midpoint.tokens
        assert again.changes[0].confounders == ("the warm-up ends (step 240)",)
        assert again.changes[0].verdict is SHOWN
        assert failure_text(again) == failure_text(found)

    def test_evidence_without_places_survives_too(self):
        found = evidence_of(assert_phase_change, flat())
        assert found.changes[0].midpoint is None
        unknown = evidence_of(assert_phase_change, made(tokens_per_step=None))
        assert unknown.changes[0].midpoint.tokens is None

    def test_the_fingerprint_is_of_the_snapshots(self):
        one, same, other = (assert_phase_change(run).provenance.fingerprint for run in (made(), made(), made(seed=3)))
        assert one == same != other
