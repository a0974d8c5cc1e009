"""Does in-context learning move with induction where something was changed? Shipped runs, and made ones with known shifts."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.errors import RunError
from pytest_induction.records import Estimate, Verdict
from pytest_induction.runs.perturbation import Moved, assert_coperturbation, judge_coperturbation
from tests.runs.claims import evidence_of, refusal
from tests.runs.curves import formed_series, log_steps, logistic, noise_of, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
STEPS = log_steps(80)


def made(place=2.4, icl=None, *, name="made", steps=STEPS, seed=0, fall=1.5, tokens_per_step=2048, **changed):
    """Induction forms at step 10^place, in-context learning falls by `fall` nats at step 10^icl."""
    x = np.log10(steps)
    series = formed_series(steps, place, seed=seed)
    series["icl_score"] = -0.1 - fall * logistic(x, place if icl is None else icl, 0.15) + noise_of(len(x), 0.009, seed + 40)
    series = {key: values for key, values in {**series, **changed}.items() if values is not None}
    return run_of(steps, name=name, tokens_per_step=tokens_per_step, **series)


def without(*, icl=2.4, fall=0.0, steps=STEPS, seed=0):
    """No heads, and in-context learning that falls all the same, or not."""
    flat = {
        name: level + noise_of(len(steps), size, 5)
        for name, level, size in (("prefix_matching", 0.06, 0.003), ("advantage", 0.1, 0.03))
    }
    return made(icl=icl, fall=fall, steps=steps, seed=seed, name="without", **flat)


def judged(control, treated, **options):
    found = evidence_of(assert_coperturbation, control, treated, **options)
    assert found.claim == "coperturbation"
    return found.verdict, found.reason, found


class TestShippedRuns:
    def test_smeared_keys_make_a_single_layer_change(self):
        verdict, reason, found = judged(RUNS / "one-layer", RUNS / "one-layer-smeared")
        assert (verdict, reason) == (SHOWN, "moved_together")
        assert found.provenance.model == "one-layer-smeared against one-layer"
        assert abs(found.estimates["lag"].value) < 0.05
        assert found.estimates["control_gain"].high < 0.5  # nats, of the 1.95 that the treated run gains
        assert "induction_shift" not in found.estimates
        assert "0.73 decades longer" in found.summary

    @pytest.mark.parametrize(
        ("control", "treated", "reason"),
        [
            ("one-layer", "one-layer", "induction_stays"),
            ("two-layers", "two-layers", "nothing_moves"),
            ("one-layer-smeared", "one-layer", "induction_stays"),
            ("one-layer-smeared", "two-layers", "nothing_moves"),
        ],
    )
    def test_what_does_not_come_earlier_has_not_moved(self, control, treated, reason):
        assert judged(RUNS / control, RUNS / treated)[:2] == (REFUTED, reason)

    def test_a_control_that_changes_later_is_compared_with(self):
        verdict, reason, found = judged(RUNS / "two-layers", RUNS / "one-layer-smeared")
        assert (verdict, reason) == (SHOWN, "moved_together")
        assert found.estimates["induction_shift"].value == pytest.approx(math.log10(239.9 / 72.3), abs=5e-3)
        assert found.estimates["icl_shift"].value == pytest.approx(math.log10(249.2 / 70.0), abs=5e-3)
        assert found.estimates["shift_difference"].value == pytest.approx(0.030, abs=5e-3)

    def test_a_control_that_is_not_over_is_no_control(self):
        verdict, reason, found = judged(RUNS / "truncated", RUNS / "one-layer-smeared")
        assert (verdict, reason) == (UNDETERMINED, "control_unclear")
        assert found.next_step.startswith("train further")


class TestMoves:
    def test_both_move_by_what_they_were_moved(self):
        verdict, _, found = judged(made(2.8), made(2.3, seed=9))
        assert verdict is SHOWN
        assert found.estimates["induction_shift"].value == pytest.approx(0.5, abs=0.02)
        assert found.estimates["icl_shift"].value == pytest.approx(0.5, abs=0.02)
        assert found.estimates["shift_difference"].low < 0 < found.estimates["shift_difference"].high
        assert (found.thresholds["min_shift"], found.thresholds["max_lag"]) == (0.1, 0.15)

    @pytest.mark.parametrize(
        ("control", "treated", "verdict", "reason"),
        [
            ((2.7, 2.7), (2.0, 2.7), REFUTED, "icl_stays"),
            ((2.7, 2.7), (2.7, 2.0), REFUTED, "induction_stays"),
            ((2.7, 2.7), (2.7, 2.7), REFUTED, "nothing_moves"),
            ((2.4, 2.4), (2.7, 2.7), REFUTED, "nothing_moves"),  # later
            ((2.9, 2.9), (2.0, 2.4), REFUTED, "changes_apart"),
            ((2.9, 2.5), (2.1, 2.1), REFUTED, "moves_apart"),
        ],
    )
    def test_one_that_moves_alone_or_further_is_no_comove(self, control, treated, verdict, reason):
        assert judged(made(*control), made(*treated, seed=9))[:2] == (verdict, reason)

    def test_a_difference_whose_interval_holds_the_threshold_is_not_clear(self):
        pair = made(2.9, 2.8), made(2.1, seed=9)
        verdict, _, found = judged(*pair)
        assert verdict is SHOWN
        assert found.estimates["shift_difference"].value == pytest.approx(-0.1, abs=0.02)
        assert judged(*pair, max_lag=-found.estimates["shift_difference"].value)[:2] == (UNDETERMINED, "lag_unclear")

    def test_how_far_it_must_move_is_an_option(self):
        pair = made(2.6), made(2.4, seed=9)
        assert judged(*pair)[0] is SHOWN
        assert judged(*pair, min_shift=0.3)[:2] == (REFUTED, "nothing_moves")
        shift = judged(*pair)[2].estimates["induction_shift"]
        assert judged(*pair, min_shift=shift.value)[:2] == (UNDETERMINED, "shift_unclear")

    def test_a_change_that_is_not_abrupt_in_the_treated_run_is_none(self):
        assert judged(made(2.8), made(2.3, seed=9), max_width=0.1)[:2] == (REFUTED, "nothing_moves")

    def test_steps_are_compared_where_tokens_are_not_known(self):
        found = judged(made(2.8, tokens_per_step=None), made(2.3, seed=9))[2]
        assert found.verdict is SHOWN
        assert found.estimates["induction_shift"].value == pytest.approx(0.5, abs=0.02)

    def test_tokens_count_and_not_steps(self):
        found = judged(made(2.4), made(2.4, seed=9, tokens_per_step=512))[2]
        assert found.verdict is SHOWN
        assert found.estimates["induction_shift"].value == pytest.approx(math.log10(4), abs=0.02)


class TestControlsWithout:
    @pytest.mark.parametrize("fall", [0.0, 0.3])
    def test_less_than_half_of_it_is_none(self, fall):
        """What it gains in a stretch as long as from 10 % to 90 % of the treated change: here four fifths of a fall as wide."""
        verdict, _, found = judged(without(fall=fall), made(2.3, seed=9))
        assert verdict is SHOWN
        assert found.estimates["control_gain"].value == pytest.approx(0.8 * fall, abs=0.03)

    def test_more_than_half_of_it_is_compared_by_place(self):
        """In-context learning that comes without heads, at its own time or later, is not carried by them."""
        assert judged(without(fall=1.4, icl=2.3), made(2.3, seed=9))[:2] == (REFUTED, "icl_stays")
        assert judged(without(fall=1.4, icl=2.7), made(2.3, seed=9))[:2] == (REFUTED, "moves_apart")

    def test_a_control_that_ends_too_soon_tells_nothing(self):
        short = STEPS[STEPS < 10**2.3]
        verdict, reason, found = judged(without(steps=short), made(2.3, seed=9))
        assert (verdict, reason) == (UNDETERMINED, "control_too_short")
        assert found.next_step.startswith("train the controls for ") and "tokens at least" in found.next_step

    def test_a_control_that_ends_before_one_could_follow_the_other_tells_nothing(self):
        steps = log_steps(300, last=int(10**2.86))
        control = without(fall=1.4, icl=2.75, steps=steps)
        assert judged(control, made(2.3, seed=9))[:2] == (UNDETERMINED, "control_too_short")

    def test_a_treated_run_that_ends_too_soon_tells_nothing(self):
        treated = without(steps=STEPS[STEPS < 10**2.3])
        assert judged(made(2.8), treated)[:2] == (UNDETERMINED, "treated_too_short")
        assert judged(made(2.8), without())[:2] == (REFUTED, "nothing_moves")

    @pytest.mark.parametrize(
        ("control", "treated"),
        [({"icl_score": None}, {}), ({}, {"icl_score": None}), ({"advantage": None}, {"prefix_matching": None})],
    )
    def test_the_same_must_be_on_record(self, control, treated):
        verdict, reason, found = judged(made(2.8, **control), made(2.3, seed=9, **treated))
        assert (verdict, reason) == (UNDETERMINED, "not_recorded")
        assert "of all runs" in found.next_step

    def test_what_all_runs_have_is_compared(self):
        """Heads of the control are not on record: behaviour on repeated tokens is, of both."""
        found = judged(made(2.8, prefix_matching=None), made(2.3, seed=9))[2]
        assert found.verdict is SHOWN
        assert found.estimates["induction_shift"].value == pytest.approx(0.5, abs=0.02)

    def test_scores_of_other_windows_are_not_compared(self):
        control, treated = without(fall=0.3), made(2.3, seed=9)
        other = replace(control, icl_windows=((20, 29), (50, 59)))
        assert judged(control, treated)[0] is SHOWN
        assert judged(other, treated)[0] is UNDETERMINED

    def test_a_copying_control_without_a_head_is_not_without_induction(self):
        control = made(2.8, prefix_matching=0.06 + noise_of(len(STEPS), 0.003, 5))
        assert judged(control, made(2.3, seed=9))[:2] == (UNDETERMINED, "control_unclear")


class TestSeveralRuns:
    def test_the_interval_is_that_of_a_difference_of_means(self):
        """Three and three, a tenth of a decade apart: half-width t(0.975, 4) x 0.1 x sqrt(2 / 3)."""
        controls, treated = (
            [made(place, seed=seed) for seed, place in enumerate(places)] for places in ((2.9, 3.0, 3.1), (2.2, 2.3, 2.4))
        )
        verdict, _, found = judged(controls, treated)
        shift = found.estimates["induction_shift"]
        assert verdict is SHOWN
        assert shift.value == pytest.approx(0.7, abs=0.02)
        assert shift.high - shift.value == pytest.approx(2.776 * 0.1 * math.sqrt(2 / 3), rel=0.15)
        assert found.provenance.probe == "3 runs against 3"
        assert len(found.changes) == 12

    def test_a_shift_within_the_spread_over_seeds_is_not_clear(self):
        controls, treated = (
            [made(place, seed=seed) for seed, place in enumerate(places)] for places in ((2.5, 2.8, 2.7), (2.3, 2.6, 2.4))
        )
        verdict, reason, found = judged(controls, treated)
        assert (verdict, reason) == (UNDETERMINED, "shift_unclear")
        assert "more runs" in found.next_step
        assert judged(controls[0], treated[0])[0] is SHOWN  # one against one tells of these two

    def test_controls_of_which_some_have_it_are_no_group(self):
        controls = [made(2.8), without()]
        assert judged(controls, [made(2.3, seed=9), made(2.3, seed=8)])[:2] == (UNDETERMINED, "controls_differ")

    def test_all_treated_runs_must_have_it(self):
        controls, treated = [without(), without(seed=3)], [made(2.3, seed=9), without(seed=4)]
        assert judged(controls, treated)[:2] == (REFUTED, "nothing_moves")
        assert judged(controls, [made(2.3, seed=9), made(2.4, seed=8)])[0] is SHOWN


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"min_shift": -0.1}, "`min_shift` must be at least 0 decades, got -0.1"),
            ({"min_shift": math.nan}, "`min_shift` must be at least 0 decades, got nan"),
            ({"max_lag": 0}, "`max_lag` must be above 0 decades, got 0"),
            ({"error_rate": 1}, "`error_rate` must lie between 0 and 1, got 1"),
            ({"min_change": {"it": 1}}, "`min_change` has no series 'it'"),
        ],
    )
    def test_thresholds_that_make_no_sense(self, options, said):
        assert refusal(assert_coperturbation, made(), made(), **options).startswith(said)

    def test_runs_that_are_none_or_do_not_pair(self, tmp_path):
        assert refusal(assert_coperturbation, [], made()) == "`control` must be a run or several, got none"
        assert refusal(assert_coperturbation, made(), [made(), made()]).endswith("for a spread over runs: got 1 and 2")
        assert "is not there" in refusal(assert_coperturbation, tmp_path / "none", made(), kind=RunError)


class TestVerdict:
    """The rule alone, on moves that are given."""

    @staticmethod
    def verdict(lag, difference):
        moved = [Moved(name, name, SHOWN, name, Estimate(0.5, 0.4, 0.6)) for name in ("induction", "icl_score")]
        found = judge_coperturbation(*moved, lag, difference, min_shift=0.1, max_lag=0.15)
        return found.verdict, found.reason

    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (-0.15, 0.15, SHOWN),
            (-0.16, 0.1, UNDETERMINED),
            (0.14, 0.3, UNDETERMINED),
            (0.16, 0.3, REFUTED),
            (-0.3, -0.16, REFUTED),
        ],
    )
    def test_intervals_must_lie_within_what_counts_as_together(self, low, high, verdict):
        far, near = Estimate((low + high) / 2, low, high), Estimate(0, -0.01, 0.01)
        assert self.verdict(near, far)[0] is self.verdict(far, near)[0] is self.verdict(far, None)[0] is verdict

    def test_what_is_not_a_number_never_passes(self):
        nothing = Estimate(math.nan, math.nan, math.nan)
        near = Estimate(0, -0.01, 0.01)
        assert self.verdict(nothing, near)[0] is self.verdict(near, nothing)[0] is self.verdict(None, near)[0] is UNDETERMINED
        moved = [Moved(name, name, SHOWN, name, nothing) for name in ("induction", "icl_score")]
        assert judge_coperturbation(*moved, near, near, min_shift=0.1, max_lag=0.15).verdict is UNDETERMINED
