"""The recorder in a loop by hand: when it measures, what that costs, what it leaves alone, and what it says when things go wrong."""

import errno
import itertools
import json
import math
import random
import subprocess
import sys
import textwrap
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction.behaviour.text import row_losses
from pytest_induction.errors import ArgumentError, RunError, TextError
from pytest_induction.model.load import load_model
from pytest_induction.probes.markov import MarkovChains
from pytest_induction.progress import showing_on
from pytest_induction.runs import recorder as recording
from pytest_induction.runs import store
from pytest_induction.runs.measuring import Measuring, unwrapped
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.recorder import InductionRecorder
from pytest_induction.runs.schedule import Budget, Cost, due_steps
from pytest_induction.runs.stopping import HeadsLost, NoInductionBy, NotFinite
from pytest_induction.runs.store import RunWriter, read_run
from tests.model.plain import Plain, unreadable
from tests.runs.training import CONTEXT, D_VOCAB, Clock, Tiny, loss_of, rows, train

TEXT = np.random.default_rng(0).integers(0, D_VOCAB, (8, CONTEXT))
ASKED = {
    "longer_matches": True,
    "token_counts": np.arange(D_VOCAB),
    "markov": MarkovChains(5),
    "bigram_counts": np.roll(np.eye(D_VOCAB, dtype=int), 3, axis=1) * 9,
}


def read(path):
    return read_run(Place(path))


def header(path):
    return json.loads((path / "run.json").read_text())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def quick(monkeypatch):
    """Measuring that takes no time and no model, for what is about when, not what: `quick.cost` seconds of a clock each."""

    class Quick:
        clock, cost, scores = Clock(), 1.0, {}

        def recorder(self, path, **settings):
            return InductionRecorder(path, clock=self.clock, **settings)

        def run(self, recorder, steps, seconds=1.0):
            """Steps that take so long each; gives those that have a snapshot."""
            taken = []
            for step in steps:
                self.clock.passes(seconds)
                if recorder(self.model, step) is not None:
                    taken.append(step)
            return taken

    made = Quick()
    made.model = Tiny()

    def snapshot(measuring, subject, step, tokens=None, loss=None):
        made.clock.passes(made.cost)
        return Snapshot(step, tokens=tokens, loss=loss, **made.scores.get(step, {}))

    monkeypatch.setattr(Measuring, "snapshot", snapshot)
    return made


class TestWhatIsRecorded:
    def test_a_snapshot_is_written_at_once_and_returned(self, path):
        recorder, model = InductionRecorder(path, text=TEXT, token_losses=True, name="small"), Tiny()
        found = recorder(model, 0, loss=torch.tensor(3.0, requires_grad=True), tokens=0)
        run = read(path)  # while the recorder is still at it
        assert len(run) == 1 and run.name == "small" and run.source == "recorder" and run.notes == ()
        (stored,) = run.snapshots
        assert (found.step, found.tokens, found.loss, found.problem) == (0, 0, 3.0, "")
        assert stored.step == 0 and stored.loss == 3.0 and stored.fingerprint == found.fingerprint != ""
        np.testing.assert_allclose(stored.prefix_matching, found.prefix_matching, rtol=1e-5)
        assert stored.prefix_matching.shape == (2, 2) and stored.icl_rows.shape == (8,) == stored.token_losses.shape
        assert stored.icl_score == pytest.approx(stored.late_loss - stored.early_loss, abs=1e-5)

    def test_it_measures_what_measuring_measures(self, path):
        model = Tiny()
        found = InductionRecorder(path, text=TEXT, n_sequences=6, seed=3)(model, 5, tokens=7, loss=1.5)
        expected = Measuring(text=TEXT, n_sequences=6, seed=3).snapshot(load_model(model), 5, 7, 1.5)
        np.testing.assert_array_equal(found.prefix_matching, expected.prefix_matching)
        assert (found.repeat_loss, found.icl_score, found.errors["icl_score"]) == (
            expected.repeat_loss,
            expected.icl_score,
            expected.errors["icl_score"],
        )

    def test_run_json_says_what_was_measured_and_what_it_cost(self, path):
        with InductionRecorder(path, text=TEXT, seed=3) as recorder:
            recorder(Tiny(), 0)
        said = header(path)
        assert said["about"]["model"] == "Tiny" and said["about"]["seed"] == 3 and said["about"]["backend"] == "sdpa"
        assert read(path).icl_windows is not None
        assert said["cost"]["snapshots"] == 1 and said["cost"]["max_overhead"] == 0.02 and said["cost"]["seconds"] > 0

    def test_tokens_follow_from_the_step_where_they_are_not_given(self, quick, path):
        recorder = quick.recorder(path, tokens_per_step=64.5, max_overhead=None)
        assert recorder(quick.model, 3).tokens == 194
        assert recorder(quick.model, 4, tokens=1000).tokens == 1000
        assert recorder(quick.model, 5, tokens=np.float64(1e9)).tokens == 10**9
        assert read(path).tokens_per_step == 64.5

    def test_a_text_is_encoded_with_the_tokenizer_that_is_given(self, path):
        class Letters:
            all_special_ids = ()

            def encode(self, text, add_special_tokens=False):
                return [ord(letter) % D_VOCAB for letter in text]

            def __len__(self):
                return D_VOCAB

        recorder = InductionRecorder(path, text="the quick brown fox jumps over the lazy dog " * 9, tokenizer=Letters())
        assert recorder(Tiny(), 0).icl_score is not None

    def test_a_scheduled_change_is_noted_once(self, path):
        for _ in range(2):
            with InductionRecorder(path) as recorder:
                recorder.add_scheduled_change(100, "learning rate / 10")
        assert [(each.step, each.what) for each in read(path).schedule] == [(100, "learning rate / 10")]

    def test_the_model_is_adapted_once_and_anew_for_another_object(self, path, monkeypatch):
        made = []
        monkeypatch.setattr(
            "pytest_induction.runs.measuring.adapt", lambda module, **settings: made.append(module) or load_model(module)
        )
        recorder, first, second = InductionRecorder(path, max_overhead=None), Tiny(), Tiny()
        for step, model in enumerate((first, first, second, second)):
            recorder(model, step)
        assert made == [first, second]

    def test_another_model_object_is_measured_as_it_is(self, path):
        recorder, first, second = InductionRecorder(path, max_overhead=None), Tiny(), Tiny()
        prints = [recorder(model, step).fingerprint for step, model in enumerate((first, second, first))]
        assert prints[0] == prints[2] == load_model(first).fingerprint() and prints[1] == load_model(second).fingerprint()

    def test_a_compiled_model_is_measured_as_it_was_written(self, path):
        model = Tiny()
        found = InductionRecorder(path)(torch.compile(model, backend="eager"), 0)
        assert found.problem == "" and found.prefix_matching.shape == (2, 2)


