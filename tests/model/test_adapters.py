"""A directory with an adapter is a model: its base with the adapter on it, as it runs, or a refusal of one line."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pytest_induction as induction
from pytest_induction.errors import ModelError
from tests.conftest import SHIPPED
from tests.model.adapting import adapted, lora, merged, shipped, write
from tests.runs.small_models import Evil

peft = pytest.importorskip("peft")
IDS = torch.arange(3, 35)[None]
KINDS = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "with a head of its own": lambda: lora(modules_to_save=["lm_head"]),
    "of embeddings": lambda: lora(target_modules=["embed_tokens", "q_proj"]),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
}


def settings_of(place):
    return json.loads((place / "adapter_config.json").read_text())


def change(place, **settings):
    (place / "adapter_config.json").write_text(json.dumps({**settings_of(place), **settings}))


def edit(place, change):
    """Change the stored tensors."""
    tensors = load_file(place / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})


def refusal(place):
    with pytest.raises(ModelError) as caught:
        induction.load_model(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_loaded_as_it_was_saved(tmp_path, kind):
    """The logits are those of the model that was saved, which are not those of its base."""
    model = adapted(KINDS[kind]())
    model.peft_config["default"].base_model_name_or_path = SHIPPED["llama"]
    model.save_pretrained(tmp_path, save_embedding_layers=kind == "of embeddings")
    with torch.no_grad():
        expected, base = model(input_ids=IDS).logits, shipped()(input_ids=IDS).logits
    found = induction.load_model(tmp_path).logits(IDS)
    assert torch.equal(found, expected)
    assert (found - base).abs().max() > 1e-3


def test_the_scores_are_those_of_weights_that_were_merged_by_hand(tmp_path):
    """And the evidence says that it is an adapter, of what and on what."""
    plain = induction.measure_heads(merged(write(tmp_path)))
    found = induction.measure_heads(str(tmp_path))
    assert np.abs(found.prefix_matching - plain.prefix_matching).max() < 1e-5
    assert np.abs(found.prefix_matching - induction.measure_heads(SHIPPED["llama"]).prefix_matching).max() > 0.01
    assert f"an adapter (LORA) on {SHIPPED['llama']}, not merged" in found.provenance.notes
    assert found.provenance.model == str(tmp_path)


@pytest.mark.parametrize("named", ["../base", "here/base", "absolute"])
def test_the_base_is_found_beside_the_adapter_or_from_here(tmp_path, monkeypatch, named):
    """Relative names are those of the adapter's directory, then of the current one."""
    home = tmp_path / ("here" if named.startswith("here") else "there")
    base = Path(shutil.copytree(SHIPPED["llama"], home / "base"))
    (tmp_path / "there").mkdir(exist_ok=True)
    model = write(tmp_path / "there" / "adapter", base=str(base) if named == "absolute" else named)
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        assert torch.equal(induction.load_model("there/adapter").logits(IDS), model(input_ids=IDS).logits)


