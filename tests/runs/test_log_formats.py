"""What each format of a log reads beside what holds for all of them, which `tests/contract/test_log_formats.py` tests."""

import json
import os
import struct
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_induction.errors import RunError
from pytest_induction.runs.logs import format as trees
from pytest_induction.runs.logs import read_log
from pytest_induction.runs.logs.formats.plain_text import pairs_of
from pytest_induction.runs.places import Place
from tests.contract.samples import LOSSES, STEPS, lines, mlflow_store, wandb_file, written


def refusal(place, **choice):
    with pytest.raises(RunError) as caught:
        read_log(place, **choice)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_a_process_of_its_own(code, **environment):
    """Where what it loads and starts keeps nothing of the other tests."""
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, env={**os.environ, **environment}, capture_output=True
    )


TEXT_FORMS = {
    "nanoGPT": ("iter {step}: loss {loss}, time 23.4ms, mfu 12.3%", "loss"),
    "nanoGPT, estimates": ("step {step}: train loss {loss}, val loss 9.9", "train loss"),
    "llm.c": ("s:{step} trl:{loss} lr:0.000600 norm:1.00", "train/loss"),
    "llm.c, stdout": (
        "step {step:5}/19560 | loss {loss} (+nanz)| norm 15.3 (+nanz)| lr 8.57e-07 | 56.36 ms | 17 tok/s",
        "loss",
    ),
    "llama2.c": ("{step} | loss {loss} | lr 4.900000e-05 | 8060.78ms | mfu 0.21%", "loss"),
    "build-nanogpt": ("{step} train {loss}", "train/loss"),
    "torchtune": ("Step {step} | loss:{loss} lr:2e-05 tokens_per_second_per_gpu:57.8", "loss"),
    "torchtitan": (
        (
            "\x1b[0m[rank0]:[titan] 2025-03-12 11:10:21,511 - root - INFO - \x1b[31mstep: {step:2}  \x1b[32mloss: {loss:7.4f}  "
            "\x1b[38;2;180;60;0mmemory:  1.41GiB(1.79%)  \x1b[34mtps: 193,831  mfu: 1.86%\x1b[39m"
        ),
        "loss",
    ),
    "modded-nanogpt": ("step:{step}/1480 train_loss:{loss} train_time:29736ms step_avg:258.57ms", "train_loss"),
    "Megatron-LM": (
        (
            " iteration {step:8}/  250000 | consumed samples:       205824 | elapsed time per iteration (ms): 139113.4 | learning "
            "rate: 1.507E-05 | global batch size:  1024 | lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: 0.811 | number of "
            "skipped iterations:   0 | number of nan iterations:   0 |"
        ),
        "lm loss",
    ),
    "fairseq": (
        "2021-01-01 00:00:00 | INFO | train_inner | epoch 001:  7 / 487 loss={loss}, ppl=17, num_updates={step}",
        "loss",
    ),
    "fairseq, JSON": (
        '2022-11-11 14:05:27 | INFO | train_inner | {{"epoch": 1, "loss": "{loss}", "num_updates": "{step}"}}',
        "loss",
    ),
    "lingua": (
        "0: INFO    24-10-20 12:00:00.000000 - 0:00:10 - step: {step}  acc: 0  loss: {loss:7.4f}  wps: 4.1e+04  iter:   0.47",
        "loss",
    ),
    "litgpt": ("Epoch 1 | iter 99 step {step} | loss train: {loss}, val: n/a | iter time: 345.67 ms (step)", "loss train"),
    "mlx": ("Iter {step}: Train loss {loss}, Learning Rate 2.000e-08, It/sec 1.472, Peak mem 5.094 GB", "Train loss"),
    "a progress bar": (" 10%|#    | {step}/1000 [00:10<01:30, 9.99it/s, loss={loss}]", "loss"),
    "gpt-2-simple": ("[{step} | 23.56] loss={loss} avg=3.21", "loss"),
    "a loop of one's own": ("Step {step}, Train Loss: {loss}, Val Loss: 7.4214", "Train Loss"),
    "with commas in thousands": ("step 1,{step:03}: loss {loss}", "loss"),
}


