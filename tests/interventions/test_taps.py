"""Convolution taps that are cut: against convolutions by hand, and everything is put back."""

import copy

import pytest
import torch
from torch import nn

from pytest_induction import load_model
from pytest_induction.errors import ArgumentError, UnsupportedModel
from pytest_induction.interventions import ablate, cut_taps, intervene, run_with
from pytest_induction.interventions.taps import taps_of
from tests.known_mixers import TINY, KnownRecall

TOKENS = torch.arange(1, 13)[None]


class Convolved(nn.Module):
    """A causal convolution between an embedding and logits."""

    def __init__(self, *, dilation=1, groups=6):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 6), nn.Linear(6, 20)
        self.conv = nn.Conv1d(6, 6, 4, groups=groups, dilation=dilation, padding=3 * dilation)

    def forward(self, input_ids):
        given = self.embed(input_ids).mT
        return self.out(self.conv(given)[..., : given.shape[-1]].mT)


def by_hand(model, without):
    """Loops over positions, channels and lags, one of which is left out."""
    conv, given = model.conv, model.embed(TOKENS)[0]
    per_group, size = conv.in_channels // conv.groups, conv.kernel_size[0]
    rows = torch.zeros(len(given), 6)
    for place in range(len(given)):
        for out in range(6):
            total = conv.bias[out]
            for back in range(size):
                lag = back * conv.dilation[0]
                if lag == without or place < lag:
                    continue
                for channel in range(per_group):
                    source = out // (6 // conv.groups) * per_group + channel
                    total = total + conv.weight[out, channel, size - 1 - back] * given[place - lag, source]
            rows[place, out] = total
    return model.out(rows)


@pytest.mark.parametrize(("dilation", "groups"), [(1, 6), (2, 6), (1, 2)])
@pytest.mark.parametrize("back", [0, 1, 3])
def test_a_cut_tap_is_a_convolution_without_it(dilation, groups, back):
    torch.manual_seed(0)
    model = Convolved(dilation=dilation, groups=groups)
    with torch.no_grad():
        expected, whole = by_hand(model, back * dilation), by_hand(model, None)
        found = run_with(model, TOKENS, cut_taps(back * dilation))[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-3)


def tiny(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(**TINY, state_size=4, initializer_range=0.5))
    own = {"attention_hidden_size": 16, "intermediate_size": 32, "context_length": 32}
    return transformers.RwkvForCausalLM(transformers.RwkvConfig(**TINY, **own)).apply(spread)


def spread(part):
    """Weights that make a shift matter."""
    for name, weight in part.named_parameters(recurse=False):
        if name.startswith("time_mix"):
            weight.data.uniform_(0.2, 0.8)
        elif weight.ndim == 2:
            weight.data.normal_(0, 0.5)


def test_a_convolution_that_is_called_as_a_function_is_cut_too():
    """Mamba takes the weight of its convolution and not the module; the reference is a copy whose weight is 0 there."""
    model = tiny("mamba")
    other = copy.deepcopy(model)
    for layer in other.backbone.layers:
        layer.mixer.conv1d.weight.data[..., -2] = 0
    assert {tap.lag for tap in taps_of(model)} == {0, 1, 2, 3}
    with torch.no_grad():
        found, expected, whole = run_with(model, TOKENS, cut_taps(1)), other.eval()(TOKENS).logits, model.eval()(TOKENS).logits
    assert torch.equal(found, expected) and not torch.allclose(found, whole, atol=1e-3)


def test_the_shift_of_rwkv_is_a_tap():
    """Without it every token is mixed with nothing: a copy whose embedding of what is shifted is 0, by its own shares of 1."""
    model = tiny("rwkv")
    other = copy.deepcopy(model)
    for name, part in other.named_modules():
        if isinstance(part, nn.ZeroPad2d):
            other.get_submodule(name.rpartition(".")[0]).time_shift = Nothing()
    assert [tap.lag for tap in taps_of(model)] == [1] * 4
    with torch.no_grad():
        found, expected, whole = run_with(model, TOKENS, cut_taps(1)), other.eval()(TOKENS).logits, model.eval()(TOKENS).logits
    assert torch.equal(found, expected) and not torch.allclose(found, whole, atol=1e-3)


class Nothing(nn.Module):
    def forward(self, shifted):
        return 0 * shifted


def test_weights_are_put_back_whatever_happens():
    model = KnownRecall()
    own = model.blocks[0].mixer.conv1d.weight
    before = own.clone()

    def use():
        assert model.blocks[0].mixer.conv1d.weight is not own
        assert not model.blocks[0].mixer.conv1d.weight.any()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), intervene(model, cut_taps(1), cut_taps(2)):
        use()
    assert model.blocks[0].mixer.conv1d.weight is own and torch.equal(own, before)
    assert own.requires_grad


def test_only_the_named_modules_are_cut():
    model = tiny("mamba")
    first = "backbone.layers.0.mixer.conv1d"
    other = copy.deepcopy(model)
    other.get_submodule(first).weight.data[..., -2] = 0
    with torch.no_grad():
        assert torch.equal(run_with(model, TOKENS, cut_taps(1, first)), other.eval()(TOKENS).logits)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda: cut_taps(7), r"`lag` must be one of the model's convolution taps \(0, 1, 2\), got 7"),
        (
            lambda: cut_taps(1, "blocks.9"),
            r"`modules` must name convolutions of the model, blocks.0.mixer.conv1d, got 'blocks.9'",
        ),
        (lambda: cut_taps(-1), "`lag`"),
    ],
)
def test_what_is_not_there_is_one_line(wrong, line):
    with pytest.raises(ArgumentError, match=line), intervene(KnownRecall(), wrong()):
        raise AssertionError  # not reached


def test_a_weight_that_is_computed_is_refused():
    model = Convolved()
    nn.utils.parametrizations.weight_norm(model.conv)
    with pytest.raises(UnsupportedModel, match="computed from others"), intervene(model, cut_taps(1)):
        raise AssertionError  # not reached


def test_other_interventions_still_need_heads_that_are_read():
    subject = load_model(KnownRecall())
    with pytest.raises(UnsupportedModel), intervene(subject, ablate("L0H0"), cut_taps(1)) as changed:
        changed.logits(TOKENS)
