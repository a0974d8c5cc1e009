"""A model that is spread over the processes of its training: real trainings of two processes, over gloo."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from pytest_induction.errors import ModelError
from pytest_induction.runs import recorder as recording
from pytest_induction.runs import together
from pytest_induction.runs.places import Place
from pytest_induction.runs.recorder import InductionRecorder
from pytest_induction.runs.store import read_run
from pytest_induction.runs.together import is_spread, why_not_together
from tests.runs.training import Tiny

ROOT = Path(__file__).parents[2]
BEGIN = """
import hashlib, json, os, sys, warnings
import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from pytest_induction.errors import InductionError
from pytest_induction.runs import together
from pytest_induction.runs.recorder import InductionRecorder
from tests.runs.training import CONTEXT, D_VOCAB, Tiny, loss_of, rows

rank, meeting, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
TEXT = np.random.default_rng(0).integers(0, D_VOCAB, (4, CONTEXT))

def sharded(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)

def trained(model, steps, each_step):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        loss = loss_of(model, rows(2, seed=10 * step + rank))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if each_step(model, step + 1, loss) == "stop":
            break

def nothing(*given):
    pass

class Each:
    def __init__(self, recorder):
        self.recorder, self.taken = recorder, []

    def __call__(self, model, step, loss):
        found = self.recorder(model, step, loss=loss)
        self.taken += [] if found is None else [found.step]
        return "stop" if self.recorder.should_stop else ""