class TestPlainText:
    """Lines as the trainers named print them; numbers made up."""

    @pytest.mark.parametrize("form", TEXT_FORMS)
    def test_step_and_loss_of_each_line_are_read(self, tmp_path, form):
        line, column = TEXT_FORMS[form]
        run = read_log(written(tmp_path / "a.txt", "Loading data\n" + lines(line) + "done in 12:30:01\n"))
        assert run.about["format"] == "plain text" and run.about["columns"]["loss"] == column
        assert run.steps.tolist() == [step + 1000 * ("thousands" in form) for step in STEPS]
        assert run.column("loss").tolist() == pytest.approx(LOSSES)

    def test_tokens_are_read_where_they_stand(self, tmp_path):
        form = "iteration: {step} / 500 | consumed_tokens: {step}M | lm_loss: {loss}"
        assert read_log(written(tmp_path / "a.txt", lines(form))).tokens[-1] == 190e6

    def test_rows_that_go_over_several_lines_come_together(self, tmp_path):
        """As OLMo and Composer print them."""
        olmo = "2024 INFO [step={step}/739328,epoch=0]\n    train/CrossEntropyLoss={loss}\n    throughput/total_tokens={step},000"
        run = read_log(written(tmp_path / "olmo.txt", lines(olmo)))
        assert run.column("loss").tolist() == LOSSES and run.tokens[-1] == 190_000
        composer = "[batch={step}/48]:\n\t Train time/batch: {step}\n\t Train loss/train/total: {loss}\n\t Train metrics/train/LanguageCrossEntropy: 9"
        run = read_log(written(tmp_path / "composer.txt", lines(composer)))
        assert run.column("loss").tolist() == LOSSES and run.about["columns"]["loss"] == "loss/train/total"

    def test_training_and_estimates_of_it_are_one_curve_of_steps(self, tmp_path):
        """As nanoGPT prints: `iter` and `step` count the same."""
        content = "step 0: train loss 9.5, val loss 9.6\n" + lines("iter {step}: loss {loss}, time 1.2ms")
        run = read_log(written(tmp_path / "a.txt", content))
        assert run.column("loss").tolist() == LOSSES and run.about["columns"]["step"] in ("step or iter", "iter or step")

    def test_evaluations_are_kept_apart(self, tmp_path):
        megatron = " iteration {step}/ 90 | lm loss: {loss} |\n validation loss at iteration {step} | lm loss value: 9.9 | lm loss PPL: 1.0E+01 |"
        assert read_log(written(tmp_path / "a.txt", lines(megatron))).column("loss").tolist() == LOSSES
        modded = "step:{step}/99 val_loss:9.9 train_time:1ms\nstep:{step}/99 train_loss:{loss} train_time:1ms"
        assert read_log(written(tmp_path / "b.txt", lines(modded))).column("loss").tolist() == LOSSES

    @pytest.mark.parametrize(
        "form",
        [
            "Epoch [{epoch}/3], Step [{step}/100], Loss: {loss}",
            "| epoch {epoch:03}  {step} / 100 loss={loss} (1.50), wps=962",
            "Epoch {epoch}:  39%|###   | {step}/100 [05:59<09:15, 13.47it/s, loss={loss}]",
        ],
    )
    @pytest.mark.parametrize("first", [0, 1])
    def test_steps_of_epochs_are_counted_on_where_their_length_is_said(self, tmp_path, form, first):
        steps = [(epoch, step) for epoch in range(3) for step in range(20, 101, 20)]
        content = "\n".join(form.format(epoch=epoch + first, step=step, loss=3.5) for epoch, step in steps) + "\n"
        run = read_log(written(tmp_path / "a.txt", content))
        assert run.steps.tolist() == [100 * epoch + step for epoch, step in steps]
        assert run.notes == ("its steps begin anew in every epoch, of 100: they were counted on",)

    def test_a_step_of_all_that_is_said_with_an_epoch_is_left_as_it_is(self, tmp_path):
        content = "".join(f"Epoch {step // 100 + 1}/3 Step {step}/300 Loss: 3.5\n" for step in range(10, 300, 10))
        run = read_log(written(tmp_path / "a.txt", content))
        assert run.steps.tolist() == list(range(10, 300, 10)) and run.notes == ()

    @pytest.mark.parametrize("prefix", ["[rank{}]: ", "{}: ", "{}:       "])
    def test_of_several_processes_the_first_counts(self, tmp_path, prefix):
        content = lines(f"{prefix.format(1)}step: {{step}} loss: {{loss}}\n{prefix.format(0)}step: {{step}} loss: 9")
        assert read_log(written(tmp_path / "a.txt", content)).column("loss").tolist() == LOSSES

    def test_rows_over_several_lines_of_a_process_come_together(self, tmp_path):
        content = lines("0: [batch={step}/48]:\n0:       Train loss/train/total: {loss}\n1: [batch=7/48]:\n1:       Train lr: 1")
        assert read_log(written(tmp_path / "a.txt", content)).column("loss").tolist() == LOSSES

    def test_numbers_before_lines_are_no_steps_where_they_may_be_processes(self, tmp_path):
        assert "have a loss without a step" in refusal(written(tmp_path / "a.txt", lines("{step}: loss {loss}")))

    def test_a_loss_that_is_no_number_is_a_problem(self, tmp_path):
        run = read_log(written(tmp_path / "a.txt", "step 1: loss 3.5\nstep 2: loss nan\n"))
        assert run.snapshots[1].problem == "the loss is nan"

    def test_a_program_that_stands_before_is_passed_over(self, tmp_path):
        """Some logs begin with all of their source."""
        code = "import os, sys\nlearning_rate = 0.0036\nfor step in range(10):\n    loss = step / 2\n" * 5000
        run = read_log(written(tmp_path / "a.txt", code + lines("step:{step}/200 train_loss:{loss}")))
        assert run.column("loss").tolist() == LOSSES

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (
                "hello world\nversion 1.2\n",
                "no line has a step and a loss, as `step 100: loss 3.2` (the first line is 'hello world')",
            ),
            ("{'loss': 2.5, 'epoch': 0.1}\n", "1 lines have a loss without a step: of Hugging Face name the trainer_state.json"),
        ],
    )
    def test_text_without_rows_says_what_was_expected(self, tmp_path, content, said):
        assert said in refusal(written(tmp_path / "a.txt", content))

    @settings(deadline=None, derandomize=True, database=None)
    @given(
        st.lists(
            st.sampled_from(["epoch", "step", "loss", "nan", "1", "2/3", "{", "}", '"', ":", "=", " ", "[", "|", "rank0", "9e9"])
        )
    )
    def test_no_line_is_too_odd(self, parts):
        """Names come out with numbers, or nothing."""
        assert all(isinstance(name, str) for name in pairs_of("".join(parts)))

    @pytest.mark.parametrize(
        "text", ["", "a" * 10_000, "a " * 5_000, "a: " * 3_000, "{" * 4_000, "1," * 3_000, "step " * 900 + "1"]
    )
    def test_no_line_takes_long(self, text):
        """Quadratic at most, in lines of which no more than 4000 characters are looked at."""
        import time

        began = time.perf_counter()
        pairs_of(text[:4000])
        assert time.perf_counter() - began < 1.0