class TestLeftAlone:
    def trained(self, each_step=lambda *given: None):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        model = Tiny(dropout=0.2)
        optimizer = train(model, 25, each_step)
        return model, optimizer, (torch.rand(3).tolist(), random.random(), np.random.random())

    @pytest.mark.parametrize("asked", [{}, ASKED])
    def test_a_training_is_the_same_to_the_bit_with_and_without_the_recorder(self, path, asked):
        plain, optimizer, drawn = self.trained()
        recorder = InductionRecorder(path, text=TEXT, max_overhead=None, stop_when=NotFinite(), **asked)
        recorded, recorded_optimizer, recorded_drawn = self.trained(lambda model, step, loss: recorder(model, step, loss=loss))
        recorder.close()
        assert len(read(path)) == 21  # 0 to 17, 19, 21, 23
        assert drawn == recorded_drawn
        for (name, value), other in zip(plain.state_dict().items(), recorded.state_dict().values(), strict=True):
            assert torch.equal(value, other), name
        for one, other in zip(optimizer.state.values(), recorded_optimizer.state.values(), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)

    def test_the_comparison_above_can_fail(self):
        _, _, drawn = self.trained()
        _, _, disturbed = self.trained(lambda *given: torch.rand(1))
        assert drawn != disturbed

    @pytest.mark.parametrize("training", [True, False])
    def test_modes_and_gradients_stay(self, path, training):
        model = Tiny().train(training)
        model.out.eval()
        loss_of(model, rows(2)).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        InductionRecorder(path, text=TEXT)(model, 0)
        assert all(torch.equal(one, parameter.grad) for one, parameter in zip(gradients, model.parameters(), strict=True))
        assert (model.training, model.layers.training, model.out.training) == (training, training, False)
        assert all(parameter.requires_grad for parameter in model.parameters()) and torch.is_grad_enabled()

    def test_a_model_that_fails_midway_is_left_as_it_was(self, path):
        class Broken(Tiny):
            is_broken = False

            def forward(self, tokens):
                if self.is_broken:
                    torch.rand(5)
                    raise KeyError("midway")
                return super().forward(tokens)

        recorder, model = InductionRecorder(path, max_overhead=None), Broken()
        assert recorder(model, 0).problem == ""
        model.is_broken = True
        state = torch.get_rng_state()
        assert "midway" in recorder(model, 1).problem
        assert torch.equal(torch.get_rng_state(), state) and model.training and torch.is_grad_enabled()

    def test_the_loss_is_not_looked_at_where_no_snapshot_is_taken(self, quick, path):
        class Loss:
            looked = 0

            def __float__(self):
                Loss.looked += 1
                return 1.0

        recorder = quick.recorder(path, schedule=10)
        for step in range(1, 21):
            quick.clock.passes(1000)
            recorder(quick.model, step, loss=Loss())
        assert Loss.looked == 2

    def test_the_terminal_stays_the_training_s(self, path, monkeypatch):
        monkeypatch.setattr("pytest_induction.progress.DELAY", 0)
        opened = []
        with showing_on(lambda: opened.append(1)):
            InductionRecorder(path, text=TEXT)(Tiny(), 0)
            assert opened == []
            row_losses(load_model(Tiny()), TEXT)  # which shows its progress elsewhere
            assert opened == [1]


