"""Attention functions that are a user's own, and code of the user's around a model: measured right, or refused by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import ModelError, UnsupportedModel
from tests.attention.recorded import Positioned, assert_right, probe, triangle
from tests.attention.test_hand_written import Attention, fused, scores_of
from tests.model.zoo import build

# torch's function, replaced


def the_same(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    allowed = triangle(query.shape[2]) if is_causal else attn_mask
    return (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~allowed, -torch.inf).softmax(-1) @ value


def windowed(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    window = triangle(query.shape[2]).triu(-3)
    return scores_of(query, key).masked_fill(~window, -torch.inf).softmax(-1) @ value


def test_a_replaced_attention_function_that_computes_the_same_is_measured(monkeypatch):
    """What a user's function gives is compared with softmax attention, and is the function's own afterwards."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", the_same)
    assert_right(Positioned(Attention(fused), Attention(fused)))
    assert F.scaled_dot_product_attention is the_same


def test_a_replaced_attention_function_that_computes_something_else_is_refused_by_name(monkeypatch):
    """A window that no argument tells of; the same model without the replacement is measured afterwards."""
    model = Positioned(Attention(fused), Attention(fused))
    with monkeypatch.context() as replaced:
        replaced.setattr(F, "scaled_dot_product_attention", windowed)
        with pytest.raises(UnsupportedModel, match="scaled_dot_product_attention was replaced by `windowed`, which computes som"):
            measure_heads(model)
    assert_right(model)


def positions_first(query, key, value, *rest, **options):
    return the_same(*(part.transpose(1, 2) for part in (query, key, value)), is_causal=True).transpose(1, 2)


def test_a_replaced_attention_function_of_another_layout_is_measured_by_what_it_computes(monkeypatch):
    """Its calls are no attention that is known; the softmax in it is."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", positions_first)

    def attend(*heads):
        return F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in heads)).transpose(1, 2)

    assert load_model(Positioned(Attention(attend))).backend.name == "softmax"
    assert_right(Positioned(Attention(attend), Attention(attend)))


# A function in transformers' table


def normalised(weights):
    return weights / weights.sum(-1, keepdim=True)


def softmax_under(allowed, scores):
    """Without torch's softmax, which would be seen."""
    return normalised((scores - scores.amax(-1, keepdim=True)).exp() * allowed)


CHANGES = {
    "window": lambda scores, allowed: softmax_under(allowed & allowed.mT.tril(3), scores),
    "temperature": lambda scores, allowed: softmax_under(allowed, scores / 3),
    "sigmoid": lambda scores, allowed: torch.sigmoid(scores) * allowed,
    "soft cap": lambda scores, allowed: softmax_under(allowed, 2 * torch.tanh(scores / 2)),
    "off by one": lambda scores, allowed: (weights := scores.exp() * allowed) / (1 + weights.sum(-1, keepdim=True)),
    "squares": lambda scores, allowed: normalised((scores.square() + 0.1) * allowed),
}


@pytest.fixture
def registered(monkeypatch):
    """Registers an attention function that returns no weights, for one test; gives a Llama that uses it, and its patterns."""
    from transformers.modeling_utils import AttentionInterface

    def make(change, tokens):
        patterns = []

        def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **options):
            key, value = (part.repeat_interleave(module.num_key_value_groups, 1) for part in (key, value))
            pattern = change(query.double() @ key.double().mT * scaling, triangle(query.shape[2]))
            patterns.append(pattern)
            return (pattern.to(value.dtype) @ value).transpose(1, 2).contiguous(), None

        monkeypatch.setitem(AttentionInterface._global_mapping, "a_users_own", attend)
        model = build("llama", "a_users_own")
        with torch.no_grad():
            model(tokens, use_cache=False)
        assert len(patterns) == len(model.model.layers)
        return model, tuple(patterns)

    return make


def test_a_registered_function_that_is_softmax_attention_is_measured(registered):
    """It returns no weights, and its output is that of its queries and keys."""
    tokens = probe(period=12)
    model, patterns = registered(lambda scores, allowed: softmax_under(allowed, scores), tokens)
    subject = load_model(model)
    assert subject.backend.name == "transformers attention interface"
    assert_right(subject, tokens, patterns=patterns)


