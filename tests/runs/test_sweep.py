"""Checkpoints -> run: the numbers are those of each checkpoint loaded by itself, none is measured twice, and none ends the sweep."""

import contextlib
import fcntl
import gc
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_induction import progress
from pytest_induction.__main__ import main
from pytest_induction.errors import ArgumentError, ModelError, RunError, TextError
from pytest_induction.model.load import load_model
from pytest_induction.runs import tasks
from pytest_induction.runs.checkpoints import loading
from pytest_induction.runs.checkpoints.finding import Checkpoint, find_checkpoints
from pytest_induction.runs.checkpoints.loading import Loader, Loading
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.logs.beside import logged_at
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.places import Place
from pytest_induction.runs.store import read_run
from pytest_induction.runs.sweep import sweep

from .small_models import HERE, MAKE, Evil, Small, make, make_hoarder, make_hybrid, state

N = 6  # sequences: each measurement is quick


def refusal(call, kind=RunError):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def place(tmp_path):
    """Four checkpoints: steps 0, 10, 20, 30."""
    directory = tmp_path / "training"
    directory.mkdir()
    for step in (0, 10, 20, 30):
        torch.save({"state_dict": state(step), "global_step": step}, directory / f"step_{step:04d}.pt")
    return directory


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def measured(monkeypatch):
    """The steps that are measured, as they are."""
    steps = []
    snapshot = Measuring.snapshot
    monkeypatch.setattr(Measuring, "snapshot", lambda self, subject, step: steps.append(step) or snapshot(self, subject, step))
    return steps


@pytest.fixture
def adapted(monkeypatch):
    """The names of the models that are tried out."""
    names = []

    def counted(module, **options):
        names.append(options.get("name"))
        return adapt(module, **options)

    adapt = loading.adapt
    monkeypatch.setattr(loading, "adapt", counted)
    monkeypatch.setattr("pytest_induction.model.load.adapt", counted)
    return names


def quick(checkpoints, out, **options):
    return sweep(checkpoints, out, **{"factory": MAKE, "n_sequences": N, **options})


def numbers(snapshot):
    """What was measured, as it is written: without the time it took and the content it was measured on."""
    line, _ = to_line(replace(snapshot, seconds=None, fingerprint=""))
    return from_line(line, lambda _: {})


def alone(model, step, **options):
    """What a model loaded for itself gives."""
    subject = load_model(model, **options)
    return numbers(Measuring(n_sequences=N).snapshot(subject, step))


def filled(step, made=make):
    module = made()
    module.load_state_dict(state(step))
    return module


def problems(run):
    return {snapshot.step: snapshot.problem for snapshot in run.snapshots if snapshot.problem}


