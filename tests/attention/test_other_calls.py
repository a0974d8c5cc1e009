"""Calls of attention and softmax that are no layer of their own, and layers made of several: measured right, or refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right

from pytest_induction import assert_no_induction_head, load_model, measure_heads
from pytest_induction.attention.backends.exposed import expose_attention
from pytest_induction.errors import UnsupportedModel
from tests.attention.recorded import Positioned, assert_right, causal, probe, triangle, true_patterns
from tests.attention.test_hand_written import Attention, Blocks, by_function, fused, scores_of
from tests.attention.test_torch_modules import OfModules, projections

LENGTHS = [10, 11, 37, 64, 77]  # among them those on which a model is tried out


def stopping(model, stops):
    """The model under test, whose passes end after the last layer or go on."""
    subject = load_model(model)
    assert subject.backend.can_stop
    subject.backend.can_stop = stops
    return subject


# Beside the layers


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_cross_attention_is_no_layer_however_long_its_memory(length, stops):
    """A decoder's attention to a memory that is as long as the probe leaves the scores of its self-attention right."""
    memory = torch.randn(1, length, 32)
    layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), 2)
    model = OfModules(layers, lambda body, x, mask: body(x, memory.expand(len(x), -1, -1), tgt_mask=mask)).eval()
    subject, tokens = stopping(model, stops), probe(length, period=min(16, length // 2))
    assert subject.backend.layers == ("body.layers.0.self_attn", "body.layers.1.self_attn")
    assert_right(subject, tokens, patterns=projections(model, tokens))


class Routed(Positioned):
    """A soft mixture of experts behind every layer, whose softmax is as wide as there are experts."""

    def __init__(self, experts, attend):
        super().__init__(Attention(attend), Attention(attend))
        self.router, self.experts = nn.Linear(16, experts), nn.Parameter(torch.randn(experts, 16) / 4)

    def through(self, x):
        for block in self.blocks:
            x = x + block["mixer"](x)
            x = x + self.router(x).softmax(-1) @ self.experts
        return x


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("attend", [fused, by_function])
@pytest.mark.parametrize("experts", [11, 37, 64])
def test_a_router_over_as_many_experts_as_positions_is_no_layer(experts, attend, stops):
    """Its weights (rows, positions, experts) look like a pattern at one length only."""
    subject = stopping(Routed(experts, attend), stops)
    assert subject.backend.layers == ("blocks.0.mixer", "blocks.1.mixer")
    assert_right(subject, probe(experts, period=min(16, experts // 2)))


# No layers


def padded_to_sixteen(query, key, value):
    parts = (F.pad(part, (0, 0, 0, -part.shape[2] % 16)) for part in (query, key, value))
    return fused(*parts)[:, :, : query.shape[2]]


def keys_padded(query, key, value):
    mask = F.pad(triangle(query.shape[2]), (0, 1))
    return F.scaled_dot_product_attention(query, F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1)), mask)


def every_other(query, key, value):
    half = fused(*(part[:, :, 1::2] for part in (query, key, value))).repeat_interleave(2, 2)
    return F.pad(half, (0, 0, 1, 1))[:, :, : query.shape[2]]


def heads_first(attend):
    return lambda *parts: attend(*(part.transpose(0, 1) for part in parts)).transpose(0, 1)


def row_by_row(query, key, value):
    rows = zip(query, key, value, strict=True)
    return torch.stack([fused(*parts) for parts in rows])


FOLLOWS = r"`blocks.0.mixer` attends from {} positions to {} keys, which follow the number of positions"


@pytest.mark.parametrize(
    ("attend", "why"),
    [
        (keys_padded, FOLLOWS.format(11, 12)),
        (every_other, FOLLOWS.format(5, 5)),
        (heads_first(fused), FOLLOWS.format(11, 11)),
        (row_by_row, FOLLOWS.format(11, 11)),
    ],
    ids=["keys padded", "half", "heads first", "rows"],
)
def test_calls_over_other_than_rows_heads_and_positions_are_refused(attend, why):
    """Padded keys, pooled positions, heads before rows, a call for each row: what was seen is told."""
    with pytest.raises(UnsupportedModel, match=why):
        measure_heads(Positioned(Attention(attend), Attention(attend)))
    with pytest.raises(UnsupportedModel, match="which follow the number of positions"):
        measure_heads(Positioned(Attention(fused), Attention(attend)))


class Mapped(Blocks):
    """Runs each row by itself, as `torch.func.vmap` does."""

    def forward(self, tokens):
        return torch.func.vmap(lambda row: super(Mapped, self).forward(row[None])[0])(tokens)


class Shared(nn.Module):
    """One pattern for all rows, which no token has a part in."""

    def __init__(self):
        super().__init__()
        self.scores, self.value = nn.Parameter(torch.randn(4, 160, 160)), nn.Linear(16, 16)

    def forward(self, x):
        positions = x.shape[1]
        scores = self.scores[:, :positions, :positions].masked_fill(~triangle(positions), -torch.inf)
        return (scores.softmax(-1) @ self.value(x).unflatten(-1, (4, 4)).transpose(1, 2)).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize("model", [lambda: Mapped(Attention(by_function)), lambda: Positioned(Shared())], ids=["vmap", "shared"])
def test_patterns_without_rows_of_their_own_are_refused(model):
    """A model that is mapped over its rows, and a pattern that they share."""
    with pytest.raises(UnsupportedModel, match="attends from 11 positions to 11 keys, which follow the number of positions"):
        measure_heads(model())


class Rolled(Positioned):
    """Puts the last row first, and back."""

    def through(self, x):
        return super().through(x.roll(1, 0)).roll(-1, 0)


class Reversed(Positioned):
    def through(self, x):
        return super().through(x.flip(0)).flip(0)


@pytest.mark.parametrize("kind", [Rolled, Reversed])
@pytest.mark.parametrize("attend", [fused, by_function])
def test_rows_in_another_order_are_refused(attend, kind):
    """Every row must be given its own scores, whatever rows are beside it."""
    with pytest.raises(
        UnsupportedModel, match="attention of layer 0 has rows and heads in another order than rows first, or other"
    ):
        measure_heads(kind(Attention(attend), Attention(attend)))


def difference(query, key, value):
    """Attention in two halves of each head, one subtracted from the other."""
    (one, other), (to_one, to_other) = query.chunk(2, -1), key.chunk(2, -1)
    return fused(one, to_one, value) - 0.5 * fused(other, to_other, value)


def difference_by_hand(query, key, value):
    (one, other), (to_one, to_other) = query.chunk(2, -1), key.chunk(2, -1)
    return by_function(one, to_one, value) - 0.5 * by_function(other, to_other, value)


class Mixer(Attention):
    """Attention by another name."""


class Core(nn.Module):
    def forward(self, query, key, value):
        return fused(query, key, value)


class ByCore(Attention):
    """Leaves it to a module of its own to attend, twice."""

    def __init__(self):
        super().__init__(self.twice)
        self.core = Core()

    def twice(self, query, key, value):
        return self.core(query, key, value) - 0.5 * self.core(query.flip(-1), key, value)


@pytest.mark.parametrize(
    ("mixer", "where"),
    [
        (lambda: Attention(difference), "blocks.0.mixer.0"),
        (lambda: Mixer(difference), "blocks.0.mixer.0"),
        (lambda: Mixer(difference_by_hand), "blocks.0.mixer.0"),
        (ByCore, "blocks.0.mixer.0.core"),
    ],
)
def test_the_difference_of_two_attentions_is_refused(mixer, where):
    """Whatever the module is called, and whether it or a part of it attends twice."""
    with pytest.raises(UnsupportedModel, match=f"`{where}` makes 2 attention calls in one pass, so none of them is its pattern"):
        measure_heads(Positioned(nn.Sequential(mixer())))


def test_the_difference_of_two_attentions_is_refused_outside_of_any_block():
    """What tells it from two layers in one module is that both attend to the same values."""
    with pytest.raises(UnsupportedModel, match=r"`blocks.0.mixer` attends to the same values twice"):
        measure_heads(Positioned(Mixer(difference)))


# Masks and scales


def with_a_causal_bias(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, causal_lower_right(query.shape[2], key.shape[2]))


def turned_round(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, triangle(query.shape[2]), scale=-0.3)


def one_key_less(positions):
    """Numbers (1, 1, 1, positions) to add for each key."""
    return torch.where(torch.arange(positions) == 3, -2.0, 0.0)[None, None, None]


def with_a_mask_of_keys(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, one_key_less(query.shape[2]), is_causal=True)


def shown_with_a_mask_of_keys(query, key, value):
    expose_attention(query=query, key=key, mask=one_key_less(query.shape[2]))
    return with_a_mask_of_keys(query, key, value)


@pytest.mark.parametrize(
    ("attend", "truth"),
    [
        (with_a_causal_bias, causal),
        (turned_round, lambda query, key: causal(query, key, scale=-0.3)),
        (with_a_mask_of_keys, lambda query, key: causal(query, key, added=one_key_less(query.shape[2]))),
        (shown_with_a_mask_of_keys, lambda query, key: causal(query, key, added=one_key_less(query.shape[2]))),
    ],
    ids=["causal_lower_right", "negative scale", "mask of keys", "mask of keys, shown"],
)
def test_rare_masks_and_scales_are_read_for_what_they_are(attend, truth):
    """The scores are those of the pattern that the call computes."""
    assert_right(Positioned(Attention(attend), Attention(attend)), truth=truth)


# One layer, several modules


class Head(nn.Module):
    """One head, as teaching code writes it."""

    def __init__(self, attend):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 8, bias=False) for _ in range(3))
        self.drop, self.attend = nn.Dropout(0.2), attend

    def forward(self, x):
        return self.attend(*(part(x)[:, None] for part in (self.query, self.key, self.value)))[:, 0]


class Heads(nn.Module):
    """A layer made of one module for each of its heads."""

    def __init__(self, count=2, attend=by_function):
        super().__init__()
        self.heads = nn.ModuleList(Head(attend) for _ in range(count))
        self.out = nn.Linear(8 * count, 16)

    def forward(self, x):
        return self.out(torch.cat([head(x) for head in self.heads], -1))


def three_axes(query, key, value):
    """Without an axis for the one head."""
    return (scores_of(query[:, 0], key[:, 0]).softmax(-1) @ value[:, 0])[:, None]


@pytest.mark.parametrize("declared", [None, 2])
@pytest.mark.parametrize("attend", [by_function, three_axes, fused])
def test_one_module_for_each_head_makes_one_layer(attend, declared):
    """The heads of a layer are numbered as they come, and the layer is called after their list."""
    model = Positioned(Heads(2, attend), Heads(3, attend), declared=declared)
    subject = load_model(model)
    assert subject.backend.layers == ("blocks.0.mixer.heads", "blocks.1.mixer.heads")
    assert subject.backend.heads == (2, 3)
    single = true_patterns(model, probe())
    assert_right(subject, patterns=[torch.cat(single[:2], 1), torch.cat(single[2:], 1)])


def test_an_assertion_speaks_of_the_joined_layers():
    """Each head is told by its layer and number, and there are as many as the model has."""
    model = Positioned(Heads(2), Heads(2), declared=2)
    evidence = assert_no_induction_head(model)
    assert evidence.provenance.layers == ("blocks.0.mixer.heads", "blocks.1.mixer.heads")
    assert (evidence.provenance.n_layers, evidence.provenance.n_heads) == (2, 2)
    told = {(head.layer, head.head) for head in (*evidence.heads, *evidence.nearest)}
    assert told and told <= set(np.ndindex(2, 2))


class Twice(nn.Module):
    """Two attentions, one after the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(fused), Attention(fused)

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


def test_two_attentions_in_one_block_are_two_layers():
    """They are not joined, and are too many where the model declares its blocks only."""
    subject = load_model(Positioned(Twice(), Twice()))
    assert subject.backend.layers == tuple(f"blocks.{block}.mixer.{name}" for block in (0, 1) for name in ("first", "second"))
    assert_right(subject)
    with pytest.raises(UnsupportedModel, match="attention seen 4 times, the model declares 2 layers"):
        measure_heads(Positioned(Twice(), Twice(), declared=2))
