"""The turn of the path of token losses: its verdict on paths whose turns are known, with induction, and how it is recorded."""

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_induction.behaviour.text import row_losses
from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.model.load import load_model
from pytest_induction.records import Verdict
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.claims import assert_cooccurrence, assert_phase_change
from pytest_induction.runs.phase_change.finding import change_of, find_phase_changes
from pytest_induction.runs.phase_change.turn import sharpest_turn
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.recorder import InductionRecorder
from pytest_induction.runs.sweep import sweep
from tests.runs.claims import evidence_of
from tests.runs.curves import STEPS, X, formed_series, log_steps, run_of, turning_path
from tests.runs.training import Tiny, rows

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
FIXTURES = Path(__file__).parents[2] / "fixtures"
TEXT = np.concatenate([rows(8).numpy(), rows(8, seed=1).numpy()], axis=1)[:, :40]


def turn_of(losses, steps=STEPS, **options):
    return change_of(
        run_of(steps, token_losses=losses, **{k: options.pop(k) for k in ("icl_rows",) if k in options}), "turn", **options
    )


def made(place=2.4, turn=2.4, name="made", seed=0, **path):
    """A run in which induction forms at one step, and the path turns at another; None where token losses were not recorded."""
    losses = None if turn is None else turning_path(STEPS, turn, seed=seed, **path)
    return run_of(STEPS, name=name, token_losses=losses, **formed_series(STEPS, place, seed=seed))


PATHS = {
    "a turn": ({}, SHOWN, "turn"),
    "a late one": ({"place": 3.5}, SHOWN, "turn"),
    "in wandering weights": ({"noise": 0.5}, SHOWN, "turn"),
    "one that is hardly enough": ({"size": 0.5}, UNDETERMINED, "turn_unclear"),
    "none": ({"size": 0}, REFUTED, "no_turn"),
    "a slow one": ({"width": 2.5, "noise": 0.01}, REFUTED, "no_turn"),
    "none, in wandering weights": ({"size": 0, "noise": 0.03}, REFUTED, "no_turn"),
    "one that is not over": ({"place": 3.95}, UNDETERMINED, "not_over"),
}


@pytest.mark.parametrize("case", PATHS)
def test_a_path_that_turns_at_once_is_told_from_one_that_does_not(case):
    path, verdict, reason = PATHS[case]
    found = turn_of(turning_path(STEPS, **path))
    assert (found.verdict, found.reason) == (verdict, reason), found.summary
    assert bool(found.next_step) == (verdict is UNDETERMINED)
    assert found.shape == {"turn": "abrupt", "no_turn": "flat"}.get(reason, "")
    assert found.change.unit == "degrees" and "\n" not in found.summary


def test_the_threshold_and_the_width_are_options():
    losses = turning_path(STEPS, size=0.7)
    assert turn_of(losses).verdict is SHOWN
    assert turn_of(losses, min_change={"turn": 60.0}).verdict is REFUTED
    assert turn_of(turning_path(STEPS, width=0.4), max_width=0.05).verdict is not SHOWN


def test_the_place_is_that_of_the_heading_of_the_path_without_noise():
    """In 40 paths of their own noise and tokens, the 95 % interval of the midpoint holds that of the clean path at least 36 times."""
    held = 0
    for seed in range(40):
        clean = sharpest_turn(X[1:], run_of(STEPS, token_losses=turning_path(STEPS, noise=0, seed=seed)).headings()[1][1:])
        found = turn_of(turning_path(STEPS, noise=0.4, seed=seed)).midpoint.step
        held += found.low <= 10**clean.midpoint <= found.high
        assert found.high / found.low < 1.5
    assert held >= 36


def test_sharpest_turn_is_that_of_a_search_over_all_stretches():
    rng = np.random.default_rng(4)
    x = np.sort(rng.uniform(0, 3, 60))
    angles = 60 - 40 / (1 + np.exp(-(x - 1.7) * 30)) + rng.normal(size=60)
    found = sharpest_turn(x, angles, 0.25)
    starts = np.linspace(x[0], x[-1] - 0.25, 20_000)
    falls = np.interp(starts, x, angles) - np.interp(starts + 0.25, x, angles)
    assert found.fall == pytest.approx(falls.max(), rel=0.01) and found.fall >= falls.max()
    assert found.start < found.onset < found.midpoint < found.end < found.start + 0.25
    assert found.midpoint == pytest.approx(1.7, abs=0.03)