def weights(model):
    content = b"".join(value.full_tensor().detach().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.blake2b(content).hexdigest()
"""
# Threads of torch may still wait for the interpreter while it ends, and abort it: a process that has told all ends at once.
END = """
print(json.dumps(told), flush=True)
distributed.destroy_process_group()
os._exit(0)
"""


def in_two_processes(tmp_path, path, code):
    """What each of two processes printed last, as JSON."""
    script = tmp_path / "training.py"
    script.write_text(f"{BEGIN}\n{textwrap.dedent(code)}\n{END}")
    both = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meeting"), str(path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def read(path):
    return read_run(Place(path))


def test_a_fully_sharded_training_is_measured_by_all_and_recorded_by_the_first(tmp_path, path):
    """FSDP2. What is measured is what one process alone measures of the same weights, and the training is the same to the bit."""
    code = """
    torch.manual_seed(0)
    plain = sharded(Tiny(dropout=0.2))
    torch.manual_seed(rank)
    trained(plain, 8, nothing)

    torch.manual_seed(0)
    model = sharded(Tiny(dropout=0.2))
    recorder = InductionRecorder(path, text=TEXT, schedule=2, max_overhead=None)
    recorder(model, 0)
    each = Each(recorder)
    torch.manual_seed(rank)
    trained(model, 8, each)
    final = recorder.final(model, 8)
    recorder.close()
    told = [each.taken, final is None, weights(model) == weights(plain), weights(model)[:8]]
    """
    first, second = in_two_processes(tmp_path, path, code)
    assert first == [[2, 4, 6, 8], True, True, second[3]] and second[:3] == [[], True, True]
    run = read(path)
    assert run.steps.tolist() == [0, 2, 4, 6, 8] and run.notes == () and not run.is_open
    assert all(each.problem == "" and each.icl_score is not None for each in run.snapshots)
    assert [each.loss is None for each in run.snapshots] == [True, False, False, False, False]
    torch.manual_seed(0)
    text = np.random.default_rng(0).integers(0, 24, (4, 48))
    alone = InductionRecorder(tmp_path / "alone", text=text)(Tiny(dropout=0.2), 0)
    np.testing.assert_allclose(run.snapshots[0].prefix_matching, alone.prefix_matching, atol=1e-5)
    assert run.snapshots[0].advantage == pytest.approx(alone.advantage, abs=1e-4)
    assert run.snapshots[0].icl_score == pytest.approx(alone.icl_score, abs=1e-4)
    assert len({each.fingerprint for each in run.snapshots}) == 5
    assert not np.allclose(run.snapshots[0].prefix_matching, run.snapshots[-1].prefix_matching, atol=1e-3)


@pytest.mark.parametrize("first", [pytest.param("", marks=pytest.mark.exhaustive), "loss_of(model, rows(2)).backward()"])
def test_a_model_of_the_older_fsdp_is_measured_before_and_after_its_first_pass(tmp_path, path, first):
    code = f"""
    from torch.distributed.fsdp import FullyShardedDataParallel
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = FullyShardedDataParallel(Tiny(dropout=0.0), device_id=torch.device("cpu"), use_orig_params=True)
    {first}
    with InductionRecorder(path, schedule=2, max_overhead=None) as recorder:
        recorder(model, 0)
        trained(model, 4, Each(recorder))
    told = []
    """
    in_two_processes(tmp_path, path, code)
    run = read(path)
    assert run.steps.tolist() == [0, 2, 4] and all(each.problem == "" for each in run.snapshots)
    torch.manual_seed(0)
    alone = InductionRecorder(tmp_path / "alone")(Tiny(dropout=0.0), 0)
    np.testing.assert_allclose(run.snapshots[0].prefix_matching, alone.prefix_matching, atol=1e-5)


@pytest.mark.exhaustive  # DeepSpeed compiles what its processes talk by, which takes minutes the first time
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_a_training_with_the_third_stage_of_zero_is_measured_too(tmp_path, path):
    """DeepSpeed leaves nothing of a weight between passes but each process's part."""
    code = """
    import deepspeed

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    deepspeed.init_distributed(dist_backend="gloo")

    def zero_trained(recorder=None):
        torch.manual_seed(0)
        model = Tiny(dropout=0.1)
        optimiser = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
        config = {"train_micro_batch_size_per_gpu": 2, "optimizer": optimiser, "zero_optimization": zero}
        engine, *_ = deepspeed.initialize(model=model, config=config, model_parameters=model.parameters())
        torch.manual_seed(rank)
        if recorder is not None:
            recorder(engine, 0)
        for step in range(8):
            loss = loss_of(engine, rows(2, seed=10 * step + rank))
            engine.backward(loss)
            engine.step()
            if recorder is not None:
                recorder(engine, step + 1, loss=loss)
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            content = b"".join(each.detach().numpy().tobytes() for each in engine.module.parameters())
        return hashlib.blake2b(content).hexdigest()

    plain = zero_trained()
    with InductionRecorder(path, text=TEXT, schedule=2, max_overhead=None) as recorder:
        told = [zero_trained(recorder) == plain]
    """
    assert in_two_processes(tmp_path, path, code) == [[True], [True]]
    run = read(path)
    assert run.steps.tolist() == [0, 2, 4, 6, 8] and all(each.problem == "" for each in run.snapshots)
    torch.manual_seed(0)
    text = np.random.default_rng(0).integers(0, 24, (4, 48))
    alone = InductionRecorder(tmp_path / "alone", text=text)(Tiny(dropout=0.1), 0)
    np.testing.assert_allclose(run.snapshots[0].prefix_matching, alone.prefix_matching, atol=1e-5)
    assert run.snapshots[0].icl_score == pytest.approx(alone.icl_score, abs=1e-4)
    assert len({each.fingerprint for each in run.snapshots}) == 5


def test_the_first_decides_what_the_training_can_afford_and_whether_it_stops(tmp_path, path):
    code = """
    model = sharded(Tiny(dropout=0.0))
    rule = lambda snapshots: "enough" if len(snapshots) == 4 else ""
    limit = None if rank == 0 else 1e-9  # what the second could afford is not asked
    recorder = InductionRecorder(path, schedule=1, max_overhead=limit, stop_when=rule)
    trained(model, 9, Each(recorder))
    recorder.close()
    told = [recorder.should_stop, recorder.stop_reason]
    """
    first, second = in_two_processes(tmp_path, path, code)
    assert first == [True, "enough"] and second == [True, "as the first process says"]
    assert read(path).steps.tolist() == [1, 2, 3, 4]


def test_a_first_process_alone_does_not_wait_for_ever(tmp_path, path):
    """As where a loop has `if rank == 0:` around the recorder."""
    code = """
    model = sharded(Tiny(dropout=0.0))
    together.PATIENCE = 2.0
    told = ""
    if rank == 0:
        try:
            InductionRecorder(path)(model, 0)
        except InductionError as error:
            told = str(error)
    distributed.barrier()
    """
    first, second = in_two_processes(tmp_path, path, code)
    assert first == (
        "`FSDPTiny` is spread over 2 processes, and not all of them called the recorder within 2 s: call it in every process, at "
        "the same steps, and not in the first alone"
    )
    assert second == "" and not path.exists()


def test_what_cannot_be_measured_or_written_is_said_in_all(tmp_path, path):
    code = """
    class Broken(Tiny):
        def forward(self, tokens):
            if not self.training:
                raise KeyError("midway")
            return super().forward(tokens)

    def failing(call):
        try:
            call()
        except InductionError as error:
            return type(error).__name__ + ": " + str(error)

    told = [failing(lambda: InductionRecorder(path)(sharded(Broken()), 0))]
    if rank == 0:
        os.makedirs(path)
        open(os.path.join(path, "thesis.tex"), "w").close()
    distributed.barrier()
    told.append(failing(lambda: InductionRecorder(path)(sharded(Tiny()), 0)))
    """
    first, second = in_two_processes(tmp_path, path, code)
    assert first[0] == second[0] and first[0].startswith("ModelError: the model cannot be measured: ") and "midway" in first[0]
    assert "is not empty and holds no run" in first[1]
    assert second[1] == f"RunError: {path}: the first process of the training cannot write there, and says why"


@pytest.fixture
def two(monkeypatch):
    """One process that takes itself for one of two."""
    monkeypatch.setattr(together, "in_several_processes", lambda: True)


def test_what_counts_as_spread(two, monkeypatch):
    model = Tiny()
    assert not is_spread(model)
    model.out.weight.ds_id = 7  # as ZeRO-3 marks them
    assert is_spread(model) and why_not_together(model) == ""
    monkeypatch.setattr(together, "in_several_processes", lambda: False)
    assert not is_spread(model)  # one process alone has all of it


def test_tensor_parallelism_is_refused_in_every_process(two, path, monkeypatch):
    """No process has all heads."""
    from torch.distributed.tensor import Shard

    model = Tiny()
    model.out.weight.placements, model.out.weight.device_mesh = (Shard(0),), "two"
    monkeypatch.setattr(recording, "meet", lambda about: None)
    monkeypatch.setattr(recording, "least_of", lambda value, device: value)
    for is_first in (True, False):
        monkeypatch.setattr(recording, "is_first_process", lambda is_first=is_first: is_first)
        with pytest.raises(
            ModelError, match=r"`out.weight` is split for tensor parallelism, and no process has all heads: measure its"
        ):
            InductionRecorder(path)(model, 0)
    assert not path.exists()
