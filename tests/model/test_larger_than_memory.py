"""Models whose weights do not all fit into memory: placed by accelerate, read from disk in each pass, measured all the same."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import load_model, measure_composition, measure_copying, measure_heads
from pytest_induction.attention.scores import KeyScores, PairScores
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.forward.calling import device_of, devices_of
from pytest_induction.model import placing
from pytest_induction.model.head_weights import Affine, Norm
from pytest_induction.runs.sweep import sweep
from tests.attention.patterns import repeated
from tests.model.zoo import build

ELSEWHERE = torch.device("meta")  # stands for a second device: torch refuses to mix it with the first as it does any two
CAPPED = Path(__file__).with_name("capped.py")


@pytest.fixture
def saved(tmp_path):
    """A small model in many files."""
    pytest.importorskip("accelerate")
    place = tmp_path / "model"
    build("llama").save_pretrained(place, max_shard_size="30KB")
    return place


def folders(place):
    """The directories that were made for weights and are still there."""
    return list(place.glob("pytest-induction-*"))


@pytest.mark.filterwarnings("ignore")
def test_what_lies_on_disk_is_measured_as_what_lies_in_memory(saved, tmp_path, monkeypatch):
    """Scores, the weights of heads and the name are the same; the directory for weights goes with the model."""
    monkeypatch.setattr(placing.tempfile, "tempdir", str(tmp_path))
    placed, whole = load_model(saved, device="auto", memory="60KB"), load_model(saved)
    assert "disk" in placed.module.hf_device_map.values()
    assert any(weight.is_meta for weight in placed.module.parameters())
    assert any("weights lie on" in note and "disk" in note for note in placed.notes)
    assert placed.fingerprint() == whole.fingerprint()
    one, other = (measure_heads(each, tokens=repeated()).prefix_matching for each in (placed, whole))
    np.testing.assert_allclose(one, other, atol=1e-6)
    one, other = (measure_copying(each, n_sequences=2) for each in (placed, whole))
    for name in ("ov_eigenvalue", "copying", "direct_effect"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5, err_msg=name)
    one, other = (measure_composition(each, n_sequences=2).key for each in (placed, whole))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert folders(tmp_path)
    del placed
    gc.collect()
    assert not folders(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_where_there_is_room_nothing_is_offloaded(saved):
    """Then it is a model like any other."""
    subject = load_model(saved, device="auto")
    assert not any(weight.is_meta for weight in subject.module.parameters())
    assert not any("weights lie on" in note for note in subject.notes)


def test_a_broken_weight_on_disk_is_named(saved):
    """Each is looked at, wherever it lies."""
    from safetensors.torch import load_file, save_file

    index = json.loads((saved / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.2.mlp.up_proj.weight"
    tensors = load_file(saved / index[name])
    tensors[name][1, 2] = torch.nan
    save_file(tensors, saved / index[name], metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"the weight `{name}` of .* holds NaN"):
        load_model(saved, device="auto", memory="60KB")


def test_without_accelerate_one_line_says_what_to_install(saved, monkeypatch):
    """Before anything is loaded."""
    monkeypatch.setattr(placing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"on the device 'auto' needs accelerate: pip install 'pytest-induction\[large\]'$"):
        load_model(saved, device="auto")


def test_what_cannot_be_placed_is_refused_by_name(tmp_path):
    """A factory has made its model already, a GGUF file is unpacked as a whole, checkpoints of a run share one device."""
    file = tmp_path / "it.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="'auto': a GGUF file is unpacked into memory as a whole; give a directory"):
        load_model(str(file), device="auto")
    with pytest.raises(ModelError, match="'auto': it comes from a factory; have the factory place it"):
        load_model("tests.model.zoo:build", device="auto")
    with pytest.raises(ArgumentError, match="device 'auto' is of one model"):
        sweep(tmp_path, tmp_path / "run", device="auto")


# Layers on several devices


class Reader:
    """A layer on the other device, which takes what lies there and nothing else."""

    n_heads, dtype, device = 4, torch.float32, ELSEWHERE

    def pairs(self, *places):
        assert {each.device for each in places} == {ELSEWHERE}
        return torch.empty(len(places[0]), self.n_heads, device=ELSEWHERE)

    def columns(self, keys):
        return self.diagonals([0])[:, :, 0] + keys[0]

    def diagonals(self, offsets):
        return torch.empty(2, self.n_heads, len(offsets), 5, device=ELSEWHERE)


def test_pairs_of_positions_follow_a_layer_to_its_device():
    """They are made where the tokens are."""
    pairs = PairScores.of(torch.tensor([[1, 2, 1, 3, 2], [4, 4, 5, 6, 5]]))
    keys = KeyScores.of({"one": [[(1, 0)], [(2, 1)]]}, torch.device("cpu"))
    for scores in (pairs, keys):
        assert scores(Reader()).device == ELSEWHERE
    assert pairs.rows.device.type == "cpu"


def test_gains_and_weights_follow_what_they_are_applied_to():
    """A final norm and an unembedding may lie on two devices, and what is offloaded on a third."""
    norm = Norm(centred=True, divides=True, gain=torch.ones(3), shift=torch.ones(3))
    there = torch.empty(2, 3, device=ELSEWHERE)
    weights = Affine(torch.ones(3, 4), torch.ones(4))
    for found in (norm(there), norm.folded(there.mT), norm.written(there), weights(there)):
        assert found.device == ELSEWHERE


def test_a_weight_is_fetched_each_time_that_it_is_asked_for():
    """Nothing keeps it."""
    asked = []
    affine = Affine(torch.empty(3, 4, device="meta"), None, lambda: asked.append(1) or torch.ones(3, 4))
    assert affine.n_in == 3
    assert not asked
    assert affine(torch.ones(2, 3)).tolist() == [[3.0] * 4] * 2
    assert affine.weight.shape == (3, 4)
    assert len(asked) == 2


class Hook:
    offload, execution_device = True, "meta"


def test_tokens_go_where_weights_are_brought_for_a_pass():
    """A placeholder does not tell; the hook that fetches its weight does."""
    model = nn.Sequential(nn.Embedding(5, 4, device="meta"), nn.Linear(4, 5))
    assert device_of(model).type == "cpu"
    model[0]._hf_hook = Hook()
    assert device_of(model) == ELSEWHERE
    assert {each.type for each in devices_of(model)} == {"meta", "cpu"}


# A cap on memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are told by Linux only")
def test_a_model_three_times_as_large_as_the_memory_that_it_gets(tmp_path):
    """Loading and measuring takes less than a third of the weights, in a process that counts its peak; loading all takes more."""
    pytest.importorskip("accelerate")
    returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once, and is not counted
    command = [sys.executable, str(CAPPED), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=returning)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["placed"] < found["weights"] / 3, found
    assert found["whole"] > 0.9 * found["weights"], found  # the count can fail