class TestSchedule:
    def test_the_default_is_every_step_at_first_and_then_forty_a_decade(self):
        due = due_steps(None)
        steps = [step for step in range(100_000) if due(step - 1, step)]
        assert steps[:18] == list(range(18))
        assert all(later == max(step + 1, math.ceil(step * 10 ** (1 / 40))) for step, later in itertools.pairwise(steps))
        assert [sum(low <= step < 10 * low for step in steps) for low in (1000, 10_000)] == pytest.approx([40, 40], abs=1)

    def test_a_late_step_is_found_without_listing_all_before(self):
        due = due_steps(None)
        assert due(10**12, 2 * 10**12) and not due(10**12, 10**12)

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            (10, [0, 10, 20, 30]),
            ([25, 3, 3, 11], [3, 11, 25]),
            (range(5, 10**12, 15), [5, 20, 35]),
            (range(20, -1, -10), [0, 10, 20]),
            ((step for step in (1, 2)), [1, 2]),
            (np.array([4, 8]), [4, 8]),
            (lambda step: step % 17 == 0, [0, 17, 34]),
            ([], []),
        ],
    )
    def test_other_schedules(self, schedule, expected):
        due = due_steps(schedule)
        assert [step for step in range(40) if due(step - 1, step)] == expected

    @pytest.mark.parametrize("schedule", [0, -1, True, 2.5, [1.5], [-1], "often", ["1"], object()])
    def test_a_schedule_that_is_none_is_refused_in_one_line(self, path, schedule):
        with pytest.raises(ArgumentError, match=r"^`schedule` must be a whole number from [01] up, got .*$"):
            InductionRecorder(path, schedule=schedule)

    def test_a_schedule_without_end_is_refused(self, path, monkeypatch):
        monkeypatch.setattr("pytest_induction.runs.schedule.MOST_STEPS", 1000)
        with pytest.raises(ArgumentError, match=r"`schedule` lists more than 1000 steps: give a function of the step instead"):
            InductionRecorder(path, schedule=itertools.count())

    def test_steps_that_go_by_between_calls_are_due_at_the_next(self, quick, path):
        recorder = quick.recorder(path, schedule=[12, 13, 31, 90], max_overhead=None)
        assert quick.run(recorder, range(0, 100, 10)) == [20, 40, 90]

    def test_a_step_is_recorded_once_however_often_it_is_called(self, quick, path):
        recorder = quick.recorder(path, schedule=lambda step: True, max_overhead=None)
        assert quick.run(recorder, [0, 0, 1, 1, 1, 2]) == [0, 1, 2]

    def test_a_training_that_goes_back_is_recorded_again_from_there(self, quick, path):
        recorder = quick.recorder(path, schedule=5, max_overhead=None)
        assert quick.run(recorder, [*range(1, 21), *range(11, 22)]) == [5, 10, 15, 20, 15, 20]
        run = read(path)
        assert run.steps.tolist() == [5, 10, 15, 20] and "went back from step 20 to 15" in run.notes[0]

    def test_a_resumed_training_goes_on_with_its_run(self, quick, path):
        with quick.recorder(path, schedule=5, max_overhead=None) as recorder:
            quick.run(recorder, range(18))
        with quick.recorder(path, schedule=5, max_overhead=None) as recorder:
            assert quick.run(recorder, range(12, 23)) == [15, 20]
        assert read(path).steps.tolist() == [0, 5, 10, 15, 20]

    def test_the_last_step_gets_a_snapshot_unless_it_has_one(self, quick, path):
        recorder = quick.recorder(path, schedule=10)
        assert quick.run(recorder, range(1, 15)) == [10]
        assert recorder.final(quick.model, 14).step == 14
        assert recorder.final(quick.model, 14) is None
        assert recorder(quick.model, 14, force=True).step == 14
        assert read(path).steps.tolist() == [10, 14]


class TestBudget:
    def test_recording_takes_no_more_than_its_share(self, quick, path):
        recorder = quick.recorder(path, max_overhead=0.02, schedule=1)
        taken = quick.run(recorder, range(1000))
        assert taken[:3] == [0, 150, 200]  # 1 s each: by 150 s the first is paid back, the second saved up for, and the last
        assert recorder.cost == Cost(18.0, 999.0, 18 / 999, 18, 1000 - 18 - 1, 1.0, 0.02)  # the last due one still waits
        assert str(recorder.cost) == "18 snapshots took 18 s, 1.80% of 999 s of training; 981 due ones gave way to later ones"
        recorder.final(quick.model, 1000)
        assert recorder.cost.share <= 0.02 and recorder.cost.always == 2.0

    def test_a_due_snapshot_that_is_too_dear_is_taken_as_soon_as_it_is_not(self, quick, path):
        recorder = quick.recorder(path, max_overhead=0.1, schedule=[0, 5])
        assert quick.run(recorder, range(100)) == [0, 30]
        assert recorder.cost.skipped == 0

    def test_set_up_is_paid_back_but_not_expected_again(self, quick, path, monkeypatch):
        def adapt(module, **settings):
            quick.clock.passes(9)
            return load_model(module)

        monkeypatch.setattr("pytest_induction.runs.measuring.adapt", adapt)
        recorder = quick.recorder(path, max_overhead=0.1, schedule=1)
        assert quick.run(recorder, range(131))[:3] == [0, 120, 130]
        assert recorder.cost.seconds == 12

    def test_the_median_of_recent_ones_says_what_the_next_costs(self, quick, path):
        recorder = quick.recorder(path, max_overhead=0.1, schedule=1)
        quick.run(recorder, range(61))
        before = recorder.cost.snapshots
        quick.cost = 30.0
        quick.run(recorder, range(61, 71))
        assert recorder.cost.snapshots == before + 1 and recorder.cost.seconds == pytest.approx(before + 30)
        quick.cost = 1.0
        assert quick.run(recorder, range(71, 500))[0] == 370  # 36 s of it are spent and one more expected

    def test_no_limit_takes_all(self, quick, path):
        recorder = quick.recorder(path, max_overhead=None, schedule=1)
        assert quick.run(recorder, range(50)) == list(range(50))
        assert recorder.cost.skipped == 0 and recorder.cost.share == pytest.approx(50 / 49)

    def test_time_in_which_no_training_runs_does_not_count(self, quick, path):
        recorder = quick.recorder(path, max_overhead=0.1, schedule=1)
        quick.run(recorder, [0])
        recorder.close()
        quick.clock.passes(10**6)
        assert quick.run(recorder, [1, 2]) == []
        assert recorder.cost.training_seconds == 1

    def test_waiting_for_a_device_to_finish_its_steps_is_training(self):
        clock = Clock()
        budget = Budget(0.5, clock)
        for _ in range(2):
            with budget.spending():
                clock.passes(5)
                budget.waited()
                clock.passes(1)
            clock.passes(10)
        assert (budget.cost.seconds, budget.cost.training_seconds) == (2, 20)

    def test_a_forced_snapshot_counts(self, quick, path):
        recorder = quick.recorder(path, max_overhead=0.1, schedule=[])
        recorder(quick.model, 3, force=True)
        assert recorder.cost.seconds == 1 and recorder.cost.snapshots == 1 and recorder.cost.share is None
        assert str(recorder.cost) == "1 snapshots took 1 s"

    @pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, "0.1", True])
    def test_a_share_that_is_none_is_refused(self, path, value):
        with pytest.raises(
            ArgumentError, match=r"^`max_overhead` must be a share of the training time above 0, or None for no limit, got "
        ):
            InductionRecorder(path, max_overhead=value)

    def test_ten_thousand_steps_without_a_snapshot_open_and_write_nothing_more(self, quick, path):
        recorder = quick.recorder(path, schedule=10**9)
        quick.run(recorder, range(1, 10_001))
        assert sorted(each.name for each in path.iterdir()) == ["run.json", "run.lock"]


