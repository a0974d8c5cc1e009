"""What the recorder does with a model that it cannot measure, and how its snapshots get lighter: real models, in a loop by hand."""

import json
import math
import random
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction.errors import ArgumentError, ModelError, TextError
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.recorder import InductionRecorder
from pytest_induction.runs.schedule import due_steps
from tests.model.plain import Plain, unreadable
from tests.runs.small_models import Hybrid
from tests.runs.test_recorder import read
from tests.runs.training import CONTEXT, D_VOCAB, Clock, Tiny, train

TEXT = np.random.default_rng(0).integers(0, D_VOCAB, (8, CONTEXT))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


class Failing(Tiny):
    """Raises on rows longer than these where it is evaluated."""

    longest = 4

    def forward(self, tokens):
        if not self.training and tokens.shape[1] > self.longest:
            raise KeyError("too long")
        return super().forward(tokens)


def broken_weights():
    model = Tiny()
    with torch.no_grad():
        model.out.weight.fill_(math.nan)
    return model


class TooFewIds(Tiny):
    """Has a vocabulary in which no block of different tokens can repeat."""

    vocab_size = 4


class TestUnmeasurable:
    """What is known before the first step is said before it; what comes later never ends a training."""

    CASES: ClassVar = {
        "no language model": (lambda: nn.Linear(3, 3), "Linear must map token ids"),
        "weights that are no numbers": (broken_weights, "`out.weight` of Tiny holds NaN"),
        "fails in evaluation": (Failing, "too long"),
        "no probe fits": (TooFewIds, "a probe needs at least 5 usable token ids"),
    }

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("schedule", [None, [100, 200], []])
    def test_it_is_raised_on_the_first_call_whenever_the_first_snapshot_is_due(self, path, case, schedule):
        make, said = self.CASES[case]
        recorder = InductionRecorder(path, schedule=schedule)
        with pytest.raises(ModelError) as refused:
            recorder(make(), 1, loss=2.0)
        message = str(refused.value)
        assert message.startswith("the model cannot be measured: ") and said in message and "\n" not in message
        assert message.endswith('; to record its loss alone pass on_unmeasurable="loss_only"')
        assert not path.exists()

    @pytest.mark.parametrize("case", CASES)
    def test_the_way_out_that_it_names_is_one(self, path, case):
        recorder = InductionRecorder(path, max_overhead=None, on_unmeasurable="loss_only")
        with pytest.warns(RuntimeWarning) as told:
            found = [recorder(self.CASES[case][0](), step, loss=2.0) for step in range(3)]
        assert len(told) == 1 and [each.loss for each in found] == [2.0] * 3
        assert all(self.CASES[case][1] in each.problem for each in found)

    def test_the_next_try_is_not_in_the_way_of_the_one_that_failed(self, path):
        recorder, model = InductionRecorder(path), broken_weights()
        recorder.add_scheduled_change(5, "warm-up")  # which begins the run
        with pytest.raises(ModelError, match="holds NaN"):
            recorder(model, 0)
        with torch.no_grad():
            model.out.weight.fill_(0.01)
        for again in (recorder, InductionRecorder(path)):
            with again:
                assert again(model, 0, force=True).problem == ""
        assert [each.step for each in read(path).schedule] == [5]

    def test_a_run_that_is_gone_on_with_is_left_as_it_was(self, path):
        with InductionRecorder(path) as recorder:
            recorder(Tiny(), 0)
        before = (path / "snapshots.jsonl").read_bytes(), (path / "run.json").read_bytes()
        with pytest.raises(ModelError):
            InductionRecorder(path)(broken_weights(), 1)
        assert before == ((path / "snapshots.jsonl").read_bytes(), (path / "run.json").read_bytes())
        with InductionRecorder(path) as recorder:
            recorder(Tiny(), 1)

    def test_what_fails_after_the_first_call_never_ends_the_training(self, path):
        recorder, model = InductionRecorder(path, schedule=[3000]), Tiny()
        assert recorder(model, 0) is None
        with torch.no_grad():
            model.out.weight.fill_(math.nan)
        assert "not finite" in recorder(model, 3000, loss=1.0).problem
        with pytest.warns(RuntimeWarning, match="cannot be measured at step 3001"):
            assert recorder(nn.Linear(3, 3), 3001, force=True).problem  # another model, later

    def test_after_the_last_step_nothing_is_raised(self, path):
        recorder = InductionRecorder(path)
        with pytest.warns(RuntimeWarning, match="cannot be measured at step 9"):
            assert recorder.final(nn.Linear(3, 3), 9, loss=1.0).loss == 1.0

    def test_a_text_that_cannot_be_used_is_said_on_the_first_call(self, path):
        with pytest.raises(TextError) as refused:
            InductionRecorder(path, text="no tokenizer knows this", schedule=[9])(Tiny(), 1)
        assert str(refused.value).startswith("the text cannot be measured: Tiny has no tokenizer")
        assert str(refused.value).endswith('to record without it pass on_unmeasurable="loss_only"') and not path.exists()

    def test_a_model_without_readable_attention_has_behaviour_and_is_recorded(self, path):
        with pytest.warns(RuntimeWarning, match="heads are not measured"):
            assert InductionRecorder(path)(Plain(unreadable, D_VOCAB, n_ctx=CONTEXT), 0).advantage is not None

    def test_what_has_no_pattern_is_declared_as_the_warning_says(self, path):
        """The same argument, copied from it; heads are then measured, and the run says that nobody checked."""
        told = pytest.warns(RuntimeWarning, match=r"heads are not measured, .* in `embed.1` \(Scan\) too")
        with told as warned, InductionRecorder(path) as recorder:
            assert "declare it: " in recorder(Hybrid(), 0).problem
        written = re.search(r'InductionRecorder\(\.\.\., without_pattern="(\w+)"\)', str(warned[0].message))[1]
        with InductionRecorder(path, without_pattern=written) as recorder:
            snapshot = recorder(Hybrid(), 1)
        assert not snapshot.problem and snapshot.prefix_matching.shape == (2, 2)
        notes = json.loads((path / "run.json").read_text())["about"]["notes"]
        declared = "declared to mix positions without a pattern, which nothing checked: what runs in `embed.1`, `embed.2`"
        assert declared in notes

    def test_a_name_that_is_no_module_is_said_on_the_first_call(self, path):
        with pytest.raises(ModelError, match="'Scann' is none in this model; did you mean `Scan`"):
            InductionRecorder(path, without_pattern=["Scann"])(Hybrid(), 0)
        assert not path.exists()
        with pytest.raises(ArgumentError, match="`without_pattern` must be names of modules"):
            InductionRecorder(path, without_pattern=Hybrid)

    def test_the_model_and_all_random_numbers_are_left_alone(self, path):
        torch.manual_seed(0)
        model, state, drawn = Tiny().train(), torch.get_rng_state(), random.getstate()
        InductionRecorder(path, text=TEXT).check(model)
        assert model.training and torch.equal(torch.get_rng_state(), state) and random.getstate() == drawn