class TestJsonDocuments:
    @pytest.mark.parametrize(
        "document",
        [
            {"steps": STEPS, "train_loss": LOSSES, "val_loss": [9.0] * len(STEPS), "best": 3},
            {"history": {"steps": STEPS, "loss": LOSSES}},
            {"train": {"steps": STEPS, "loss": LOSSES}, "val": {"steps": [0, 50], "loss": [9, 9]}},
            {
                "config": {"lr": 0.1, "sizes": [1, 2]},
                "train": [{"step": step, "loss": loss} for step, loss in zip(STEPS, LOSSES, strict=True)],
                "val": [{"step": 50, "loss": 9}],
            },
            {"step": {str(at): step for at, step in enumerate(STEPS)}, "loss": {str(at): loss for at, loss in enumerate(LOSSES)}},
            {"loss": {str(step): loss for step, loss in zip(STEPS, LOSSES, strict=True)}},
            {str(step): {"loss": loss} for step, loss in zip(STEPS, LOSSES, strict=True)},
            {"columns": ["step", "loss"], "data": [list(row) for row in zip(STEPS, LOSSES, strict=True)]},
        ],
    )
    @pytest.mark.parametrize("indent", [None, 1])
    def test_lists_of_numbers_are_read(self, tmp_path, document, indent):
        run = read_log(written(tmp_path / "history.json", json.dumps(document, indent=indent)))
        assert run.steps.tolist() == STEPS and run.column("loss").tolist() == LOSSES

    def test_a_list_of_another_length_is_left_out_and_said(self, tmp_path):
        run = read_log(written(tmp_path / "a.json", json.dumps({"steps": [1, 2], "loss": [3, 2], "val_loss": [3]})))
        assert run.notes == ("left out: 1 x lists that do not have 2 numbers as 'steps' has (the first: 'val_loss' has 1)",)

    def test_a_curve_as_tensorboard_saves_it_is_read_when_its_loss_is_said(self, tmp_path):
        place = written(tmp_path / "a.json", json.dumps([[1.5, step, loss] for step, loss in zip(STEPS, LOSSES, strict=True)]))
        assert "--induction-column loss=NAME" in refusal(place)
        assert read_log(place, {"loss": "value"}).column("loss").tolist() == LOSSES

    def test_lists_without_steps_are_refused(self, tmp_path):
        said = refusal(written(tmp_path / "a.json", json.dumps({"loss": [3, 2], "val_loss": [3, 2]})))
        assert (
            "it has 'loss', 'val_loss': expected a `log_history`, a list of rows, or lists of numbers, one of them of steps"
            in said
        )