def test_a_tokenizer_beside_the_adapter_is_the_models(tmp_path):
    """That of the base otherwise."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def tokenizer(first):
        words = {"<unk>": 0, **{f"w{index}": index for index in range(1, 50)}, "<s>": first}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), bos_token="<s>")

    base = Path(shutil.copytree(SHIPPED["llama"], tmp_path / "base"))
    tokenizer(50).save_pretrained(base)
    write(tmp_path / "adapter", base=str(base))
    assert 50 in induction.load_model(tmp_path / "adapter").tokenizer.all_special_ids
    tokenizer(60).save_pretrained(tmp_path / "adapter")
    assert 60 in induction.load_model(tmp_path / "adapter").tokenizer.all_special_ids


def on_hub(tmp_path, monkeypatch, **models):
    """A cache of the hub that has these models: names with `__` for `/`, and their directories."""
    import huggingface_hub.constants

    for name, place in models.items():
        home = tmp_path / "hub" / f"models--{name.replace('__', '--')}"
        shutil.copytree(place, home / "snapshots" / ("0" * 40))
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_base_with_the_name_of_one_on_the_hub_is_taken_from_its_cache_alone(tmp_path, monkeypatch):
    """Nothing is downloaded for a local name; where it is not there, what to do is said."""
    model = write(tmp_path / "adapter", base="someone/base")
    on_hub(tmp_path, monkeypatch)
    said = refusal(tmp_path / "adapter")
    assert said.startswith(f"the base of the adapter '{tmp_path / 'adapter'}': 'someone/base' cannot be loaded: OSError")
    assert said.endswith("download someone/base, or write the path of a copy into `base_model_name_or_path`")
    on_hub(tmp_path, monkeypatch, someone__base=SHIPPED["llama"])
    with torch.no_grad():
        assert torch.equal(induction.load_model(tmp_path / "adapter").logits(IDS), model(input_ids=IDS).logits)


def test_a_local_adapter_asks_the_hub_for_its_cache_only(tmp_path, monkeypatch):
    """Every look-up of the base says so; that of an adapter from the hub may download."""
    import transformers

    write(tmp_path / "adapter", base="someone/base")
    on_hub(tmp_path, monkeypatch, someone__adapter=tmp_path / "adapter", someone__base=SHIPPED["llama"])
    asked = []
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda name, **how: asked.append((name, how)) or load(name, **how)
    )
    induction.load_model(tmp_path / "adapter")
    found = induction.load_model("hf:someone/adapter")
    assert [(name, how["local_files_only"], how["trust_remote_code"]) for name, how in asked] == [
        ("someone/base", True, False),
        ("someone/base", False, False),
    ]
    assert found.name == "hf:someone/adapter" and any("someone/base" in note for note in found.notes)


REFUSED = {
    "a tensor is missing": (
        lambda place: edit(place, lambda tensors: tensors.pop(min(tensors))),
        r"lacks 1 of the adapter's 8 tensors, and they would be random: the first is `base_model\.model",
    ),
    "a tensor is left over": (
        lambda place: edit(place, lambda tensors: tensors.update({"base_model.model.x.lora_A.weight": torch.ones(4, 64)})),
        "has 1 tensors that the adapted model has no place for, the first is `base_model.model.x.lora_A.weight`; is it for",
    ),
    "layers that the base lacks": (
        lambda place: edit(
            place,
            lambda tensors: tensors.update({k.replace("layers.1", "layers.2"): v.clone() for k, v in list(tensors.items())}),
        ),
        "has 4 tensors that the adapted model has no place for",
    ),
    "another rank": (lambda place: change(place, r=8), "size mismatch for .*lora_A"),
    "other modules": (lambda place: change(place, target_modules=["k_proj"]), "lacks 4 of the adapter's 4 tensors"),
    "no modules of the base": (lambda place: change(place, target_modules=["c_attn"]), "cannot be loaded: .*Target modules"),
    "no base": (lambda place: change(place, base_model_name_or_path=None), "names no base: write `base_model_name_or_path`"),
    "a base that is not there": (
        lambda place: change(place, base_model_name_or_path="/nowhere/at/all"),
        "the base of the adapter .*no directory here",
    ),
    "a base of another width": (
        lambda place: change(place, base_model_name_or_path=str(Path(SHIPPED["virtual"]))),
        "cannot be loaded: .*Target modules",
    ),
    "itself as the base": (lambda place: change(place, base_model_name_or_path="."), "'.*' is an adapter itself"),
    "no weights": (lambda place: (place / "adapter_model.safetensors").unlink(), "has no weights: expected adapter_model.saf"),
    "broken weights": (
        lambda place: (place / "adapter_model.safetensors").write_bytes(b"x" * 100),
        "adapter_model.safetensors of .* cannot be read: its header",
    ),
    "weights that are NaN": (
        lambda place: edit(place, lambda tensors: tensors[min(tensors)].fill_(float("nan"))),
        "the weight `base_model.* holds NaN or infinity",
    ),
    "a broken config": (
        lambda place: (place / "adapter_config.json").write_text("{"),
        "adapter_config.json of .* cannot be read",
    ),
    "a list for a config": (lambda place: (place / "adapter_config.json").write_text("[]"), "must hold a table of settings"),
    "an unknown kind": (lambda place: change(place, peft_type="NEW"), "is of the kind 'NEW', which peft does not know"),
    "a kind that names others": (lambda place: change(place, peft_type="XLORA"), "is of the kind XLORA, which is not loaded"),
    "a module to import": (
        lambda place: change(place, megatron_config={"a": 1}, megatron_core="mine"),
        "`megatron_config` in adapter_config.json of .* would import a module",
    ),
    "a whole model beside it": (
        lambda place: shutil.copytree(SHIPPED["llama"], place, dirs_exist_ok=True),
        "holds a whole model and an adapter: put the adapter into a directory of its own",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_the_whole_adapter_of_that_base_is_refused(tmp_path, what):
    """In one line, that names it."""
    write(tmp_path / "adapter")
    spoil, said = REFUSED[what]
    spoil(tmp_path / "adapter")
    assert str(tmp_path / "adapter") in refusal(tmp_path / "adapter")
    with pytest.raises(ModelError, match=said):
        induction.load_model(tmp_path / "adapter")


def test_settings_of_a_model_beside_an_adapter_are_no_model(tmp_path):
    """Some trainers copy the base's config there."""
    model = write(tmp_path)
    shutil.copy(Path(SHIPPED["llama"]) / "config.json", tmp_path)
    with torch.no_grad():
        assert torch.equal(induction.load_model(tmp_path).logits(IDS), model(input_ids=IDS).logits)


