"""What layouts of checkpoints read beside what holds for all of them, which `tests/contract/test_layouts.py` tests."""

import importlib.util
import os
import pickle
import shutil
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from pytest_induction import load_model
from pytest_induction.errors import ModelError, RunError
from pytest_induction.runs.checkpoints import stored
from pytest_induction.runs.checkpoints.finding import find_checkpoints, look_for
from pytest_induction.runs.checkpoints.layout import named
from pytest_induction.runs.checkpoints.loading import Loader, Loading
from pytest_induction.runs.checkpoints.reading import fit, state_of, stated_step
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.sweep import sweep
from tests.contract.samples import write_layout

from .small_models import MAKE, Evil, Small, make, state
from .written_layouts import STEP, WRITERS, llama, read_weights, save_distributed, write, write_gguf

N = 6  # sequences: each measurement is quick
OF_A_FACTORY = [kind for kind in WRITERS if kind not in ("Megatron", "Transformers", "Adapter", "Gguf")]


def refusal(call, kind=RunError):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbers(snapshot):
    """What was measured, as it is written."""
    line, _ = to_line(replace(snapshot, seconds=None, fingerprint=""))
    return from_line(line, lambda _: {})


@pytest.mark.parametrize("kind", ["Distributed", "DeepSpeed", "TorchFile, Composer", "LitGPT"])
def test_a_sweep_measures_the_model_that_was_saved(tmp_path, kind):
    weights = write_layout(kind, tmp_path / "t")
    run = sweep(tmp_path / "t", tmp_path / "run", factory=MAKE, n_sequences=N)
    assert run.steps.tolist() == [STEP] and not run.snapshots[0].problem
    model = make()
    model.load_state_dict(weights)
    assert numbers(run.snapshots[0]) == numbers(Measuring(n_sequences=N).snapshot(load_model(model), STEP))


@pytest.mark.parametrize("kind", OF_A_FACTORY)
def test_weights_alone_ask_for_a_factory_by_its_option(tmp_path, kind):
    write_layout(kind, tmp_path / "t")
    said = refusal(lambda: sweep(tmp_path / "t", tmp_path / "run", n_sequences=N))
    assert said.endswith(': name what makes the model, factory="path/file.py:factory"')


def test_megatron_is_named_with_the_way_out(tmp_path):
    write("Megatron", tmp_path / "t")
    said = refusal(lambda: sweep(tmp_path / "t", tmp_path / "run", factory=MAKE))
    assert said.startswith(f"iter_{STEP:07d} is of Megatron") and "export_ckpt" in said
    core = tmp_path / "core" / "iter_0000002"
    core.mkdir(parents=True)
    for name in (".metadata", "common.pt", "metadata.json", "__0_0.distcp"):
        (core / name).write_bytes(b"x")
    assert "iter_0000002 is of Megatron" in refusal(lambda: sweep(core.parent, tmp_path / "run", factory=MAKE))


# torch.distributed.checkpoint