def save_llama(directory, seed, *, layers=2, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=options.pop("tied", False),
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(directory, **options)


def test_the_numbers_are_those_of_each_checkpoint_loaded_by_itself(place, out, adapted):
    run = quick(place, out)
    assert run.steps.tolist() == [0, 10, 20, 30] and run.source == "sweep" and not problems(run)
    for snapshot in run.snapshots:
        assert numbers(snapshot) == alone(filled(snapshot.step), snapshot.step)
    assert adapted == ["step_0000.pt"], "tried out once in the sweep"
    assert run.about["model"] == str(place) and run.about["backend"] == "sdpa" and run.about["n_sequences"] == N


def test_other_types_give_the_same_numbers_as_a_model_of_its_own(place, out):
    run = quick(place, out, factory=f"{HERE}:make_half", dtype="float32")
    for snapshot in run.snapshots:
        assert numbers(snapshot) == alone(filled(snapshot.step).to(torch.bfloat16).float(), snapshot.step)


def test_a_model_that_keeps_what_it_made_of_its_weights_is_made_anew(place, out, adapted):
    """What stays from the checkpoint before would be measured again."""
    run = quick(place, out, factory=make_hoarder)
    assert len(adapted) == 4
    for snapshot in run.snapshots:
        assert numbers(snapshot) == alone(filled(snapshot.step, make_hoarder), snapshot.step)


def test_a_text_gives_the_same_losses(place, out):
    text = np.random.default_rng(0).integers(1, 40, 64 * 8)
    run = quick(place, out, text=text)
    assert run.icl_windows is not None
    for snapshot in run.snapshots:
        subject = load_model(filled(snapshot.step))
        assert numbers(snapshot) == numbers(Measuring(n_sequences=N, text=text).snapshot(subject, snapshot.step))


@pytest.mark.parametrize("tied", [False, True])
def test_directories_of_transformers_sharded_or_not(tmp_path, out, adapted, tied):
    """The model is made once and refilled, and gives what `load_model` gives for each directory."""
    for step in (0, 5, 10):
        sharded = {"max_shard_size": "3KB"} if step == 5 else {}
        save_llama(tmp_path / "t" / f"checkpoint-{step}", step, tied=tied, **sharded)
    assert (tmp_path / "t" / "checkpoint-5" / "model.safetensors.index.json").exists()
    (tmp_path / "t" / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')
    run = quick(tmp_path / "t", out, factory=None)
    assert not problems(run) and len(adapted) == 1
    for snapshot in run.snapshots:
        assert numbers(snapshot) == alone(str(tmp_path / "t" / f"checkpoint-{snapshot.step}"), snapshot.step)


def test_a_model_that_is_stored_under_other_names_is_made_once_too(tmp_path, out, adapted):
    """As those of the Pythia suite are, whose steps on the hub are what most people look at."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    for step in range(3):
        torch.manual_seed(step)
        config = GPTNeoXConfig(vocab_size=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, **options)
        GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "t" / f"checkpoint-{step}")
    assert "embed_out.weight" in load_file(tmp_path / "t" / "checkpoint-0" / "model.safetensors")
    run = quick(tmp_path / "t", out, factory=None)
    assert adapted == ["checkpoint-0"]
    for snapshot in run.snapshots:
        assert numbers(snapshot) == alone(str(tmp_path / "t" / f"checkpoint-{snapshot.step}"), snapshot.step)


def test_directories_of_another_architecture_are_loaded_anew(tmp_path, out, adapted):
    save_llama(tmp_path / "t" / "checkpoint-0", 0)
    save_llama(tmp_path / "t" / "checkpoint-1", 1, layers=3)
    save_llama(tmp_path / "t" / "checkpoint-2", 2)
    quick(tmp_path / "t", out, factory=None)
    assert adapted == [f"checkpoint-{step}" for step in range(3)]


def test_a_directory_whose_weights_do_not_fit_its_config_is_a_problem_in_one_line(tmp_path, out):
    """Shapes, missing and left-over weights, a step that is another's, weights that are NaN, nothing at all."""
    for step in range(7):
        save_llama(tmp_path / "t" / f"checkpoint-{step}", step)

    def change(step, edit):
        path = tmp_path / "t" / f"checkpoint-{step}" / "model.safetensors"
        weights = load_file(path)
        edit(weights)
        save_file(weights, path, metadata={"format": "pt"})

    change(1, lambda weights: weights.update({"lm_head.weight": torch.ones(47, 16)}))
    change(2, lambda weights: weights.pop("model.norm.weight"))
    change(3, lambda weights: weights.update({"model.layers.2.mlp.up_proj.weight": torch.ones(16, 16)}))
    change(4, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    (tmp_path / "t" / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 6}')
    (tmp_path / "t" / "checkpoint-8").mkdir()
    run = quick(tmp_path / "t", out, factory=None)
    said = problems(run)
    assert said[1].startswith("`lm_head.weight` in checkpoint-1 has shape (47, 16), its config asks for (48, 16)")
    assert "checkpoint-2 lacks weights that its config asks for" in said[2] and "`model.norm.weight`" in said[2]
    assert (
        "checkpoint-3 has 1 tensors that its config has no use for, the first is `model.layers.2.mlp.up_proj.weight`" in said[3]
    )
    assert "the weight `model.norm.weight` of" in said[4] and "checkpoint-4" in said[4] and "holds NaN" in said[4]
    assert said[5].startswith("checkpoint-5 holds step 6, and its name says 5")
    assert said[8].startswith("checkpoint-8 must hold model.safetensors")
    assert said.keys() == {1, 2, 3, 4, 5, 8} and not any("\n" in each for each in said.values())
    assert numbers(run.snapshots[6]) == alone(str(tmp_path / "t" / "checkpoint-6"), 6)


def test_weights_of_a_directory_in_pickles_are_read_as_safely(tmp_path, out):
    """`pytorch_model.bin`, as older versions of transformers wrote it, and with more in it than weights."""
    proof = tmp_path / "proof"
    for step in (1, 2):
        directory = tmp_path / "t" / f"checkpoint-{step}"
        save_llama(directory, step)
        weights = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        torch.save({**weights, "extra": Evil(proof)} if step == 2 else weights, directory / "pytorch_model.bin")
    run = quick(tmp_path / "t", out, factory=None)
    assert numbers(run.snapshots[0]) == alone(str(tmp_path / "t" / "checkpoint-1"), 1)
    assert problems(run).keys() == {2} and "needs `posix.system`" in problems(run)[2] and not proof.exists()


def test_a_factory_may_say_which_classes_are_safe_in_a_checkpoint(tmp_path, out):
    """Settings of a training that lie beside the weights, as Lightning puts them there."""
    place = tmp_path / "t"
    place.mkdir()
    torch.save({"state_dict": state(1), "hyper_parameters": {"scale": Fraction(1, 3)}}, place / "step_1.ckpt")
    assert "step_1.ckpt needs `fractions.Fraction`" in problems(quick(place, out))[1]
    factory = tmp_path / "factory.py"
    factory.write_text(
        "import torch\nfrom fractions import Fraction\nfrom tests.runs.small_models import make\n"
        "torch.serialization.add_safe_globals([Fraction])\n"
    )
    try:
        assert not problems(quick(place, out, factory=f"{factory}:make"))
    finally:
        torch.serialization.clear_safe_globals()


def test_directories_without_a_config_need_a_factory(tmp_path, out):
    """What the Trainer of transformers writes of a module that is not its own."""
    directory = tmp_path / "t" / "checkpoint-3"
    directory.mkdir(parents=True)
    save_file(state(3), directory / "model.safetensors")
    torch.save({"state": {}}, directory / "optimizer.pt")
    assert "has no config.json: name what makes the model" in refusal(lambda: quick(tmp_path / "t", out, factory=None))
    save_llama(tmp_path / "t" / "checkpoint-4", 4)
    others = quick(tmp_path / "t", out.with_name("others"), factory=None)
    assert problems(others).keys() == {3} and "has no config.json: name what makes the model" in problems(others)[3]
    shutil.rmtree(tmp_path / "t" / "checkpoint-4")
    run = quick(tmp_path / "t", out)
    assert numbers(run.snapshots[0]) == alone(filled(3), 3)


def test_broken_files_are_problems_and_the_others_are_measured(place, out):
    content = (place / "step_0010.pt").read_bytes()
    (place / "step_0010.pt").write_bytes(content[: len(content) // 2])
    shutil.copy(place / "step_0030.pt", place / "step_0040.pt")
    torch.save({**state(1), "places.weight": torch.full((64, 16), float("nan"))}, place / "step_0050.pt")
    torch.save({**state(1), "places.weight": torch.ones(65, 16)}, place / "step_0060.pt")
    torch.save({name: value for name, value in state(1).items() if name != "unembed.weight"}, place / "step_0070.pt")
    run = quick(place, out)
    said = problems(run)
    assert said.keys() == {10, 40, 50, 60, 70} and not any("\n" in each for each in said.values())
    assert said[10].startswith("step_0010.pt is no whole file of weights")
    assert said[40].startswith("step_0040.pt holds step 30, and its name says 40")
    assert "`places.weight` of step_0050.pt holds NaN" in said[50]
    assert said[60] == "`places.weight` in step_0060.pt has shape (65, 16), the model's has (64, 16)"
    assert said[70].startswith("step_0070.pt lacks 1 of the model's 5 tensors, the first is `unembed.weight`")
    assert numbers(run.snapshots[2]) == alone(filled(20), 20)
    assert all(snapshot.prefix_matching is None for snapshot in run.snapshots if snapshot.problem)


def test_what_is_wrong_with_the_first_checkpoint_does_not_cost_the_others_their_kept_model(place, out, adapted):
    torch.save({**state(0), "embed.weight": torch.full((40, 16), float("nan"))}, place / "step_0000.pt")
    run = quick(place, out)
    assert problems(run).keys() == {0} and adapted == ["step_0000.pt", "step_0010.pt"]


def test_a_sweep_goes_on_where_it_was_broken_off_and_measures_nothing_twice(place, out, measured):
    quick(place, out, steps=[0, 10])
    whole = quick(place, out)
    assert measured == [0, 10, 20, 30]
    again = quick(place, out)
    assert measured == [0, 10, 20, 30] and again.snapshots == whole.snapshots
    assert len((out / "snapshots.jsonl").read_text().splitlines()) == 4


def test_a_checkpoint_that_has_changed_is_measured_again(place, out, measured):
    quick(place, out)
    torch.save(state(77), place / "step_0020.pt")
    run = quick(place, out)
    assert measured == [0, 10, 20, 30, 20] and numbers(run.snapshots[2]) == alone(filled(77), 20)


def test_the_same_content_under_another_name_is_not_measured_again(tmp_path, out, measured):
    place = tmp_path / "t"
    place.mkdir()
    torch.save(state(1), place / "step_1.pt")
    shutil.copy(place / "step_1.pt", place / "step_2.pt")
    run = quick(place, out)
    (place / "step_1.pt").rename(place / "step_3.pt")
    later = quick(place, out)
    assert measured == [1] and run.steps.tolist() == [1, 2] and later.steps.tolist() == [1, 2, 3]
    assert numbers(later.snapshots[2]) == replace(numbers(later.snapshots[0]), step=3)


def test_a_copy_that_says_another_step_is_refused_whichever_comes_first(tmp_path, out):
    place = tmp_path / "t"
    place.mkdir()
    torch.save({"state_dict": state(1), "step": 2}, place / "step_1.pt")
    shutil.copy(place / "step_1.pt", place / "step_2.pt")
    shutil.copy(place / "step_1.pt", place / "step_3.pt")
    run = quick(place, out)
    assert problems(run).keys() == {1, 3} and run.snapshots[1].prefix_matching is not None
    assert problems(quick(place, out)) == problems(run)


def test_a_checkpoint_that_failed_is_tried_again_and_its_problem_written_once(place, out, measured):
    whole = (place / "step_0010.pt").read_bytes()
    (place / "step_0010.pt").write_bytes(whole[:100])
    quick(place, out)
    assert problems(quick(place, out)).keys() == {10}
    assert len((out / "snapshots.jsonl").read_text().splitlines()) == 4
    (place / "step_0010.pt").write_bytes(whole)
    assert not problems(quick(place, out)) and measured == [0, 20, 30, 10]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"n_sequences": 7}, {"text": [[1] * 64] * 2}, {"dtype": "float64"}])
def test_other_settings_need_another_place(place, out, changed):
    quick(place, out, steps=[0])
    said = refusal(lambda: quick(place, out, **changed))
    assert f"was measured with other settings, `{next(iter(changed))}`" in said and said.endswith("choose another place")
    assert len(read_run(Place(out))) == 1


def test_a_place_that_holds_something_else_is_refused(place, out):
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    assert "is not empty and holds no run" in refusal(lambda: quick(place, out))


def test_what_no_checkpoint_could_be_measured_with_is_an_error_at_once(place, out):
    assert 'name what makes the model, factory="' in refusal(lambda: quick(place, out, factory=None))
    assert "no_such" in refusal(lambda: quick(place, out, factory=f"{HERE}:no_such"), ModelError)
    assert "must return a torch module, it returned `NoneType`" in refusal(
        lambda: quick(place, out, factory=f"{HERE}:make_none"), ModelError
    )
    assert "makes no model: ValueError: out of luck" in refusal(
        lambda: quick(place, out, factory=f"{HERE}:make_broken"), ModelError
    )
    assert "has no tokenizer" in refusal(lambda: quick(place, out.with_name("other"), text="some words " * 99), TextError)
    for options in ({"workers": 0}, {"seed": -1}, {"device": "abacus"}, {"dtype": "int4"}, {"memory": "much"}, {"num_gpus": 1.0}):
        refusal(lambda options=options: quick(place, out, **options), ArgumentError)
    refusal(lambda: quick(place, out, tokens_per_step=float("nan")), ArgumentError)
    refusal(lambda: quick([], out), ArgumentError)
    refusal(lambda: quick([place], out), ArgumentError)


def test_a_list_of_checkpoints_and_tokens_per_step(place, out):
    listed = [each for each in find_checkpoints(place) if each.step < 20]
    run = quick(listed, out, tokens_per_step=100)
    assert run.tokens.tolist() == [0, 1000]


def test_remote_checkpoints_are_measured_as_local_ones(place, out, tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    try:
        for file in place.iterdir():
            system.pipe_file(f"/t/{file.name}", file.read_bytes())
        run = quick("memory://t", out)
        here = quick(place, tmp_path / "here")
        assert [numbers(each) for each in run.snapshots] == [numbers(each) for each in here.snapshots]
        save_llama(tmp_path / "h" / "checkpoint-3", 3, max_shard_size="3KB")
        for file in (tmp_path / "h" / "checkpoint-3").iterdir():
            system.pipe_file(f"/h/checkpoint-3/{file.name}", file.read_bytes())
        (far,) = quick("memory://h", tmp_path / "far", factory=None).snapshots
        assert numbers(far) == alone(str(tmp_path / "h" / "checkpoint-3"), 3)
    finally:
        system.store.clear()


def test_revisions_of_the_hub_are_loaded_one_by_one(tmp_path, out, monkeypatch, adapted):
    asked = []

    def fake(spec, **options):
        asked.append(spec)
        if spec.endswith("step2"):
            raise ModelError(f"{spec!r} cannot be loaded: there is no such revision")
        return load_module(str(tmp_path / spec.rpartition("@")[2]), **options)

    for step in (1, 4, 8):
        save_llama(tmp_path / f"step{step}", step)
    load_module = loading.load_module
    monkeypatch.setattr(loading, "load_module", fake)
    run = quick("hf:a/b@step{}", out, factory=None, steps=[1, 2, 4, 8])
    assert asked == [f"hf:a/b@step{step}" for step in (1, 2, 4, 8)]
    assert adapted == ["hf:a/b@step1", "hf:a/b@step4"], "a new one after what failed"
    assert problems(run) == {2: "hf:a/b@step2 cannot be loaded: there is no such revision"}
    for snapshot in run.snapshots:
        assert snapshot.problem or numbers(snapshot) == alone(str(tmp_path / f"step{snapshot.step}"), snapshot.step)


def test_one_model_of_transformers_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """The weights of the one before are gone before the next is loaded."""
    alive, counts = [], []

    def watched(spec, **options):
        gc.collect()
        counts.append(sum(weight() is not None and weight().numel() > 0 for weight in alive))
        loaded = load_module(spec, **options)
        alive.extend(weakref.ref(weight) for weight in loaded.module.parameters())
        return loaded

    load_module = loading.load_module
    monkeypatch.setattr(loading, "load_module", watched)
    for step in (1, 2, 3):
        save_llama(tmp_path / f"checkpoint-{step}", step, layers=3 if step == 3 else 2)
    measurer = tasks.CheckpointMeasurer(tasks.Plan(Loading(), N, 0))
    outcomes = [measurer.outcome(each) for each in find_checkpoints(tmp_path)]
    assert counts == [0, 0, 0] and not any(outcome.snapshot.problem for outcome in outcomes)


def test_one_model_is_in_memory_at_a_time(place):
    """Also where every checkpoint needs a new one."""
    alive = []

    def watched():
        gc.collect()
        assert sum(each() is not None for each in alive) <= 1
        module = make_hoarder()
        alive.append(weakref.ref(module))
        return module

    measurer = tasks.CheckpointMeasurer(tasks.Plan(Loading(factory=watched), N, 0))
    outcomes = [measurer.outcome(each) for each in find_checkpoints(place)]
    assert not any(outcome.snapshot.problem for outcome in outcomes) and len(alive) == 5


def test_nothing_stays_of_the_checkpoint_before(tmp_path):
    """Neither after one that lacks a weight, nor after one of another shape."""
    loader = Loader(Loading(factory=MAKE))
    torch.save(state(1), tmp_path / "step_1.pt")
    torch.save({name: value for name, value in state(2).items() if name != "layers.1.weight"}, tmp_path / "step_2.pt")
    torch.save(state(3), tmp_path / "step_3.pt")
    one, two, three = (Checkpoint(step, str(tmp_path / f"step_{step}.pt"), "file") for step in (1, 2, 3))
    subject = loader.load(one)
    assert "lacks 1 of" in refusal(lambda: loader.load(two))
    again = loader.load(three)
    assert again is subject and again.fingerprint() == load_model(filled(3)).fingerprint() and again.name == "step_3.pt"


def test_several_processes_give_the_numbers_of_one(place, out, tmp_path):
    (place / "step_0010.pt").write_bytes(b"broken")
    one = quick(place, tmp_path / "one")
    several = quick(place, out, workers=2)
    assert [numbers(each) for each in several.snapshots] == [numbers(each) for each in one.snapshots]
    assert problems(several) == problems(one) and problems(one).keys() == {10}
    assert several.about == one.about


def test_a_process_that_dies_costs_its_own_checkpoint_alone(place, out, tmp_path, monkeypatch):
    """Once: it is measured by the next one. Twice: it has a problem, and the others are measured."""
    monkeypatch.setenv("DEADLY", str(tmp_path / "left"))
    torch.save(state(10, first=7), place / "step_0010.pt")
    run = quick(place, out, workers=2, factory=f"{HERE}:make_fatal")
    assert problems(run) == {10: "step_0010.pt: the process that measured it died 2 times, the last time with exit code 9"}
    assert [numbers(run.snapshots[index]) for index in (0, 2, 3)] == [alone(filled(step), step) for step in (0, 20, 30)]
    (tmp_path / "left").write_text("once")
    once = quick(place, tmp_path / "once", workers=1, steps=[20], factory=f"{HERE}:make_deadly")
    assert not problems(once) and (tmp_path / "left").read_text() == ""


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="such a death is of Unix")
def test_a_checkpoint_that_kills_its_reader_costs_itself_only(place, out, capsys):
    """Its file is cut short while it is mapped. The command measures in a process of its own, without being asked to."""
    torch.save(state(10, first=7), place / "step_0010.pt")
    died = "step_0010.pt: the process that measured it died 2 times, the last time by signal 7, SIGBUS"
    assert main(["sweep", str(place), "-o", str(out), "--factory", f"{HERE}:make_cut"]) == 1
    assert died in capsys.readouterr().out
    run = read_run(Place(out))
    assert problems(run)[10].startswith(died) and problems(run).keys() == {10}
    assert [snapshot.step for snapshot in run.snapshots if snapshot.prefix_matching is not None] == [0, 20, 30]


def test_a_script_without_a_main_guard_is_not_run_again(place, out, tmp_path):
    """But where the factory is one of its own functions, which must then be found in it."""
    script = tmp_path / "script.py"
    begun = (
        f"print('begun')\nfrom pytest_induction import sweep\nsweep({str(place)!r}, {str(out)!r}, n_sequences={N}, workers=1, "
    )
    script.write_text(f"{begun}factory={MAKE!r})\n")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=True)
    assert ran.stdout == "begun\n" and len(read_run(Place(out))) == 4
    own = f"from tests.runs.small_models import Small\ndef make():\n    return Small()\n{begun.replace('run', 'other')}factory=make)\n"
    script.write_text(own)
    ran = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 1 and '`if __name__ == "__main__":`' in ran.stderr


def test_a_factory_that_cannot_be_sent_is_an_error(place, out):
    said = refusal(lambda: quick(place, out, workers=2, factory=lambda: Small()))
    assert said.startswith("no worker can be started") and "imported by name" in said


def hears_interrupts():
    """What a shell begins in the background ignores Ctrl-C, and so would all that it begins."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def begun(place, out, tmp_path, monkeypatch):
    """Begins a sweep by the command, which is held at step 20, and waits until so many snapshots are written."""
    torch.save(state(20, first=5), place / "step_0020.pt")
    hold = tmp_path / "hold"
    hold.touch()
    monkeypatch.setenv("HOLD", str(hold))
    begun = []

    def begin(count, *options):
        command = [sys.executable, "-m", "pytest_induction", *HELD, str(place), "-o", str(out), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        run = subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=hears_interrupts)  # noqa: PLW1509 - one thread
        begun.append(run)
        lines = out / "snapshots.jsonl"
        while run.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") >= count):
            time.sleep(0.01)
        assert run.poll() is None, run.communicate()
        return run

    yield begin
    hold.unlink(missing_ok=True)
    for run in begun:
        run.kill()
        run.communicate()


HELD = ["sweep", "--factory", f"{HERE}:make_held"]


def test_a_sweep_that_is_killed_goes_on_without_repeating_a_snapshot(place, out, begun, tmp_path):
    """It is killed without warning while it measures the third."""
    run = begun(2)
    run.kill()
    run.communicate()
    lines = out / "snapshots.jsonl"
    before = lines.read_text().splitlines()
    (tmp_path / "hold").unlink()
    assert main([*HELD, str(place), "-o", str(out)]) == 0
    after = lines.read_text().splitlines()
    assert after[:2] == before and [json.loads(line)["step"] for line in after] == [0, 10, 20, 30]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="processes are interrupted in another way")
def test_an_interrupted_sweep_keeps_what_is_measured_and_ends_its_processes(place, out, begun):
    """Ctrl-C goes to all of them; one is held and ends nevertheless."""
    run = begun(3, "--workers", "2")
    os.killpg(run.pid, signal.SIGINT)
    said, errors = run.communicate(timeout=60)  # which waits for all that have its pipes
    assert (run.returncode, said) == (130, "")
    assert errors == f"interrupted: {out}: 3 snapshots, steps 0 to 30; the same command goes on with it\n"


def test_a_terminal_shows_how_many_checkpoints_are_done_and_the_time_that_is_left(place, out):
    """One bar, of checkpoints and not of sequences, which is taken away at the end."""
    code = (
        "import sys; from pytest_induction import progress; progress.DELAY = 0\n"
        "from pytest_induction.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-c", code, "sweep", str(place), "-o", str(out), "--factory", MAKE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as run:
        os.close(theirs)
        said, _ = run.communicate(timeout=60)
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert said == f"{out}: 4 snapshots, steps 0 to 30\n"
    assert b"sweep:   0%" in shown and b"| 0/4 [" in shown and b"checkpoint/s" in shown
    assert b"seq" not in shown and b"losses" not in shown


def test_the_bar_counts_every_checkpoint_and_no_sequence(place, out):
    """Those too that are measured already, or cannot be."""

    (place / "step_0010.pt").write_bytes(b"broken")
    for _ in range(2):
        with progress.watching() as watch:
            watch.block = progress.Block("all", 4, "checkpoint", 0.0)
            quick(place, out)
            assert watch.block.done == 4


def test_the_command_says_what_could_not_be_measured_and_where_the_run_lies(place, out, capsys):
    command = ["sweep", f"{place}/step_*", "-o", str(out), "--factory", MAKE, "--tokens-per-step", "64"]
    assert main([*command, "--steps", "0:20:20"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 snapshots, steps 0 to 20\n"
    (place / "step_0010.pt").write_bytes(b"broken")
    assert main(command) == 1
    *said, last = capsys.readouterr().out.splitlines()
    assert last == f"{out}: 4 snapshots, 1 with a problem, steps 0 to 30"
    assert len(said) == 1 and said[0].startswith("step 10: step_0010.pt is no ")
    assert read_run(Place(out)).tokens.tolist() == [0, 640, 1280, 1920]
    for wrong in (["--seed", "3"], ["--steps", "x"], ["--text", str(Path(place) / "none.txt")]):
        assert main([*command, *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")


class TestWithoutPattern:
    """Modules that are declared to have no attention pattern."""

    @pytest.fixture
    def place(self, tmp_path):
        (tmp_path / "t").mkdir()
        for step in (0, 10):
            torch.manual_seed(step)
            torch.save({"state_dict": make_hybrid().state_dict(), "global_step": step}, tmp_path / "t" / f"step_{step}.pt")
        return tmp_path / "t"

    @pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
    def test_the_option_of_the_problem_mends_it_in_the_same_place(self, place, out, capsys, workers):
        """No curve could break there: no head was measured. Processes have it, too."""
        command = ["sweep", str(place), "-o", str(out), "--factory", f"{HERE}:make_hybrid", f"--workers={workers}"]
        assert main(command) == 1
        problem = capsys.readouterr().out.splitlines()[0]
        assert "step_0.pt cannot be read: information moves between positions in `embed.1` (Scan) too, where no" in problem
        option = problem.rpartition(" ")[2]
        assert option == "--induction-without-pattern=Scan"
        assert main([*command, option]) == 0
        run = read_run(Place(out))
        assert not any(each.problem for each in run.snapshots)
        own = load_model(_filled_hybrid(place / "step_10.pt"), without_pattern="Scan")
        expected = Measuring().snapshot(own, 10)
        np.testing.assert_allclose(run.snapshots[1].prefix_matching, expected.prefix_matching, atol=1e-5)

    def test_a_run_is_gone_on_with_as_it_was_begun(self, place, out):
        sweep(place, out, factory=make_hybrid, n_sequences=N, without_pattern=["Scan"])
        assert "`without_pattern` ['Scan'] and now None: choose another place" in refusal(
            lambda: sweep(place, out, factory=make_hybrid, n_sequences=N)
        )

    def test_a_name_that_is_none_ends_it_at_once(self, place, out, capsys):
        """Before anything is measured, for no checkpoint has it."""
        command = ["sweep", str(place), "-o", str(out), "--factory", f"{HERE}:make_hybrid", "--without-pattern=Scann"]
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "'Scann' is none in this model; did you mean `Scan`?" in said
        assert not read_run(Place(out)).snapshots


def _filled_hybrid(path):
    model = make_hybrid()
    model.load_state_dict(torch.load(path)["state_dict"])
    return model


class TestLosses:
    """Checkpoints of the Trainer have a trainer state beside their weights."""

    def hugging_face(self, place, *, steps=(100, 200, 300), every=10, seen=512, same=False, **options):
        for step in steps:
            save_llama(place / f"checkpoint-{step}", 0 if same else step)
            rows = [{"step": at, "loss": 9 - at / 100, "learning_rate": 1e-3} for at in range(every, step + 1, every)]
            rows.append({"step": step, "eval_loss": 7.5})
            state = {"global_step": step, "log_history": rows, "num_input_tokens_seen": seen * step, **options}
            (place / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
        return place

    @pytest.mark.parametrize("same", [False, True])
    def test_they_bring_losses_and_tokens_of_their_steps(self, tmp_path, out, same):
        """Also where two have the same weights, of which one only is measured."""
        run = quick(self.hugging_face(tmp_path / "a", same=same), out, factory=None)
        assert run.column("loss").tolist() == [8, 7, 6] and run.tokens.tolist() == [51_200, 102_400, 153_600]
        assert not problems(run) and run.has("prefix_matching")

    def test_a_loss_that_was_logged_shortly_before_counts(self, tmp_path, out):
        run = quick(self.hugging_face(tmp_path / "a", steps=(105, 209), every=30), out, factory=None)
        assert run.column("loss").tolist() == pytest.approx([9 - 0.9, 9 - 1.8])

    def test_tokens_that_nobody_counted_are_not_known(self, tmp_path, out):
        run = quick(self.hugging_face(tmp_path / "a", seen=0), out, factory=None)
        assert np.isnan(run.tokens).all() and run.has("loss")

    @pytest.mark.parametrize("content", ["{", "[]", '{"log_history": []}', '{"log_history": [{"step": 100, "eval_loss": 3}]}'])
    def test_a_state_that_tells_nothing_keeps_no_checkpoint_from_being_measured(self, tmp_path, out, content):
        place = self.hugging_face(tmp_path / "a", steps=(100,))
        state = place / "checkpoint-100" / "trainer_state.json"
        assert logged_at(Checkpoint(100, str(state.parent), "directory")) == {"tokens": 51_200, "loss": 8}
        state.write_text(content)
        assert logged_at(Checkpoint(100, str(state.parent), "directory")) == {}

    def test_a_loss_of_long_before_does_not_count(self, tmp_path):
        state = {"log_history": [{"step": at, "loss": 3} for at in (10, 20, 30)]}
        (tmp_path / "trainer_state.json").write_text(json.dumps(state))
        at = {step: logged_at(Checkpoint(step, str(tmp_path), "directory")) for step in (5, 20, 29, 39, 40, 100)}
        assert {step for step, found in at.items() if found} == {20, 29, 39}