def test_pickled_adapters_are_read_as_weights_alone(tmp_path):
    """And run nothing."""
    model = write(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with torch.no_grad():
        assert torch.equal(induction.load_model(tmp_path).logits(IDS), model(input_ids=IDS).logits)
    torch.save({**tensors, "evil": Evil(tmp_path / "ran")}, tmp_path / "adapter_model.bin")
    assert "cannot be loaded: UnpicklingError" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_base_or_of_a_tokenizer_beside_an_adapter_does_not_run(tmp_path):
    """The rule for models holds for both."""
    from tests.model.custom_code import IN_CONFIG, IN_TOKENIZER, has_run, with_code

    base = with_code(tmp_path / "base", **IN_CONFIG)
    write(tmp_path / "adapter", base=str(base))
    assert "config.json of" in refusal(tmp_path / "adapter") and not has_run(base)
    write(tmp_path / "other")
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(IN_TOKENIZER["tokenizer"]))
    assert refusal(tmp_path / "other").startswith("tokenizer_config.json of")


def test_without_peft_an_adapter_is_one_line(tmp_path, monkeypatch):
    """What is missing, and how to get it."""
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refusal(tmp_path).endswith("is an adapter, and loading it needs peft: pip install 'pytest-induction[peft]'")


def test_an_adapter_that_takes_induction_away_does_not_preserve_heads(tmp_path):
    """By an assertion, from two directories; one that does next to nothing does."""
    broken = adapted(lora(r=64, lora_alpha=64, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, layer in broken.named_modules():
            if name.endswith("layers.1.self_attn.q_proj"):  # the product of the two is minus the weight
                layer.lora_A["default"].weight.copy_(-layer.base_layer.weight)
                layer.lora_B["default"].weight.copy_(torch.eye(64))
            elif name.endswith("q_proj"):
                layer.lora_B["default"].weight.zero_()
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(induction.ExpectationFailed, match="lost"):
        induction.assert_heads_preserved(SHIPPED["llama"], str(tmp_path / "broken"))
    assert induction.measure_heads(str(tmp_path / "broken")).prefix_matching.max() < 0.3
    kept = adapted(lora(init_lora_weights=True, lora_alpha=1))
    kept.save_pretrained(tmp_path / "kept")
    induction.assert_heads_preserved(SHIPPED["llama"], str(tmp_path / "kept"))


def test_left_over_weights_of_a_whole_model_are_refused_too(tmp_path):
    """A config with fewer layers than the file, or a tensor of another model's; not what old files hold beside weights."""
    place = Path(shutil.copytree(SHIPPED["llama"], tmp_path / "model"))
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"has 9 tensors that its config has no use for, the first is `model.layers.1"):
        induction.load_model(place)
    (place / "config.json").write_text(json.dumps(config))
    tensors = load_file(place / "model.safetensors")
    old = ("attn.masked_bias", "attn.attention.bias", "rotary_emb.inv_freq", "attn.causal_mask", "position_ids")
    held = {f"model.layers.0.{name}": torch.ones(1, 1, 2, 2) for name in old}
    save_file({**tensors, **held}, place / "model.safetensors", metadata={"format": "pt"})
    assert induction.load_model(place).n_layers == 2
    save_file({**tensors, "model.attn.bias_k": torch.ones(2)}, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has 1 tensors .* `model.attn.bias_k`"):
        induction.load_model(place)
