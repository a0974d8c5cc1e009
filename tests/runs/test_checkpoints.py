"""Checkpoints: which step each is of, what is read of it without running anything, and why another is refused in one line."""

import shutil

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.runs.checkpoints.finding import Checkpoint, find_checkpoints, parse_steps
from pytest_induction.runs.checkpoints.layout import named
from pytest_induction.runs.checkpoints.reading import check_step, fill, fit, on_this_machine
from pytest_induction.runs.options_named import spelt

from .small_models import Evil, Small, make, make_compiled, make_tied, state
from .written_layouts import read_weights


def refusal(call, kind=RunError):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def found(place, **options):
    return [(each.step, each.name, each.kind) for each in find_checkpoints(place, **options)]


def touched(place, *names):
    for name in names:
        (place / name).write_bytes(b"x")
    return place


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_000100.pt", 100),
        ("model-100.safetensors", 100),
        ("epoch=1-step=200.ckpt", 200),
        ("epoch=1-step=200-v1.ckpt", 200),
        ("step=200-val_loss=2.31.ckpt", 200),
        ("step100-epoch2.pt", 100),
        ("gpt2-100.pt", 100),
        ("checkpoint-500", 500),
        ("global_step1000", 1000),
        ("steps_10k.pt", 10_000),
        ("timestep5-40.pt", 40),
        ("val_loss=2.31.ckpt", None),
        ("final.pt", None),
        ("llama-7b.pt", None),
        ("run-20240131235959123456.pt", None),
    ],
)
def test_the_step_is_what_follows_step_or_else_the_last_whole_number(name, step):
    found = named(name)
    assert (found.number if found is not None and found.unit == "step" else None) == step


def test_checkpoints_are_found_and_sorted_by_step_and_others_are_passed_over(tmp_path):
    touched(
        tmp_path, "step_10.pt", "model-9.safetensors", "last.ckpt", "optimizer_10.pt", "rng_state_0.pth", "log-3.txt", "a100.pth"
    )
    touched(tmp_path, "optimised-11.pt", "model-00001-of-00002.safetensors", "config.json")
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "logs-2024").mkdir()
    (tmp_path / "model7").mkdir()
    touched(tmp_path / "model7", "config.json")
    assert found(tmp_path) == [
        (7, "model7", "directory"),
        (8, "checkpoint-8", "directory"),
        (9, "model-9.safetensors", "file"),
        (10, "step_10.pt", "file"),
        (11, "optimised-11.pt", "file"),
        (100, "a100.pth", "file"),
    ]
    assert found(tmp_path, steps=[100, 8]) == [(8, "checkpoint-8", "directory"), (100, "a100.pth", "file")]
    assert "no checkpoint of step 12: it has 6, of steps 7 to 100" in refusal(lambda: find_checkpoints(tmp_path, steps=[9, 12]))
    assert "`steps` must be" in refusal(lambda: find_checkpoints(tmp_path, steps=[-1]), ArgumentError)


def test_a_pattern_says_which_are_meant_of_several_kinds(tmp_path):
    touched(tmp_path, "ema-10.pt", "model-10.pt", "model-20.pt")
    said = refusal(lambda: find_checkpoints(tmp_path))
    assert "ema-10.pt and model-10.pt in" in said and "are both of step 10" in said
    assert found(f"{tmp_path}/model-*") == [(10, "model-10.pt", "file"), (20, "model-20.pt", "file")]


def test_where_no_checkpoints_are_the_error_says_what_is_there(tmp_path):
    assert "(it is empty): expected directories as checkpoint-500" in refusal(lambda: find_checkpoints(tmp_path))
    touched(tmp_path, "final.pt")
    assert "(it has final.pt)" in refusal(lambda: find_checkpoints(tmp_path))
    assert "is a file: name the directory" in refusal(lambda: find_checkpoints(tmp_path / "final.pt"))
    assert "is not there: name the directory" in refusal(lambda: find_checkpoints(tmp_path / "none"))


def test_revisions_of_the_hub_need_their_steps():
    assert found("hf:a/b@step{}", steps=[10, 0]) == [(0, "hf:a/b@step0", "hub"), (10, "hf:a/b@step10", "hub")]
    assert "name them, as steps=[0, 1, 2, 4, 8]" in refusal(lambda: find_checkpoints("hf:a/b@step{}"))
    with spelt("command"):
        assert "name them, as --steps 0,1,2,4,8" in refusal(lambda: find_checkpoints("hf:a/b@step{}"))
    assert "as hf:a/b@step{}" in refusal(lambda: find_checkpoints("hf:a/b", [1]))


def test_steps_are_numbers_and_ranges_with_both_ends():
    assert parse_steps("0,1, 2,10:30:10") == [0, 1, 2, 10, 20, 30]
    for wrong in ("", "1,,2", "a", "1:2", "-1", "1:10:0", "9" * 16):
        assert "steps must be like" in refusal(lambda wrong=wrong: parse_steps(wrong))


