"""Quantised models of the hub: those that run on a CPU are measured, the others say what they need."""

import importlib.util
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pytest_induction import assert_heads_preserved, load_model
from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.model import bounds, load, quantised
from pytest_induction.model.capture import affine_of, is_linear
from pytest_induction.model.circuits import circuits_of
from tests.conftest import SHIPPED

transformers = pytest.importorskip("transformers")


def with_settings(place, settings):
    """A copy of the shipped Llama whose config says that it is quantised."""
    shutil.copytree(SHIPPED["llama"], place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return str(place)


def saved(place, settings, **options):
    """The shipped Llama, quantised by transformers and saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED["llama"], quantization_config=settings, **options)
        model.save_pretrained(place)
    return str(place)


def refusal(place, **options):
    with pytest.raises(ModelError) as raised:
        load_model(place, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# What needs no package


def in_eight_bits(weight, block=16):
    """A matrix as FP8 numbers, and a scale for each square of so many rows and columns."""
    rows, columns = (size // block for size in weight.shape)
    scale = weight.view(rows, block, columns, block).abs().amax((1, 3)) / 448
    return (weight / scale.repeat_interleave(block, 0).repeat_interleave(block, 1)).to(torch.float8_e4m3fn), scale


def test_fp8_is_unpacked_on_a_cpu_and_said(tmp_path):
    pytest.importorskip("accelerate")
    place = tmp_path / "model"
    with_settings(place, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]})
    weights = load_file(place / "model.safetensors")
    for name in [name for name in weights if "proj" in name]:
        weights[name], weights[f"{name}_scale_inv"] = in_eight_bits(weights[name])
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    found, original = load_model(str(place)), load_model(SHIPPED["llama"])
    assert "weights quantised by FP8, unpacked as they were loaded" in found.notes
    assert len(circuits_of(found).layers) == 2
    tokens = original.random_ids(2, 20)
    one, other = (each.logits(tokens) for each in (found, original))
    assert 0 < (one - other).abs().max() < 0.2 * other.abs().max()


# What does


@pytest.mark.parametrize("method", quantised.METHODS)
def test_a_package_that_is_missing_is_named(method, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    known = quantised.METHODS[method]
    said = refusal(with_settings(tmp_path / "model", {"quant_method": method, "bits": 4}))
    assert (
        f"has weights quantised by {known.name} (4 bits), which needs what is not installed: pip install {known.packages}" in said
    )
    assert said.endswith(known.hardware)


SETTINGS = {
    "bitsandbytes (4 bits, nf4)": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes (8 bits)": {"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"},
    "GPTQ (4 bits)": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "compressed-tensors (8 bits)": {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"weights": {"num_bits": 8, "type": "int"}}},
    },
    "torchao (Int8WeightOnlyConfig)": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2}},
    },
    "Quanto (int4)": {"quant_method": "quanto", "weights": "int4", "activations": None},
    "another": {"quant_method": "another"},
}


@pytest.mark.parametrize("expected", SETTINGS)
def test_method_and_bits_are_told_from_a_config(expected):
    module = nn.Linear(2, 2)
    module.config = type("Config", (), {"quantization_config": SETTINGS[expected]})()
    assert quantised.quantisation_of(nn.Sequential(module)) == (f"weights quantised by {expected}",)


@pytest.mark.filterwarnings("ignore")
def test_quantisation_by_torch_is_told_from_the_layers():
    assert quantised.quantisation_of(nn.Sequential(nn.Linear(2, 2))) == ()
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}, dtype=torch.qint8)
    assert quantised.quantisation_of(module) == (
        "weights quantised by torch (Linear, LinearPackedParams of torch.ao.nn.quantized)",
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "are_read"), [("Int8WeightOnlyConfig", True), ("Int8DynamicActivationInt8WeightConfig", False)])
def test_torchao(name, are_read, tmp_path):
    """The second computes in eight bits too, so that weights alone do not say what a layer makes."""
    quantization = pytest.importorskip("torchao.quantization")
    place = saved(tmp_path, transformers.TorchAoConfig(getattr(quantization, name)()))
    assert load_model(place, dtype="bfloat16").dtype == torch.bfloat16
    check(place, f"weights quantised by torchao ({name})", are_read=are_read)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("bits", "kind", "are_read"), [("4", "4 bits, nf4", True), ("8", "8 bits", False)])
def test_bitsandbytes(bits, kind, are_read, tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_quant_type="nf4")
    check(saved(tmp_path, settings, device_map="cpu"), f"weights quantised by bitsandbytes ({kind})", are_read=are_read)


@pytest.mark.filterwarnings("ignore")
def test_quanto():
    pytest.importorskip("optimum.quanto")
    settings = transformers.QuantoConfig(weights="int8")
    module = transformers.AutoModelForCausalLM.from_pretrained(
        SHIPPED["llama"], quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    check(module, "weights quantised by Quanto (int8)", are_read=True)


def check(place, note, *, are_read):
    """Of a model in a directory, or of one that cannot be saved."""
    subject = load_model(place)
    found = assert_heads_preserved(SHIPPED["llama"], subject, margins={"repeat_loss": 1.0, "repeat_accuracy": 0.2})
    assert note in found.provenance.notes
    if are_read:
        assert len(circuits_of(subject).layers) == 2
    else:
        with pytest.raises(UnsupportedModel) as raised:
            circuits_of(subject)
        assert f"; {note}, which may be why. " in str(raised.value)


# What is checked of packed weights


class Packed(nn.Module):
    """A linear map whose weights are bytes and a scale; `forward` alone knows what they mean."""

    def __init__(self, given, made):
        super().__init__()
        self.in_features, self.out_features = given, made
        self.register_buffer("bytes", torch.randint(-127, 128, (made, given)).to(torch.int8))
        self.register_buffer("scale", torch.rand(made) / 100)
        self.bias = nn.Parameter(torch.randn(made))

    def forward(self, given):
        return given @ (self.bytes.float() * self.scale[:, None]).T + self.bias


def test_packed_weights_are_read_from_products():
    part = Packed(6, 4)
    found = affine_of(part)
    torch.testing.assert_close(found.weight, (part.bytes.float() * part.scale[:, None]).T)
    torch.testing.assert_close(found.bias, part.bias.detach())
    assert is_linear(part) and not is_linear(nn.Sequential(part)) and affine_of(nn.LayerNorm(3)) is None


class InHalf(Packed):
    """Its kernel takes bfloat16 and nothing else, though the scale is kept in float32."""

    def forward(self, given):
        if given.dtype != torch.bfloat16:
            raise RuntimeError("only bfloat16")
        return super().forward(given.float()).bfloat16()


def test_a_kernel_is_given_the_type_that_it_takes():
    part = InHalf(6, 4)
    torch.testing.assert_close(affine_of(part).weight, (part.bytes.float() * part.scale[:, None]).T, atol=0.02, rtol=0)


def test_what_takes_something_else_is_no_linear_map():
    part = Packed(6, 4)
    part.forward = lambda one, other: one + other
    assert affine_of(part) is None


class OfTransformers(nn.Module):
    """As one whose weights transformers keeps packed."""

    hf_quantizer = object()

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.config = type("Config", (), {"quantization_config": SETTINGS["GPTQ (4 bits)"]})()


def test_a_type_that_packed_weights_do_not_compute_in_is_refused(monkeypatch):
    """They cannot be turned into it, and a verdict would be about another model than it says."""
    module = OfTransformers()
    monkeypatch.setattr(load, "_load", lambda *given, **options: load.Loaded(module))
    monkeypatch.setattr(load, "check_spec", lambda spec: None)
    assert load.load_module("it").module is module and load.load_module("it", dtype="float32").module is module
    with pytest.raises(ModelError) as raised:
        load.load_module("it", dtype="bfloat16")
    wanted = "'it' has weights quantised by GPTQ (4 bits) and computes in float32, not bfloat16: leave the dtype out"
    assert str(raised.value) == wanted


def test_what_is_stored_of_packed_weights_must_fit_into_memory(monkeypatch):
    monkeypatch.setattr(bounds, "_memory", lambda: 1000)
    bounds.check_size(lambda: nn.Linear(20, 20), "it", stored=900, config={"quantization_config": {"bits": 4}})
    with pytest.raises(ModelError, match="1100 bytes, and this machine has 1000"):
        bounds.check_size(lambda: nn.Linear(20, 20), "it", stored=1100, config={"quantization_config": {"bits": 4}})
