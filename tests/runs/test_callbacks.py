"""The recorder in the Trainer of transformers and in Lightning's: real trainings, small ones."""

import importlib
import json
import logging
import random
import subprocess
import sys
import textwrap
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pytest_induction.errors import ArgumentError, ModelError, RunError
from pytest_induction.model.load import load_model
from pytest_induction.runs import callbacks
from pytest_induction.runs.places import Place
from pytest_induction.runs.recorder import InductionRecorder
from pytest_induction.runs.stopping import NoInductionBy
from pytest_induction.runs.store import read_run
from tests.runs.training import CONTEXT, D_VOCAB, Tiny, loss_of, rows

TEXT = np.random.default_rng(0).integers(0, D_VOCAB, (4, CONTEXT))


def read(path):
    return read_run(Place(path))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def begin(callback, model, **given):
    """The first event of a training, from nobody's Trainer."""
    state = types.SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=5, log_history=[], num_input_tokens_seen=0)
    args = types.SimpleNamespace(get_warmup_steps=lambda steps: 0, lr_scheduler_type="linear")
    callback.on_train_begin(args, state, None, model=model, **given)


def same_weights(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
class TestTrainer:
    def model(self):
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        sizes = {"vocab_size": D_VOCAB, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))

    def train(self, tmp_path, *added, steps=12, model=None, resume=None, **settings):
        """A Trainer that has run; its model, its state and the random numbers that come next."""
        from transformers import Trainer, TrainingArguments, set_seed

        set_seed(1)
        model = model or self.model()
        base = {
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "logging_strategy": "no",
            "use_cpu": True,
            "seed": 1,
        }
        given = base | {"max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-2} | settings
        data = [{"input_ids": row, "labels": row} for row in rows(64)]
        trainer = Trainer(
            model=model,
            args=TrainingArguments(output_dir=str(tmp_path / "out"), **given),
            train_dataset=data,
            eval_dataset=data[:8],
            callbacks=list(added),
        )
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer.state, (torch.rand(2).tolist(), random.random(), np.random.random())

    def test_a_training_is_recorded_from_before_its_first_step_to_its_last(self, tmp_path, path, capfd):
        recorder = InductionRecorder(path, text=TEXT, schedule=5, max_overhead=None)
        model, _, _ = self.train(tmp_path, recorder.hf_callback())
        run = read(path)
        assert run.steps.tolist() == [0, 5, 10, 12] and run.notes == () and run.schedule == ()
        assert all(
            each.prefix_matching.shape == (2, 2) and each.icl_score is not None and each.problem == "" for each in run.snapshots
        )
        assert len({each.fingerprint for each in run.snapshots}) == 4
        assert run.snapshots[-1].fingerprint == load_model(model).fingerprint()
        assert run.snapshots[0].fingerprint == load_model(self.model()).fingerprint()
        assert capfd.readouterr().err.splitlines().count(f"{path}: {recorder.cost}") == 1
        assert json.loads((path / "run.json").read_text())["cost"]["snapshots"] == 4

    def test_the_training_is_the_same_to_the_bit(self, tmp_path, path):
        plain, _, drawn = self.train(tmp_path)
        recorder = InductionRecorder(path, text=TEXT, max_overhead=None)
        recorded, _, recorded_drawn = self.train(tmp_path, recorder.hf_callback())
        assert len(read(path)) == 13
        assert plain.config.attn_pdrop == plain.config.resid_pdrop == 0.1
        assert same_weights(plain, recorded) and drawn == recorded_drawn
        assert not same_weights(plain, self.model())

    @pytest.mark.parametrize(
        ("logging", "steps"),
        [
            ({"logging_strategy": "steps", "logging_steps": 1}, [1, 2, 3, 4, 5, 6, 7]),
            ({"logging_strategy": "steps", "logging_steps": 3}, [3, 6]),
            ({"logging_strategy": "steps", "logging_steps": 3, "logging_first_step": True}, [1, 3, 6]),
            (
                {"logging_strategy": "epoch", "per_device_train_batch_size": 32},
                [2, 4, 6, 7],
            ),  # of two steps each, the last of one
        ],
    )
    def test_a_loss_lands_on_the_step_that_it_is_logged_at(self, tmp_path, path, logging, steps):
        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        _, state, _ = self.train(tmp_path, recorder.hf_callback(), steps=7, **logging)
        logged = {entry["step"]: entry["loss"] for entry in state.log_history if "loss" in entry}
        losses = {each.step: each.loss for each in read(path).snapshots if each.loss is not None}
        assert list(logged) == steps and read(path).steps.tolist() == list(range(8))
        assert losses == {step: pytest.approx(loss, rel=1e-6) for step, loss in logged.items()}

    def test_a_loss_that_was_logged_where_no_snapshot_was_due_goes_to_the_next_and_none_counts_twice(self, tmp_path, path):
        recorder = InductionRecorder(path, schedule=[4, 5, 8, 10], max_overhead=None)
        _, state, _ = self.train(tmp_path, recorder.hf_callback(), steps=10, logging_strategy="steps", logging_steps=3)
        logged = {entry["step"]: entry["loss"] for entry in state.log_history if "loss" in entry}
        found = {each.step: each.loss for each in read(path).snapshots}
        assert found == {4: pytest.approx(logged[3]), 5: None, 8: pytest.approx(logged[6]), 10: pytest.approx(logged[9])}

    def test_a_snapshot_waits_no_longer_than_until_the_next_step(self, tmp_path, path):
        """Where something keeps the Trainer from logging that it has announced."""
        from transformers import TrainerCallback

        class Silent(TrainerCallback):
            def on_step_end(self, args, state, control, **given):
                control.should_log = False

        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        settings = {"logging_strategy": "steps", "logging_steps": 1}
        self.train(tmp_path, recorder.hf_callback(), Silent(), steps=4, **settings)
        assert read(path).steps.tolist() == [0, 1, 2, 3, 4]

    def test_tokens_are_those_that_the_trainer_counts(self, tmp_path, path):
        recorder = InductionRecorder(path, schedule=4, max_overhead=None)
        self.train(tmp_path, recorder.hf_callback(), steps=8, include_num_input_tokens_seen="all")
        assert [each.tokens for each in read(path).snapshots] == [None, 4 * 4 * 24, 8 * 4 * 24]

    def test_tokens_follow_from_the_step_where_the_trainer_does_not_count_them(self, tmp_path, path):
        recorder = InductionRecorder(path, schedule=4, max_overhead=None, tokens_per_step=96)
        self.train(tmp_path, recorder.hf_callback(), steps=8)
        assert [each.tokens for each in read(path).snapshots] == [0, 384, 768]

    def test_the_end_of_the_warm_up_is_a_scheduled_change(self, tmp_path, path):
        recorder = InductionRecorder(path, schedule=[], max_overhead=None)
        self.train(tmp_path, recorder.hf_callback(), warmup_steps=5)
        assert [(each.step, each.what) for each in read(path).schedule] == [(5, "end of the warm-up of the learning rate")]
        assert read(path).steps.tolist() == [12]

    def test_a_constant_learning_rate_has_no_warm_up(self, tmp_path, path):
        self.train(tmp_path, InductionRecorder(path).hf_callback(), steps=2, warmup_steps=1, lr_scheduler_type="constant")
        assert read(path).schedule == ()

    def test_a_rule_stops_the_training_and_the_run_says_why(self, tmp_path, path):
        recorder = InductionRecorder(
            path, schedule=1, max_overhead=None, stop_when=NoInductionBy(steps=3, min_prefix_matching=0.9)
        )
        _, state, _ = self.train(tmp_path, recorder.hf_callback())
        assert state.global_step == 3 and recorder.should_stop
        assert read(path).steps.tolist() == [0, 1, 2, 3]
        assert read(path).notes == (f"the recorder stopped the training at step 3: {recorder.stop_reason}",)

    @pytest.mark.parametrize("early", [False, True])
    def test_the_last_snapshot_is_of_the_last_step_and_not_of_the_best_model(self, tmp_path, path, early):
        from transformers import TrainerCallback

        class Ruin(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **given):
                if state.global_step == 4:
                    with torch.no_grad():
                        model.lm_head.weight.mul_(3.0)

            def on_evaluate(self, args, state, control, **given):
                control.should_training_stop = state.global_step == 4

        keeps = {
            "save_strategy": "steps",
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "load_best_model_at_end": True,
        }
        recorder = InductionRecorder(path, schedule=[2], max_overhead=None)
        model, state, _ = self.train(tmp_path, Ruin(), recorder.hf_callback(), steps=12 if early else 4, **keeps)
        assert (state.global_step, state.best_global_step) == (4, 2)
        snapshots, best = read(path).snapshots, load_model(model).fingerprint()
        assert [each.step for each in snapshots] == [2, 4]
        assert [each.fingerprint == best for each in snapshots] == [True, False]

    def test_a_callback_serves_one_training_after_another(self, tmp_path, path):
        callback = InductionRecorder(path, schedule=3, max_overhead=None, resume=True).hf_callback()
        for _ in range(2):
            self.train(tmp_path, callback, steps=4, logging_strategy="steps", logging_steps=2)
        run = read(path)
        assert run.steps.tolist() == [0, 3, 4] and run.snapshots[1].loss is not None
        assert len(run.notes) == 1 and "went back from step 4 to 0" in run.notes[0]

    def test_a_second_training_of_the_same_trainer_must_be_told_what_to_do_with_the_first(self, tmp_path, path):
        callback = InductionRecorder(path, schedule=3, max_overhead=None).hf_callback()
        self.train(tmp_path, callback, steps=4)
        with pytest.raises(RunError, match="holds a run already, steps 0 to 4, and this training begins at step 0: pass resume="):
            self.train(tmp_path, callback, steps=4)
        assert read(path).steps.tolist() == [0, 3, 4] and read(path).notes == ()
        callback = InductionRecorder(path, schedule=3, max_overhead=None, resume=False).hf_callback()
        for _ in range(2):
            self.train(tmp_path, callback, steps=5)
        assert read(path).steps.tolist() == [0, 3, 5] and read(path).notes == ()
        assert [read(path / "earlier" / each).steps.tolist() for each in "12"] == [[0, 3, 4], [0, 3, 5]]

    def test_a_training_that_was_broken_off_leaves_the_run_to_the_next_trainer(self, tmp_path, path):
        """As in a notebook, where the old one and its recorder are still there."""
        from transformers import TrainerCallback

        class Interrupted(TrainerCallback):
            def on_step_end(self, args, state, control, **given):
                if state.global_step == 3:
                    raise KeyboardInterrupt

        first = InductionRecorder(path, schedule=1, max_overhead=None)
        with pytest.raises(KeyboardInterrupt):
            self.train(tmp_path, first.hf_callback(), Interrupted())
        with pytest.raises(RunError, match="is being written by another recorder of this process: pass resume=False"):
            self.train(tmp_path, InductionRecorder(path, schedule=1, max_overhead=None).hf_callback(), steps=2)
        self.train(tmp_path, InductionRecorder(path, schedule=1, max_overhead=None, resume=False).hf_callback(), steps=2)
        assert read(path).steps.tolist() == [0, 1, 2] and read(path / "earlier" / "1").steps.tolist() == [0, 1, 2, 3]

    def test_a_recorder_that_nobody_has_any_more_is_in_nobody_s_way(self, path):
        """Also one with a callback, and without the garbage collector."""
        recorder = InductionRecorder(path, max_overhead=None)
        recorder.hf_callback(), recorder.lightning_callback()
        recorder(self.model(), 0)
        recorder = InductionRecorder(path, max_overhead=None)
        assert recorder(self.model(), 1) is not None

    def test_a_resumed_training_goes_on_with_its_run(self, tmp_path, path):
        settings = {"save_strategy": "steps", "save_steps": 6, "logging_strategy": "steps", "logging_steps": 2}
        recorder = InductionRecorder(path, schedule=5, max_overhead=None)
        self.train(tmp_path, recorder.hf_callback(), steps=8, **settings)
        assert read(path).steps.tolist() == [0, 5, 8]
        recorder = InductionRecorder(path, schedule=5, max_overhead=None)
        self.train(tmp_path, recorder.hf_callback(), steps=12, resume=str(tmp_path / "out" / "checkpoint-6"), **settings)
        run = read(path)
        assert run.steps.tolist() == [0, 5, 8, 10, 12] and run.notes == ()
        assert run.snapshots[3].loss is not None

    def test_a_text_is_encoded_with_the_tokenizer_of_the_trainer(self, tmp_path, path):
        class Letters:
            all_special_ids = ()

            def encode(self, text, add_special_tokens=False):
                return [ord(letter) % D_VOCAB for letter in text]

            def __len__(self):
                return D_VOCAB

        recorder = InductionRecorder(path, text="the quick brown fox jumps over the lazy dog " * 9)
        with pytest.warns(RuntimeWarning, match="the Trainer was not found"):
            begin(recorder.hf_callback(), self.model(), processing_class=Letters())
        assert read(path).snapshots[0].icl_score is not None

    def test_another_process_than_the_first_records_nothing(self, path):
        callback = InductionRecorder(path).hf_callback()
        state = types.SimpleNamespace(is_world_process_zero=False, global_step=0, max_steps=5)
        control = types.SimpleNamespace(should_training_stop=False, should_log=False)
        args = types.SimpleNamespace(world_size=2, logging_strategy="steps", load_best_model_at_end=False)
        callback.on_train_begin(args, state, control, model=None)
        assert callback.on_step_end(args, state, control, model=None) is control and not control.should_training_stop
        callback.on_train_end(args, state, control, model=None)
        assert not path.exists()

    def test_a_model_that_cannot_be_measured_is_refused_before_the_first_step(self, tmp_path, path):
        model = self.model()
        with torch.no_grad():
            model.lm_head.weight[0, 0] = torch.nan
        recorder = InductionRecorder(path, schedule=[5])
        with pytest.raises(ModelError, match=r'holds NaN.*pass on_unmeasurable="loss_only"$'):
            self.train(tmp_path, recorder.hf_callback(), model=model, warmup_steps=5)
        assert not path.exists()

    def test_a_recorder_is_told_how_long_the_training_is(self, tmp_path, path):
        recorder = InductionRecorder(path)
        self.train(tmp_path, recorder.hf_callback(), steps=3)
        assert recorder._budget.total_steps == 3

    def test_a_model_that_cannot_be_measured_does_not_end_the_training_where_that_is_asked_for(self, tmp_path, path):
        model = self.model()

        def broken(tokens=None, **given):
            raise ValueError("only rows of 24 tokens are taken")

        forward = model.forward
        model.forward = lambda input_ids=None, **given: (forward if given.get("labels") is not None else broken)(
            input_ids, **given
        )
        recorder = InductionRecorder(path, max_overhead=None, schedule=1, on_unmeasurable="loss_only")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", RuntimeWarning)
            _, state, _ = self.train(
                tmp_path, recorder.hf_callback(), model=model, steps=4, logging_strategy="steps", logging_steps=1
            )
        assert state.global_step == 4
        (message,) = [str(each.message) for each in told if each.category is RuntimeWarning]
        assert "only rows of 24 tokens are taken" in message and "\n" not in message
        run = read(path)
        assert run.steps.tolist() == [0, 1, 2, 3, 4]
        assert [each.loss is None for each in run.snapshots] == [True, False, False, False, False]
        assert all("only rows of 24 tokens are taken" in each.problem for each in run.snapshots)

    def test_without_transformers_it_says_what_to_install(self, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(RunError, match=r"needs transformers: pip install 'pytest-induction\[transformers\]'$"):
            InductionRecorder(path).hf_callback()


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request, monkeypatch):
    """Each of the two packages, alone: the other is not loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module(request.param)
    other = {"lightning.pytorch", "pytorch_lightning"} - {request.param}
    monkeypatch.delitem(sys.modules, *other, raising=False)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return package


def module_of(lightning, *, is_language_model, name="model"):
    """A LightningModule that maps ids to logits itself, or keeps a model that does."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            setattr(self, name, Tiny(dropout=0.2))

        def training_step(self, batch, batch_idx):
            return loss_of(getattr(self, name), batch)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    class LanguageModel(Module):
        def forward(self, tokens):
            return getattr(self, name)(tokens)

    torch.manual_seed(0)
    return (LanguageModel if is_language_model else Module)()


def several_optimisers(lightning, *, every=1, returns=True):
    """A LightningModule that steps two optimisers itself, every so many batches."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.model, self.losses = Tiny(), []

        def training_step(self, batch, batch_idx):
            loss = loss_of(self.model, batch)
            self.manual_backward(loss)
            if (batch_idx + 1) % every == 0:
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
            self.losses.append(float(loss.detach()))
            return loss if returns else None

        def configure_optimizers(self):
            embeddings = [*self.model.embed.parameters(), *self.model.positions.parameters()]
            others = [*self.model.layers.parameters(), *self.model.out.parameters()]
            return torch.optim.SGD(embeddings, lr=1e-2), torch.optim.AdamW(others, lr=1e-2)

    torch.manual_seed(0)
    return Module()


def silent_step(module, batch, batch_idx):
    """A training step with one optimiser that keeps its loss to itself."""
    optimizer = module.optimizers()
    module.manual_backward(loss_of(module, batch))
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore")
class TestLightning:
    def fit(self, lightning, module, *added, steps=12, ckpt_path=None, **settings):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(**quiet, enable_model_summary=False, max_steps=steps, callbacks=list(added), **settings)
        trainer.fit(module, torch.utils.data.DataLoader(rows(96), batch_size=4), ckpt_path=ckpt_path)
        return trainer, (torch.rand(2).tolist(), random.random(), np.random.random())

    @pytest.mark.parametrize("is_language_model", [True, False])
    def test_a_training_is_recorded_from_before_its_first_step_to_its_last(self, lightning, path, is_language_model, capfd):
        recorder, module = (
            InductionRecorder(path, text=TEXT, schedule=5, max_overhead=None),
            module_of(lightning, is_language_model=is_language_model),
        )
        callback = recorder.lightning_callback()
        assert isinstance(callback, lightning.Callback)
        self.fit(lightning, module, callback)
        run = read(path)
        assert run.steps.tolist() == [0, 5, 10, 12] and run.notes == ()
        assert run.about["model"] == ("LanguageModel" if is_language_model else "Tiny")
        assert all(
            each.prefix_matching.shape == (2, 2) and each.icl_score is not None and each.problem == "" for each in run.snapshots
        )
        assert [each.loss is None for each in run.snapshots] == [True, False, False, True]
        assert capfd.readouterr().err.splitlines().count(f"{path}: {recorder.cost}") == 1

    def test_the_training_is_the_same_to_the_bit(self, lightning, path):
        plain, recorded = (module_of(lightning, is_language_model=True) for _ in range(2))
        _, drawn = self.fit(lightning, plain)
        _, recorded_drawn = self.fit(
            lightning, recorded, InductionRecorder(path, text=TEXT, max_overhead=None).lightning_callback()
        )
        assert len(read(path)) == 13
        assert same_weights(plain, recorded) and drawn == recorded_drawn
        assert not same_weights(plain, module_of(lightning, is_language_model=True))

    def test_a_rule_stops_the_training(self, lightning, path):
        recorder = InductionRecorder(
            path, schedule=1, max_overhead=None, stop_when=NoInductionBy(steps=3, min_prefix_matching=0.9)
        )
        trainer, _ = self.fit(lightning, module_of(lightning, is_language_model=False), recorder.lightning_callback())
        assert trainer.global_step == 3 and read(path).steps.tolist() == [0, 1, 2, 3]

    def test_where_gradients_are_accumulated_steps_are_the_optimiser_s_and_losses_whole(self, lightning, path):
        seen = []

        class Watching(lightning.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                seen.append(float(outputs["loss"]) * 3)

        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        callbacks = Watching(), recorder.lightning_callback()
        self.fit(lightning, module_of(lightning, is_language_model=False), *callbacks, steps=4, accumulate_grad_batches=3)
        run = read(path)
        assert run.steps.tolist() == [0, 1, 2, 3, 4] and len(seen) == 12
        np.testing.assert_allclose(run.column("loss")[1:], seen[2::3], rtol=1e-5)
        assert 2.5 < run.column("loss")[1] < 6  # log(24) is 3.2

    def test_where_a_module_steps_several_optimisers_a_step_is_a_batch(self, lightning, path):
        """Lightning itself counts the steps of all optimisers, so tokens would be counted twice."""
        module = several_optimisers(lightning)
        recorder = InductionRecorder(path, schedule=1, max_overhead=None, tokens_per_step=96)
        trainer, _ = self.fit(lightning, module, recorder.lightning_callback(), steps=12)
        run = read(path)
        assert trainer.global_step == 12 and recorder._budget.total_steps == 6
        assert run.steps.tolist() == [0, 1, 2, 3, 4, 5, 6] and run.tokens.tolist() == [96 * step for step in range(7)]
        assert run.column("loss")[1:].tolist() == pytest.approx(module.losses, rel=1e-6)

    def test_batches_in_which_no_optimiser_steps_are_no_steps(self, lightning, path):
        module = several_optimisers(lightning, every=3)
        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        self.fit(lightning, module, recorder.lightning_callback(), steps=8)
        assert read(path).steps.tolist() == [0, 1, 2, 3, 4] and len(module.losses) == 12

    @pytest.mark.parametrize("is_kept", [True, False])
    def test_a_checkpoint_goes_on_with_the_count(self, lightning, tmp_path, path, is_kept):
        """Also one that knows nothing of the recorder: each optimiser is taken to have stepped as often."""
        with InductionRecorder(path, schedule=1, max_overhead=None) as recorder:
            module = several_optimisers(lightning)
            trainer, _ = self.fit(lightning, module, *([recorder.lightning_callback()] if is_kept else []), steps=6)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        self.fit(
            lightning, several_optimisers(lightning), recorder.lightning_callback(), steps=10, ckpt_path=tmp_path / "last.ckpt"
        )
        assert read(path).steps.tolist() == ([0, 1, 2, 3, 4, 5] if is_kept else [3, 4, 5])

    @pytest.mark.parametrize("several", [True, False])
    def test_a_training_step_that_returns_nothing_is_said_once(self, lightning, path, several):
        module = several_optimisers(lightning, returns=False) if several else module_of(lightning, is_language_model=True)
        if not several:
            module.automatic_optimization = False
            module.training_step = types.MethodType(silent_step, module)
        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.fit(lightning, module, recorder.lightning_callback(), steps=4)
        (message,) = [str(each.message) for each in told if "training_step" in str(each.message)]
        assert message.endswith(
            "`training_step` returned no loss, and snapshots of such steps have none: return the loss of the batch, or a dict with "
            'it as "loss"'
        )
        assert not read(path).has("loss") and read(path).has("prefix_matching")

    def test_a_training_step_that_returns_its_loss_is_not(self, lightning, path):
        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.fit(lightning, several_optimisers(lightning), recorder.lightning_callback(), steps=4)
        assert not [each for each in told if "training_step" in str(each.message)]

    def test_a_function_finds_the_language_model_in_the_module(self, lightning, path):
        recorder, module = (
            InductionRecorder(path, schedule=[3], max_overhead=None),
            module_of(lightning, is_language_model=False, name="network"),
        )
        self.fit(lightning, module, recorder.lightning_callback(module=lambda pl_module: pl_module.network), steps=3)
        assert read(path).about["model"] == "Tiny" and read(path).snapshots[0].problem == ""

    def test_a_module_is_the_language_model_itself(self, lightning, path):
        module = module_of(lightning, is_language_model=False, name="network")
        recorder = InductionRecorder(path, schedule=[3], max_overhead=None)
        self.fit(lightning, module, recorder.lightning_callback(module=module.network), steps=3)
        (found,) = read(path).snapshots
        assert read(path).about["model"] == "Tiny" and found.fingerprint == load_model(module.network).fingerprint()

    def test_a_model_that_is_not_found_is_refused_before_the_first_step_and_told_how_to_be(self, lightning, path):
        module = module_of(lightning, is_language_model=False, name="network")
        recorder = InductionRecorder(path)
        with pytest.raises(ModelError) as refused:
            self.fit(lightning, module, recorder.lightning_callback(), steps=3)
        assert "pass module=..., the language model inside, or a function that finds it" in str(refused.value)
        assert not path.exists()
        recorder = InductionRecorder(path, schedule=2, max_overhead=None, on_unmeasurable="loss_only")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.fit(lightning, module, recorder.lightning_callback(), steps=3)
        (message,) = [str(each.message) for each in told if "cannot be measured" in str(each.message)]
        assert "pass module=..." in message and read(path).snapshots[1].loss is not None

    def test_a_module_that_is_not_what_is_trained_is_refused(self, lightning, path):
        module = module_of(lightning, is_language_model=False)
        with pytest.raises(ArgumentError, match="`Tiny` has none of its weights"):
            self.fit(lightning, module, InductionRecorder(path).lightning_callback(module=Tiny()), steps=1)
        with pytest.raises(ArgumentError, match="it gave `str`"):
            self.fit(lightning, module, InductionRecorder(path).lightning_callback(module=lambda _: "model"), steps=1)
        with pytest.raises(ArgumentError, match=r"`module` must be the language model in the LightningModule.*got `str`"):
            InductionRecorder(path).lightning_callback(module="model")

    def test_a_recorder_is_told_how_long_the_training_is(self, lightning, path):
        recorder = InductionRecorder(path)
        self.fit(lightning, module_of(lightning, is_language_model=False), recorder.lightning_callback(), steps=3)
        assert recorder._budget.total_steps == 3

    def test_an_error_in_the_training_leaves_what_was_measured_and_the_run_open_to_others(self, lightning, path):
        module = module_of(lightning, is_language_model=False)
        step = module.training_step

        def failing(batch, batch_idx):
            if batch_idx == 3:
                raise ZeroDivisionError
            return step(batch, batch_idx)

        module.training_step = failing
        recorder = InductionRecorder(path, schedule=1, max_overhead=None)
        with pytest.raises(ZeroDivisionError):
            self.fit(lightning, module, recorder.lightning_callback())
        assert read(path).steps.tolist() == [0, 1, 2, 3]
        InductionRecorder(path, schedule=1)(module.model, 4)
        assert len(read(path)) == 5

    def test_a_package_that_is_loaded_already_is_the_one_that_is_used(self, lightning, path):
        base = type(InductionRecorder(path).lightning_callback()).__mro__[2]
        assert base is lightning.Callback


def test_without_lightning_it_says_what_to_install(path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pytorch_lightning", raising=False)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(RunError, match=r"needs it: pip install lightning$"):
        InductionRecorder(path).lightning_callback()


def test_importing_the_recorder_loads_neither_transformers_nor_lightning(pytester):
    code = """
    import sys
    import pytest_induction.runs.recorder, pytest_induction.runs.callbacks
    print(sorted(name for name in sys.modules if name in ("transformers", "lightning", "pytorch_lightning", "accelerate")))
    """
    result = pytester.runpython_c(textwrap.dedent(code))
    assert result.stdout.lines == ["[]"]


TWO = """
import os, sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[4])
from pytest_induction.runs.together import any_process
from pytest_induction.runs.recorder import InductionRecorder
from tests.runs.training import Tiny, loss_of, rows
rank = int(sys.argv[1])
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
model = DistributedDataParallel(Tiny(dropout=0.0))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
recorder = InductionRecorder(sys.argv[3], schedule=2, max_overhead=None, stop_when=lambda all_: "enough" if all_[-1].step == 4 else "")
for step in range(10):
    loss = loss_of(model, rows(2, seed=10 * step + rank))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    recorder(model, step, loss=loss)
    if any_process(recorder.should_stop, torch.device("cpu")):
        break