class TestTables:
    def test_a_table_between_blanks_is_read(self, tmp_path):
        run = read_log(written(tmp_path / "a.txt", "step  loss\n" + lines("{step}   {loss}")))
        assert run.about["format"] == "table" and run.column("loss").tolist() == LOSSES

    @pytest.mark.parametrize("name", ["a.csv", "a.out"])
    def test_comments_above_the_names_are_passed_over(self, tmp_path, name):
        run = read_log(written(tmp_path / name, "# made, by, me\n#\nstep,loss\n" + lines("{step},{loss}")))
        assert run.column("loss").tolist() == LOSSES and run.notes == ()

    def test_a_table_is_told_without_its_ending(self, tmp_path):
        assert read_log(written(tmp_path / "a.out", "step,loss\n" + lines("{step},{loss}"))).about["format"] == "table"

    def test_metrics_that_stand_below_each_other_are_read(self, tmp_path):
        """A row for every number, as MLflow exports them."""
        content = "run_id,key,value,step\n" + lines("abc,train_loss,{loss},{step}\nabc,val_loss,9,{step}")
        run = read_log(written(tmp_path / "a.csv", content))
        assert run.column("loss").tolist() == LOSSES and run.about["columns"]["loss"] == "train_loss"


class TestEventTrees:
    @pytest.fixture(autouse=True)
    def _tensorboard(self):
        pytest.importorskip("tensorboard")

    def tree(self, root, **losses):
        from .event_files import begin, scalar, write

        for at, (where, values) in enumerate(losses.items()):
            path = root / where.replace("__", "/")
            path.mkdir(parents=True, exist_ok=True)
            events = (scalar(step, loss=loss) for step, loss in values.items())
            write(path / f"events.out.tfevents.{at}.host.local", begin(at), *events)
        return Place(root)

    def test_one_directory_below_is_the_log(self, tmp_path):
        place = self.tree(tmp_path, runs__Nov30_host={0: 6, 10: 5})
        assert read_log(place).column("loss").tolist() == [6, 5]

    def test_directories_that_are_called_after_data_are_one_run(self, tmp_path):
        """As Keras, fairseq and `add_scalars` write them."""
        place = self.tree(tmp_path, logs__train={0: 6, 10: 5}, logs__validation={0: 9, 10: 9})
        run = read_log(place)
        assert run.column("loss").tolist() == [6, 5] and run.about["columns"]["loss"] == "train/loss"
        place = self.tree(tmp_path / "b", loss_train={0: 6, 10: 5}, loss_val={0: 9, 10: 9})
        assert read_log(place).column("loss").tolist() == [6, 5]

    def test_several_runs_ask_which(self, tmp_path):
        place = self.tree(tmp_path, version_0={0: 6, 10: 5}, version_1={0: 7, 10: 3})
        said = refusal(place)
        assert "it holds 2 runs, 'directory' is 'version_0', 'version_1': choose one" in said
        assert "--induction-where directory=version_0" in said
        assert read_log(place, where={"directory": "version_1"}).column("loss").tolist() == [7, 3]

    def test_torch_itself_writes_what_is_read(self, tmp_path):
        """Curves in directories of their own, and hyperparameters with results beside them, which are no run."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(tmp_path) as writer:
            for step, loss in zip(STEPS, LOSSES, strict=True):
                writer.add_scalars("loss", {"train": loss, "val": 9.0}, step)
            writer.add_hparams({"lr": 0.1}, {"hparam/loss": 3.0})
        run = read_log(Place(tmp_path))
        assert run.steps.tolist() == STEPS and run.column("loss").tolist() == pytest.approx(LOSSES)

    def test_a_run_that_went_on_in_another_directory_is_one(self, tmp_path):
        run = read_log(self.tree(tmp_path, version_0={0: 6, 10: 5}, version_1={20: 4, 30: 3}))
        assert run.column("loss").tolist() == [6, 5, 4, 3] and "read as one training that went on" in run.notes[0]


class TestMlflow:
    def test_metrics_of_a_run_come_together(self, tmp_path):
        mlflow_store(tmp_path / "mlruns", metric="train/loss")
        mlflow_store(tmp_path / "mlruns", metric="val/loss", losses=[9.0] * len(STEPS))
        for place in ("mlruns", "mlruns/0", "mlruns/0/abc"):
            run = read_log(Place(tmp_path / place))
            assert run.column("loss").tolist() == LOSSES and run.about["columns"] == {"loss": "train/loss"}

    def test_several_runs_ask_which_by_name_or_number(self, tmp_path):
        place = mlflow_store(tmp_path / "mlruns", run="0/abc", name="first")
        mlflow_store(tmp_path / "mlruns", run="0/def", name="second", losses=[loss + 1 for loss in LOSSES])
        assert "it holds 2 runs, 'run' is 'abc', 'def'" in refusal(place)
        for where in ({"run": "def"}, {"run_name": "second"}):
            assert read_log(place, where=where).column("loss")[0] == LOSSES[0] + 1

    def test_a_line_that_is_torn_is_counted(self, tmp_path):
        place = mlflow_store(tmp_path / "mlruns")
        with (tmp_path / "mlruns/0/abc/metrics/loss").open("a") as stream:
            stream.write("17000000\n")
        assert "left out: 1 x lines of a metric that have no time, value and step" in read_log(place).notes[0]

    def test_mlflow_itself_writes_what_is_read(self, tmp_path):
        pytest.importorskip("mlflow")
        in_a_process_of_its_own(
            f"""
            import mlflow
            mlflow.set_tracking_uri("file://{tmp_path / "mlruns"}")
            with mlflow.start_run(run_name="mine"):
                for step, loss in zip({STEPS}, {LOSSES}):
                    mlflow.log_metrics({{"train/loss": loss, "lr": 0.1}}, step=step)
            """,
            MLFLOW_ALLOW_FILE_STORE="true",  # newer ones write a database unless they are told
        )
        run = read_log(Place(tmp_path / "mlruns"), where={"run_name": "mine"})
        assert run.steps.tolist() == STEPS and run.column("loss").tolist() == LOSSES


WANDB_ROWS = [
    {"_step": at, "train/loss": loss, "val/loss": 9.0, "train/global_step": step}
    for at, (step, loss) in enumerate(zip(STEPS, LOSSES, strict=True))
]


class TestWandb:
    def test_a_file_is_read_with_steps_of_the_training(self, tmp_path):
        run = read_log(written(tmp_path / "run-1.wandb", wandb_file(WANDB_ROWS)))
        assert run.steps.tolist() == STEPS and run.column("loss").tolist() == LOSSES
        assert run.about["columns"] == {"step": "train/global_step", "loss": "train/loss"}

    def test_records_that_go_over_blocks_come_together(self, tmp_path):
        run = read_log(written(tmp_path / "run-1.wandb", wandb_file(WANDB_ROWS, big=50_000)))
        assert run.column("loss").tolist() == LOSSES and run.notes == ()

    @pytest.mark.parametrize("where", ["", "wandb", "wandb/offline-run-2024_1-a1"])
    def test_directories_of_a_run_are_known(self, tmp_path, where):
        written(tmp_path / "wandb/offline-run-2024_1-a1/run-a1.wandb", wandb_file(WANDB_ROWS))
        written(tmp_path / "wandb/debug.log", "x")
        (tmp_path / "wandb/latest-run").symlink_to(tmp_path / "wandb/offline-run-2024_1-a1")
        assert read_log(Place(tmp_path / where)).column("loss").tolist() == LOSSES

    def test_several_runs_ask_which(self, tmp_path):
        for name in ("a1", "b2"):
            written(tmp_path / f"wandb/run-2024_1-{name}/run-{name}.wandb", wandb_file(WANDB_ROWS))
        assert "it holds 2 runs, 'run' is 'run-a1', 'run-b2'" in refusal(Place(tmp_path))
        assert len(read_log(Place(tmp_path), where={"run": "run-b2"})) == len(STEPS)

    @pytest.mark.parametrize("cut", [1, 20, 200])
    def test_a_file_that_is_cut_off_gives_what_it_has(self, tmp_path, cut):
        run = read_log(written(tmp_path / "run-1.wandb", wandb_file(WANDB_ROWS)[:-cut]))
        assert len(STEPS) - 4 <= len(run) <= len(STEPS)

    def test_a_record_that_was_damaged_is_left_out(self, tmp_path):
        content = bytearray(wandb_file(WANDB_ROWS))
        content[60] ^= 1
        run = read_log(written(tmp_path / "run-1.wandb", bytes(content)))
        assert len(run) == len(STEPS) - 1 and "damaged records" in run.notes[0]

    @settings(deadline=None, derandomize=True, database=None, max_examples=60)
    @given(st.integers(0, 10_000), st.binary(max_size=60))
    def test_bytes_that_are_overwritten_make_no_other_numbers(self, tmp_path_factory, place, content):
        whole = wandb_file(WANDB_ROWS)
        place = 7 + place % (len(whole) - 7)
        damaged = whole[:place] + content + whole[place + len(content) :]
        try:
            run = read_log(written(tmp_path_factory.mktemp("log") / "run-1.wandb", damaged))
        except RunError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right
        else:
            assert set(run.column("loss")) <= set(LOSSES) and set(run.steps) <= set(STEPS)

    def test_a_missing_wandb_names_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb.proto", None)
        monkeypatch.setitem(sys.modules, "wandb", None)
        said = refusal(written(tmp_path / "run-1.wandb", struct.pack("<4sHB", b":W&B", 0xBEE1, 0) + b"rest"))
        assert said.endswith("run-1.wandb needs wandb: pip install 'pytest-induction[wandb]'")

    def test_wandb_itself_writes_what_is_read(self, tmp_path):
        pytest.importorskip("wandb")
        in_a_process_of_its_own(
            f"""
            import wandb
            settings = wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True)
            with wandb.init(dir={str(tmp_path)!r}, project="p", mode="offline", settings=settings) as run:
                for step, loss in zip({STEPS}, {LOSSES}):
                    run.log({{"train/loss": loss, "val/loss": 9.0, "train/global_step": step}})
            """
        )
        read = read_log(Place(tmp_path))
        assert read.steps.tolist() == STEPS and read.column("loss").tolist() == LOSSES


class TestTrees:
    def test_a_whole_disk_is_not_searched(self, tmp_path, monkeypatch):
        """And what was found before is said to be not all."""
        pytest.importorskip("tensorboard")
        from .event_files import begin, scalar, write

        (tmp_path / "a").mkdir()
        write(tmp_path / "a" / "x.tfevents.1", begin(1), scalar(0, loss=3), scalar(1, loss=2))
        for at in range(20):
            (tmp_path / f"b{at}").mkdir()
        monkeypatch.setattr(trees, "MOST_DIRECTORIES", 5)
        assert read_log(Place(tmp_path)).notes == ("only the first 5 directories were looked at",)

    def test_hidden_directories_are_passed_over(self, tmp_path):
        mlflow_store(tmp_path / "mlruns")
        mlflow_store(tmp_path / "mlruns", run=".trash/def")
        assert len(read_log(Place(tmp_path / "mlruns"))) == len(STEPS)
