"""Models whose weights were converted: other precisions, quantised, offloaded by accelerate. Unmodified otherwise."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import assert_has_induction_head, load_model, measure_heads
from pytest_induction.errors import ModelError
from tests.attention.patterns import repeated
from tests.model import foreign
from tests.model.zoo import build

# Precisions and quantisation


def shipped_llama(shipped):
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(shipped["llama"]).eval()


def dynamic_int8(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao_int8(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


CONVERSIONS = {
    "bfloat16": (lambda model: model.to(torch.bfloat16), 5e-3),
    "float16": (lambda model: model.to(torch.float16), 1e-3),
    "float64": (lambda model: model.to(torch.float64), 1e-6),
    "weights of eight bits": (foreign.weights_of_eight_bits, 1e-2),
    "dynamic int8": (dynamic_int8, 1e-2),
    "torchao": (torchao_int8, 1e-2),
}
READ = ("bfloat16", "float16", "float64", "torchao")  # the weights of their heads are, if only to rounding


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_converted_model_kept_its_heads(conversion, shipped):
    """Read as it runs, with a name of its own, the scores near those of the original, and the verdict the same."""
    convert, tolerance = CONVERSIONS[conversion]
    original = load_model(shipped["llama"])
    subject = load_model(convert(shipped_llama(shipped)))
    assert subject.reading.name == "sdpa"
    assert subject.fingerprint() != original.fingerprint()
    assert subject.fingerprint() == load_model(convert(shipped_llama(shipped))).fingerprint()
    tokens = repeated(d_vocab=128)
    one, other = (measure_heads(each, tokens=tokens).prefix_matching for each in (subject, original))
    np.testing.assert_allclose(one, other, atol=tolerance)
    found = assert_has_induction_head(subject)
    assert found.verdict.value == "SHOWN"
    assert conversion not in READ or all(head.copy_effect is not None for head in found.heads), found.provenance.notes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("convert", [dynamic_int8, torchao_int8, foreign.weights_of_eight_bits])
def test_quantised_weights_are_part_of_the_name(convert):
    """Another weight gives another fingerprint, though it lies packed where no parameter is."""
    one, other = build("llama"), build("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    assert load_model(convert(one)).fingerprint() != load_model(convert(other)).fingerprint()


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_broke_before_it_was_quantised_is_found():
    """The logits may not show it."""
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(ModelError, match=r"the weight `.*up_proj.*` of LlamaForCausalLM holds NaN"):
        load_model(dynamic_int8(model))


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_hides_no_look_ahead():
    """Its scale lets a later token change earlier logits a little; a model that looks ahead changes them more."""

    class LooksAhead(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            everything = torch.zeros(len(tokens), 1, tokens.shape[1], tokens.shape[1])
            return self.model(tokens, attention_mask=everything, use_cache=False)

    causal = load_model(dynamic_int8(build("llama")))
    assert any("change with the rows beside it" in note for note in causal.notes)
    with pytest.raises(ModelError, match="LooksAhead is not causal"):
        load_model(dynamic_int8(LooksAhead(build("llama"))))


# Weights that accelerate keeps elsewhere


def offloads(place):
    accelerate = pytest.importorskip("accelerate")
    cpu = torch.device("cpu")

    def to_disk(model):
        accelerate.disk_offload(model, place, execution_device=cpu)
        return model

    def mixed(model):
        names = [name for name, part in model.named_modules() if not list(part.children())]
        device_map = {name: "disk" if "layers.1" in name else "cpu" for name in names} | {"model.layers.2": "disk"}
        device_map = {name: at for name, at in device_map.items() if not name.startswith("model.layers.2.")}
        return accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=place, force_hooks=True)

    return {
        "cpu": lambda model: accelerate.cpu_offload(model, execution_device=cpu),
        "disk": to_disk,
        "dispatched": lambda model: accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True),
        "mixed": mixed,
    }


def places(model):
    """Where every weight lies, and what hooks there are."""
    weights = {name: (weight.device.type, weight.shape) for name, weight in model.named_parameters()}
    hooks = [(type(getattr(part, "_hf_hook", None)), len(part._forward_hooks)) for part in model.modules()]
    return weights, hooks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "kept"),
    [("llama", "cpu"), ("llama", "disk"), ("llama", "dispatched"), ("llama", "mixed"), ("gpt-oss", "cpu"), ("bloom", "disk")],
)
def test_offloaded_models_are_measured_and_stay_offloaded(kind, kept, tmp_path):
    """The same scores and the same name as in memory; weights lie where they lay, also after an exception."""
    model, tokens = offloads(tmp_path)[kept](build(kind)), repeated()
    before = places(model)
    subject = load_model(model)
    assert subject.fingerprint() == load_model(build(kind)).fingerprint()
    found, wanted = measure_heads(subject, tokens=tokens), measure_heads(build(kind), tokens=tokens)
    np.testing.assert_allclose(found.prefix_matching, wanted.prefix_matching, atol=1e-6)
    assert places(model) == before

    def fails(layer, reader):
        raise KeyError("on purpose")

    with pytest.raises(ModelError, match="on purpose"):
        subject.observe(tokens, fails)
    assert places(model) == before
    subject.observe(tokens, lambda layer, reader: None, early_stop=False)
    assert places(model) == before