recorder.close()
print(rank, step, recorder.should_stop, flush=True)
distributed.destroy_process_group()
os._exit(0)  # as in test_together.py
"""


def test_in_a_training_of_two_processes_the_first_records_and_both_stop(tmp_path, path):
    root = str(Path(__file__).parents[2])
    arguments = [str(tmp_path / "meeting"), str(path), root]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120) for process in both]
    assert [out.strip() for out, _ in told] == ["0 4 True", "1 4 False"], told
    run = read(path)
    assert run.steps.tolist() == [0, 2, 4] and all(each.problem == "" for each in run.snapshots)
    assert run.about["model"] == "Tiny"


class Recording:
    """A recorder of which only its verdict is asked."""

    def __init__(self, *, should_stop, rules=(1,)):
        self.should_stop, self.rules = should_stop, rules

    def tell(self, function):
        pass


@pytest.mark.parametrize("should_stop", [True, False])
def test_several_processes_agree_at_the_same_steps_and_only_where_a_rule_may_stop_them(monkeypatch, should_stop):
    asked = []
    monkeypatch.setattr(callbacks, "any_process", lambda value, device: asked.append(value) or True)
    args = types.SimpleNamespace(world_size=2, device="cpu")
    following = callbacks._OfTrainer(Recording(should_stop=should_stop))
    stops = [step for step in range(1, 31) if following._stops(args, types.SimpleNamespace(global_step=step))]
    assert stops == [10, 20, 30] and asked == [should_stop] * 3
    without = callbacks._OfTrainer(Recording(should_stop=False, rules=()))
    assert not any(without._stops(args, types.SimpleNamespace(global_step=step)) for step in range(1, 31)) and len(asked) == 3

    decided = []
    strategy = types.SimpleNamespace(reduce_boolean_decision=lambda value, all: decided.append((value, all)) or True)  # noqa: A006
    trainer = types.SimpleNamespace(world_size=2, strategy=strategy)
    following = callbacks._OfLightning(Recording(should_stop=should_stop), None)
    assert [step for step in range(1, 31) if following._stops(trainer, step)] == [10, 20, 30]
    assert decided == [(should_stop, False)] * 3
