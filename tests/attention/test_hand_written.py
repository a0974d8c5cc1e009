"""Attention that is written by hand: its softmax is the pattern, if nothing comes between it and the values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import UnsupportedModel
from tests.model.plain import Plain


def scores_of(query, key):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)


def by_function(query, key, value):
    return F.softmax(scores_of(query, key), dim=-1) @ value


def by_method(query, key, value):
    return torch.matmul(scores_of(query, key).softmax(-1), value)


def by_torch(query, key, value):
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores_of(query, key), dim=-1), value)


def by_module(query, key, value):
    return nn.Softmax(-1)(scores_of(query, key)) @ value


def in_double(query, key, value):
    return F.softmax(scores_of(query, key), dim=-1, dtype=torch.float64).to(value.dtype) @ value


def with_dropout(query, key, value):
    return F.dropout(F.softmax(scores_of(query, key), dim=-1), 0.1, training=False) @ value


def folded(query, key, value):
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    return torch.bmm(scores_of(query, key).softmax(-1), value).unflatten(0, (-1, 2))


def grouped(query, key, value):
    query, key, value = query.unflatten(1, (1, 2)), key[:, :1, None], value[:, :1, None]
    return (scores_of(query, key).softmax(-1) @ value).flatten(1, 2)


def one_by_hand(query, key, value):
    """Mixed with the attention function, in one model."""
    return (
        by_function(query, key, value)
        if query[0, 0, 0, 0] > 0
        else F.scaled_dot_product_attention(query, key, value, is_causal=True)
    )


def folded_function(query, key, value):
    parts = (part.flatten(0, 1) for part in (query, key, value))
    return F.scaled_dot_product_attention(*parts, is_causal=True).unflatten(0, (-1, 2))


def plain(attend):
    torch.manual_seed(2)
    model = Plain(attend)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return model


@pytest.mark.parametrize(
    "attend", [by_function, by_method, by_torch, by_module, in_double, with_dropout, folded, one_by_hand, folded_function]
)
def test_however_it_is_written_it_is_measured(attend):
    """The scores are those of the same model with the attention function."""
    found = measure_heads(plain(attend))
    np.testing.assert_allclose(found.prefix_matching, measure_heads(plain(None)).prefix_matching, atol=1e-6)
    np.testing.assert_allclose(found.previous_token, measure_heads(plain(None)).previous_token, atol=1e-6)
    assert found.provenance.backend == ("sdpa" if attend is folded_function else "softmax")


def test_grouped_queries_by_hand_are_measured():
    """Patterns with an axis for the group."""

    def by_attention_function(query, key, value):
        return F.scaled_dot_product_attention(query, key[:, :1], value[:, :1], is_causal=True, enable_gqa=True)

    found = measure_heads(plain(grouped))
    np.testing.assert_allclose(found.first_token, measure_heads(plain(by_attention_function)).first_token, atol=1e-6)


def difference(query, key, value):
    scores = scores_of(query, key)
    return (scores.softmax(-1) - 0.5 * (2 * scores).softmax(-1)) @ value


def strongest_only(query, key, value):
    pattern = scores_of(query, key).softmax(-1)
    return pattern.masked_fill(pattern < pattern.amax(-1, keepdim=True), 0) @ value


def mixed_heads(query, key, value):
    return torch.einsum("gh,bhqk->bgqk", torch.tensor([[0.5, 0.5], [0.2, 0.8]]), scores_of(query, key).softmax(-1)) @ value


def unused(query, key, value):
    scores_of(query, key).softmax(-1)
    return value


@pytest.mark.parametrize(
    ("attend", "why"),
    [
        (difference, r"4 softmax calls over \(positions x positions\), of which 4 are changed by `(sub|mul|__rmul__)`"),
        (strongest_only, r"changed by `"),
        (unused, "used nowhere"),
    ],
)
def test_a_softmax_that_is_not_the_pattern_is_refused_by_name(attend, why):
    """What is changed before it weighs the values is not the pattern, and what is done to it is said."""
    with pytest.raises(UnsupportedModel, match=why):
        measure_heads(plain(attend))


def test_an_attention_function_with_rows_and_heads_swapped_is_refused():
    """Which of the two on one axis is which can be tried out, and is."""

    def swapped(query, key, value):
        parts = (part.transpose(0, 1).flatten(0, 1) for part in (query, key, value))
        return F.scaled_dot_product_attention(*parts, is_causal=True).unflatten(0, (2, -1)).transpose(0, 1)

    with pytest.raises(UnsupportedModel, match="sdpa: attention of layer 0 has rows and heads in another order"):
        measure_heads(plain(swapped))


class Blocks(nn.Module):
    """Blocks whose mixer is given: a module that takes (batch, positions, width)."""

    def __init__(self, *mixing_modules, declared=None):
        super().__init__()
        self.embed, self.out = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.blocks = nn.ModuleList(nn.ModuleDict({"mixer": mixer}) for mixer in mixing_modules)
        if declared is not None:
            self.n_layers = declared

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block["mixer"](x)
        return self.out(x)


class Attention(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.qkv, self.attend = nn.Linear(16, 48), attend

    def forward(self, x):
        heads = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.attend(*heads).transpose(1, 2).flatten(-2)


class Recurrence(nn.Module):
    """A running mean: mixes positions, without any pattern."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 16)

    def forward(self, x):
        return self.gate(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class LinearAttention(Recurrence):
    pass


def fused(*parts):
    return F.scaled_dot_product_attention(*parts, is_causal=True)


def hidden(query, key, value):
    """Attention that no function shows."""
    weights = scores_of(query, key).exp()
    return weights @ value / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("other", [Recurrence, LinearAttention])
@pytest.mark.parametrize("declared", [3, None])
def test_a_hybrid_is_measured_where_it_attends_and_says_where(other, declared):
    """Layers are named by module path; those without attention are listed where the model declares them."""
    subject = load_model(Blocks(other(), Attention(fused), other(), declared=declared))
    assert subject.backend.layers == ("blocks.1.mixer",)
    others = "layers without softmax attention: blocks.0, blocks.2"
    assert (others in subject.notes) is (declared is not None)
    assert measure_heads(subject).layers == ("blocks.1.mixer",)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            lambda: Blocks(Attention(fused), Attention(hidden)),
            r"information moves between positions in `blocks.1.mixer` \(Attention\) too, where no attention is seen",
        ),
        (lambda: Blocks(Attention(fused), Recurrence(), declared=5), "attention of 1 layers seen, the model declares 5"),
        (lambda: Blocks(Attention(fused), Attention(fused), declared=1), "attention seen 2 times, the model declares 1 layers"),
        (lambda: Blocks(Attention(lambda *parts: fused(*parts) - fused(*parts) / 2)), "makes 2 attention calls in one pass"),
    ],
)
def test_a_layer_that_attends_unseen_is_never_left_out(model, why):
    """An attention module that shows nothing, a block built like one that does, and wrong counts are refused."""
    with pytest.raises(UnsupportedModel, match=why):
        measure_heads(model())


