"""What is measured reaches the dashboards of others: real writers of TensorBoard, MLflow and W&B, read back by their own readers."""

import json
import logging
import math
import struct
import warnings

import numpy as np
import pytest
import torch

from pytest_induction.errors import ArgumentError
from pytest_induction.records import Verdict
from pytest_induction.runs import dashboards
from pytest_induction.runs.dashboards import listener, numbers_of
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.recorder import InductionRecorder
from pytest_induction.runs.store import read_run
from tests.runs.training import CONTEXT, D_VOCAB, Tiny, loss_of, rows, train

TEXT = np.random.default_rng(0).integers(0, D_VOCAB, (4, CONTEXT))
NAMES = {
    f"induction/{name}"
    for name in (
        *("prefix_matching", "previous_token", "heads", "advantage"),
        *("repeat_loss", "repeat_accuracy", "icl_score", "verdict"),
    )
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def read(path):
    return read_run(Place(path))


def expected(path, name="prefix_matching"):
    """By the run itself: a number of every snapshot, by its step."""
    return {each.step: pytest.approx(numbers_of(each)[f"induction/{name}"], rel=1e-5) for each in read(path).snapshots}


def in_event_files(directory, tag):
    """What TensorBoard's own reader finds under a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return {each.step: each.value for each in found.Scalars(tag)}


def snapshot(best, advantage, *, error=0.001, n_sequences=12, excess=None):
    """A snapshot of two heads, of which one has a score; nearly all of that beyond chance, unless it is said."""
    scores = np.array([[0.1, best]], dtype=np.float32)
    left = np.array([[0.05, best * 0.9 if excess is None else excess]], dtype=np.float32)
    spread = np.full((1, 2), error, dtype=np.float32)
    errors = {"prefix_matching": spread, "excess": spread, "advantage": error}
    return Snapshot(1, prefix_matching=scores, excess=left, advantage=advantage, errors=errors, n_sequences=n_sequences)


class TestNumbers:
    def test_every_number_has_a_name(self, path):
        found = InductionRecorder(path, text=TEXT)(Tiny(), 0)
        numbers = numbers_of(found)
        assert set(numbers) == NAMES and all(type(value) is float for value in numbers.values())
        assert numbers["induction/prefix_matching"] == found.prefix_matching.max()
        assert numbers["induction/icl_score"] == found.icl_score and numbers["induction/advantage"] == found.advantage

    @pytest.mark.parametrize(
        ("given", "verdict", "heads"),
        [
            (snapshot(0.8, 6.0), 1.0, 1),
            (snapshot(0.05, 0.0), -1.0, 0),
            (snapshot(0.8, 0.0), -1.0, 1),  # it matches, and the model does not copy
            (snapshot(0.8, 6.0, excess=0.01), -1.0, 0),  # all of it by chance
            (snapshot(0.31, 6.0, error=0.1), 0.0, 1),
            (snapshot(0.8, 6.0, error=0.1, n_sequences=3), 0.0, 1),  # of three sequences little is shown
        ],
    )
    def test_the_verdict_is_that_of_the_gate_on_the_last_snapshot(self, given, verdict, heads):
        from pytest_induction import ExpectationFailed, assert_final_has_induction_head
        from pytest_induction.runs.record import TrainingRun

        assert (numbers_of(given)["induction/verdict"], numbers_of(given)["induction/heads"]) == (verdict, heads)
        try:
            seen = assert_final_has_induction_head(TrainingRun("one", (given,))).verdict
        except ExpectationFailed as failed:
            seen = failed.evidence.verdict
        assert dashboards.VERDICTS[seen] == verdict and set(dashboards.VERDICTS) == set(Verdict)

    def test_what_is_missing_or_no_number_is_left_out(self):
        assert numbers_of(Snapshot(3, loss=2.0, problem="it cannot be measured")) == {}
        given = Snapshot(3, advantage=math.nan, repeat_loss=math.inf, prefix_matching=np.full((1, 2), np.nan))
        assert numbers_of(given) == {}


class TestListeners:
    def test_it_gets_names_and_numbers_and_the_step_where_it_takes_that(self):
        seen = []

        def like_wandb(data, step=None, commit=None):
            seen.append((data, step))

        def like_comet(dic, prefix=None, step=None, epoch=None):
            seen.append((prefix, dic, step))

        listener(like_wandb)({"a": 1.0}, 7)
        listener(like_comet)({"a": 1.0}, 7)
        listener(lambda numbers, at: seen.append((at, numbers)))({"a": 1.0}, 7)
        listener(seen.append)({"a": 1.0}, 7)
        assert seen == [({"a": 1.0}, 7), (None, {"a": 1.0}, 7), (7, {"a": 1.0}), {"a": 1.0}]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (3, r"^`on_snapshot` must be a function of the names and numbers, got 3$"),
            (
                lambda: None,
                r"^`on_snapshot` must be a function of the numbers by their names, or these and `step`, got one of \(\)$",
            ),
            (lambda one, two, three: None, r"or these and `step`, got one of \(one, two, three\)$"),
        ],
    )
    def test_what_is_none_is_refused_at_once(self, path, given, message):
        with pytest.raises(ArgumentError, match=message):
            InductionRecorder(path, on_snapshot=given)

    def test_a_loop_by_hand_tells_it_every_snapshot(self, path):
        seen = {}
        with InductionRecorder(
            path, text=TEXT, schedule=2, max_overhead=None, on_snapshot=lambda numbers, step: seen.update({step: numbers})
        ) as recorder:
            train(Tiny(), 5, lambda model, step, loss: recorder(model, step, loss=loss) and None)
        assert list(seen) == [0, 2, 4] and all(set(numbers) == NAMES for numbers in seen.values())
        assert {step: numbers["induction/prefix_matching"] for step, numbers in seen.items()} == expected(path)

    def test_one_that_raises_costs_a_warning_and_nothing_else(self, path):
        def broken(numbers, step):
            raise ConnectionError("no route to host")

        recorder, model = InductionRecorder(path, max_overhead=None, on_snapshot=broken), Tiny()
        with pytest.warns(RuntimeWarning, match="raised ConnectionError: no route to host; the training goes on") as told:
            assert all(recorder(model, step) for step in range(3))
        assert len(told) == 1 and len(read(path)) == 3

    def test_its_time_is_the_recorder_s(self, path):
        from tests.runs.training import Clock

        clock = Clock()
        recorder = InductionRecorder(path, clock=clock, on_snapshot=lambda numbers: clock.passes(5.0))
        recorder(Tiny(), 0)
        assert recorder.cost.seconds == 5.0

    def test_a_model_that_cannot_be_measured_tells_nothing(self, path):
        seen = []
        recorder = InductionRecorder(path, on_unmeasurable="loss_only", on_snapshot=seen.append)
        with pytest.warns(RuntimeWarning, match="cannot be measured"):
            recorder(torch.nn.Linear(3, 3), 0, loss=1.0)
        assert seen == []


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """MLflow writing to files; skipped where it is not installed."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    return mlflow


def in_mlflow(mlflow, name):
    """The numbers of the only run, by MLflow's own client."""
    client = mlflow.tracking.MlflowClient()
    runs = [run for each in client.search_experiments() for run in client.search_runs([each.experiment_id])]
    (run,) = runs
    return {each.step: each.value for each in client.get_metric_history(run.info.run_id, name)}


def in_wandb(directory):
    """What W&B wrote offline, row by row: records of its own message class, in the log format of LevelDB."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # what it has not written yet it writes then
    (place,) = directory.rglob("*.wandb")
    content, found, parts, at = place.read_bytes(), [], b"", 7  # behind the file's own header
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:  # no record begins so near to the end of a block
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts = (parts if kind in (3, 4) else b"") + content[at + 7 : at + 7 + length]  # the middle and the end of a record
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """W&B without a network and without a word; skipped where it is not installed."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads these once
    yield wandb
    wandb.teardown()


@pytest.mark.filterwarnings("ignore")
class TestOwnLoops:
    """The functions that people have already, as they are."""

    def recorded(self, path, on_snapshot):
        with InductionRecorder(path, text=TEXT, schedule=2, max_overhead=None, on_snapshot=on_snapshot) as recorder:
            train(Tiny(), 5, lambda model, step, loss: recorder(model, step, loss=loss) and None)

    def test_tensorboard(self, tmp_path, path):
        pytest.importorskip("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(tmp_path / "events") as writer:
            self.recorded(path, lambda numbers, step: [writer.add_scalar(name, value, step) for name, value in numbers.items()])
        for name in NAMES:
            assert in_event_files(tmp_path / "events", name) == expected(path, name.partition("/")[2])

    def test_mlflow(self, tmp_path, path, mlflow):
        with mlflow.start_run():
            self.recorded(path, mlflow.log_metrics)
        assert in_mlflow(mlflow, "induction/advantage") == expected(path, "advantage")

    def test_wandb(self, tmp_path, path, offline):
        run = offline.init(project="small")
        self.recorded(path, run.log)
        run.finish()
        found = {row["_step"]: row["induction/icl_score"] for row in in_wandb(tmp_path)}
        assert found == expected(path, "icl_score")

    def test_accelerate(self, tmp_path, path):
        """A loop of accelerate, with its own tracker."""
        accelerate = pytest.importorskip("accelerate")
        pytest.importorskip("tensorboard")
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
        accelerator.init_trackers("small")
        model = Tiny()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        loader = torch.utils.data.DataLoader(rows(64), batch_size=4)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        with InductionRecorder(path, text=TEXT, schedule=4, max_overhead=None, on_snapshot=accelerator.log) as recorder:
            for step, batch in enumerate(loader):
                loss = loss_of(model, batch)
                accelerator.log({"loss": loss.item()}, step=step)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                recorder(accelerator.unwrap_model(model), step, loss=loss)
        accelerator.end_training()
        run = read(path)
        assert run.steps.tolist() == [0, 4, 8, 12] and all(each.problem == "" for each in run.snapshots)
        assert in_event_files(tmp_path / "small", "induction/prefix_matching") == expected(path)
        assert len(in_event_files(tmp_path / "small", "loss")) == 16


@pytest.mark.filterwarnings("ignore")
class TestTrainer:
    """Through the log of transformers' Trainer, to all that it reports to."""

    def train(self, tmp_path, *callbacks, trainer=None, steps=9, **settings):
        from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

        torch.manual_seed(0)
        sizes = {"vocab_size": D_VOCAB, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        given = {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 1, "max_steps": steps, "report_to": []}
        given |= {"logging_strategy": "steps", "logging_steps": 3, "per_device_train_batch_size": 4} | settings
        args = TrainingArguments(output_dir=str(tmp_path / "out"), **given)
        data = [{"input_ids": row, "labels": row} for row in rows(64)]
        made = (trainer or Trainer)(model=model, args=args, train_dataset=data, eval_dataset=data[:8], callbacks=list(callbacks))
        made.train()
        return made

    def recorder(self, path, **settings):
        return InductionRecorder(path, text=TEXT, max_overhead=None, **{"schedule": 2, **settings})

    def test_the_log_has_every_snapshot_at_its_step_beside_the_trainer_s_own(self, tmp_path, path):
        made = self.train(tmp_path, self.recorder(path).hf_callback())
        log = made.state.log_history
        ours = {entry["step"]: entry["induction/prefix_matching"] for entry in log if "induction/prefix_matching" in entry}
        assert ours == expected(path) and list(ours) == [0, 2, 4, 6, 8, 9]
        assert [entry["step"] for entry in log if "loss" in entry] == [3, 6, 9]
        assert all(set(entry) >= NAMES for entry in log if "induction/verdict" in entry) and "train_runtime" in log[-1]
        assert len([entry for entry in log if "train_runtime" in entry]) == 1

    @pytest.mark.parametrize("every", [1, 3])
    def test_losses_are_those_of_the_trainer_alone(self, tmp_path, path, every):
        plain = self.train(tmp_path, logging_steps=every)
        made = self.train(tmp_path, self.recorder(path, schedule=1).hf_callback(), logging_steps=every)
        told, alone = (
            [(entry["step"], entry["loss"]) for entry in each.state.log_history if "loss" in entry] for each in (made, plain)
        )
        assert told == alone and len(alone) == 9 // every

    def test_a_log_of_somebody_s_own_is_not_entered(self, tmp_path, path):
        """TRL's Trainers put what they have gathered since their last log into the next one, and forget it."""
        from transformers import Trainer

        class Gathering(Trainer):
            gathered = 0

            def compute_loss(self, *given, **options):
                self.gathered += 1
                return super().compute_loss(*given, **options)

            def log(self, logs, *given, **options):
                logs["gathered"], self.gathered = self.gathered, 0
                super().log(logs, *given, **options)

        made = self.train(tmp_path, self.recorder(path, schedule=1).hf_callback(), trainer=Gathering)
        assert [entry["gathered"] for entry in made.state.log_history if "loss" in entry] == [3, 3, 3]

    def test_a_callback_of_another_s_sees_our_numbers_once(self, tmp_path, path):
        from transformers import TrainerCallback

        seen = []

        class Watching(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **given):
                seen.extend((state.global_step, name) for name in logs if name == "induction/verdict")

        self.train(tmp_path, Watching(), self.recorder(path).hf_callback(), Watching())
        assert seen == [(step, "induction/verdict") for step in (0, 2, 4, 6, 8, 9) for _ in range(2)]

    def test_a_callback_that_is_added_later_does_the_same(self, tmp_path, path):
        from transformers import Trainer

        callback = self.recorder(path).hf_callback()

        class Adding(Trainer):
            def __init__(self, *given, **options):
                super().__init__(*given, **options)
                self.add_callback(callback)

        made = self.train(tmp_path, trainer=Adding)
        assert sum("induction/verdict" in entry for entry in made.state.log_history) == 6

    def test_without_a_trainer_above_it_says_what_to_do(self, path):
        from tests.runs.test_callbacks import begin

        callback = self.recorder(path).hf_callback()
        with pytest.warns(
            RuntimeWarning, match="the Trainer was not found, and its log lacks what is measured: pass on_snapshot="
        ):
            begin(callback, Tiny())
        assert len(read(path)) == 1

    def test_tensorboard(self, tmp_path, path):
        pytest.importorskip("tensorboard")
        self.train(tmp_path, self.recorder(path).hf_callback(), report_to=["tensorboard"])
        (events,) = (tmp_path / "out" / "runs").iterdir()
        for name in NAMES:
            assert in_event_files(events, f"train/{name}") == expected(path, name.partition("/")[2])
        assert list(in_event_files(events, "train/loss")) == [3, 6, 9]

    def test_mlflow(self, tmp_path, path, mlflow):
        self.train(tmp_path, self.recorder(path).hf_callback(), report_to=["mlflow"])
        assert in_mlflow(mlflow, "induction/prefix_matching") == expected(path)
        assert list(in_mlflow(mlflow, "loss")) == [3, 6, 9]

    def test_wandb(self, tmp_path, path, offline):
        self.train(tmp_path, self.recorder(path).hf_callback(), report_to=["wandb"])
        offline.finish()
        found = in_wandb(tmp_path)
        ours = {row["train/global_step"]: row["train/induction/advantage"] for row in found if "train/induction/advantage" in row}
        assert ours == expected(path, "advantage")
        assert [row["train/global_step"] for row in found if "train/loss" in row] == [3, 6, 9]


@pytest.mark.filterwarnings("ignore")
class TestLightning:
    """To the loggers of Lightning."""

    def fit(self, logger, *callbacks, steps=9):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning = pytest.importorskip("lightning.pytorch")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        from tests.runs.test_callbacks import module_of

        module = module_of(lightning, is_language_model=True)
        quiet = {
            "accelerator": "cpu",
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = lightning.Trainer(**quiet, logger=logger, max_steps=steps, callbacks=list(callbacks), log_every_n_steps=50)
        trainer.fit(module, torch.utils.data.DataLoader(rows(64), batch_size=4))
        return trainer

    def recorder(self, path):
        return InductionRecorder(path, text=TEXT, schedule=2, max_overhead=None)

    def test_tensorboard(self, tmp_path, path):
        pytest.importorskip("tensorboard")
        from lightning.pytorch.loggers import TensorBoardLogger

        self.fit(TensorBoardLogger(tmp_path, name="", version="events"), self.recorder(path).lightning_callback())
        for name in NAMES:
            assert in_event_files(tmp_path / "events", name) == expected(path, name.partition("/")[2])
        assert list(expected(path)) == [0, 2, 4, 6, 8, 9]

    def test_mlflow(self, tmp_path, path, mlflow):
        from lightning.pytorch.loggers import MLFlowLogger

        self.fit(MLFlowLogger("small", tracking_uri=(tmp_path / "mlruns").as_uri()), self.recorder(path).lightning_callback())
        assert in_mlflow(mlflow, "induction/prefix_matching") == expected(path)

    def test_wandb(self, tmp_path, path, offline):
        from lightning.pytorch.loggers import WandbLogger

        self.fit(WandbLogger(save_dir=tmp_path, offline=True), self.recorder(path).lightning_callback())
        offline.finish()
        found = {row["trainer/global_step"]: row["induction/prefix_matching"] for row in in_wandb(tmp_path)}
        assert found == expected(path)

    def test_what_watches_metrics_by_name_finds_ours(self, path):
        """As `EarlyStopping` and `ModelCheckpoint` do."""
        trainer = self.fit(False, self.recorder(path).lightning_callback())
        assert float(trainer.callback_metrics["induction/prefix_matching"]) == list(expected(path).values())[-1]