def _train(rank, port, place, seed):
    """Two processes of FSDP2, which each save their part of a model."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.fsdp import fully_shard

    model = Small()
    model.load_state_dict(state(seed))
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    dcp.save({"app": {"model": of_model, "optim": of_optimizer}, "step": torch.tensor(8)}, checkpoint_id=f"{place}/step-8")
    torch.distributed.destroy_process_group()
    os._exit(0)  # as in test_together.py


def test_two_processes_of_fsdp2_write_what_is_read_as_one_model(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train, (port, str(tmp_path), 5), nprocs=2)
    assert len(list((tmp_path / "step-8").glob("*.distcp"))) == 2
    read = read_weights(tmp_path / "step-8")
    assert read.step == 8 and not any("exp_avg" in name for name in read.tensors)
    fitted = fit(make(), read.tensors, "a")
    assert all(torch.equal(fitted[name], value) for name, value in state(5).items())


@pytest.mark.parametrize("inner", ["model_and_optim", "pytorch_model_fsdp_0", "model"])
def test_the_tensors_may_lie_in_a_directory_of_their_own(tmp_path, inner):
    """As OLMo-core, accelerate and the Trainer under FSDP, and others have them."""
    save_distributed({"model": state(2)}, tmp_path / "step5" / inner)
    (tmp_path / "step5" / "train").mkdir()
    (tmp_path / "step5" / "config.json").write_text('{"model": {"d_model": 16}}')
    (checkpoint,) = find_checkpoints(tmp_path)
    assert checkpoint.step == 5
    fitted = fit(make(), read_weights(tmp_path / "step5").tensors, "a")
    assert torch.equal(fitted["embed.weight"], state(2)["embed.weight"])
    before = checkpoint.digest()
    shutil.rmtree(tmp_path / "step5" / inner)
    save_distributed({"model": state(3)}, tmp_path / "step5" / inner)
    assert find_checkpoints(tmp_path)[0].digest() != before


def test_a_distributed_checkpoint_of_a_model_of_transformers_needs_no_factory(tmp_path):
    """The config lies in it, or in the directory of the training."""
    pytest.importorskip("transformers")
    for step, where in ((3, "t/checkpoint-3"), (4, "t")):
        model = llama(None, seed=step)
        save_distributed({"model": model.state_dict()}, tmp_path / "t" / f"checkpoint-{step}")
        model.config.save_pretrained(tmp_path / where)
        run = sweep(tmp_path / "t", tmp_path / "run", n_sequences=N, steps=[step])
        found = next(each for each in run.snapshots if each.step == step)
        assert not found.problem
        assert numbers(found) == numbers(Measuring(n_sequences=N).snapshot(load_model(model), step))


def test_a_metadata_file_runs_nothing(tmp_path):
    write("Distributed", tmp_path)
    path, proof = tmp_path / f"step-{STEP}" / ".metadata", tmp_path / "proof"
    path.write_bytes(pickle.dumps(Evil(proof)))
    said = refusal(lambda: read_weights(path.parent))
    assert "names `posix.system`, which is not a part of it and may run code" in said and not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists(), "the file does what it is said to do"


def test_a_distributed_checkpoint_that_is_not_whole_is_refused(tmp_path):
    write("Distributed", tmp_path)
    place = tmp_path / f"step-{STEP}"
    (part,) = place.glob("*.distcp")
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    assert f"{part.name} of step-{STEP} is no " in refusal(lambda: read_weights(place))
    part.unlink()
    assert f"{part.name} of step-{STEP} cannot be read" in refusal(lambda: read_weights(place))
    part.write_bytes(content)
    metadata = (place / ".metadata").read_bytes()
    (place / ".metadata").write_bytes(metadata[: len(metadata) // 2])
    assert f".metadata of step-{STEP} cannot be read" in refusal(lambda: read_weights(place))
    (place / ".metadata").unlink()
    assert "has no .metadata, which is written last" in refusal(lambda: read_weights(place))


# DeepSpeed


def zero_3(place, processes=2, seed=4, step=6):
    """Weights cut over processes as stage 3 has it: each has a share of every tensor, padded."""
    made = place / f"global_step{step}"
    made.mkdir(parents=True)
    weights = state(seed)
    shares = [[] for _ in range(processes)]
    for value in weights.values():
        flat = value.flatten()
        size = -(-flat.numel() // processes)
        padded = torch.cat([flat, torch.zeros(size * processes - flat.numel())])
        for rank in range(processes):
            shares[rank].append(padded[rank * size : (rank + 1) * size])
    shapes = [{name: value.shape for name, value in weights.items()}]
    for rank in range(processes):
        about = {"module": {}, "buffer_names": [], "param_shapes": shapes, "frozen_param_shapes": None, "shared_params": {}}
        about |= {"frozen_param_fragments": None, "ds_version": "0.16.0", "global_steps": step}
        torch.save(about, made / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        parts = {"zero_stage": 3, "partition_count": processes, "fp32_flat_groups": [torch.cat(shares[rank])]}
        torch.save({"optimizer_state_dict": parts}, made / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return weights


def test_zero_3_without_deepspeed_says_how_it_is_put_together(tmp_path, monkeypatch):
    zero_3(tmp_path)
    for name in ("deepspeed", "deepspeed.utils.zero_to_fp32"):
        monkeypatch.setitem(sys.modules, name, None)
    said = refusal(lambda: read_weights(tmp_path / "global_step6"))
    assert (
        said.startswith("global_step6 is of DeepSpeed's ZeRO 3")
        and "pip install deepspeed, or" in said
        and "zero_to_fp32.py" in said
    )
    assert stated_step(tmp_path / "global_step6") == 6


def test_zero_3_is_put_together_by_deepspeed(tmp_path):
    pytest.importorskip("deepspeed")
    weights = zero_3(tmp_path)
    read = read_weights(tmp_path / "global_step6")
    assert read.step == 6
    fitted = fit(make(), read.tensors, "a")
    assert all(torch.equal(fitted[name], value) for name, value in weights.items())


def test_deepspeed_runs_nothing_that_a_file_brings_along(tmp_path):
    by_itself = pytest.importorskip("deepspeed.utils.zero_to_fp32")
    zero_3(tmp_path)
    proof = tmp_path / "proof"
    path = tmp_path / "global_step6" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    torch.save({**torch.load(path), "extra": Evil(proof)}, path)
    assert "cannot be put together by deepspeed" in refusal(lambda: read_weights(tmp_path / "global_step6"))
    assert not proof.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    by_itself.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag="global_step6")
    assert proof.exists(), "the file does what it is said to do"


def test_a_checkpoint_of_deepspeed_inside_one_of_the_trainer_is_found(tmp_path):
    write("DeepSpeed", tmp_path / "checkpoint-100")
    (checkpoint,) = find_checkpoints(tmp_path)
    assert checkpoint.step == 100 and checkpoint.name == "checkpoint-100"
    assert torch.equal(read_weights(tmp_path / "checkpoint-100").tensors["embed.weight"], state(3)["embed.weight"])
    digest = checkpoint.digest()
    path = tmp_path / "checkpoint-100" / "global_step100" / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes() + b"x")
    assert checkpoint.digest() != digest


def test_weights_that_deepspeed_cut_over_ranks_of_a_model_are_refused(tmp_path):
    write("DeepSpeed", tmp_path)
    shutil.copy(
        tmp_path / "global_step100" / "mp_rank_00_model_states.pt", tmp_path / "global_step100" / "mp_rank_01_model_states.pt"
    )
    assert "is cut over processes (it has mp_rank_01_model_states.pt)" in refusal(
        lambda: read_weights(tmp_path / "global_step100")
    )


# GGUF


def test_a_gguf_file_is_measured_as_the_model_it_was_made_of(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    models = {}
    for step in (10, 20):
        models[step] = llama(None, seed=step)
        (tmp_path / "t").mkdir(exist_ok=True)
        write_gguf(tmp_path / "t" / f"small-{step}-f32.gguf", models[step])
    run = sweep(tmp_path / "t", tmp_path / "run", n_sequences=N)
    assert run.steps.tolist() == [10, 20] and not any(each.problem for each in run.snapshots)
    for snapshot in run.snapshots:
        wanted = Measuring(n_sequences=N).snapshot(load_model(models[snapshot.step]), snapshot.step)
        assert np.allclose(snapshot.prefix_matching, wanted.prefix_matching, atol=1e-5)
    assert load_model(str(tmp_path / "t" / "small-10-f32.gguf")).n_layers == 2


def test_gguf_asks_for_its_package_and_takes_no_factory(tmp_path, monkeypatch):
    (tmp_path / "model-5.gguf").write_bytes(b"GGUF")
    (checkpoint,) = find_checkpoints(tmp_path)
    assert "leave the factory out" in refusal(lambda: Loader(Loading(factory=MAKE)).load(checkpoint))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else found(name, *more))
    assert "needs gguf: pip install 'pytest-induction[gguf]'" in refusal(lambda: load_model(checkpoint.place), ModelError)


# which step, and what is left out


@pytest.mark.parametrize(
    ("name", "number", "unit"),
    [
        ("iter-100-tokens-51200", 100, "step"),
        ("checkpoint-100-tokens-51200", 100, "step"),
        ("step1000-tokens4B", 1000, "step"),
        ("51200_tokens_step_7.pt", 7, "step"),
        ("step738020-unsharded", 738020, "step"),
        ("iter_0000100", 100, "step"),
        ("ep0-ba100-rank0.pt", 100, "step"),
        ("global_step_50", 50, "step"),
        ("2024-01-31_step100.pt", 100, "step"),
        ("20240131-model-100.pt", 100, "step"),
        ("model-100-20240131.pt", 100, "step"),
        ("run_2024-01-31_12-30-00_500.pt", 500, "step"),
        ("model-100-seed1.pt", 100, "step"),
        ("small-100-q4_k_m.gguf", 100, "step"),
        ("small-100-f16.gguf", 100, "step"),
        ("step2M.pt", 2_000_000, "step"),
        ("step_100_loss_2.31.pt", 100, "step"),
        ("100_acc0.93.pt", 100, "step"),
        ("epoch_3", 3, "epoch"),
        ("epoch=3-val_loss=2.31.ckpt", 3, "epoch"),
        ("tokens-4B", 4 * 10**9, "tokens"),
        ("10Mtokens.pt", 10**7, "tokens"),
        ("ckpt-2024-01-31.pt", None, None),
        ("model-20240131.pt", None, None),
        ("best_seed3.pt", None, None),
        ("smollm-135M.pt", None, None),
        ("model-f16.gguf", None, None),
        ("final-v2.pt", None, None),
    ],
)
def test_a_name_tells_a_step_or_else_an_epoch_or_tokens(name, number, unit):
    found = named(name)
    assert (found and found.number, found and found.unit) == (number, unit)


def test_the_step_of_what_names_none_stands_in_it(tmp_path):
    torch.save({"state_dict": state(1), "global_step": 300}, tmp_path / "epoch=1.ckpt")
    torch.save({"state_dict": state(2), "global_step": 600}, tmp_path / "epoch=2.ckpt")
    torch.save({"state_dict": state(3), "global_step": 750}, tmp_path / "last.ckpt")
    found = look_for(tmp_path)
    assert [each.step for each in sorted(found.checkpoints, key=lambda each: each.step)] == [300, 600, 750]
    assert not found.notes


@pytest.mark.parametrize(
    "said",
    [
        {"step": 40},
        {"global_step": torch.tensor(40)},
        {"iter_num": 40, "epoch": 2},
        {"train_state": {"step": 40}},
        {"completed_steps": 40.0},
        {"meta": {"global_step": "40"}},
    ],
)
def test_files_of_any_name_are_put_in_order_by_what_they_state(tmp_path, said):
    torch.save({"model": state(1), **said}, tmp_path / "b.pt")
    torch.save({"model": state(2), "step": 7}, tmp_path / "c.pt")
    found = look_for(tmp_path)
    assert [(each.step, each.name) for each in found.checkpoints] == [(7, "c.pt"), (40, "b.pt")] and not found.notes


def test_last_best_and_final_beside_steps_are_said(tmp_path):
    for step in (10, 20):
        torch.save({"state_dict": state(step), "global_step": step}, tmp_path / f"step_{step}.ckpt")
    shutil.copy(tmp_path / "step_20.ckpt", tmp_path / "last.ckpt")
    torch.save({"state_dict": state(5), "global_step": 15}, tmp_path / "best.ckpt")
    torch.save(state(6), tmp_path / "final.pt")
    run = sweep(tmp_path, tmp_path / "run", factory=MAKE, n_sequences=N)
    assert run.steps.tolist() == [10, 15, 20]
    assert set(run.notes) == {
        "last.ckpt is left out: it is of step 20, as step_20.ckpt is",
        "best.ckpt is of step 15, by what it says itself",
        "final.pt is left out: neither its name nor its content tells a step",
    }


def test_where_names_and_contents_tell_epochs_only_these_are_taken_and_said(tmp_path):
    for epoch in (1, 2):
        torch.save(state(epoch), tmp_path / f"epoch_{epoch}.pt")
    torch.save(state(3), tmp_path / "best.pt")
    found = look_for(tmp_path)
    assert [each.step for each in found.checkpoints] == [1, 2]
    assert found.notes[0] == "no checkpoint tells its step: epochs are taken for steps"
    assert any(note.startswith("best.pt is left out") for note in found.notes)


def test_a_place_where_nothing_tells_a_step_is_refused(tmp_path):
    torch.save(state(1), tmp_path / "final.pt")
    said = refusal(lambda: find_checkpoints(tmp_path))
    assert "(it has final.pt)" in said and said.endswith("; nothing tells which step final.pt is of")


# names of weights


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Small()

    def forward(self, tokens):
        return self.net(tokens)


class Halves(nn.Module):
    """Whose own names are those that wrappers use."""

    def __init__(self):
        super().__init__()
        self.module, self.weights = nn.Linear(3, 3), nn.ModuleDict({"module": nn.Linear(3, 3)})


@pytest.mark.parametrize("word", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("side", ["file", "model"])
def test_what_wrappers_put_into_names_is_left_aside_on_either_side(word, side):
    weights = state(3)
    within = {key.replace("layers.0.", f"layers.0.{word}."): value for key, value in weights.items()}
    around = {f"{word}.{key}": value for key, value in within.items()}
    for names in (within, around):
        if side == "file":
            fitted = fit(make(), names, "a")
            assert fitted.keys() == weights.keys()
            assert all(torch.equal(fitted[key], value) for key, value in weights.items())
        else:
            module = nn.Module()
            for name, value in names.items():
                _put(module, name, value)
            fitted = fit(module, weights, "a")
            held = state_of(module)
            assert fitted.keys() == held.keys() and all(torch.equal(fitted[key], value) for key, value in held.items())


def _put(module, name, value):
    first, _, rest = name.partition(".")
    if not rest:
        module.register_parameter(first, nn.Parameter(value.clone()))
        return
    if not hasattr(module, first):
        module.add_module(first, nn.Module())
    _put(getattr(module, first), rest, value)


@pytest.mark.parametrize("prefix", ["", "model.", "model.module._orig_mod."])
def test_the_attribute_of_a_wrapper_is_put_before_the_names_of_a_file(prefix):
    weights = {f"{prefix}{name}": value for name, value in state(3).items()}
    fitted = fit(Wrapper(), weights, "a")
    assert all(torch.equal(fitted[f"net.{name}"], value) for name, value in state(3).items())


def test_names_of_the_models_own_are_kept():
    module = Halves()
    weights = {name: torch.full_like(value, index) for index, (name, value) in enumerate(module.state_dict().items())}
    assert {name: float(value.flatten()[0]) for name, value in fit(module, weights, "a").items()} == {
        name: float(index) for index, name in enumerate(weights)
    }


def test_another_models_weights_are_still_refused():
    lacking = {f"module.{name}": value for name, value in state(1).items() if "layers.1" not in name}
    assert "lacks 1 of the model's 5 tensors" in refusal(lambda: fit(make(), lacking, "a"))
    shifted = {name.replace("layers.0", "layers.2"): value for name, value in state(1).items()}
    assert "lacks 1 of the model's 5 tensors, the first is `layers.0.weight`" in refusal(lambda: fit(make(), shifted, "a"))


# reading


def test_tensors_are_read_and_not_mapped(tmp_path):
    """What is cut short afterwards would else kill the process."""
    for kind in ("TorchFile", "Safetensors"):
        write(kind, tmp_path)
    for path in (tmp_path / "ckpt.pt", tmp_path / f"model-{STEP}.safetensors"):
        tensors = read_weights(path).tensors
        path.write_bytes(b"")
        assert all(torch.equal(tensors[name], value) for name, value in state(3).items())


def test_only_the_weights_of_a_larger_state_are_read(tmp_path, monkeypatch):
    """The state of an optimiser is twice as large as they are."""
    large = torch.zeros(5_000_000)
    torch.save({"model": state(1), "optimizer": {"state": {0: {"exp_avg": large}}}}, tmp_path / "step_1.pt")
    read = []
    original = stored._bytes
    monkeypatch.setattr(stored, "_bytes", lambda stream, offset, size: read.append(size) or original(stream, offset, size))
    tensors = read_weights(tmp_path / "step_1.pt").tensors
    assert tensors.keys() == state(1).keys()
    assert sum(read) < 100_000


def test_weights_that_share_memory_go_on_doing_so(tmp_path):
    shared = torch.randn(6, 4)
    torch.save({"a": shared, "b": shared, "c": shared[2:].t(), "d": torch.empty(0, 3)}, tmp_path / "step_1.pt")
    read = read_weights(tmp_path / "step_1.pt").tensors
    assert read["a"].data_ptr() == read["b"].data_ptr()
    assert torch.equal(read["c"], shared[2:].t()) and read["d"].shape == (0, 3)