def test_a_registered_function_whose_softmax_is_seen_is_measured_whatever_it_does_before(registered):
    """A window and a temperature before torch's own softmax are in the pattern that is read."""
    tokens = probe(period=12)

    def change(scores, allowed):
        return (scores / 2).masked_fill(~allowed.triu(-20), -torch.inf).softmax(-1)

    model, patterns = registered(change, tokens)
    subject = load_model(model)
    assert subject.backend.name == "softmax"
    assert_right(subject, tokens, patterns=patterns)


@pytest.mark.parametrize("change", CHANGES)
def test_a_registered_function_that_changes_the_scores_is_refused(registered, change):
    """Without weights only its output tells that it is no softmax of the scaled scores."""
    why = "transformers attention interface: attention without patterns whose output is not that of softmax attention"
    model, _ = registered(CHANGES[change], probe())
    with pytest.raises(UnsupportedModel, match=why):
        measure_heads(model)


# Code around a base model

REMAP = torch.randperm(40, generator=torch.Generator().manual_seed(3))


class Around(nn.Module):
    """Runs a `base_model` in a way of its own."""

    def __init__(self):
        super().__init__()
        self.base_model = Positioned(Attention(fused), Attention(fused))


class Remapped(Around):
    """Gives it other token ids."""

    def forward(self, tokens):
        return self.base_model(REMAP[tokens])


class Ablated(Around):
    """Silences its first layer."""

    def forward(self, tokens):
        handle = self.base_model.blocks[0]["mixer"].register_forward_hook(lambda module, inputs, output: output * 0)
        try:
            return self.base_model(tokens)
        finally:
            handle.remove()


@pytest.mark.parametrize("kind", [Remapped, Ablated])
def test_what_a_wrapper_does_around_its_base_model_is_measured(kind):
    """The scores are those of the whole, and not those of the base model by itself."""
    model = kind()
    assert_right(model)
    alone = measure_heads(model.base_model, tokens=probe()).prefix_matching
    assert np.abs(measure_heads(model, tokens=probe()).prefix_matching - alone).max() > 1e-3


def scaled(ids, model):
    return {"inputs_embeds": model.get_input_embeddings()(ids) * 2 + 0.5}


def remapped(ids, model):
    return {"input_ids": (ids * 7 + 3) % 61}


def in_a_subclass(model, change):
    class Subclass(type(model)):
        def forward(self, input_ids=None, **options):
            return super().forward(**{**options, **change(input_ids, self)})

    model.__class__ = Subclass


def in_a_hook(model, change):
    def before(module, inputs, options):
        ids = options.pop("input_ids")
        return inputs, options | change(ids, module)

    model.register_forward_pre_hook(before, with_kwargs=True)


def in_its_own_forward(model, change):
    former = model.forward
    model.forward = lambda input_ids=None, **options: former(**{**options, **change(input_ids, model)})


@pytest.mark.parametrize("change", [scaled, remapped])
@pytest.mark.parametrize("put", [in_a_subclass, in_a_hook, in_its_own_forward])
def test_what_a_user_does_around_a_transformers_model_is_measured(put, change):
    """A subclass, a hook and a replaced forward change what its layers see, and the scores are of what they see then."""
    tokens, model, twin = probe(period=12), build("llama"), build("llama", "eager")
    with torch.no_grad():
        patterns = twin(**change(tokens, twin), output_attentions=True, use_cache=False).attentions
    put(model, change)
    assert_right(model, tokens, patterns=[pattern.double() for pattern in patterns])
    assert (
        np.abs(measure_heads(model, tokens=tokens).prefix_matching - measure_heads(twin, tokens=tokens).prefix_matching).max()
        > 1e-3
    )


def test_a_precision_that_accelerate_sets_around_a_model_is_measured():
    """What it prepares for bfloat16 is scored as under autocast, and not as it would be without."""
    accelerate = pytest.importorskip("accelerate")
    tokens = probe(period=12)
    prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(build("llama"), evaluation_mode=True)
    found = measure_heads(prepared, tokens=tokens).prefix_matching
    exact = measure_heads(build("llama"), tokens=tokens).prefix_matching
    with torch.autocast("cpu", torch.bfloat16):
        lowered = measure_heads(build("llama"), tokens=tokens).prefix_matching
    assert np.abs(lowered - exact).max() > 1e-5
    np.testing.assert_array_equal(found, lowered)


# A pattern that is changed on its way to the values

MIX = torch.tensor([[0.5, 0.5], [0.2, 0.8]])


def pattern_of(query, key):
    return scores_of(query, key).softmax(-1)


