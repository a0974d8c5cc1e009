"""What a run is worth and how it ended: its log, its heads to the end, its last snapshot."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.errors import ExpectationFailed
from pytest_induction.records import Verdict
from pytest_induction.runs.heads_over_training import assert_final_has_induction_head, assert_heads_kept, assert_log_is_sane
from pytest_induction.runs.record import TrainingRun
from tests.runs.claims import evidence_of, refusal
from tests.runs.curves import noise_of, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"


def levels(scores, **options):
    return run_of(np.arange(len(scores)) * 10, prefix_matching=np.asarray(scores), **options)


class TestHeadsKept:
    RISE = np.r_[np.full(10, 0.05), np.linspace(0.05, 0.8, 10), np.full(20, 0.8)]
    ERRORS = {"prefix_matching": np.full((2, 2), 0.005)}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("end", "verdict", "reason"), [(0.8, SHOWN, "kept"), (0.3, REFUTED, "lost"), (0.64, UNDETERMINED, "end_unclear")]
    )
    def test_heads_are_held_to_the_highest_they_were(self, end, verdict, reason):
        scores = self.RISE + noise_of(40, 0.002, 0) + np.r_[np.zeros(30), np.linspace(0, end - 0.8, 6), np.full(4, end - 0.8)]
        found = evidence_of(assert_heads_kept, levels(scores, errors=self.ERRORS))
        assert (found.verdict, found.reason) == (verdict, reason), found.summary
        assert found.estimates["final"].value == pytest.approx(end, abs=0.01)

    def test_one_head_may_take_over_from_another(self):
        run = levels(self.RISE)
        swapped = [
            dataclasses.replace(each, prefix_matching=each.prefix_matching[:, ::-1] if index > 30 else each.prefix_matching)
            for index, each in enumerate(run.snapshots)
        ]
        found = assert_heads_kept(TrainingRun("swapped", tuple(swapped)))
        assert "L0H0" in found.summary

    def test_heads_that_were_never_there_are_not_kept(self):
        assert evidence_of(assert_heads_kept, levels(np.full(20, 0.1) + noise_of(20, 0.01, 0))).reason == "never_there"

    def test_few_scores_do_not_tell(self):
        assert evidence_of(assert_heads_kept, levels(self.RISE[15:22])).reason == "not_recorded"

    @pytest.mark.parametrize("name", ["min_share", "min_prefix_matching"])
    @pytest.mark.parametrize("value", [0, 1, math.nan])
    def test_shares_that_are_none_are_refused(self, name, value):
        assert name in refusal(assert_heads_kept, levels(self.RISE), **{name: value})


def losses(values):
    return run_of(np.arange(len(values)) * 10, loss=np.asarray(values, dtype=float))


FALL = 2 + 3 * np.exp(-np.arange(60) / 10)


class TestLogIsSane:
    @pytest.mark.parametrize("name", ["two-layers", "one-layer", "one-layer-smeared", "gradual", "truncated"])
    def test_the_shipped_runs_that_went_well_are_sane(self, name):
        assert assert_log_is_sane(RUNS / name).reason == "sane"

    @pytest.mark.parametrize("likeness", [0.0, 0.3])
    @pytest.mark.parametrize("gain", [0.0, 0.1, 3.0])
    def test_noise_is_no_divergence(self, gain, likeness):
        """A loss that hardly falls, as where a good model is trained on, is as sane as one that falls."""
        for seed in range(20):
            values = 2 + gain * np.exp(-np.arange(80) / 15) + noise_of(80, 0.05, seed, likeness)
            assert assert_log_is_sane(losses(values)).verdict is SHOWN

    @pytest.mark.parametrize("size", [0.0, 0.05])
    def test_a_loss_that_gives_back_what_it_gained_has_diverged(self, size):
        rising = FALL + np.r_[np.zeros(40), np.linspace(0, 2.5, 20)] + noise_of(60, size, 0)
        with pytest.raises(ExpectationFailed, match="the loss has diverged: 4"):
            assert_log_is_sane(losses(rising))

    def test_a_spike_that_is_as_high_as_the_loss_fell_is_named(self):
        spiked = FALL + 7 * (np.arange(60) == 30)
        with pytest.raises(ExpectationFailed, match=r"diverged for a while: 9\.\d+ at step 300"):
            assert_log_is_sane(losses(spiked))
        assert assert_log_is_sane(losses(FALL + 1.0 * (np.arange(60) == 30))).verdict is SHOWN

    def test_what_could_not_be_measured_is_named_first(self):
        run = losses(FALL)
        broken = [
            dataclasses.replace(each, loss=None, problem="the loss is not finite") if each.step >= 570 else each
            for each in run.snapshots
        ]
        with pytest.raises(ExpectationFailed, match=r"step 570: the loss is not finite \(and 2 snapshots more\)"):
            assert_log_is_sane(TrainingRun("broken", tuple(broken)))

    def test_few_snapshots_do_not_tell(self):
        found = evidence_of(assert_log_is_sane, losses(FALL[:7]))
        assert (found.verdict, found.reason) == (UNDETERMINED, "few_snapshots")

    def test_a_run_without_losses_is_not_sane(self):
        """Nothing was shown of it."""
        found = evidence_of(assert_log_is_sane, levels(TestHeadsKept.RISE))
        assert (found.verdict, found.reason) == (UNDETERMINED, "no_loss")
        assert found.summary == "no loss was recorded; at least 8 are needed" and "recorder" in found.next_step

    def test_a_few_losses_among_many_snapshots_do_not_tell(self):
        few = [dataclasses.replace(each, loss=None) if each.step > 60 else each for each in losses(FALL).snapshots]
        found = evidence_of(assert_log_is_sane, TrainingRun("few", tuple(few)))
        assert (found.reason, found.summary) == ("no_loss", "the loss is known at 7 of 60 snapshots; at least 8 are needed")

    def test_the_bump_stands_beside_a_loss_that_is_all_there_is(self):
        (bump,) = assert_log_is_sane(losses(FALL)).changes
        assert bump.series == "loss" and assert_log_is_sane(RUNS / "two-layers").changes == ()


class TestFinalHasInductionHead:
    def run(self, score=0.7, advantage=6.0, error=0.02, excess=0.6):
        """A run whose last snapshots hold all that a verdict on them needs."""
        run = run_of([0, 10, 20], prefix_matching=[0.05, 0.3, score], advantage=[0.0, 2.0, advantage])
        errors = {"prefix_matching": np.full((2, 2), error), "excess": np.full((2, 2), error), "advantage": 0.1}
        best = np.array([[0.0, excess], [0.0, 0.0]])
        return TrainingRun(
            "final", tuple(dataclasses.replace(each, errors=errors, excess=best, n_sequences=48) for each in run.snapshots)
        )

    @pytest.mark.parametrize(
        ("options", "verdict", "reason"),
        [
            ({}, SHOWN, "formed"),
            ({"score": 0.1, "excess": 0.05}, REFUTED, "no_head_matches"),
            ({"excess": 0.0}, REFUTED, "no_head_matches"),
            ({"advantage": 0.0}, REFUTED, "matches_without_copying"),
            ({"error": 0.3}, UNDETERMINED, "heads_unclear"),
        ],
    )
    def test_the_last_snapshot_is_held_to_the_thresholds_of_a_model(self, options, verdict, reason):
        found = evidence_of(assert_final_has_induction_head, self.run(**options))
        assert (found.claim, found.verdict, found.reason) == ("final_has_induction_head", verdict, reason)
        assert [str(head) for head in found.heads] == (["L0H1"] if verdict is SHOWN or options == {"advantage": 0.0} else [])
        assert "at step 20 L0H1 has prefix matching" in found.summary

    def test_scores_without_errors_do_not_tell(self):
        assert evidence_of(assert_final_has_induction_head, levels([0.1, 0.5, 0.7])).reason == "not_recorded"

    def test_the_shipped_runs_end_as_they_were_made_to(self):
        assert assert_final_has_induction_head(RUNS / "two-layers").verdict is SHOWN
        assert evidence_of(assert_final_has_induction_head, RUNS / "one-layer").verdict is REFUTED

    @pytest.mark.parametrize(
        "options", [{"min_prefix_matching": 0}, {"error_rate": 1}, {"min_advantage": -1}, {"min_advantage": math.nan}]
    )
    def test_thresholds_that_are_none_are_refused(self, options):
        assert next(iter(options)) in refusal(assert_final_has_induction_head, self.run(), **options)