def test_a_straight_path_that_outgrows_its_noise_does_not_turn():
    """The heading falls from a right angle to nearly nothing, as the way grows from far below the noise to far above."""
    rng = np.random.default_rng(2)
    way = 0.05 + 5 * np.clip((X - 2) / 0.3, 0, 1)
    way[0] = 0
    losses = 5 + np.outer(way, rng.normal(size=512)) + 0.5 * rng.normal(size=(len(X), 512)) * (X > 1)[:, None]
    found = turn_of(losses.astype(np.float32))
    assert found.change.value > 50 and found.change.low < 20 and found.verdict is UNDETERMINED


def test_what_wanders_elsewhere_makes_the_interval_of_a_fall_wider():
    calm, wild = (turn_of(turning_path(STEPS, noise=noise)).change for noise in (0.05, 1.0))
    assert wild.high - wild.low > 1.5 * (calm.high - calm.low)


def test_what_wanders_counts_where_all_tokens_agree():
    """Every block has as many tokens of either kind, so that the choice of tokens adds nothing to the standard error."""
    angle = np.radians(60 / (1 + np.exp((X - 2.4) * 30)) + 4 * np.sin(X * 20))
    losses = np.tile(X[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), 20).astype(np.float32)
    found, run = turn_of(losses).change, run_of(STEPS, token_losses=losses)
    turn = sharpest_turn(X[1:], run.headings()[1][1:])
    assert found.high - found.value == pytest.approx(2.8 * turn.wander, rel=1e-3) and turn.wander > 1


def test_tokens_of_one_row_count_as_one():
    """Eight copies of each token are no more evidence than one."""
    losses = turning_path(STEPS, tokens=64, noise=0.0) + np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    copies = np.repeat(losses, 8, axis=1)
    once, apart, together = (
        turn_of(values, icl_rows=row) for values, row in ((losses, None), (copies, None), (copies, np.zeros((len(STEPS), 64))))
    )
    spread = [each.midpoint.step.high - each.midpoint.step.low for each in (once, apart, together)]
    assert spread[2] == pytest.approx(spread[0], rel=1e-6) and spread[1] != pytest.approx(spread[0], rel=1e-3)


class TestTooLittle:
    def test_no_record_is_none(self):
        found = find_phase_changes(made(turn=None))
        assert found.turn is found.turn_lag is None and len(found.changes) == 4

    @pytest.mark.parametrize(("points", "tokens"), [(7, 512), (100, 31)])
    def test_few_snapshots_or_tokens_do_not_tell(self, points, tokens):
        steps = log_steps(points)
        found = turn_of(turning_path(steps, tokens=tokens), steps)
        assert (found.verdict, found.reason) == (UNDETERMINED, "few_snapshots")
        assert f"losses of {tokens} tokens are known at {len(steps)} snapshots" in found.summary

    def test_a_short_record_does_not_tell(self):
        steps = np.arange(200, 400, 5)
        assert turn_of(turning_path(steps), steps).reason == "few_snapshots"

    def test_a_turn_between_two_snapshots_is_not_denied(self):
        steps = np.concatenate([log_steps(30, 1, 60), log_steps(30, 2000, 10_000)])
        found = turn_of(turning_path(steps), steps)
        assert (found.verdict, found.reason) == (UNDETERMINED, "few_inside") and "between steps" in found.next_step

    def test_a_record_that_begins_in_the_turn_does_not_tell(self):
        steps = log_steps(80, 150)
        found = turn_of(turning_path(steps, noise=0.1), steps)
        assert (found.verdict, found.reason) == (UNDETERMINED, "began_before") and "from the first steps" in found.next_step

    def test_two_snapshots_inside_do_not_tell(self):
        steps = log_steps(22)
        found = turn_of(turning_path(steps), steps)
        assert (found.verdict, found.reason, found.n_inside) == (UNDETERMINED, "few_inside", 2)
        assert "with 2 snapshots inside" in found.summary

    def test_a_path_that_does_not_move_does_not_turn(self):
        found = turn_of(np.ones((len(STEPS), 64), np.float32))
        assert (found.verdict, found.reason) == (REFUTED, "no_turn")

    def test_snapshots_without_token_losses_or_of_another_text_are_left_out(self):
        losses = list(turning_path(STEPS))
        losses[3], losses[5], losses[9] = losses[3][:100], np.full(512, np.nan, np.float32), losses[9] * np.nan
        run = run_of(STEPS, token_losses=losses)
        assert run.token_losses()[0].tolist() == [i for i in range(len(STEPS)) if i not in (3, 5, 9)]
        assert change_of(run, "turn").verdict is SHOWN

    def test_very_many_snapshots_are_thinned(self):
        steps = np.arange(1, 10_001)
        found = turn_of(turning_path(steps, tokens=64), steps)
        assert found.verdict is SHOWN and found.n_inside > 20


