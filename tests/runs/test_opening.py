"""`load_run` finds out what a path holds, and says what it expected where it holds nothing."""

import json
import subprocess
import sys

import fsspec
import pytest

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.runs.opening import holds_checkpoints, is_log, load_run
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.store import RunWriter, read_run

ROW = '{"step": 1, "loss": 3, "ce": 2}\n'
STATE = json.dumps({"log_history": [{"step": 5, "loss": 3}]})


def refusal(path, kind=RunError, **options):
    with pytest.raises(kind) as caught:
        load_run(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def filled(directory, *names, content=ROW):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


@pytest.fixture
def recorded(tmp_path):
    with RunWriter(tmp_path / "run", source="recorder") as writer:
        writer.append(Snapshot(3, loss=2.5))
    return tmp_path / "run"


def test_a_run_is_returned_as_it_is():
    run = TrainingRun("mine", (Snapshot(1),))
    assert load_run(run) is run


@pytest.mark.parametrize("kind", [str, lambda path: path, Place, lambda path: f"file://{path}/"])
def test_a_recorded_run_is_read_however_it_is_named(recorded, kind):
    run = load_run(kind(recorded))
    assert run.source == "recorder" and run.steps.tolist() == [3]


def test_a_recorded_run_comes_before_a_log_beside_it(recorded):
    filled(recorded, "trainer_state.json", content=STATE)
    assert load_run(recorded).steps.tolist() == [3]


def test_a_log_is_read_with_the_columns_that_are_said(tmp_path):
    filled(tmp_path, "log.jsonl")
    assert load_run(tmp_path / "log.jsonl").snapshots[0].loss == 3
    assert load_run(tmp_path / "log.jsonl", columns={"loss": "ce"}).snapshots[0].loss == 2


@pytest.mark.parametrize("name", ["trainer_state.json", "checkpoint-5/trainer_state.json"])
def test_a_directory_with_a_trainer_state_is_a_log(tmp_path, name):
    """Also that of one checkpoint."""
    path = tmp_path / name
    filled(tmp_path, name, content=STATE)
    assert load_run(path.parent).steps.tolist() == [5]


def test_checkpoints_with_a_trainer_state_beside_them_ask_which_is_meant(tmp_path):
    filled(tmp_path, "trainer_state.json", "checkpoint-5/model.safetensors", content=STATE)
    assert holds_checkpoints(Place(tmp_path)) and not is_log(Place(tmp_path))
    said = refusal(tmp_path)
    assert said.endswith(f"sweep {tmp_path} -o RUN; or name the log of the training, {tmp_path}/trainer_state.json")
    assert load_run(tmp_path / "trainer_state.json").steps.tolist() == [5]


@pytest.mark.parametrize("beside", ["rng_state_0.pth", "optimizer.pt", "model-00001-of-00002.safetensors", "global_step5/x.pt"])
def test_one_checkpoint_with_its_trainer_state_holds_no_others(tmp_path, beside):
    """Of several files, some with numbers in their names."""
    filled(tmp_path, "trainer_state.json", beside, content=STATE)
    assert not holds_checkpoints(Place(tmp_path)) and load_run(tmp_path).steps.tolist() == [5]


def test_a_directory_with_one_log_file_is_a_log(tmp_path):
    assert load_run(filled(tmp_path, "metrics.jsonl", "hparams.yaml")).source == "log"


def test_a_log_is_read_from_elsewhere():
    fsspec.filesystem("memory").pipe_file("/logs/log.jsonl", ROW.encode())
    try:
        assert load_run("memory://logs").steps.tolist() == load_run("memory://logs/log.jsonl").steps.tolist() == [1]
    finally:
        fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-100/model.safetensors",
        "step_100/model.safetensors",
        "step100.pt",
        "iter-100.pth",
        "epoch=0-step=100.ckpt",
        "100.safetensors",
    ],
)
def test_checkpoints_must_be_swept_first(tmp_path, name):
    filled(tmp_path, name)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} holds checkpoints (")
    assert message.endswith(f"sweep them first: python -m pytest_induction sweep {tmp_path} -o RUN")


def test_checkpoints_with_a_log_say_where_it_lies(tmp_path):
    filled(tmp_path, "checkpoint-100/model.safetensors", "checkpoint-100/trainer_state.json", content=STATE)
    message = refusal(tmp_path)
    assert f"sweep {tmp_path} -o RUN; or name the log of the training, {tmp_path}/checkpoint-100/trainer_state.json" in message


def test_checkpoints_with_another_log_name_that(tmp_path):
    """As llm.c leaves them."""
    filled(tmp_path, "model_00010000.bin", "main.log", content="step 1: loss 3\n")
    assert refusal(tmp_path).endswith(f"or name the log of the training, {tmp_path}/main.log")
    assert load_run(tmp_path / "main.log").steps.tolist() == [1]


def test_a_single_checkpoint_is_no_run(tmp_path):
    message = refusal(filled(tmp_path, "step5.safetensors") / "step5.safetensors")
    assert "is a checkpoint" in message and "sweep" in message


def test_a_part_of_a_run_names_the_whole(recorded):
    for name in ("run.json", "snapshots.jsonl"):
        assert "name the directory that it lies in" in refusal(recorded / name)


@pytest.mark.parametrize("names", [(), ("notes.txt",)])
def test_a_directory_of_something_else_says_what_was_expected(tmp_path, names):
    message = refusal(filled(tmp_path, *names))
    assert message.startswith(f"{tmp_path} holds no run (") and "run.json" in message and "trainer_state.json" in message
    assert ("it is empty" in message) == (not names)


def test_a_path_that_is_not_there_says_so(tmp_path):
    assert refusal(tmp_path / "none").startswith(f"{tmp_path}/none is not there: expected ")


def test_columns_are_checked(tmp_path):
    assert "`columns` must map" in refusal(filled(tmp_path, "a.jsonl") / "a.jsonl", ArgumentError, columns={"lss": "ce"})


def test_a_choice_of_rows_is_for_logs(recorded):
    assert "`where` is for logs" in refusal(recorded, ArgumentError, where={"run": "a"})


@pytest.mark.parametrize("kind", ["read", "given"])
def test_a_sweep_of_which_nothing_could_be_loaded_is_none(tmp_path, kind):
    """Its losses, which lay beside the weights, say nothing of heads."""
    with RunWriter(tmp_path / "swept", source="sweep") as writer:
        for step in range(10):
            writer.append(Snapshot(step, loss=3.0, problem=f"step{step}.pt is no whole file of weights"))
    path = tmp_path / "swept"
    run = path if kind == "read" else read_run(Place(path))
    assert refusal(run) == "swept: 0 of 10 checkpoints could be loaded: step 0: step0.pt is no whole file of weights"
    with RunWriter(path, source="sweep") as writer:
        writer.append(Snapshot(10, repeat_loss=3.0))
    assert len(load_run(path)) == 11


def test_columns_of_a_run_that_is_no_log_are_refused(recorded):
    """They would be passed over without a word."""
    assert "`columns`" in refusal(recorded, ArgumentError, columns={"loss": "ce"})
    assert "`columns`" in refusal(load_run(recorded), ArgumentError, columns={"loss": "ce"})


@pytest.mark.parametrize("extra", ["", "import torch; "])
def test_reading_a_log_loads_neither_torch_nor_pandas(tmp_path, extra):
    """The second time shows that the check can fail."""
    filled(tmp_path, "log.jsonl")
    code = (
        f"import sys; {extra}from pytest_induction.runs.opening import load_run; run = load_run({str(tmp_path / 'log.jsonl')!r}); "
        "print(len(run), sorted({'torch', 'pandas', 'tensorboard', 'fsspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 [") and ("torch" in done.stdout) == bool(extra)
    if not extra:
        assert done.stdout == "1 []\n"
