"""Checkpoints of adapters: as the HF Trainer writes them, by themselves and in the model that a factory makes."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_induction import assert_heads_preserved, load_model
from pytest_induction.runs.checkpoints import loading
from pytest_induction.runs.checkpoints.finding import find_checkpoints
from pytest_induction.runs.measuring import Measuring
from pytest_induction.runs.sweep import sweep
from tests.conftest import SHIPPED
from tests.model.adapting import adapted, lora, merged, shipped, write

peft = pytest.importorskip("peft")

N = 6  # sequences: each measurement is quick


def quick(place, out, **more):
    return sweep(place, out, n_sequences=N, **more)


def alone(model, step):
    """The snapshot of a model that is at hand."""
    return Measuring(n_sequences=N, seed=0).snapshot(load_model(model), step)


def far(one, other):
    return np.abs(one.prefix_matching - other.prefix_matching).max()


def problems(run):
    return {each.step: each.problem for each in run.snapshots if each.problem}


def change(place, **settings):
    path = place / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.fixture
def saved(tmp_path):
    """Checkpoints 0 to 2, each with what a trainer leaves beside it -> the models that they were saved from."""
    models = {}
    for step in range(3):
        place = tmp_path / "t" / f"checkpoint-{step}"
        models[step] = write(place, seed=step)
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            (place / name).write_bytes(b"no weights")
    return models


@pytest.fixture
def adapted_anew(monkeypatch):
    """The names of the models that are tried out."""
    names = []
    adapt = loading.adapt
    monkeypatch.setattr(loading, "adapt", lambda module, *, name, **more: names.append(name) or adapt(module, name=name, **more))
    return names


def check(run, models):
    """Each snapshot has the scores of weights that were merged by hand."""
    assert not problems(run)
    for snapshot in run.snapshots:
        assert far(snapshot, alone(merged(models[snapshot.step]), snapshot.step)) < 1e-5
    assert len({each.prefix_matching.tobytes() for each in run.snapshots}) == len(run.snapshots)


def test_adapters_are_swept_on_the_base_that_they_name(tmp_path, saved, adapted_anew):
    """The model is tried out once."""
    check(quick(tmp_path / "t", tmp_path / "run"), saved)
    assert adapted_anew == ["checkpoint-0"]


def test_adapters_are_loaded_into_what_a_factory_returns(tmp_path, saved, adapted_anew):
    """A `PeftModel`, made twice to see that it may be kept, and then kept; its own adapter is not that of any checkpoint."""
    made = []

    def make():
        made.append(1)
        return adapted(seed=9)

    check(quick(tmp_path / "t", tmp_path / "run", factory=make), saved)
    assert len(made) == 2 and adapted_anew == ["checkpoint-0"]


def test_files_of_adapters_are_loaded_into_it_as_well(tmp_path):
    """Without a config; and whole states of the model, base and all, as ever. One layout after the other leaves nothing behind."""
    models = {step: adapted(seed=step) for step in range(4)}
    (tmp_path / "t").mkdir()
    for step, model in models.items():
        if step == 1:
            whole = {name: value.clone() for name, value in model.state_dict().items()}
            whole["base_model.model.lm_head.weight"] *= 2
            model.load_state_dict(whole)
            torch.save(whole, tmp_path / "t" / "step_1.pt")
        else:
            save_file(peft.get_peft_model_state_dict(model), tmp_path / "t" / f"step_{step}.safetensors")
    run = quick(tmp_path / "t", tmp_path / "run", factory=adapted)
    assert not problems(run)
    for step, model in models.items():
        expected = alone(model, step)
        assert far(run.snapshots[step], expected) < 1e-6  # a run keeps single precision
        assert run.snapshots[step].first_loss == pytest.approx(expected.first_loss, abs=1e-5)  # of the unembedding, too


SPOILED = {
    "another scale": (
        lambda place: change(place, lora_alpha=99),
        "was trained with `lora_alpha` 99, the factory's adapter has 10",
    ),
    "another rank": (lambda place: write(place, lora(r=2)), "was trained with `r` 2, the factory's adapter has 4"),
    "other modules": (
        lambda place: write(place, lora(target_modules=["k_proj", "v_proj"])),
        "lacks 4 of the adapter's 8 tensors, and they would be random: the first is `base_model.model.model.layers.0",
    ),
    "another kind": (
        lambda place: write(place, peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")),
        "is an adapter of the kind IA3, the factory's is LORA",
    ),
    "a start that changes the base": (
        lambda place: write(place, lora(init_lora_weights="pissa")),
        "was trained with `init_lora_weights` 'pissa', the factory's adapter has False",
    ),
    "another base": (
        lambda place: change(place, base_model_name_or_path=SHIPPED["virtual"]),
        "is an adapter for '.*gpt2-2l-virtual', the factory's is on '.*llama-2l'",
    ),
    "a tensor too few": (
        lambda place: _edit(place, lambda tensors: tensors.pop(min(tensors))),
        "lacks 1 of the adapter's 8 tensors",
    ),
    "a tensor too many": (
        lambda place: _edit(place, lambda tensors: tensors.update(x=torch.ones(2))),
        "has 1 tensors that the adapted model has no place for, the first is `x`",
    ),
    "another shape": (
        lambda place: _edit(place, lambda tensors: tensors.update({min(tensors): torch.ones(4, 3)})),
        r"`base_model.* has shape \(4, 3\), the model's has \(4, 64\)",
    ),
}


def _edit(place, edit):
    tensors = load_file(place / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("what", SPOILED)
def test_an_adapter_that_is_not_the_factorys_is_a_problem_in_one_line(tmp_path, saved, what):
    """And the ones beside it are measured as they are."""
    spoil, said = SPOILED[what]
    spoil(tmp_path / "t" / "checkpoint-1")
    run = quick(tmp_path / "t", tmp_path / "run", factory=lambda: adapted(seed=9))
    found = problems(run)
    assert found.keys() == {1} and "\n" not in found[1]
    assert found[1].startswith(("checkpoint-1 ", "`")) and re.search(said, found[1])
    for step in (0, 2):
        assert far(run.snapshots[step], alone(merged(saved[step]), step)) < 1e-5


def test_settings_that_change_between_checkpoints_are_each_ones_own(tmp_path, saved):
    """A model that is kept for the next adapter has the scale of that, too."""
    change(tmp_path / "t" / "checkpoint-1", lora_alpha=40)
    saved[1].peft_config["default"].lora_alpha = 40
    check(quick(tmp_path / "t", tmp_path / "run"), saved)


def test_a_factory_without_an_adapter_says_what_to_return(tmp_path, saved):
    """A plain model has no place for one."""
    run = quick(tmp_path / "t", tmp_path / "run", factory=shipped)
    assert all("let it return a `PeftModel`, or leave it out" in each for each in problems(run).values())
    assert len(problems(run)) == 3


def test_what_the_trainer_of_transformers_writes_is_swept(tmp_path):
    """A few steps of a real training with an adapter; the last checkpoint is the model that was trained."""
    import transformers

    model = adapted(lora(init_lora_weights=True))
    model.peft_config["default"].base_model_name_or_path = SHIPPED["llama"]
    rows = [{"input_ids": torch.randint(3, 128, (32,)), "labels": torch.randint(3, 128, (32,))} for _ in range(8)]
    arguments = transformers.TrainingArguments(
        tmp_path / "t", max_steps=3, save_steps=1, learning_rate=0.05, use_cpu=True, report_to=[], disable_tqdm=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert [each.step for each in find_checkpoints(tmp_path / "t")] == [1, 2, 3]
    run = quick(tmp_path / "t", tmp_path / "run")
    assert not problems(run)
    trained = alone(model.eval(), 3)
    assert far(run.snapshots[-1], trained) < 1e-6 < far(run.snapshots[0], trained)


def test_an_adapter_of_a_sweep_is_a_model_by_itself(tmp_path, saved):
    """One checkpoint against another."""
    place = tmp_path / "t"
    assert_heads_preserved(str(place / "checkpoint-0"), str(place / "checkpoint-0"))
    assert load_model(place / "checkpoint-1").n_layers == 2