class TestCooccurrence:
    def test_a_path_that_turns_with_induction_passes(self):
        found = assert_cooccurrence(made(), turn=True)
        assert [change.series for change in found.changes] == ["prefix_matching", "advantage", "icl_score", "loss", "turn"]
        assert "the path of token losses turns -0.0" in found.summary and abs(found.estimates["turn_lag"].value) < 0.1

    @pytest.mark.parametrize(
        ("path", "verdict", "reason"),
        [
            ({"turn": 3.2}, REFUTED, "turn_apart"),
            ({"turn": 1.6}, REFUTED, "turn_apart"),
            ({"size": 0}, REFUTED, "no_turn"),
            ({"size": 0.5}, UNDETERMINED, "turn_unclear"),
            ({"turn": 2.6}, UNDETERMINED, "turn_lag_unclear"),
        ],
    )
    def test_one_that_turns_elsewhere_or_not_at_all_does_not(self, path, verdict, reason):
        """All else changes together, so it passes where the turn is not asked for, and says what the path does."""
        found = evidence_of(assert_cooccurrence, made(**path), turn=True)
        assert (found.verdict, found.reason) == (verdict, reason), found.summary
        assert bool(found.next_step) == (verdict is UNDETERMINED)
        reported = assert_cooccurrence(made(**path))
        assert reported.verdict is SHOWN and "; the path of token losses turns " in reported.summary
        assert assert_phase_change(made(**path)).verdict is SHOWN

    def test_a_run_without_token_losses_says_so(self):
        assert "path" not in assert_cooccurrence(made(turn=None)).summary
        asked = evidence_of(assert_cooccurrence, made(turn=None), turn=True)
        assert (asked.verdict, asked.reason) == (UNDETERMINED, "turn_not_recorded") and "`turn=False`" in asked.next_step

    def test_in_context_learning_is_asked_for_first(self):
        run = run_of(STEPS, token_losses=turning_path(STEPS), **{**formed_series(STEPS), "icl_score": 0.01 * X})
        assert evidence_of(assert_cooccurrence, run).reason == "icl_no_change"

    def test_several_runs_are_judged_by_the_mean_of_their_distances(self):
        runs = [made(turn=place, seed=10 * seed, name=f"seed {seed}") for seed, place in enumerate((2.4, 2.43, 2.46))]
        found = assert_cooccurrence(runs, turn=True)
        lags = [find_phase_changes(run).turn_lag.value for run in runs]
        assert found.estimates["turn_lag"].value == pytest.approx(np.mean(lags)) and len(found.changes) == 15
        apart = evidence_of(assert_cooccurrence, [made(turn=3.2, seed=10 * seed) for seed in range(2)], turn=True)
        assert set(assert_cooccurrence(runs).estimates) == {"lag"}
        assert (apart.verdict, apart.reason) == (REFUTED, "turn_apart")
        mixed = evidence_of(assert_cooccurrence, [*runs, made(turn=None)], turn=True)
        assert mixed.reason == "turn_not_recorded" and "1 of 4 runs have no two changes to compare" in mixed.summary

    def test_real_checkpoints_of_two_layers_turn_where_induction_forms(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(FIXTURES))
        from trainings import TRAININGS, held_out_of

        text = held_out_of(TRAININGS["two-layers"])
        factory = f"{FIXTURES / 'attention_only.py'}:two_layers"
        run = sweep(FIXTURES / "runs" / "two-layers-checkpoints", tmp_path / "run", factory=factory, text=text)
        found = assert_cooccurrence(run, turn=True)
        assert found.changes[-1].verdict is SHOWN and found.changes[-1].change.value > 25
        assert 215 < found.changes[-1].midpoint.step.value < 290
        assert load_run(tmp_path / "run").headings()[1][1:] == pytest.approx(run.headings()[1][1:])

    def test_a_real_training_does_not_turn_before_it_changes(self, tmp_path, monkeypatch):
        """Of one layer, a hundred steps: too few for two layers to have changed, so this says nothing of how many there are."""
        monkeypatch.syspath_prepend(str(FIXTURES))
        from trainings import TRAININGS, every_part, record

        record(replace(TRAININGS["one-layer"], steps=100), tmp_path / "run", seed=0, steps=every_part(100, per_decade=12))
        run = load_run(tmp_path / "run")
        found = change_of(run, "turn")
        assert found.verdict is not SHOWN and found.change.value < 20
        assert evidence_of(assert_cooccurrence, run).verdict is REFUTED