class TestArguments:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"n_sequences": 1}, "`n_sequences` must be a whole number from 2 up, got 1"),
            ({"seed": -1}, "`seed` must be a whole number from 0 up, got -1"),
            ({"tokens_per_step": 0}, "`tokens_per_step` must be a number above 0, got 0"),
            ({"tokens_per_step": math.nan}, "`tokens_per_step` must be a number above 0, got nan"),
            ({"tokens_per_step": "many"}, "`tokens_per_step` must be a number or a tensor of one, got `str`"),
            ({"on_unmeasurable": "warn"}, '`on_unmeasurable` must be "raise" or "loss_only", got \'warn\''),
            ({"total_steps": 0}, "`total_steps` must be a whole number from 1 up, got 0"),
            ({"stop_when": 3}, "`stop_when` must be functions of the snapshots, or rules such as NotFinite(), got 3"),
            (
                {"stop_when": [NotFinite]},
                "`stop_when` must be functions of the snapshots, or rules such as NotFinite(), got <class",
            ),
        ],
    )
    def test_a_bad_argument_is_one_line(self, path, settings, message):
        with pytest.raises(ArgumentError) as refused:
            InductionRecorder(path, **settings)
        assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
        assert not path.exists()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"step": -1}, "`step` must be a whole number from 0 up, got -1"),
            ({"step": 1.5}, "`step` must be a whole number from 0 up, got 1.5"),
            ({"step": 0, "loss": torch.zeros(2)}, r"`loss` must be a number or a tensor of one, got `Tensor` \(2,\)"),
            ({"step": 0, "loss": "low"}, "`loss` must be a number or a tensor of one, got `str`"),
            ({"step": 0, "tokens": -1}, "`tokens` must be a number from 0 up, got -1"),
            ({"step": 0, "model": "gpt2"}, "`model` must be a torch module, got `str`"),
        ],
    )
    def test_a_bad_call_is_one_line(self, path, given, message):
        with pytest.raises(ArgumentError, match=f"^{message}$"):
            InductionRecorder(path)(**{"model": Tiny(), **given})

    def test_a_text_that_is_not_there_is_said_at_once(self, path):
        with pytest.raises(TextError, match=r"held-out.txt' cannot be read"):
            InductionRecorder(path, text=path / "held-out.txt")

    def test_a_place_that_holds_something_else_is_said_on_the_first_call(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        recorder = InductionRecorder(tmp_path, schedule=1000)
        with pytest.raises(RunError, match="is not empty and holds no run"):
            recorder(Tiny(), 1)

    @pytest.mark.parametrize("resume", [1, "yes", 0])
    def test_a_choice_that_is_none_is_refused(self, path, resume):
        with pytest.raises(ArgumentError, match=f"^`resume` must be True, False or None, got {resume!r}$"):
            InductionRecorder(path, resume=resume)


CHOICE = "pass resume=False to begin anew (what is there is kept in its `earlier/`), resume=True to go on with it, or choose another path"


class TestWhatLiesThere:
    """A run at the path: as after a crash, in a cell of a notebook that runs again, under another model."""

    @pytest.fixture
    def recorded(self, quick, path):
        """Steps 0 to 4 of a training; its recorder was closed."""
        with quick.recorder(path, max_overhead=None, schedule=1) as recorder:
            quick.run(recorder, range(5))
        return path

    def test_a_training_that_goes_on_goes_on_with_its_run(self, quick, recorded):
        with quick.recorder(recorded, max_overhead=None, schedule=1) as recorder:
            quick.run(recorder, range(3, 8))
        assert read(recorded).steps.tolist() == list(range(8)) and not (recorded / "earlier").exists()

    def test_one_that_begins_again_must_be_told_what_to_do_and_leaves_all_as_it_is(self, quick, recorded):
        before = {each.name: each.read_bytes() for each in recorded.iterdir()}
        with pytest.raises(RunError) as refused:
            quick.recorder(recorded)(quick.model, 0)
        assert str(refused.value) == f"{recorded} holds a run already, steps 0 to 4, and this training begins at step 0: {CHOICE}"
        assert {each.name: each.read_bytes() for each in recorded.iterdir()} == before
        assert quick.recorder(recorded, max_overhead=None)(quick.model, 5) is not None  # nothing is locked

    def test_what_was_noted_beforehand_is_not_noted_there(self, quick, recorded):
        recorder = quick.recorder(recorded)
        recorder.add_scheduled_change(3, "end of the warm-up")
        with pytest.raises(RunError, match="holds a run already"):
            recorder(quick.model, 0)
        assert read(recorded).schedule == ()

    def test_it_may_begin_anew_and_the_other_is_kept(self, quick, recorded):
        for count in (1, 2):
            with quick.recorder(recorded, max_overhead=None, schedule=1, resume=False) as recorder:
                quick.run(recorder, range(2 + count))
            assert read(recorded).steps.tolist() == list(range(2 + count)) and read(recorded).notes == ()
        assert [read(recorded / "earlier" / name).steps.tolist() for name in "12"] == [[0, 1, 2, 3, 4], [0, 1, 2]]
        assert read(recorded / "earlier" / "1").name == "run" and read(recorded / "earlier" / "1").cost["snapshots"] == 5

    def test_it_may_go_on_and_replace_what_lies_beyond(self, quick, recorded):
        with quick.recorder(recorded, max_overhead=None, schedule=1, resume=True) as recorder:
            quick.run(recorder, range(3))
        run = read(recorded)
        assert run.steps.tolist() == [0, 1, 2] and "went back from step 4 to 0" in run.notes[0]

    @pytest.mark.parametrize("resume", [True, False])
    def test_a_recorder_that_was_not_closed_gives_way(self, quick, path, resume):
        """As that of the cell's last run, which the Trainer of that time still has."""
        first = quick.recorder(path, max_overhead=None, schedule=1)
        quick.run(first, range(3))
        with pytest.raises(RunError) as refused:
            quick.recorder(path)(quick.model, 0)
        assert str(refused.value) == f"{path} is being written by another recorder of this process: {CHOICE}"
        second = quick.recorder(path, max_overhead=None, schedule=1, resume=resume)
        quick.run(second, range(2))
        with pytest.warns(RuntimeWarning, match="gave way to another"):
            first(quick.model, 3)
        before = header(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what waited is lost
            first.close()
        assert header(path) == before
        quick.run(second, [2])
        second.close()
        assert read(path).steps.tolist() == [0, 1, 2] and (path / "earlier").exists() is not resume

    def test_a_recorder_that_nobody_has_any_more_is_in_nobody_s_way(self, quick, path):
        recorder = quick.recorder(path, max_overhead=None, schedule=1)
        quick.run(recorder, range(2))
        recorder = quick.recorder(path, max_overhead=None, schedule=1)  # the name is given to another one
        assert recorder(quick.model, 2) is not None

    def test_a_loop_that_runs_again_with_the_same_recorder_is_asked_too(self, quick, path):
        recorder = quick.recorder(path, max_overhead=None, schedule=1)
        quick.run(recorder, range(3))
        with pytest.raises(RunError, match="holds a run already, steps 0 to 2, and this training begins at step 0: pass resume="):
            recorder(quick.model, 0)
        assert recorder(quick.model, 3) is not None
        again = quick.recorder(path, max_overhead=None, schedule=1, resume=False)
        for _ in range(2):
            quick.run(again, range(3))
        assert read(path).steps.tolist() == [0, 1, 2] and read(path / "earlier" / "2").steps.tolist() == [0, 1, 2]

    def test_a_snapshot_that_is_taken_again_where_there_is_no_other_asks_nothing(self, quick, path):
        with quick.recorder(path) as recorder:
            recorder(quick.model, 0)
        with quick.recorder(path, resume=None) as recorder:
            assert recorder(quick.model, 0) is not None

    def test_another_model_must_be_told_apart(self, tmp_path, path):
        class Other(Tiny):
            pass

        class Wider(Tiny):
            def __init__(self):
                super().__init__()
                self.layers.append(nn.Linear(16, 48))

        Wider.__name__ = "Tiny"  # of the same name, and of another shape
        with InductionRecorder(path, max_overhead=None) as recorder:
            for step in range(3):
                recorder(Tiny(), step)
        for model in (Other(), Wider()):
            with pytest.raises(RunError) as refused:
                InductionRecorder(path)(model, 3)
            held = "holds a run of Tiny (2 layers of 2 heads) already, steps 0 to 2, and this training begins at step 3 with another model"
            assert str(refused.value) == f"{path} {held}: {CHOICE}"
        with InductionRecorder(path, resume=False) as recorder:
            assert recorder(Wider(), 3).prefix_matching.shape == (3, 2)
        assert read(path).steps.tolist() == [3] and len(read(path / "earlier" / "1")) == 3

    def test_a_crash_while_a_run_is_set_aside_leaves_both_readable(self, quick, recorded, monkeypatch):
        rename = type(recorded).rename

        def failing(place, target):
            if place.name == "snapshots.jsonl":
                raise OSError(errno.EIO, "Input/output error")
            return rename(place, target)

        with monkeypatch.context() as patch:
            patch.setattr(type(recorded), "rename", failing)
            with pytest.raises(RunError, match="cannot be begun anew: Input/output error"):
                quick.recorder(recorded, resume=False)(quick.model, 0)
        assert read(recorded).steps.tolist() == [0, 1, 2, 3, 4]
        quick.recorder(recorded, resume=False)(quick.model, 0)
        assert read(recorded).steps.tolist() == [0] and read(recorded / "earlier" / "2").steps.tolist() == [0, 1, 2, 3, 4]

    def test_a_run_says_whether_its_recorder_is_at_it(self, quick, path):
        recorder = quick.recorder(path, max_overhead=None, schedule=1)
        quick.run(recorder, range(2))
        assert read(path).is_open
        recorder.close()
        assert not read(path).is_open
        quick.run(recorder, [2])
        assert read(path).is_open

    def test_a_recorder_that_nobody_closes_is_closed_when_the_process_ends(self, path):
        code = """
        import sys
        import torch
        from tests.runs.training import Tiny
        from pytest_induction import InductionRecorder
        recorder = InductionRecorder(sys.argv[1])
        recorder(Tiny(), 0)
        """
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path)], cwd=root, capture_output=True, text=True, check=True
        )
        assert not read(path).is_open and read(path).cost["snapshots"] == 1
        assert done.stderr.startswith(f"{path}: 1 snapshots took ")