def weighing(query, key, value):
    return pattern_of(query, key) @ value


def mixed_in_einsum(query, key, value):
    return torch.einsum("bhqk,hg,bgkd->bgqd", pattern_of(query, key), MIX, value)


def gated_in_einsum(query, key, value):
    return torch.einsum("bhqk,bhqk,bhkd->bhqd", pattern_of(query, key), torch.sigmoid(query @ key.mT), value)


def decaying_in_einsum(query, key, value):
    place = torch.arange(query.shape[2])
    return torch.einsum("bhqk,qk,bhkd->bhqd", pattern_of(query, key), (-0.2 * (place[:, None] - place).abs()).exp(), value)


def about_the_mean(query, key, value):
    pattern, place = pattern_of(query, key), torch.arange(query.shape[2]).float()
    return normalised(pattern * (-((place - pattern @ place[:, None]) ** 2) / 16).exp()) @ value


def multiplied(query, key, value):
    pattern = pattern_of(query, key)
    return pattern @ pattern @ value


def mixed_after_one_hot_values(query, key, value):
    one_hot = torch.eye(query.shape[2]).expand(*query.shape[:3], -1)
    return torch.einsum("bhqk,hg->bgqk", fused(query, key, one_hot), MIX) @ value


def strongest(count):
    def attend(query, key, value):
        pattern = pattern_of(query, key)
        least = pattern.topk(min(count, pattern.shape[-1]), -1).values[..., -1:]
        return pattern.masked_fill(pattern < least, 0.0) @ value

    return attend


def twice(query, key, value):
    pattern = pattern_of(query, key)
    return pattern @ (pattern @ value)


@pytest.mark.parametrize(
    ("attend", "why"),
    [
        (twice, "of which 1 are changed by `(__)?matmul"),
        (mixed_in_einsum, "1 softmax calls .* of which 1 are changed by `einsum`"),
        (gated_in_einsum, "of which 1 are changed by `einsum`"),
        (decaying_in_einsum, "of which 1 are changed by `einsum`"),
        (about_the_mean, "of which 1 are changed by `mul`"),
        (multiplied, "of which 1 are changed by `matmul`"),
        (mixed_after_one_hot_values, "attention to one-hot values: what comes out is the pattern itself"),
        (strongest(8), "of which 1 are changed by `masked_fill`"),
        (strongest(16), "of which 1 are changed by `masked_fill`"),
    ],
)
def test_a_pattern_that_is_changed_before_it_weighs_is_refused(attend, why):
    """In the product itself, after another product, or by what has no effect on the fewest tokens."""
    with pytest.raises(UnsupportedModel, match=why):
        measure_heads(Positioned(Attention(attend)))


@pytest.mark.parametrize("layers", [(strongest(40), weighing), (weighing, strongest(40))], ids=["first layer", "last layer"])
def test_a_change_that_shows_on_long_sequences_only_ends_the_measurement(layers):
    """Every pass is followed: the 40 strongest keys are all that a verification has, and not all that a probe has."""
    subject = load_model(Positioned(*map(Attention, layers)))
    assert subject.backend.can_stop
    assert_right(subject, probe(40))
    with pytest.raises(ModelError, match=r"Positioned failed on token ids \(3, 64\): .* of which 1 are changed by `masked_fill`"):
        measure_heads(subject, tokens=probe(64))


class MaskedLate(Positioned):
    """Takes padding out of the pattern, and not out of the scores, and makes its rows sum to one again."""

    def __init__(self):
        super().__init__(Attention(self.weigh), Attention(self.weigh))

    def weigh(self, query, key, value):
        return F.normalize(pattern_of(query, key).masked_fill(~self.allowed, 0.0), p=1, dim=-1) @ value

    def forward(self, tokens, attention_mask=None):
        mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
        itself = torch.eye(tokens.shape[1], dtype=torch.bool)
        self.allowed = mask[:, None, None, :].bool() | itself
        return super().forward(tokens)


def test_padding_that_is_masked_after_the_softmax_ends_the_measurement():
    """Without padding the pattern is the softmax and is measured; with padding it is another one."""
    subject, tokens = load_model(MaskedLate()), probe()
    assert_right(subject, tokens)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    with pytest.raises(ModelError, match=r"MaskedLate failed on token ids \(3, 48\): .* are changed by `masked_fill`"):
        measure_heads(subject, tokens=tokens, attention_mask=mask)