@pytest.fixture(scope="module")
def subject():
    return load_model(Tiny(dropout=0.0).eval())


class TestRecording:
    def test_losses_by_index_are_means_over_rows_and_token_losses_are_of_fixed_tokens(self, subject):
        losses = row_losses(subject, TEXT)
        one, two = (Measuring(n_sequences=2, text=TEXT).snapshot(subject, step) for step in (0, 1))
        np.testing.assert_allclose(one.index_losses, losses.mean(axis=0), rtol=1e-6)
        np.testing.assert_array_equal(one.token_losses, two.token_losses)
        assert one.token_losses.shape == (8 * 39,)  # 1024 were asked for: all there are
        np.testing.assert_allclose(one.token_losses, losses.ravel(), rtol=1e-3)

    @pytest.mark.parametrize(("count", "kept"), [(True, 8), (20, 16), (5, 5), (8, 8), (1000, 312)])
    def test_as_many_of_each_row(self, subject, count, kept):
        losses = row_losses(subject, TEXT)
        found = Measuring(n_sequences=2, text=TEXT, token_losses=count).snapshot(subject, 0).token_losses
        assert found.shape == (kept,)
        per_row = max(1, kept // 8)
        chosen = np.arange(8) if kept >= 8 else np.linspace(0, 7, kept).round().astype(int)
        for row, values in zip(chosen, found.reshape(-1, per_row), strict=True):
            gaps = np.abs(values[:, None] - losses[row]).min(axis=1)
            assert (gaps < 5e-3).all(), row

    @pytest.mark.parametrize("count", [0, False])
    def test_none_where_none_are_asked_for(self, subject, count):
        found = Measuring(n_sequences=2, text=TEXT, token_losses=count).snapshot(subject, 0)
        assert found.token_losses is None and found.index_losses is not None

    @pytest.mark.parametrize("count", [-1, 1.5, "many"])
    def test_a_number_that_is_none_is_refused(self, tmp_path, count):
        with pytest.raises(ArgumentError, match="`token_losses` must be a whole number from 0 up"):
            InductionRecorder(tmp_path / "run", token_losses=count)

    def test_a_recorded_run_gives_them_back(self, tmp_path):
        recorder, model = InductionRecorder(tmp_path / "run", text=TEXT, n_sequences=2), Tiny()
        snapshots = [recorder(model, step, force=True) for step in range(3)]
        run = load_run(tmp_path / "run")
        index, tokens, losses = run.loss_by_index()
        assert index.tolist() == [0, 1, 2] and tokens.tolist() == list(range(2, 41)) and run.first_token == 2
        np.testing.assert_array_equal(losses, [each.index_losses for each in snapshots])
        np.testing.assert_array_equal(run.token_losses()[1], [each.token_losses for each in snapshots])
        assert run.loss_slopes()[1].slopes.shape[0] == 3
        with pytest.raises(RunError, match="known at 3 snapshots"):
            run.headings()

    def test_it_takes_under_three_bytes_a_token(self):
        losses = np.random.default_rng(0).exponential(3, 1024).astype(np.float16).astype(np.float32)
        with_, without = (len(to_line(Snapshot(0, token_losses=each))[0]) for each in (losses, None))
        assert with_ - without < 2.75 * 1024
        np.testing.assert_array_equal(from_line(to_line(Snapshot(0, token_losses=losses))[0], dict).token_losses, losses)

    def test_their_errors_are_lists_as_all_errors_are(self):
        given = Snapshot(0, token_losses=np.ones(3, np.float32), errors={"token_losses": np.full(3, 0.5, np.float32)})
        assert from_line(to_line(given)[0], dict) == given

    def test_what_half_precision_cannot_hold_stays_exact(self):
        losses = np.array([1 / 3, 1e5, np.nan, np.inf], np.float32)
        line = to_line(Snapshot(0, token_losses=losses))[0]
        assert json.loads(line)["packed"]["token_losses"].startswith("f4:")
        np.testing.assert_array_equal(from_line(line, dict).token_losses, np.array([1 / 3, 1e5, np.nan, np.nan], np.float32))

    def test_lists_of_older_recordings_are_read(self):
        found = from_line(b'{"step":1,"token_losses":[1.5,null,2.5]}', dict).token_losses
        np.testing.assert_array_equal(found, np.array([1.5, np.nan, 2.5], np.float32))

    @pytest.mark.parametrize(
        "packed",
        [
            "[]",
            '{"token_losses":1}',
            '{"token_losses":"f8:AAAA"}',
            '{"token_losses":"f2:A"}',
            '{"token_losses":"f4:AAAA"}',
            '{"token_losses":"f2:"}',
            '{"index_losses":"f2:!!!!"}',
            '{"index_losses":"f2:AA!A="}',
            f'{{"token_losses":"f4:{base64.b64encode(np.float32(np.inf).tobytes()).decode()}"}}',
        ],
    )
    def test_bytes_that_are_no_numbers_make_a_line_unreadable(self, packed):
        with pytest.raises(ValueError, match=r"packed|losses|base64|padding|buffer"):
            from_line(f'{{"step":1,"packed":{packed}}}'.encode(), dict)

    def test_runs_recorded_before_say_that_it_is_not_there(self):
        run = run_of(STEPS, name="old", loss=np.ones(len(STEPS)))
        for ask in (run.token_losses, run.token_loss_path, run.headings, run.turning_angles, run.loss_by_index, run.loss_slopes):
            with pytest.raises(RunError, match=r"losses of run 'old' were not recorded: record or sweep with"):
                ask()

    def test_methods_of_a_run_are_those_of_the_path(self):
        run = made()
        index, path = run.token_loss_path(2)
        assert index.tolist() == list(range(len(STEPS))) and path.places.shape == (len(STEPS), 2) and path.shares.sum() > 0.9
        angles = run.turning_angles(window=0.3)[1]
        assert angles.shape == (len(STEPS),) and np.nanmax(angles) > 45
        assert run.headings()[1][1] > 60 and run.headings()[1][-1] < 10

    @pytest.mark.parametrize(("first", "said"), [(1, ""), (0, "within 1 and"), ("a", "a whole number"), (True, "a whole number")])
    def test_the_number_of_the_first_token_is_checked(self, tmp_path, first, said):
        place = tmp_path / "run"
        place.mkdir()
        (place / "run.json").write_text(json.dumps({"schema": 1, "source": "recorder", "first_token": first}))
        if not said:
            assert load_run(place).first_token == 1
        else:
            with pytest.raises(RunError, match=f"run.json: `first_token` must be {said}"):
                load_run(place)


def test_what_judges_a_turn_needs_no_torch():
    code = "import sys, pytest_induction.runs.phase_change.turn, pytest_induction.runs.picture; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