class TestLightSnapshots:
    def test_where_the_budget_is_small_they_are_light_and_say_so(self, path, monkeypatch):
        clock, model = Clock(), Tiny()
        snapshot, check = Measuring.snapshot, Measuring.quick_check

        def slow(measuring, *given):
            clock.passes(0.003 * measuring.n_sequences)
            return snapshot(measuring, *given)

        monkeypatch.setattr(Measuring, "snapshot", slow)
        monkeypatch.setattr(Measuring, "quick_check", lambda measuring, subject: clock.passes(0.005) or check(measuring, subject))
        recorder = InductionRecorder(path, clock=clock)
        for step in range(300):
            clock.passes(0.02)
            recorder(model, step)
        recorder.close()
        run = read(path)
        counts = [each.n_sequences for each in run.snapshots]
        assert counts[0] == 12 and len(counts) >= 5 and set(counts[1:]) == {3}
        assert all(each.prefix_matching.shape == (2, 2) and each.problem == "" for each in run.snapshots)
        assert 0 < recorder.cost.skipped == run.cost["skipped"] and run.thinned_at == 0.02

    @pytest.mark.parametrize("settings", [{"schedule": 7}, {"max_overhead": None}])
    def test_a_schedule_of_one_s_own_and_no_limit_are_kept_to(self, path, settings):
        recorder, model = InductionRecorder(path, **settings), Tiny()
        for step in range(30):
            recorder(model, step)
        due = [step for step in range(30) if due_steps(settings.get("schedule"))(step - 1, step)]
        assert set(read(path).steps) <= set(due)
        assert {each.n_sequences for each in read(path).snapshots} == {12}

    def trained(self, each_step=lambda *given: None):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        model = Tiny(dropout=0.2)
        train(model, 25, each_step)
        return model, (torch.rand(3).tolist(), random.random(), np.random.random())

    def test_a_training_is_the_same_to_the_bit_while_it_is_checked(self, path, monkeypatch):
        plain, drawn = self.trained()
        checked, check, clock = [], Measuring.quick_check, Clock()
        monkeypatch.setattr(Measuring, "quick_check", lambda measuring, subject: checked.append(1) or check(measuring, subject))
        recorder = InductionRecorder(path, text=TEXT, clock=clock)

        def each_step(model, step, loss):
            clock.passes(1.0)
            recorder(model, step, loss=loss)

        recorded, recorded_drawn = self.trained(each_step)
        assert len(checked) > 5 and drawn == recorded_drawn
        assert all(torch.equal(value, recorded.state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_time_first_model_is_recorded_in_its_own_order(tmp_path):
    """Its rows are no positions, in a training either: the scores are those of the same model in the usual order."""
    from tests.model.test_given import BatchFirst, TimeFirst

    snapshots = []
    for name, model in (("time", TimeFirst()), ("rows", BatchFirst(TimeFirst()))):
        with InductionRecorder(tmp_path / name, max_overhead=None) as recorder:
            snapshots.append(recorder(model, 0))
    one, other = snapshots
    assert np.allclose(one.prefix_matching, other.prefix_matching, atol=1e-6)
    assert (one.repeat_loss, one.advantage) == pytest.approx((other.repeat_loss, other.advantage), abs=1e-5)