def test_the_digest_is_of_the_content_and_not_of_the_name(tmp_path):
    one, other = tmp_path / "step_1.pt", tmp_path / "step_2.pt"
    one.write_bytes(bytes(range(256)) * 1000)
    shutil.copy(one, other)
    digests = {each.digest() for each in find_checkpoints(tmp_path)}
    assert len(digests) == 1
    content = bytearray(one.read_bytes())
    content[123_456] ^= 1
    one.write_bytes(content)
    assert find_checkpoints(tmp_path)[0].digest() not in digests and find_checkpoints(tmp_path)[1].digest() in digests


def test_the_digest_of_a_directory_is_of_what_makes_the_model(tmp_path):
    place = tmp_path / "checkpoint-1"
    place.mkdir()
    touched(place, "config.json", "model.safetensors", "optimizer.pt", "trainer_state.json")
    before = find_checkpoints(tmp_path)[0].digest()
    (place / "optimizer.pt").write_bytes(b"other")
    (place / "trainer_state.json").write_bytes(b"other")
    assert find_checkpoints(tmp_path)[0].digest() == before
    for name in ("config.json", "model.safetensors"):
        (place / name).write_bytes(b"y")
        assert find_checkpoints(tmp_path)[0].digest() != before
        (place / name).write_bytes(b"x")


def test_blocks_of_a_large_file_are_looked_at_up_to_its_end(tmp_path, monkeypatch):
    import pytest_induction.runs.checkpoints.finding as module

    monkeypatch.setattr(module, "WHOLE", 100)
    monkeypatch.setattr(module, "BLOCK", 10)
    monkeypatch.setattr(module, "BLOCKS", 4)
    path = tmp_path / "step_1.pt"
    checkpoint = Checkpoint(1, str(path), "file")

    def digest(changed=None):
        content = bytearray(1000)
        if changed is not None:
            content[changed] = 1
        path.write_bytes(content)
        return checkpoint.digest()

    assert digest() == digest() != digest(0)
    assert len({digest(), digest(5), digest(335), digest(999)}) == 4
    assert digest() == digest(100), "between two blocks"


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model_state_dict", "model", "ddp", "compiled", "lightning", "all"])
def test_weights_are_found_wherever_trainers_put_them(tmp_path, wrapped):
    weights = state(3)
    prefixes = {"ddp": "module.", "compiled": "_orig_mod.", "lightning": "model.", "all": "model.module._orig_mod."}
    renamed = {prefixes.get(wrapped, "") + name: value for name, value in weights.items()}
    if wrapped in ("lightning", "all"):
        renamed["metric.count"] = torch.ones(())
    whole = {
        "plain": renamed,
        "compiled": {**renamed, "step": 7},
        "model": {"model": renamed, "optimizer": {"state": {}}, "iter": 3},
        "model_state_dict": {"model_state_dict": renamed, "epoch": 2},
    }.get(wrapped, {"state_dict": renamed, "global_step": torch.tensor(7), "loops": {"a": [1]}})
    torch.save(whole, tmp_path / "step_7.pt")
    read = read_weights(tmp_path / "step_7.pt")
    assert read.step == (7 if wrapped in ("state_dict", "ddp", "lightning", "all", "compiled") else None)
    fitted = fit(make(), read.tensors, "step_7.pt")
    assert fitted.keys() == weights.keys() and all(torch.equal(fitted[name], weights[name]) for name in weights)


def test_a_compiled_model_takes_the_weights_of_a_plain_one():
    module, weights = make_compiled(), state(3)
    fitted = fit(module, weights, "a")
    fill(module, fitted, dict.fromkeys(fitted, torch.float32))
    assert torch.equal(module._orig_mod.embed.weight, weights["embed.weight"])


def test_safetensors_and_shards_are_read(tmp_path):
    save_file(state(1), tmp_path / "model-1.safetensors", metadata={"step": "1"})
    read = read_weights(tmp_path / "model-1.safetensors")
    assert read.step == 1 and read.tensors.keys() == state(1).keys()
    directory = tmp_path / "step-2"
    directory.mkdir()
    torch.save(state(2), directory / "weights.pt")
    torch.save({}, directory / "optimizer.pt")
    assert torch.equal(read_weights(directory).tensors["embed.weight"], state(2)["embed.weight"])


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_does_not_run_it(tmp_path, new_format):
    path, proof = tmp_path / "step_1.pt", tmp_path / "proof"
    torch.save({"state_dict": state(1), "extra": Evil(proof)}, path, _use_new_zipfile_serialization=new_format)
    said = refusal(lambda: read_weights(path))
    assert not proof.exists()
    assert said.startswith("step_1.pt needs `posix.system`, which is more than weights and may run code")
    torch.load(path, weights_only=False)
    assert proof.exists(), "the file does what it is said to do"