@contextmanager
def full_disk(monkeypatch, name):
    """A disk that is full for this part of the store."""

    def full(place, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, name, full)
        yield


class TestProblems:
    def test_a_model_that_cannot_be_measured_costs_one_warning_and_keeps_its_loss_where_that_is_asked_for(self, path):
        recorder = InductionRecorder(path, max_overhead=None, on_unmeasurable="loss_only")
        with pytest.warns(RuntimeWarning) as told:
            found = [recorder(nn.Linear(3, 3), step, loss=2.0, tokens=step) for step in range(3)]
        assert len(told) == 1 and "\n" not in str(told[0].message)
        assert "the model cannot be measured at step 0, and its loss alone is recorded: Linear must map token ids" in str(
            told[0].message
        )
        assert [(each.loss, each.tokens, each.prefix_matching) for each in found] == [(2.0, step, None) for step in range(3)]
        assert all("Linear must map token ids" in each.problem for each in found)
        assert [each.problem for each in read(path).snapshots] == [each.problem for each in found]

    def test_a_model_that_can_be_measured_later_is(self, path):
        recorder, model = InductionRecorder(path, max_overhead=None, on_unmeasurable="loss_only"), Tiny()
        good = model.out.weight.detach().clone()
        with torch.no_grad():
            model.out.weight.fill_(math.nan)
        with pytest.warns(RuntimeWarning, match="`out.weight` of Tiny holds NaN"):
            assert recorder(model, 0).problem == "the weight `out.weight` of Tiny holds NaN or infinity"
        with torch.no_grad():
            model.out.weight.copy_(good)
        assert [recorder(model, step).problem == "" for step in range(1, 4)] == [False, True, True]

    def test_trials_of_a_model_that_never_can_grow_rare(self, path, monkeypatch):
        tried = []
        monkeypatch.setattr("pytest_induction.runs.measuring.adapt", lambda module, **settings: tried.append(1) or 1 / 0)
        recorder, model = InductionRecorder(path, max_overhead=None, schedule=1, on_unmeasurable="loss_only"), Tiny()
        with pytest.warns(RuntimeWarning, match="ZeroDivisionError: division by zero"):
            counts = [recorder(model, step) and len(tried) for step in range(20)]
        assert counts == [1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5]

    def test_a_model_whose_attention_cannot_be_read_has_its_losses_recorded(self, path):
        recorder, model = InductionRecorder(path, text=TEXT, max_overhead=None), Plain(unreadable, D_VOCAB, n_ctx=CONTEXT)
        with pytest.warns(RuntimeWarning, match="heads are not measured, as the attention of Plain cannot be read") as told:
            found = [recorder(model, step) for step in range(2)]
        assert len(told) == 1
        for each in found:
            assert each.prefix_matching is None and each.repeat_loss is not None and each.icl_score is not None
            assert each.problem == "heads are not measured, as the attention of Plain cannot be read"

    def test_a_training_that_diverges_is_recorded_to_its_end(self, path):
        recorder, model = InductionRecorder(path, text=TEXT, max_overhead=None), Tiny()
        recorder(model, 0, loss=3.0)
        with torch.no_grad():
            model.embed.weight.fill_(math.nan)
        found = recorder(model, 1, loss=torch.tensor(math.nan))
        assert found.loss is None and found.problem.startswith("the loss is nan; ")
        assert read(path).steps.tolist() == [0, 1] and read(path).snapshots[1].problem == found.problem

    def test_a_loss_that_is_not_finite_is_told_where_the_model_cannot_be_measured_too(self, path):
        with pytest.warns(RuntimeWarning):
            found = InductionRecorder(path, on_unmeasurable="loss_only")(nn.Linear(3, 3), 0, loss=-math.inf)
        assert found.loss is None and found.problem.startswith("the loss is -inf; Linear must map")

    def test_a_text_that_cannot_be_used_costs_a_warning_and_no_other_measurement(self, path):
        recorder = InductionRecorder(path, text="no tokenizer knows this", max_overhead=None, on_unmeasurable="loss_only")
        with pytest.warns(RuntimeWarning, match="the in-context learning score is not measured: Tiny has no tokenizer") as told:
            found = [recorder(Tiny(), step) for step in range(2)]
        assert len(told) == 1
        assert all(each.prefix_matching is not None and each.icl_score is None for each in found)
        assert all(each.problem.startswith("the in-context learning score is not measured: ") for each in found)

    def test_a_full_disk_costs_a_warning_and_what_waited_is_written_later(self, quick, path, monkeypatch):
        recorder = quick.recorder(path, max_overhead=None)
        recorder(quick.model, 0)

        with full_disk(monkeypatch, "_write_whole"), pytest.warns(RuntimeWarning) as told:
            assert [recorder(quick.model, step).step for step in (1, 2)] == [1, 2]
        assert len(told) == 1 and "snapshots.jsonl cannot be written: No space left on device; the training goes on" in str(
            told[0].message
        )
        assert len(read(path)) == 1
        recorder(quick.model, 3)
        assert read(path).steps.tolist() == [0, 1, 2, 3]

    def test_a_header_that_does_not_fit_is_written_later(self, quick, path, monkeypatch):
        recorder = quick.recorder(path, max_overhead=None)
        recorder(quick.model, 0)
        with full_disk(monkeypatch, "_replace"), pytest.warns(RuntimeWarning, match="No space left"):
            recorder.add_scheduled_change(5, "warm-up")
        assert "schedule" not in header(path)
        recorder(quick.model, 1)
        assert header(path)["schedule"] == [{"step": 5, "what": "warm-up"}]

    def test_closing_on_a_full_disk_says_what_is_lost_and_does_not_raise(self, quick, path, monkeypatch):
        recorder = quick.recorder(path, max_overhead=None)
        recorder(quick.model, 0)

        with full_disk(monkeypatch, "_write_whole"), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            recorder(quick.model, 1)
            recorder.close()
        assert str(told[-1].message).endswith("the snapshots that waited for it are lost")
        assert len(read(path)) == 1

    def test_going_on_with_other_probes_is_said(self, path):
        with InductionRecorder(path) as recorder:
            recorder(Tiny(), 0)
        with (
            InductionRecorder(path, seed=1) as recorder,
            pytest.warns(RuntimeWarning, match="the run was begun with `seed` 0 and goes on with 1"),
        ):
            recorder(Tiny(), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            InductionRecorder(path, seed=1)(Tiny(), 2)


def measured(step, *best, error=0.01, **values):
    """A snapshot of heads with these scores."""
    scores = np.array([best], dtype=np.float32)
    return Snapshot(step, prefix_matching=scores, errors={"prefix_matching": np.full_like(scores, error)}, **values)


class TestStopRules:
    def test_not_finite(self):
        rule = NotFinite()
        assert rule([Snapshot(1, loss=2.0)]) == "" == rule([Snapshot(1)])
        assert rule([Snapshot(0, problem="the loss is nan"), Snapshot(1, loss=2.0)]) == ""
        for problem in (
            "the loss is nan",
            "the loss is -inf",
            "the logits of x are not finite (NaN or infinity)",
            "the weight `w` of x holds NaN or infinity",
        ):
            assert rule([Snapshot(1, problem=problem)]) == problem
        for problem in ("the attention of Banana cannot be read", "inference failed: information is missing"):
            assert rule([Snapshot(1, problem=problem)]) == ""

    def test_not_finite_is_what_a_diverged_model_gives(self, path):
        recorder, model = InductionRecorder(path, max_overhead=None, stop_when=NotFinite()), Tiny()
        recorder(model, 0, loss=3.0)
        assert not recorder.should_stop
        with torch.no_grad():
            model.embed.weight.fill_(math.nan)
        recorder(model, 1)
        assert recorder.should_stop and "not finite" in recorder.stop_reason

    def test_no_induction_by_a_step(self):
        rule = NoInductionBy(steps=100, min_prefix_matching=0.3)
        low = [measured(step, 0.1, math.nan, 0.2) for step in (50, 99)]
        assert rule(low) == ""
        assert rule([*low, Snapshot(100)]) == ""  # without scores nothing is shown
        assert rule([*low, measured(120, 0.1)]) == (
            "no head matched prefixes by 100 steps: the most that a snapshot showed is prefix matching above 0.172, and 0.3 was asked for"
        )
        assert rule([*low, measured(60, 0.9), measured(120, 0.1)]) == ""  # they were there, and were lost
        assert rule([*low, measured(120, 0.32, error=0.01)]) != ""  # not shown to lie above
        assert rule([*low, measured(120, 0.33, error=0.01)]) == ""
        assert rule([measured(120, math.nan)]) == "" == rule([Snapshot(120, prefix_matching=np.zeros((1, 2)))])

    def test_what_a_head_has_by_chance_counts_for_no_rule(self):
        """Where it was recorded what is left beyond chance; half of what is asked for must be."""

        def by_chance(left, step=120):
            snapshot = measured(step, 0.5, excess=np.array([[left]], dtype=np.float32))
            return replace(snapshot, errors={**snapshot.errors, "excess": np.full((1, 1), 0.01)})

        rule, gone = NoInductionBy(steps=100), [measured(step, 0.1) for step in (130, 140, 150)]
        assert rule([by_chance(0.05)]) == (
            "no head matched prefixes by 100 steps: the most that a snapshot showed is prefix matching above 0.472 (by chance), "
            "and 0.3 was asked for"
        )
        assert rule([by_chance(0.17)]) != "" == rule([by_chance(0.18)])  # 2.8 standard errors above 0.15
        assert rule([replace(by_chance(0.4), errors=measured(1, 0.5).errors)]) != ""  # whose error is not known is not shown
        assert HeadsLost()([by_chance(0.14), *gone]) == "" != HeadsLost()([by_chance(0.16), *gone])

    def test_no_induction_by_a_number_of_tokens(self):
        rule = NoInductionBy(tokens=1000)
        assert rule([measured(5, 0.1, tokens=999)]) == "" == rule([measured(10**6, 0.1)])
        assert "by 1000 tokens" in rule([measured(5, 0.1, tokens=1000)])

    def test_heads_lost(self):
        rule = HeadsLost(share=0.5, for_snapshots=3)
        formed = [measured(step, 0.05, best) for step, best in enumerate((0.1, 0.8, 0.6))]
        gone = [measured(step, 0.05, 0.39) for step in range(10, 13)]
        assert rule(formed) == "" == rule([*formed, *gone[:2]]) == rule([*formed, *gone[:2], measured(20, 0.4)])
        assert rule([*formed, *gone]) == "the heads were lost: the best prefix matching was 0.800, then 3 times 0.390 or less"
        assert (
            rule([*formed, gone[0], Snapshot(11), *gone[1:]]) != ""
        )  # a snapshot without scores is none of the row, and breaks none
        assert rule([*formed, measured(9, math.nan), *gone[:2]]) == ""
        assert rule([measured(0, 0.29), *gone]) == "" == rule([]) == rule([Snapshot(1)])

    def test_heads_that_never_formed_are_not_lost(self):
        assert HeadsLost()([measured(step, 0.29 if step == 0 else 0.0) for step in range(9)]) == ""

    @pytest.mark.parametrize(
        "make",
        [
            NoInductionBy,
            lambda: NoInductionBy(steps=1, tokens=1),
            lambda: NoInductionBy(steps=-1),
            lambda: NoInductionBy(tokens=1.5),
            lambda: NoInductionBy(steps=1, min_prefix_matching=0),
            lambda: NoInductionBy(steps=1, min_prefix_matching=math.nan),
            lambda: HeadsLost(share=1.5),
            lambda: HeadsLost(share="half"),
            lambda: HeadsLost(for_snapshots=0),
        ],
    )
    def test_a_bad_rule_is_one_line(self, make):
        with pytest.raises(ArgumentError) as refused:
            make()
        assert "\n" not in str(refused.value)

    def test_a_verdict_stops_the_loop_and_stands_in_the_run(self, quick, path):
        quick.scores = {step: {"prefix_matching": np.array([[0.8]]) if step == 2 else np.array([[0.1]])} for step in range(20)}
        recorder = quick.recorder(path, max_overhead=None, schedule=1, stop_when=[NotFinite(), HeadsLost()])
        done = []
        for step in range(20):
            done.append(recorder(quick.model, step).step)
            if recorder.should_stop:
                break
        recorder.close()
        assert done == [0, 1, 2, 3, 4, 5]
        assert header(path)["stopped"] == f"at step 5: {recorder.stop_reason}"
        assert read(path).notes == (f"the recorder stopped the training at step 5: {recorder.stop_reason}",)

    def test_a_run_that_goes_on_after_all_is_no_longer_stopped_and_remembers_what_was(self, quick, path):
        quick.scores = {0: {"prefix_matching": np.array([[0.8]])}} | {
            step: {"prefix_matching": np.array([[0.1]])} for step in range(1, 9)
        }
        with quick.recorder(path, max_overhead=None, schedule=1, stop_when=HeadsLost(for_snapshots=2)) as recorder:
            quick.run(recorder, range(3))
            assert recorder.should_stop
        with quick.recorder(path, max_overhead=None, schedule=1, stop_when=HeadsLost(for_snapshots=5)) as recorder:
            quick.run(recorder, range(3, 5))
            assert not recorder.should_stop and header(path)["stopped"] == ""
            quick.run(recorder, [5])
            assert recorder.should_stop

    def test_a_training_that_went_back_forgets_what_lay_beyond(self, quick, path):
        seen = []
        recorder = quick.recorder(
            path, max_overhead=None, schedule=1, stop_when=lambda snapshots: seen.append([each.step for each in snapshots])
        )
        quick.run(recorder, [0, 1, 2, 1])
        assert seen == [[0], [0, 1], [0, 1, 2], [0, 1]] and not recorder.should_stop

    def test_a_rule_of_one_s_own_decides_and_one_that_raises_is_told_and_passed_over(self, quick, path):
        def broken(snapshots):
            raise ValueError("no such score")

        recorder = quick.recorder(
            path, max_overhead=None, schedule=1, stop_when=[broken, lambda all_: "enough" if len(all_) > 2 else ""]
        )
        with pytest.warns(RuntimeWarning, match="raised ValueError: no such score") as told:
            quick.run(recorder, range(3))
        assert len(told) == 1 and recorder.stop_reason == "enough"

    def test_what_rules_see_has_no_rows(self, path):
        seen = []
        recorder = InductionRecorder(path, text=TEXT, token_losses=True, stop_when=lambda snapshots: seen.extend(snapshots) or "")
        recorder(Tiny(), 0)
        assert seen[0].icl_rows is None and seen[0].token_losses is None and seen[0].prefix_matching is not None


class TestProcesses:
    def test_only_the_first_process_records(self, quick, path, monkeypatch):
        monkeypatch.setattr(recording, "is_first_process", lambda: False)
        recorder = quick.recorder(path, max_overhead=None)
        assert recorder(quick.model, 0) is None is recorder.final(quick.model, 0)
        recorder.add_scheduled_change(1, "x")
        recorder.close()
        assert not path.exists()

    def test_the_module_inside_data_parallel_is_measured(self, path):
        model = Tiny()
        wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
        nn.Module.__init__(wrapped)
        wrapped.module = model
        assert unwrapped(wrapped) is model is unwrapped(model)
        assert unwrapped(torch.compile(wrapped, backend="eager")) is model


def test_a_loop_is_told_what_recording_cost_and_nothing_else(path, capfd):
    with InductionRecorder(path, text=TEXT) as recorder:
        train(Tiny(), 3, lambda model, step, loss: recorder(model, step, loss=loss))
    assert capfd.readouterr() == ("", f"{path}: {recorder.cost}\n")


def test_a_writer_that_was_closed_by_the_end_of_a_block_lets_others_in(path):
    with InductionRecorder(path) as recorder:
        recorder(Tiny(), 0)
    with RunWriter(path, source="recorder") as writer:
        writer.append(Snapshot(1))
    assert len(read(path)) == 2


def test_closing_counts_and_the_time_before_it_is_no_training(path):
    """As after a long evaluation: what follows the last call is not trained."""
    clock = Clock()
    recorder = InductionRecorder(path, clock=clock)
    recorder(Tiny(), 0)
    clock.passes(4.0)
    recorder(Tiny(), 1)
    clock.passes(100.0)
    describe = RunWriter.describe
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunWriter, "describe", lambda writer, **header: clock.passes(0.5) or describe(writer, **header))
        recorder.close()
    assert recorder.cost.seconds == pytest.approx(0.5) and recorder.cost.training_seconds == pytest.approx(4.0)


def test_a_due_step_that_cannot_be_afforded_gives_way_to_the_next_also_where_the_call_ends_at_once(path):
    clock, model = Clock(), Tiny()
    recorder = InductionRecorder(path, clock=clock)
    with pytest.MonkeyPatch.context() as patched:
        snapshot = Measuring.snapshot
        patched.setattr(Measuring, "snapshot", lambda measuring, *given: clock.passes(10.0) or snapshot(measuring, *given))
        for step in range(300):
            recorder(model, step)
            clock.passes(0.01)
    due = [step for step in range(1, 300) if due_steps(None)(step - 1, step)]
    assert recorder.cost.snapshots == 1 and recorder.cost.skipped == len(due) - 1