class MaskedAttention(Attention):
    """Its name says what it is, and not what it does without."""


def test_what_an_attention_is_called_besides_does_not_excuse_it():
    """A mask that follows attention is none; an attention that is masked is one."""
    with pytest.raises(UnsupportedModel, match=r"in `blocks.1.mixer` \(MaskedAttention\) too"):
        measure_heads(Blocks(Attention(fused), MaskedAttention(hidden)))


def test_a_block_built_like_one_that_attends_must_attend():
    """Also where nothing about it is called attention."""

    class Mixer(Attention):
        pass

    with pytest.raises(UnsupportedModel, match=r"in `blocks.1.mixer` \(Mixer\) too"):
        measure_heads(Blocks(Mixer(fused), Mixer(hidden)))


def test_layers_may_differ_in_their_number_of_heads():
    """What a layer does not have is no number, in the scores and in no verdict."""

    class Wide(Attention):
        def forward(self, x):
            heads = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            return self.attend(*heads).transpose(1, 2).flatten(-2)

    model = Blocks(Attention(fused), Wide(fused))
    found = measure_heads(model)
    assert np.isnan(found.prefix_matching).tolist() == [[False, False, True, True], [False] * 4]
    assert found.to_dict()["prefix_matching"][0][2:] == [None, None]
    from pytest_induction import assert_no_induction_head

    evidence = assert_no_induction_head(model)
    assert all(np.isfinite(head.prefix_matching.value) for head in evidence.nearest)