def test_broken_files_are_refused_in_one_line(tmp_path):
    torch.save(state(1), tmp_path / "whole.pt")
    save_file(state(1), tmp_path / "whole.safetensors")
    for name in ("whole.pt", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        for size in (0, 5, len(content) // 2, len(content) - 10):
            (tmp_path / f"cut-{name}").write_bytes(content[:size])
            assert refusal(lambda name=name: read_weights(tmp_path / f"cut-{name}")).startswith(f"cut-{name} is no ")
    (tmp_path / "text.pt").write_bytes(b"this is no checkpoint\n" * 9)
    assert refusal(lambda: read_weights(tmp_path / "text.pt")).startswith("text.pt is no ")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "it holds a `list`" in refusal(lambda: read_weights(tmp_path / "list.pt"))
    torch.save({"step": 3, "text": "a"}, tmp_path / "none.pt")
    assert "none.pt holds no tensors" in refusal(lambda: read_weights(tmp_path / "none.pt"))
    (tmp_path / "empty").mkdir()
    assert "empty must hold model.safetensors or" in refusal(lambda: read_weights(tmp_path / "empty"))


def test_a_shard_that_is_missing_or_lies_elsewhere_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    assert "lacks 2 of its 2 shards, the first is model-1.safetensors" in refusal(lambda: read_weights(tmp_path))
    index.write_text('{"weight_map": {"a": "../model-1.safetensors"}}')
    assert "names no shards" in refusal(lambda: read_weights(tmp_path))
    index.write_text("{")
    assert "cannot be read" in refusal(lambda: read_weights(tmp_path))


def test_a_step_that_contradicts_the_name_is_refused():
    checkpoint = Checkpoint(5, "/a/step_5.pt", "file")
    check_step(checkpoint, None)
    check_step(checkpoint, 5)
    assert "step_5.pt holds step 6, and its name says 5" in refusal(lambda: check_step(checkpoint, 6))


def test_weights_that_do_not_fit_say_which_tensor_and_what_was_expected():
    module, weights = make(), state(1)
    assert "`embed.weight` in a has shape (40, 24), the model's has (40, 16)" in refusal(
        lambda: fit(module, {**weights, "embed.weight": torch.ones(40, 24)}, "a")
    )
    lacking = {f"model.{name}": value for name, value in weights.items() if name != "places.weight"}
    assert "a lacks 1 of the model's 5 tensors, the first is `model.places.weight`" in refusal(lambda: fit(module, lacking, "a"))
    assert "a has 1 tensors that the model lacks, the first is `extra`" in refusal(
        lambda: fit(module, {**weights, "extra": torch.ones(1)}, "a")
    )
    assert "is torch.int64" in refusal(lambda: fit(module, {**weights, "embed.weight": torch.ones(40, 16).long()}, "a"))
    twice = {f"{prefix}.{name}": value for prefix in ("model", "ema") for name, value in weights.items()}
    assert "holds several such models, `ema.*` and `model.*`" in refusal(lambda: fit(module, twice, "a"))


def test_one_name_of_a_tied_weight_is_enough_and_two_must_agree():
    module, weights = make_tied(), state(1, tied=True)
    for name in ("embed.weight", "unembed.weight"):
        alone = {key: value for key, value in weights.items() if key != name}
        fill(module, fit(module, alone, "a"), dict.fromkeys(weights, torch.float32))
        assert torch.equal(module.embed.weight, weights["embed.weight"]) and module.unembed.weight is module.embed.weight
    differing = {**weights, "unembed.weight": weights["embed.weight"] + 1}
    assert "are one tensor in the model and two different ones in a" in refusal(lambda: fit(module, differing, "a"))


def test_a_state_that_is_no_tensor_is_refused_by_name():
    class Extra(nn.Module):
        def get_extra_state(self):
            return {"scale": 1}

        def set_extra_state(self, value):
            pass

    assert "`_extra_state` of `Extra` is no tensor" in refusal(lambda: fit(Extra(), {"a": torch.ones(1)}, "a"))


def test_what_lies_elsewhere_is_copied_for_as_long_as_it_is_read(tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    torch.save(state(4), tmp_path / "step_4.pt")
    system.pipe_file("/training/step_4.pt", (tmp_path / "step_4.pt").read_bytes())
    for name in ("config.json", "model.safetensors", "optimizer.pt"):
        system.pipe_file(f"/training/checkpoint-9/{name}", b"x")
    try:
        file, directory = find_checkpoints("memory://training")
        assert (file.step, file.kind, directory.step, directory.kind) == (4, "file", 9, "directory")
        with on_this_machine(file) as path:
            assert torch.equal(read_weights(path).tensors["embed.weight"], state(4)["embed.weight"])
        assert not path.exists()
        with on_this_machine(directory) as path:
            assert sorted(each.name for each in path.iterdir()) == ["config.json", "model.safetensors"]
        before = file.digest()
        system.pipe_file("/training/step_4.pt", b"other")
        assert file.digest() != before
    finally:
        system.store.clear()


def test_a_model_in_half_precision_is_filled_through_its_own_type():
    """A kept model in float32 gets what a model of bfloat16 would have been given first."""
    module, weights = Small(), state(1)
    fill(module, weights, dict.fromkeys(weights, torch.bfloat16))
    assert torch.equal(module.embed.weight, weights["embed.weight"].bfloat16().float())
